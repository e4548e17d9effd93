"""The AuroRA layers of a model and their paths, which adapters are active in them, and in which form (`set_form`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, TypeVar, get_args

from peft import PeftMixedModel, PeftModel
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..errors import AlreadyMergedError, FormError
from ..forms import CALIBRATED, STATIC, FormName
from ..values import one_of
from .config import AuroraConfig
from .layer import AuroraLayer
from .peft_names import AuxiliaryTrainingWrapper, BaseTuner, BaseTunerLayer

_INNER = "base_layer"
_WRAPPERS: tuple[tuple[str, tuple[type[Any], ...]], ...] = (
    ("module", (DataParallel, DistributedDataParallel)),
    ("base_model", (PeftModel, PeftMixedModel)),
    ("model", (BaseTuner,)),
    (_INNER, (BaseTunerLayer,)),
    ("token_adapter", (AuxiliaryTrainingWrapper,)),
)
"""What wrappers call the module that they are around."""
_NAMES_OF_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""The wrappers that are told by the name: of torch.compile, of FSDP and of its checkpointing."""

M = TypeVar("M")


def plain_path(model: nn.Module, path: str) -> str:
    """The path of a module in the plain model, as `target_modules` and `rank_pattern` have it: without what PEFT, DDP,
    FSDP and torch.compile put around modules."""
    parts: list[str] = []
    module: nn.Module | None = model
    for part in path.split("."):
        is_wrapped = any(part == name and isinstance(module, kinds) for name, kinds in _WRAPPERS)
        if not is_wrapped and part not in _NAMES_OF_WRAPPERS:
            parts.append(part)
        module = None if module is None else module._modules.get(part)
    return ".".join(parts)


def by_plain_path(model: nn.Module, modules: Iterable[tuple[str, M]]) -> Iterator[tuple[str, M]]:
    """The modules, given by their paths in a model, by those in the plain one.

    Of several layers around one module the outermost has its path, and those within `base_layer` after it.
    """
    taken: set[str] = set()
    for path, module in modules:
        plain = plain_path(model, path)
        while plain in taken:
            plain += f".{_INNER}"
        taken.add(plain)
        yield plain, module


def without_wrappers(path: str) -> str:
    """A path as states have it: without what FSDP, its checkpointing and torch.compile put around modules."""
    return ".".join(part for part in path.split(".") if part not in _NAMES_OF_WRAPPERS)


def aurora_layers(model: nn.Module) -> Iterator[tuple[str, AuroraLayer]]:
    """(name, layer) of each AuroRA layer of a model, in the order of the model."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, AuroraLayer))


def plain_layers(model: nn.Module) -> Iterator[tuple[str, AuroraLayer]]:
    """(path in the plain model, layer) of each AuroRA layer of a model."""
    return by_plain_path(model, aurora_layers(model))


def adapter_names(model: nn.Module) -> list[str]:
    """The names of the AuroRA adapters that a model has, active or not."""
    return list(dict.fromkeys(name for _, layer in aurora_layers(model) for name in layer.aurora_A))


def active_layers(model: nn.Module) -> Iterator[tuple[str, AuroraLayer, str]]:
    """(path in the plain model, layer, adapter): each AuroRA layer of a model with each adapter it holds that is active
    in any layer."""
    layers = list(plain_layers(model))
    names = dict.fromkeys(name for _, layer in layers for name in layer.active_adapters if name in layer.aurora_A)
    return ((path, layer, name) for path, layer in layers for name in names if name in layer.aurora_A)


def active_configs(model: nn.Module) -> dict[str, AuroraConfig]:
    """The configs of the active AuroRA adapters of a model, by name.

    Raises:
        ValueError: the model has no AuroRA layer.
    """
    if not any(aurora_layers(model)):
        raise ValueError("The model has no AuroRA adapter: make one with get_peft_model(model, AuroraConfig(...)).")
    return {name: layer.aurora_config[name] for _, layer, name in active_layers(model)}


def active_adapters(model: nn.Module) -> list[str]:
    """The names of the AuroRA adapters that are active in a model.

    Raises:
        ValueError: the model has no AuroRA layer.
    """
    return list(active_configs(model))


def no_adapter(name: str, there: Iterable[str]) -> ValueError:
    """What to raise where a model has no adapter of that name, but those that are `there`."""
    known = ", ".join(map(repr, dict.fromkeys(there))) or "none"
    return ValueError(f"The model has no AuroRA adapter named {name!r} (there are: {known}).")


def check_not_merged(path: str, layer: Any, action: str) -> None:
    """Raise an AlreadyMergedError if adapters of any method are merged into the weight of a layer, before an action."""
    if layer.merged:
        raise AlreadyMergedError(f"{path} is merged: call unmerge_adapter() before {action}.")


def check_calibrated(model: nn.Module, names: Collection[str] | None = None) -> None:
    """See that each active adapter has a calibrated matrix that belongs to its present weights, or B = 0.

    Args:
        model: a model with AuroRA adapters.
        names: of the adapters that are asked for; all active ones if None.

    Raises:
        NotCalibratedError, StaleCalibrationError: one has none, or an outdated one.
        FormError: one was trained in the static form.
        ValueError: no AuroRA adapter.
    """
    active_configs(model)
    for _, layer, name in active_layers(model):
        if names is None or name in names:
            layer.get_factors(name, CALIBRATED)


class set_form:  # noqa: N801 - used as a function and as a context manager, like torch.no_grad
    """Set the form that `model.eval()` computes and that merge and export produce.

    The form is kept in the adapter's config; as in PEFT, a config object given to two models is shared by them.

    Takes effect at once; used in a `with` statement, the earlier form comes back at its end.

    Args:
        model: a model with AuroRA adapters.
        form: `"calibrated"`, `"static"` or `"dynamic"`. The calibrated form computes the dynamic one until `calibrate`
            has run, and refuses to merge.
        adapter_name: which adapter; all active ones if None.

    Raises:
        ValueError: no such form or adapter, or no AuroRA adapter in the model.
        FormError: the adapter was trained in the static form, which is its only one.
        AlreadyMergedError: it is merged at present.
    """

    def __init__(self, model: nn.Module, form: FormName, *, adapter_name: str | None = None) -> None:
        if form not in get_args(FormName):
            one_of("form", form, get_args(FormName))
        names = active_adapters(model) if adapter_name is None else [adapter_name]
        configs: dict[int, AuroraConfig] = {}
        for path, layer in aurora_layers(model):
            for name in names:
                if name in layer.aurora_config:
                    if name in layer.merged_adapters:
                        check_not_merged(path, layer, "another form is set")
                    if form == CALIBRATED and name in layer.calibration:
                        layer.calibration[name].check()
                    config = layer.aurora_config[name]
                    configs[id(config)] = config
                    if config.train_form == STATIC and form != STATIC:
                        raise FormError(
                            f"Adapter {name!r} was trained in the static form, which is its only one: "
                            f"form={form!r} is not allowed."
                        )
        if adapter_name is not None and not configs:
            raise no_adapter(adapter_name, adapter_names(model))
        self._earlier = [(config, config.eval_form) for config in configs.values()]
        for config in configs.values():
            config.eval_form = form

    def __enter__(self) -> set_form:
        return self

    def __exit__(self, *_: object) -> None:
        for config, eval_form in self._earlier:
            config.eval_form = eval_form
