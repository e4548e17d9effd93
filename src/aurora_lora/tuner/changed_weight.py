"""What has become of a merged weight since: the adapter of another method may have been merged into it, or taken out.

PEFT's layers add their update to whatever the weight is, and subtract it again, so that they come in any order.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ..errors import MergeError
from .original_weight import OriginalWeight, checksum
from .tensors import is_float8

_PRECISIONS = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def changed_by_others(layer: Any) -> bool:
    """Whether the weight that a layer has merged was written through `.data` since, as PEFT's layers do.

    What was written to the parameter itself, as an optimizer and `load_state_dict` do, is undone, and a warning says
    so. Another parameter in its place, and a cast, are no change by others, either.
    """
    original = layer._original_weight
    if original is None or original.is_as_merged:
        return False
    if original.is_written_to:
        warnings.warn("The base weight was changed while merged: that change is undone.", stacklevel=4)
        return False
    return original.is_same_tensor and not _is_cast(layer, original)


def without_merged(layer: Any) -> Tensor:
    """The base weight less the update that the layer has merged, in the precision of the weight."""
    weight = layer.get_base_weight()
    wide = torch.float32 if is_float8(weight.dtype) else torch.promote_types(weight.dtype, torch.float32)
    rest: Tensor = weight.to(wide)
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
    """Let the original of a merged layer have what others have changed; the weight stays as it is.

    Raises:
        MergeError: the original is the parameter of another module, too, which would change.
    """
    if layer._original_weight.parameter is not None:
        raise MergeError(
            "The adapter of another method was merged into this weight, which is tied to that of another module: "
            "unmerge that first."
        )
    merged = _as_it_is(layer)
    take_out(layer, by_others=True)
    layer._original_weight = _as_it_is(layer)
    merged.restore(layer)
    layer._original_weight.note_merged()


def _as_it_is(layer: Any) -> OriginalWeight:
    return OriginalWeight(layer.get_base_layer(), layer.quantization_backend, layer.weight_is_shared)


def _is_cast(layer: Any, original: OriginalWeight) -> bool:
    """Whether a cast to another precision, or to a lower one and back, may have made the weight of what was merged."""
    if layer.quantization_backend is not None:
        return False
    weight, kept = layer.get_base_weight(), layer._original()
    merged = layer._sum(kept, layer.merged_adapters).to(kept.dtype)
    if weight.dtype != original.merged_dtype:
        lowest = [torch.finfo(dtype) for dtype in (weight.dtype, torch.bfloat16, torch.float16)]
        near = {"rtol": max(one.eps for one in lowest), "atol": max(one.tiny * one.eps for one in lowest)}
        return torch.allclose(weight.float(), merged.float(), **near, equal_nan=True)
    lower = [dtype for dtype in _PRECISIONS if torch.finfo(dtype).eps > torch.finfo(weight.dtype).eps]
    if any(torch.equal(weight.to(dtype).to(weight.dtype), weight) for dtype in lower):
        return True  # a sum has other numbers than those of a lower precision
    through_float16 = merged.to(torch.float16).to(weight.dtype)  # which has nearly all of bfloat16's numbers
    return weight.dtype == torch.bfloat16 and checksum(through_float16) == checksum(weight)
