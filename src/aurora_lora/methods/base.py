"""What a fine-tuning method is, and the kind that most are: an adapter of PEFT."""

from __future__ import annotations

import copy
import json
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from .. import files
from ..errors import CheckpointError, FormError, UserError, one_line
from ..forms import MERGED
from ..tuner.peft_names import CONFIG_NAME
from ..tuner.targets import trained_whole
from ..values import check_finite
from .options import Fields, Options, added_fields, check_names
from .parameters import keep_in_float32, keep_trained_in_float32, load_trained, save_trained, whole_modules
from .targets import check_modules, untie_adapted

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, TrainerCallback

BaseUse = Literal["frozen", "start", "trained"]
"""What a method does with the pretrained weights of the body: it leaves them as they are, takes its start from their
exact values, or trains some of them, which then belong in float32."""

TaskType = Literal["SEQ_CLS", "CAUSAL_LM", "FEATURE_EXTRACTION", "IMAGE_CLS", "TEXT_TO_IMAGE"]


@dataclass(frozen=True)
class Sample:
    """Training data that a method may look at before the training starts.

    Args:
        batches: gives the batches of an even share (0, 1] of the training split, the same ones at every call.
        loss: the loss of a model on one of them.
        learning_rate: the recipe's.
        seed: the recipe's.
        examples: of the training split.
        agree: gives every process the main one's value of what was computed in each.
        in_float16: whether the loss is computed in float16, which has no place for small gradients.
    """

    batches: Callable[[float], list[Any]]
    loss: Callable[[nn.Module, Any], Tensor]
    learning_rate: float
    seed: int
    examples: int
    agree: Callable[[Any], Any] = lambda value: value
    in_float16: bool = False


