"""What a fine-tuning method is, and the two kinds that most are: a PEFT adapter, or some of the model's own weights.

Nothing heavy is imported here before a method is used, so that listing the methods is instant.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..errors import FormError
from ..forms import MERGED

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, TrainerCallback

BaseUse = Literal["frozen", "start", "trained"]
"""What a method does with the pretrained weights of the body: it leaves them as they are, takes its start from their
exact values, or trains some of them, which then belong in float32."""

TaskType = Literal["SEQ_CLS", "CAUSAL_LM", "FEATURE_EXTRACTION", "IMAGE_CLS", "TEXT_TO_IMAGE"]
Options = Mapping[str, Any]

WEIGHTS_FILE = "trained.safetensors"
"""What a method without a PEFT adapter writes: the weights that were trained, and buffers."""


@dataclass(frozen=True)
class Sample:
    """Training data that a method may look at before the training starts.

    Args:
        batches: gives the batches of an even share (0, 1] of the training split, the same ones at every call.
        loss: the loss of a model on one of them.
        learning_rate: the recipe's.
        seed: the recipe's.
        agree: gives every process the main one's value of what was computed in each.
    """

    batches: Callable[[float], list[Any]]
    loss: Callable[[nn.Module, Any], Tensor]
    learning_rate: float
    seed: int
    agree: Callable[[Any], Any] = lambda value: value


class Method(Protocol):
    """A way of fine-tuning: a recipe names it under `method.name`, with its options beside it."""

    @property
    def name(self) -> str:
        """How recipes and results call it."""

    @property
    def description(self) -> str:
        """One line for `aurora list methods`."""

    def validate(self, options: Options) -> dict[str, Any]:
        """The options with the method's defaults filled in.

        Raises:
            ValueError: an unknown option or a value that is not allowed; the message names the option.
        """

    def base_use(self, options: Options) -> BaseUse:
        """What the method does with the pretrained weights; so what precision they can be kept in."""

    def apply(self, model: PreTrainedModel, options: Options, task_type: TaskType) -> nn.Module:
        """Make a pretrained model trainable by this method. The head is always trained.

        What is trained is in float32 at least, whatever precision the model has; what is frozen keeps the model's.
        """

    def prepare(self, model: nn.Module, options: Options, sample: Sample) -> None:
        """Decide from training data what is trained: once, before the first step of a new run."""

    def restore(self, model: nn.Module, directory: Path, options: Options) -> None:
        """Give a model fresh from `apply` what `prepare` decided on, from the weights saved in a checkpoint."""

    def callbacks(self, options: Options) -> Sequence[TrainerCallback]:
        """What happens at the steps of the training. One that has `save_state(folder)` and `load_state(folder)` keeps
        its state in each checkpoint."""

    def load(self, model: PreTrainedModel, directory: Path, options: Options) -> nn.Module:
        """A trained model from a pretrained one and what `save` wrote."""

    def save(self, model: nn.Module, directory: Path) -> None:
        """Write what was trained."""

    def forms(self, options: Options) -> tuple[str, ...]:
        """The forms of the trained model that can be evaluated."""

    def deployed_form(self, options: Options) -> str:
        """The form that is deployed: the best epoch is chosen in it."""

    def using(self, model: nn.Module, form: str) -> AbstractContextManager[Any]:
        """Within this context `model.eval()` computes `form`."""

    def merge(self, model: nn.Module, form: str) -> PreTrainedModel:
        """A plain model, without adapters, that computes `form`."""


@dataclass(frozen=True)
class OneForm:
    """The answers of a method with a single form, and with nothing to do before the training or at its steps."""

    name: str
    description: str

    def forms(self, options: Options) -> tuple[str, ...]:
        return (MERGED,)

    def deployed_form(self, options: Options) -> str:
        return MERGED

    def using(self, model: nn.Module, form: str) -> AbstractContextManager[Any]:
        self._check_form(form)
        return nullcontext()

    def _check_form(self, form: str) -> None:
        if form != MERGED:
            raise FormError(f"form={form!r}: {self.name} has one form only (allowed: {MERGED!r}).")

    def base_use(self, options: Options) -> BaseUse:
        return "frozen"

    def prepare(self, model: nn.Module, options: Options, sample: Sample) -> None:
        pass

    def restore(self, model: nn.Module, directory: Path, options: Options) -> None:
        pass

    def callbacks(self, options: Options) -> Sequence[TrainerCallback]:
        return ()


@dataclass(frozen=True)
class PeftMethod(OneForm):
    """A method of PEFT: `make_config(options, **PEFT's own fields)` gives its configuration.

    Args:
        make_config: makes the PEFT configuration; raises ValueError for a value that is not allowed.
        option_names: the options that a recipe may give.
        defaults: the options that every result records, given or not.
    """

    make_config: Callable[..., Any]
    option_names: Callable[[], Iterable[str]]
    defaults: Callable[[], Options] = field(default=dict)

    def validate(self, options: Options) -> dict[str, Any]:
        from .start import filled

        check_names(options, self.option_names())
        self.make_config(**options)
        return {**self.defaults(), **filled(options)}

    def apply(self, model: PreTrainedModel, options: Options, task_type: TaskType) -> nn.Module:
        from peft import get_peft_model

        heads = self._modules_to_save(model, options)
        # PEFT has no wrapper for models of images
        known = None if task_type in ("IMAGE_CLS", "TEXT_TO_IMAGE") else task_type
        config = self.make_config(**{**options, "modules_to_save": heads}, task_type=known)
        try:
            peft_model: nn.Module = get_peft_model(model, config)
        except (NotImplementedError, IndexError, KeyError, AttributeError, TypeError) as error:
            # a kind of module that PEFT does not adapt, tokens that are not there, options that it does not check
            raise ValueError(f"{self.name}: {error}") from error
        keep_in_float32(parameter for parameter in peft_model.parameters() if parameter.requires_grad)
        return peft_model

    def base_use(self, options: Options) -> BaseUse:
        config = self.make_config(**options)
        if getattr(config, "bias", "none") != "none":
            return "trained"
        # PEFT makes a start from W0 again, from W0, when the adapter is loaded
        drawn = (True, False, "gaussian", "orthogonal")
        return "frozen" if getattr(config, "init_lora_weights", True) in drawn else "start"

    def _modules_to_save(self, model: nn.Module, options: Options) -> list[str]:
        """The modules that PEFT copies and trains whole, in float32 before it copies them."""
        names = sorted({*(options.get("modules_to_save") or ()), *head_modules(model)})
        for path, module in model.named_modules():
            if any(f".{path}".endswith(f".{name}") for name in names):
                keep_in_float32(module.parameters())
        return names

    def load(self, model: PreTrainedModel, directory: Path, options: Options) -> nn.Module:
        from peft import PeftModel

        self._modules_to_save(model, options)
        peft_model: nn.Module = PeftModel.from_pretrained(model, directory)
        return peft_model

    def save(self, model: nn.Module, directory: Path) -> None:
        model.save_pretrained(directory)  # type: ignore[operator]
        sort_saved_sets(directory)

    def merge(self, model: nn.Module, form: str) -> PreTrainedModel:
        from .linear import untie_adapted

        untie_adapted(model)
        with self.using(model, form):
            merged: PreTrainedModel = model.merge_and_unload()  # type: ignore[operator]
        return merged


def sort_saved_sets(directory: Path) -> None:
    """Sort what PEFT keeps as sets and writes in the order of a hash: two processes write the same bytes."""
    path = directory / "adapter_config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    for name in ("target_modules", "exclude_modules"):
        if isinstance(saved.get(name), list):
            saved[name] = sorted(saved[name])
    path.write_text(json.dumps(saved, indent=2, sort_keys=True), encoding="utf-8")


@dataclass(frozen=True)
class PlainMethod(OneForm):
    """A method that trains some of the model's own weights and adds none.

    Args:
        trains: whether to train a parameter of the body, by its name. The head is always trained.
        use: of the pretrained weights.
    """

    trains: Callable[[str], bool]
    use: BaseUse = "trained"

    def base_use(self, options: Options) -> BaseUse:
        return self.use

    def validate(self, options: Options) -> dict[str, Any]:
        check_names(options, ())
        return {}

    def apply(self, model: PreTrainedModel, options: Options, task_type: TaskType) -> nn.Module:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_head(model, name) or self.trains(name))
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(f"{self.name} has nothing to train in a {type(model).__name__}: it has no new head")
        keep_in_float32(parameter for parameter in model.parameters() if parameter.requires_grad)
        return model

    def load(self, model: PreTrainedModel, directory: Path, options: Options) -> nn.Module:
        self.apply(model, options, "SEQ_CLS")
        load_trained(model, directory)
        model.train(False)
        return model

    def save(self, model: nn.Module, directory: Path) -> None:
        save_trained(model, directory)

    def merge(self, model: nn.Module, form: str) -> PreTrainedModel:
        self._check_form(form)
        return model  # type: ignore[return-value]


def load_finite(method: Method, model: PreTrainedModel, directory: Path, options: Options) -> nn.Module:
    """`method.load`, of weights that are numbers.

    Raises:
        UserError: what was saved cannot be read, or does not fit.
        NotFiniteError: NaN or infinity among the weights.
    """
    from ..errors import UserError
    from ..finite import check_finite

    try:
        loaded = method.load(model, directory, options)
    except Exception as error:  # PEFT and safetensors raise of many kinds on damaged files
        raise UserError(f"{directory} cannot be loaded: {' '.join(str(error).split())}") from error
    check_finite(loaded.state_dict().items(), f"{directory} cannot be used")
    return loaded


# ---------------------------------------------------------------- heads and counts


def keep_in_float32(parameters: Iterable[nn.Parameter]) -> None:
    """Give parameters of a lower precision float32, where they are."""
    for parameter in parameters:
        if parameter.is_floating_point() and parameter.element_size() < 4:
            parameter.data = parameter.data.float()


def head_modules(model: nn.Module) -> list[str]:
    """The top-level modules with weights beside the pretrained body: the randomly initialised head.

    The output layer of a language model is none: it is as pretrained as the body. A model without a head is all body,
    and so is a model of diffusers, which has no name for its body.
    """
    body = getattr(model, "base_model_prefix", None)
    if body is None or (body and not hasattr(model, body)):
        return []
    get_output_embeddings: Any = getattr(model, "get_output_embeddings", lambda: None)
    pretrained = get_output_embeddings()
    return [
        name
        for name, child in model.named_children()
        if name != body and child is not pretrained and any(True for _ in child.parameters())
    ]


def is_head(model: nn.Module, parameter: str) -> bool:
    """Whether the parameter of that name belongs to the head, in a plain or in a PEFT model."""
    if hasattr(model, "get_base_model"):
        heads = head_modules(model.get_base_model())  # type: ignore[operator]
        return any(f".{head}.modules_to_save." in parameter for head in heads)
    return parameter.split(".", 1)[0] in head_modules(model)


@dataclass(frozen=True)
class ParameterCounts:
    """How many parameters are trained, and of how many."""

    adapter: int
    head: int
    total: int


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Trained parameters outside and inside the head, and all (PEFT's copy of the untrained head left out)."""
    adapter = head = total = 0
    for name, parameter in model.named_parameters():
        if ".original_module." in name:
            continue
        packed = getattr(parameter, "quant_state", None)  # of bitsandbytes: two weights in a byte
        total += parameter.numel() if packed is None else math.prod(packed.shape)
        if parameter.requires_grad and is_head(model, name):
            head += parameter.numel()
        elif parameter.requires_grad:
            adapter += parameter.numel()
    return ParameterCounts(adapter, head, total)


