"""What has become of a merged weight since: the adapter of another method may have been merged into it, or taken out.

PEFT's layers add their update to whatever the weight is, and subtract it again, so that they come in any order.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from .original_weight import OriginalWeight, checksum


def changed_by_others(layer: Any) -> bool:
    """Whether the weight that a layer has merged was written through `.data` since, as PEFT's layers do.

    What was written to the parameter itself, as an optimizer and `load_state_dict` do, is undone, and a warning says
    so. A cast is no change.
    """
    original = layer._original_weight
    if original is None or original.is_as_merged or _is_cast(layer, original):
        return False
    if not original.is_written_to:
        return True
    warnings.warn("The base weight was changed while merged: that change is undone.", stacklevel=4)
    return False


def without_merged(layer: Any) -> Tensor:
    """The base weight less the update that the layer has merged, in the precision of the weight."""
    weight = layer.get_base_weight()
    rest: Tensor = weight.to(torch.promote_types(weight.dtype, torch.float32))
    for adapter_name in layer.merged_adapters:
        rest = rest - layer._product(*layer._factors_to_merge(adapter_name)).to(rest)
    return rest.to(weight.dtype)


def take_out(layer: Any, by_others: bool) -> None:
    """Give the base layer its original weight back; where others have changed it, subtract the update instead."""
    assert layer._original_weight is not None
    rest = without_merged(layer) if by_others else None
    layer._original_weight.restore(layer)
    if rest is not None:
        layer.set_base_weight(rest)


def keep_change(layer: Any) -> None:
    """Let the original of a merged layer have what others have changed; the weight stays as it is."""
    merged = _as_it_is(layer)
    take_out(layer, by_others=True)
    layer._original_weight = _as_it_is(layer)
    merged.restore(layer)
    layer._original_weight.note_merged()


def _as_it_is(layer: Any) -> OriginalWeight:
    return OriginalWeight(layer.get_base_layer(), layer.quantization_backend, layer.weight_is_shared)


def _is_cast(layer: Any, original: OriginalWeight) -> bool:
    """Whether the weight is what was merged, after a cast to its precision, or to a lower one and back."""
    if layer.quantization_backend is not None:
        return False
    kept, weight = layer._original(), layer.get_base_weight()
    merged, found = layer._sum(kept, layer.merged_adapters).to(kept.dtype), checksum(weight)
    return any(
        checksum(merged.to(dtype).to(weight.dtype)) == found for dtype in (weight.dtype, torch.bfloat16, torch.float16)
    )
