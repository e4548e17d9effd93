"""`AuroraConfig`: the settings of an AuroRA adapter."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from peft.config import PeftConfig
from peft.utils import PeftType

from ..forms import CALIBRATED, DYNAMIC, STATIC, FormName, TrainForm
from ..ops.anl import ANL, Activation, Spline
from ..values import MOST, is_int, is_number, one_of, require
from .registration import METHOD

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


MAX_RANK = 2**14
"""More is no low rank, and the r x r mixer of one layer alone has a gigabyte."""


def _is_pattern(value: Any) -> bool:
    try:
        re.compile(value)
    except (TypeError, re.error, OverflowError, RecursionError):
        return False
    return isinstance(value, str)


def _is_alpha(value: Any) -> bool:
    return is_number(value) and abs(value) <= MOST


RANK, ALPHA = f"a whole number of 1 to {MAX_RANK}", f"a finite number of at most {MOST:g}"


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
        fan_in_fan_out: whether layers store their weight as (d_in, d_out), as GPT-2's Conv1D does; set by the layers.

    Raises:
        ValueError: for a value that is not allowed; the message names the field, the value and what is allowed.
    """

    r: int = 2
    alpha: float = 4
    dropout: float = 0.0
    train_form: TrainForm = DYNAMIC
    eval_form: FormName | None = None
    fixed_activation: Activation | None = "tanh"
    spline: Spline | None = "channelwise"
    spline_grid_size: int = 5
    spline_order: int = 3
    spline_range: tuple[float, float] = (-1.0, 1.0)
    skip: bool = True
    init_weights: InitWeights = "identity"
    use_rslora: bool = False
    calibrated: bool = False
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    target_parameters: list[str] | None = None
    bias: Bias = "none"
    fan_in_fan_out: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType[METHOD.upper()]
        self.check()

    def check(self) -> None:
        """See that each field is what is allowed, and make it what it reads back as from a file.

        Raises:
            ValueError: for one that is not; the message names the field, the value and what is allowed.
        """
        one_of("train_form", self.train_form, get_args(TrainForm))
        one_of("eval_form", self.eval_form, (None, *_FORMS))
        one_of("init_weights", self.init_weights, get_args(InitWeights))
        one_of("bias", self.bias, get_args(Bias))
        for name in ("use_rslora", "calibrated", "fan_in_fan_out", "inference_mode"):
            one_of(name, getattr(self, name), (True, False))
        require(is_int(self.r, 1, MAX_RANK), "r", self.r, RANK)
        require(_is_alpha(self.alpha), "alpha", self.alpha, ALPHA)
        require(is_number(self.dropout) and 0 <= self.dropout < 1, "dropout", self.dropout, "a number in [0, 1)")
        _ = self.anl  # which checks the fields of sigma
        for name, accepts, allowed in (
            ("rank_pattern", lambda r: is_int(r, 1, MAX_RANK), RANK),
            ("alpha_pattern", _is_alpha, ALPHA),
        ):
            given = getattr(self, name)
            is_mapping = isinstance(given, Mapping) and all(map(_is_pattern, given))
            require(is_mapping, name, given, "a dictionary by names of modules or regular expressions")
            for pattern, value in given.items():
                require(accepts(value), f"{name}['{pattern}']", value, allowed)
        if self.target_parameters:
            raise ValueError(
                "target_parameters is not supported: AuroRA adapts modules (target_modules). Use LoraConfig."
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
        if self.init_weights is True:
            self.init_weights = "identity"
        for name in ("target_modules", "exclude_modules"):  # sets, as in PEFT
            if isinstance(given := getattr(self, name), list | tuple):
                setattr(self, name, set(given))
        self.r, self.rank_pattern = int(self.r), {name: int(r) for name, r in self.rank_pattern.items()}
        self.spline_range = (float(self.spline_range[0]), float(self.spline_range[1]))

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
        """What `eval()` computes and merge produces: the only form, or `eval_form`, or what `None` stands for."""
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