# ---------------------------------------------------------------- the trained weights of a plain model


def save_trained(model: nn.Module, directory: Path) -> None:
    """Write the weights that are trained, and the buffers, to `WEIGHTS_FILE`; frozen ones stay with the base model.

    A weight that several modules have (tied embeddings) is written once.
    """
    from safetensors.torch import save_file

    parameters = dict(model.named_parameters(remove_duplicate=False))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = model.state_dict()
    state = {name: value.contiguous() for name, value in state.items() if name in trained or name not in parameters}
    save_file(state, str(directory / WEIGHTS_FILE), metadata={"format": "pt"})


def load_trained(model: nn.Module, directory: Path) -> None:
    """Load what `save_trained` wrote.

    Raises:
        CheckpointError: the file does not fit the model.
    """
    from safetensors.torch import load_file

    from ..errors import CheckpointError

    state = load_file(str(directory / WEIGHTS_FILE))
    expected = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    result = model.load_state_dict(state, strict=False)
    if result.unexpected_keys or expected & set(result.missing_keys):
        odd = sorted({*result.unexpected_keys, *(expected & set(result.missing_keys))})
        raise CheckpointError(f"{directory / WEIGHTS_FILE} does not fit the model: {', '.join(odd[:3])}.")


# ---------------------------------------------------------------- options


def check_names(options: Options, allowed: Iterable[str]) -> None:
    """Raise a ValueError for the first option that is not allowed, with the nearest name that is."""
    known = sorted(allowed)
    for option in options:
        if option not in known:
            raise ValueError(f"{option}: {unknown('option', known, option)}")


def unknown(what: str, known: Iterable[str], given: str) -> str:
    """`unknown option; did you mean 'x'?`, or all that is known when nothing is near."""
    known = list(known)
    near = difflib.get_close_matches(given, known, n=1)
    if near:
        return f"unknown {what}; did you mean '{near[0]}'?"
    if not known:
        return f"unknown {what}; there are none here"
    return f"unknown {what} (allowed: {', '.join(known)})"
