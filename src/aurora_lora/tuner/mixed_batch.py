"""Mixed batches: each example of a batch with an adapter of its own, for inference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn

from .layer import BASE, AuroraLayer
from .peft_names import AuxiliaryTrainingWrapper


def _pass_names(_: nn.Module, args: Any, kwargs: dict[str, Any], names: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "adapter_names": names}


@contextmanager
def name_adapters(
    tuner: nn.Module, model: nn.Module, adapter_names: Sequence[str], num_beams: Any = None
) -> Iterator[None]:
    """While entered, each adapted layer and each of `modules_to_save` is told which example has which adapter.

    Args:
        tuner: what holds the model and its adapters.
        model: the adapted model.
        adapter_names: one for each example; `"__base__"` for none.
        num_beams: of a beam search, which repeats each example so often, except in an encoder.

    Raises:
        ValueError: an adapter that does not exist, or training mode.
        TypeError: `adapter_names` is not a list of names.
    """
    if tuner.training:
        raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
    if isinstance(adapter_names, str) or not isinstance(adapter_names, Sequence):
        raise TypeError(f"Got adapter names of type {type(adapter_names)}, expected a list of str.")
    takers = [m for m in tuner.modules() if isinstance(m, (AuroraLayer, AuxiliaryTrainingWrapper))]
    known = {BASE} | {name for m in takers if isinstance(m, AuroraLayer) for name in m.aurora_A}
    unknown = sorted(set(adapter_names) - known)
    if unknown:
        raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")
    beams = num_beams if isinstance(num_beams, int) else 1
    repeated = [name for name in adapter_names for _ in range(beams)]
    get_encoder = getattr(model, "get_encoder", None)
    encoder = get_encoder() if get_encoder is not None else None
    inside = set(encoder.modules()) if isinstance(encoder, nn.Module) and encoder is not model else set()
    with ExitStack() as hooks:
        for module in takers:
            names = list(adapter_names) if module in inside else repeated
            hook = module.register_forward_pre_hook(partial(_pass_names, names=names), with_kwargs=True)
            hooks.callback(hook.remove)
        yield
