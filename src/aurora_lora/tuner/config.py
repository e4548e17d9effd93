"""`AuroraConfig`: the settings of an AuroRA adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from peft.config import PeftConfig
from peft.utils import PeftType

from ..forms import CALIBRATED, DYNAMIC, STATIC, FormName, TrainForm
from ..ops.anl import ANL, Activation, Spline
from ..values import is_int, is_number, one_of, require
from .fields import ALPHA, MAX_RANK, MODULE_FIELDS, PATTERN_FIELDS, is_alpha, is_list_of, is_name, is_pattern
from .registration import METHOD

AS_GIVEN = "_calibrated_as_given"
"""The attribute in which a config remembers the `calibrated` that it was given: PEFT shares the object among models."""
InitWeights = Literal["identity", "paper", True, False]
Bias = Literal["none", "all", "aurora_only"]
_FORMS: tuple[FormName, ...] = get_args(FormName)
PAPER: dict[str, Any] = {
    "train_form": DYNAMIC,
    "eval_form": STATIC,
    "spline": "summed",
    "skip": False,
    "init_weights": "paper",
}
PAPER_DYNAMIC = {**PAPER, "eval_form": DYNAMIC}
PAPER_STATIC = {**PAPER, "train_form": STATIC}
"""The paper's settings of AuroRA, AuroRA-D and AuroRA-S (Table 7)."""


def scaling_divisor(r: int, rslora: bool) -> float:
    """What alpha is divided by, in the scaling s = alpha / r of LoRA and AuroRA: r, or sqrt(r) with `use_rslora`."""
    return math.sqrt(r) if rslora else r