@dataclass(frozen=True)
class Method:
    """A way of fine-tuning: a recipe names it under `method.name`, with its options beside it.

    `METHODS` has each without options; `bind` gives the one to use.

    Args:
        name: how recipes and results call it.
        options: those that it is bound to, defaults filled in.
        fields: the options that there are, and what is checked of them.
        start_from: the folder of an adapter, or of its run, to go on from; in a recipe `from`.
    """

    name: str
    options: Options = field(default_factory=dict, kw_only=True)
    fields: type[Fields] = field(default=Fields, kw_only=True)
    start_from: str | None = field(default=None, kw_only=True)
    looks: ClassVar[bool] = False
    """Whether `looked` or `prepare` takes something from training data."""

    def bind(self, options: Options) -> Self:
        """This method with these options, checked, and the defaults of the others.

        Raises:
            ValueError: an unknown option or a value that is not allowed; the message names the option.
        """
        return replace(self, options=self.checked(options))

    def checked(self, options: Options) -> dict[str, Any]:
        """The options with the defaults filled in; raises as `bind`."""
        check_names(options, self.fields.names())
        self.fields.check(options)
        return {**self.fields.defaults(), **options}

    @property
    def base_use(self) -> BaseUse:
        """What the method does with the pretrained weights; so what precision they can be kept in."""
        return "frozen"

    @property
    def peft_loads(self) -> bool:
        """Whether PEFT, with this package imported for AuroRA, computes the same from what is saved."""
        return False

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms of the trained model that can be evaluated."""
        return (MERGED,)

    @property
    def deployed_form(self) -> str:
        """The form that is deployed, and that the best epoch is chosen in."""
        return MERGED

    @abstractmethod
    def apply(self, model: PreTrainedModel, task_type: TaskType, kept: Path | None = None) -> nn.Module:
        """Make a pretrained model trainable by this method. The head is always trained.

        What is trained is in float32 at least, whatever precision the model has; what is frozen keeps the model's.

        Args:
            model: a pretrained model.
            task_type: of PEFT.
            kept: a folder for what is costly to compute, to be taken from there when the run goes on.

        Raises:
            ValueError: the method, or an option, does not fit the model.
        """

    def looked(self, model: PreTrainedModel, sample: Sample, kept: Path) -> Self:
        """This method, with what it takes from training data before it is applied to a pretrained model.

        The model is not changed. What is in the folder `kept` already, see `apply`, is not looked for again.
        """
        return self

    def prepare(self, model: nn.Module, sample: Sample) -> None:
        """Decide from training data what is trained: once, before the first step of a new run."""

    def restore(self, model: nn.Module, directory: Path) -> None:
        """Give a model fresh from `apply` what `prepare` decided on, from the weights saved in a checkpoint."""

    def callbacks(self) -> Sequence[TrainerCallback]:
        """What happens at the steps of the training. One that has `save_state(folder)` and `load_state(folder)` keeps
        its state in each checkpoint."""
        return ()

    def load(self, model: PreTrainedModel, directory: Path) -> nn.Module:
        """A trained model from a pretrained one and what `save` wrote."""
        trained = self.apply(model, "SEQ_CLS")
        self.restore(trained, directory)
        load_trained(trained, directory)
        trained.train(False)
        return trained

    def save(self, model: nn.Module, directory: Path) -> None:
        """Write what was trained."""
        save_trained(model, directory)

    def using(self, model: nn.Module, form: str) -> AbstractContextManager[Any]:
        """Within this context `model.eval()` computes `form`."""
        self._check_form(form)
        return nullcontext()

    def check_mergeable(self) -> None:
        """Raise a FormError if no plain model computes what was trained, in whatever form."""

    @abstractmethod
    def merge(self, model: nn.Module, form: str) -> PreTrainedModel:
        """A plain model, without adapters, that computes `form`."""

    def _check_form(self, form: str) -> None:
        if form != MERGED:
            raise FormError(f"form={form!r}: {self.name} has one form only (allowed: {MERGED!r}).")


NEAREST, BY_INPUTS = "nearest", "by inputs"
"""How weights are rounded to a quantised base's: by PEFT's own layers, or by `merge_quantized`."""


@dataclass(frozen=True)
class PeftMethod(Method):
    """A method of PEFT.

    Args:
        config_class: PEFT's configuration, which checks the options that `fields` does not.
        names: the options that a recipe may give; those of `fields` if None.
        recorded: the options that every result records, given or not, with their values; those of `fields` if None.
        fixed: fields of the configuration that are no options.
        is_trained_quantised: whether PEFT's layers compute the method on a base that bitsandbytes has quantised.
        quantised_merges: how an adapter can be merged into such a base.
    """

    config_class: type[Any]
    names: Collection[str] | None = None
    recorded: Options | None = None
    fixed: Options = field(default_factory=dict)
    is_trained_quantised: bool = True
    quantised_merges: Collection[str] = (NEAREST, BY_INPUTS)
    not_pefts: ClassVar[Collection[str]] = ()
    """Options that are no fields of the configuration."""

    def checked(self, options: Options) -> dict[str, Any]:
        check_names(options, self.fields.names() if self.names is None else self.names)
        self.fields.check(options)
        return {**(self.fields.defaults() if self.recorded is None else self.recorded), **options}

    def bind(self, options: Options) -> Self:
        bound = super().bind(options)
        _ = bound.config  # made once; this raises for a value that is not allowed
        return bound

    @property
    def peft_loads(self) -> bool:
        return True

    @cached_property
    def config(self) -> Any:
        """PEFT's configuration of these options."""
        known = added_fields(self.config_class)
        options = {name: value for name, value in self.options.items() if name not in self.not_pefts}
        given = {name: value for name, value in options.items() if name in known or value is not None}
        try:
            return self.config_class(**given, **self.fixed)
        except (AttributeError, KeyError, ImportError, TypeError) as error:
            kind = self.config_class.__name__
            raise ValueError(f"PEFT's {kind} does not take these options: {error}") from error

    def apply(self, model: PreTrainedModel, task_type: TaskType, kept: Path | None = None) -> nn.Module:
        from peft import get_peft_model

        heads = self._modules_to_save(model)
        # PEFT has no wrapper for models of images
        known = None if task_type in ("IMAGE_CLS", "TEXT_TO_IMAGE") else task_type
        config = copy.deepcopy(self.config)
        config.modules_to_save, config.task_type = heads, known
        try:
            peft_model: nn.Module = get_peft_model(model, config)
        except (NotImplementedError, IndexError, KeyError, AttributeError, TypeError) as error:
            # a kind of module that PEFT does not adapt, tokens that are not there, options that it does not check
            raise ValueError(f"{self.name}: {error}") from error
        keep_trained_in_float32(peft_model)
        return peft_model

    @property
    def base_use(self) -> BaseUse:
        if getattr(self.config, "bias", "none") != "none":
            return "trained"
        if getattr(self.config, "kasa_config", None) is not None:
            return "start"  # PEFT takes W0's smallest components away
        # PEFT makes a start from W0 again, from W0, when the adapter is loaded
        drawn = (True, False, "gaussian", "orthogonal")
        return "frozen" if getattr(self.config, "init_lora_weights", True) in drawn else "start"

    def _modules_to_save(self, model: nn.Module) -> list[str]:
        """The modules that PEFT copies and trains whole, in float32 before it copies them."""
        names = whole_modules(model, self.options.get("modules_to_save"))
        for path, module in model.named_modules():
            if trained_whole(path, names):
                keep_in_float32(module.parameters())
        return names

    def load(self, model: PreTrainedModel, directory: Path) -> nn.Module:
        from peft import PeftConfig, PeftModel

        self._modules_to_save(model)
        saved, own = PeftConfig.from_pretrained(str(directory)).peft_type, self.config.peft_type
        if saved != own:
            raise CheckpointError(f"{directory} holds an adapter of {saved.value}, not of {own.value}.")
        return PeftModel.from_pretrained(model, directory)

    def save(self, model: nn.Module, directory: Path) -> None:
        model.save_pretrained(directory)  # type: ignore[operator]

        def sort_sets(saved: dict[str, Any]) -> None:  # PEFT's order is that of a hash
            for name in ("target_modules", "exclude_modules"):
                if isinstance(saved.get(name), list):
                    saved[name].sort()

        edit_config(directory, sort_sets)

    def merge(self, model: nn.Module, form: str) -> PreTrainedModel:
        untie_adapted(model)
        with self.using(model, form):
            return merge_and_unload(model)