@dataclass
class AuroraConfig(PeftConfig):
    """Configuration of AuroRA, `h = W0 x + s B sigma(A x)` with `s = alpha / r` (Eq. 4).

    Fields that PEFT's LoRA has too mean what they mean there.

    Args:
        r: rank. The paper's default is 2.
        alpha: the update is scaled by `alpha / r`.
        dropout: dropout probability on x before A.
        train_form: what `model.train()` computes: `"dynamic"`, `B sigma(A x)` (Eq. 4), or `"static"`,
            `B sigma(A) x` (Eq. 3, the paper's AuroRA-S).
        eval_form: what `model.eval()` computes and what merge and export produce: `"calibrated"`,
            `B A_cal x` with the best linear stand-in that `calibrate` finds; `"static"`, the paper's merge (Eq. 9); or
            `"dynamic"`, which cannot be merged. `None` is calibrated after dynamic training and static after static
            training. Until `calibrate` has run, the calibrated form computes the dynamic one and refuses to merge,
            unless B is 0, as at the start, where every form adds nothing.
        fixed_activation: the activation of Eq. 6: `"tanh"`, `"leaky_relu"`, `"sigmoid"`, `"relu"`.
            `None` leaves F out.
        spline: how Eq. 7 is read: `"channelwise"` or `"summed"`. `None` leaves L out. With
            `fixed_activation=None` as well, and with `skip`, sigma is the identity and the adapter plain LoRA.
        spline_grid_size: grid intervals on `spline_range`.
        spline_order: polynomial degree of the B-splines.
        spline_range: the interval of the grid.
        skip: `sigma(z) = z + F(z) + L(z)`, which starts as plain LoRA (ours). `False` is the paper's sigma.
        init_weights: `"identity"` (H = 0 and W_s = 0, so that sigma(z) = z, with a sigmoid plus 1/2; without `skip`,
            and with a ReLU, which has no gradient at 0, H = I and W_s = 0) or `"paper"` (H Xavier-normal,
            `W_s ~ U(-0.1, 0.1)`), both with `B = 0`; `False` makes B random too, so that the adapter is not a no-op.
            `True` is `"identity"`. Where the spline is all of sigma, `"identity"` starts with `L(z) = z` on
            `spline_range`, or, summed, with a random W_s as `"paper"`.
        use_rslora: scale by `alpha / sqrt(r)` instead.
        calibrated: whether the adapter carries calibrated matrices. Set by `calibrate`; by hand only to make room
            for those of a checkpoint that `torch.distributed.checkpoint` loads.
        target_modules: names, or a regular expression, of the modules to adapt;
            `"all-linear"` for every linear layer but the output. `None` takes PEFT's LoRA defaults for the
            architecture.
        exclude_modules: modules to leave out.
        modules_to_save: further modules that are trained whole and saved with the adapter.
        layers_to_transform: the layer indices to adapt.
        layers_pattern: the name of the list of layers, used with
            `layers_to_transform`.
        rank_pattern: rank for module names or regular expressions that differ from `r`.
        alpha_pattern: the same for `alpha`.
        trainable_token_indices: the tokens whose embedding vectors
            are trained too (of the input embedding, or by the name of the embedding), as in LoRA.
        target_parameters: refused: AuroRA adapts modules, not the bare parameters of
            mixture-of-experts layers.
        bias: `"none"`, `"all"` or `"aurora_only"`: which biases are trained.
        fan_in_fan_out: whether the layers store their weight as (d_in, d_out), as GPT-2's Conv1D does.

    Raises:
        ValueError: for a value that is not allowed; the message names the field, the value and what is allowed.
    """

    r: int = field(default=2, metadata={"help": "Rank."})
    alpha: float = field(default=4, metadata={"help": "The update is scaled by alpha / r."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout probability on x before A."})
    train_form: TrainForm = field(default=DYNAMIC, metadata={"help": "What train() computes: 'dynamic' or 'static'."})
    eval_form: FormName | None = field(
        default=None, metadata={"help": "What eval() computes: 'calibrated', 'static' or 'dynamic'; None to match."}
    )
    fixed_activation: Activation | None = field(
        default="tanh", metadata={"help": "Activation of Eq. 6; None leaves F out."}
    )
    spline: Spline | None = field(default="channelwise", metadata={"help": "Reading of Eq. 7; None leaves L out."})
    spline_grid_size: int = field(default=5, metadata={"help": "Grid intervals of the B-spline."})
    spline_order: int = field(default=3, metadata={"help": "Polynomial degree of the B-spline."})
    spline_range: tuple[float, float] = field(default=(-1.0, 1.0), metadata={"help": "Interval of the grid."})
    skip: bool = field(default=True, metadata={"help": "sigma(z) = z + F(z) + L(z)."})
    init_weights: InitWeights = field(default="identity", metadata={"help": "'identity', 'paper' or False."})
    use_rslora: bool = field(default=False, metadata={"help": "Scale by alpha / sqrt(r)."})
    calibrated: bool = field(default=False, metadata={"help": "Set by calibrate: the adapter has calibrated matrices."})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to adapt."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to leave out."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained and saved whole."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Layer indices to adapt."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the list of layers."})
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "Module name to rank."})
    alpha_pattern: dict[str, float] = field(default_factory=dict, metadata={"help": "Module name to alpha."})
    trainable_token_indices: list[int] | dict[str, list[int]] | None = field(
        default=None, metadata={"help": "Tokens whose embedding vectors are trained too."}
    )
    target_parameters: list[str] | None = field(default=None, metadata={"help": "Not supported: refused."})
    bias: Bias = field(default="none", metadata={"help": "Biases to train: 'none', 'all' or 'aurora_only'."})
    fan_in_fan_out: bool = field(default=False, metadata={"help": "Weights are stored as (d_in, d_out)."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType[METHOD.upper()]
        self.check()

    def check(self) -> None:
        """See that each field is what is allowed, as it may have been set since the config was made.

        Raises:
            ValueError: for one that is not; the message names the field, the value and what is allowed.
        """
        self._check_choices()
        self._check_numbers()
        self._check_names()
        self._check_patterns()
        self._check_together()
        self._as_in_a_file()

    def __getstate__(self) -> dict[str, Any]:
        """A copy is as it is given anew: it does not remember what the model of this one had set."""
        return {name: value for name, value in vars(self).items() if name != AS_GIVEN}

    def _as_in_a_file(self) -> None:
        """Plain types, so that what is saved reads back as itself; names of modules are sets, as in PEFT."""
        if self.init_weights is True:
            self.init_weights = "identity"
        for name in ("target_modules", "exclude_modules"):
            if is_list_of(is_name, given := getattr(self, name)):
                setattr(self, name, set(given))
        for name in ("modules_to_save", "layers_pattern"):
            if is_list_of(lambda _: True, given := getattr(self, name)):
                setattr(self, name, list(given))
        for name in ("r", "spline_grid_size", "spline_order", "layers_to_transform", "trainable_token_indices"):
            setattr(self, name, _whole(getattr(self, name)))
        self.rank_pattern = _whole(self.rank_pattern)
        self.alpha, self.dropout = _plain(self.alpha), _plain(self.dropout)
        self.alpha_pattern = {name: _plain(alpha) for name, alpha in self.alpha_pattern.items()}
        self.spline_range = (float(self.spline_range[0]), float(self.spline_range[1]))

    def _check_choices(self) -> None:
        one_of("train_form", self.train_form, get_args(TrainForm))
        one_of("eval_form", self.eval_form, (None, *_FORMS))
        one_of("init_weights", self.init_weights, get_args(InitWeights))
        one_of("bias", self.bias, get_args(Bias))
        for name in ("use_rslora", "calibrated", "fan_in_fan_out", "inference_mode"):
            one_of(name, getattr(self, name), (True, False))

    def _check_numbers(self) -> None:
        require(is_int(self.r, 1), "r", self.r, "a whole number of at least 1")
        require(is_int(self.r, 1, MAX_RANK), "r", self.r, f"a whole number of at most {MAX_RANK}")
        require(is_alpha(self.alpha), "alpha", self.alpha, ALPHA)
        require(is_number(self.dropout) and 0 <= self.dropout < 1, "dropout", self.dropout, "a number in [0, 1)")
        _ = self.anl  # which checks the fields of sigma

    def _check_names(self) -> None:
        """The fields that say which modules, layers and tokens."""
        for name, (accepts, allowed) in MODULE_FIELDS.items():
            given = getattr(self, name)
            require(given is None or accepts(given), name, given, f"{allowed}, or None")

    def _check_patterns(self) -> None:
        for name, (accepts, allowed) in PATTERN_FIELDS.items():
            given = getattr(self, name)
            require(isinstance(given, Mapping), name, given, "a dictionary by names of modules or regular expressions")
            for pattern, value in given.items():
                require(
                    is_pattern(pattern), name, given, f"by names or regular expressions, and {pattern!r} is neither"
                )
                require(accepts(value), f"{name}['{pattern}']", value, allowed)

    def _check_together(self) -> None:
        if self.target_parameters:
            raise ValueError(
                f"target_parameters={self.target_parameters!r} is not supported: AuroRA adapts modules "
                "(target_modules), not the bare parameters of a mixture of experts. Use LoraConfig for those."
            )
        if self.train_form == STATIC and self.eval_form not in (None, STATIC):
            raise ValueError(
                f"eval_form={self.eval_form!r} does not go with train_form='static': "
                "an adapter trained in the static form is evaluated and merged in it (allowed: None, 'static')."
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("When `layers_pattern` is specified, `layers_to_transform` must also be specified.")
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError("`layers_to_transform` cannot be used when `target_modules` is a str.")

    def to_dict(self) -> dict[str, Any]:
        """The config as a dictionary, with sets as sorted lists: two processes write the same bytes."""
        return {name: sorted(value) if isinstance(value, set) else value for name, value in super().to_dict().items()}

    @property
    def anl(self) -> ANL:
        """The parts of sigma, as the ops take them. Errors as those of the config."""
        return ANL(
            self.fixed_activation,
            self.spline,
            self.spline_grid_size,
            self.spline_order,
            self.spline_range,
            skip=self.skip,
        )

    @property
    def forms(self) -> tuple[FormName, ...]:
        """The forms that differ and can be evaluated: one after static training or for plain LoRA, else all three."""
        is_plain_lora = self.fixed_activation is None and self.spline is None
        return (STATIC,) if self.train_form == STATIC or is_plain_lora else _FORMS

    @property
    def resolved_eval_form(self) -> FormName:
        """What `eval()` computes and merge produces: the only form, or `eval_form`, or what `None` stands for.

        Raises:
            ValueError: `eval_form` was set to what is none.
        """
        if self.eval_form is not None and self.eval_form not in _FORMS:
            one_of("eval_form", self.eval_form, (None, *_FORMS))
        return STATIC if len(self.forms) == 1 else self.eval_form or CALIBRATED

    def scaling(self, r: int, alpha: float) -> float:
        """s = alpha / r, or alpha / sqrt(r) with `use_rslora`."""
        return alpha / scaling_divisor(r, self.use_rslora)

    @classmethod
    def paper(cls, **kwargs: Any) -> AuroraConfig:
        """The paper's AuroRA: trained dynamic, merged static (Table 7); Eq. 7 as printed; random H and W_s."""
        return cls(**{**PAPER, **kwargs})

    @classmethod
    def paper_dynamic(cls, **kwargs: Any) -> AuroraConfig:
        """The paper's AuroRA-D: trained and evaluated dynamic (Table 7). It cannot be merged."""
        return cls(**{**PAPER_DYNAMIC, **kwargs})

    @classmethod
    def paper_static(cls, **kwargs: Any) -> AuroraConfig:
        """The paper's AuroRA-S: trained and evaluated static (Table 7)."""
        return cls(**{**PAPER_STATIC, **kwargs})


def _plain(value: Any) -> Any:
    """An int or a float as it is, another kind of number as a float: JSON knows no fractions."""
    return value if type(value) in (int, float) else float(value)


def _whole(value: Any) -> Any:
    """A whole number of any kind, or a collection of such, with ints and lists."""
    if isinstance(value, Mapping):
        return {name: _whole(one) for name, one in value.items()}
    if is_list_of(lambda _: True, value):
        return [_whole(one) for one in value]
    return value if value is None else int(value)