def merge_and_unload(model: Any) -> PreTrainedModel:
    """PEFT's, with a FormError for an adapter that PEFT cannot merge."""
    try:
        merged: PreTrainedModel = model.merge_and_unload()
    except NotImplementedError as error:  # a variant of LoRA
        raise FormError(f"This adapter cannot be merged: {one_line(error)}") from error
    return merged


def edit_config(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the configuration in an adapter's folder, if it has one, and write it as PEFT does."""
    path = directory / CONFIG_NAME
    if path.exists():
        saved = files.read_json(path)
        change(saved)
        files.write_text(path, json.dumps(saved, indent=2, sort_keys=True))


def load_finite(method: Method, model: PreTrainedModel, directory: Path) -> nn.Module:
    """`method.load`, of weights that are numbers.

    Raises:
        UserError: what was saved cannot be read, or does not fit.
        NotFiniteError: NaN or infinity among the weights.
    """
    try:
        loaded = method.load(model, directory)
    except Exception as error:  # PEFT and safetensors raise of many kinds on damaged files
        raise UserError(f"{directory} cannot be loaded: {one_line(error)}") from error
    check_finite(loaded.state_dict().items(), f"{directory} cannot be used")
    return loaded


def apply_method(method: Method, base: Any, task_type: TaskType, kept: Path | None = None) -> nn.Module:
    """The method, bound to its options, on a pretrained model; see `Method.apply`.

    Raises:
        UserError: the method does not fit the model, or the memory.
    """
    with plain_method_errors():
        check_modules(base, method.options)
        return method.apply(base, task_type, kept)


@contextmanager
def plain_method_errors() -> Iterator[None]:
    """What a method says of the model, the memory or a file of the run, as a UserError."""
    try:
        yield
    except CheckpointError as error:
        raise UserError(f"{one_line(error)} Remove it to begin the run again") from error
    except ValueError as error:
        raise UserError(f"method: {one_line(error)}") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise UserError(f"method: it does not fit the memory: {str(error).splitlines()[0]}") from error
