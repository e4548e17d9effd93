"""`merge_stored`: merge adapters into a copy of their quantised base, as it is stored for serving."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch
from safetensors import safe_open
from torch import nn

from ..errors import ArgumentError, MergeError
from ..files import read_json
from ..tuner.peft_names import AuxiliaryTrainingWrapper
from .calibrate import MAX_MEMORY
from .compressed import CompressedFolder, fresh_layers
from .formats import Change, StoredModel
from .gguf import FLOATS, GgufFile
from .inputs import Reading
from .merge_quantized import Parts, QuantizedMerge, parts, put, round_layers, unseen_layer
from .merges import layers_with_adapters


def merge_stored(
    model: nn.Module,
    stored: Path | str,
    output: Path | str,
    batches: Any,
    *,
    damping: float = 1e-3,
    max_memory: float = MAX_MEMORY,
    progress: bool = False,
    **reading: Unpack[Reading],
) -> QuantizedMerge:
    """Write a copy of a stored quantised base with the active adapters merged, rounded by the inputs of each layer.

    What is written has the format and the size of the base. Metadata and all that the adapter does not change stay as
    they are, byte for byte. Each block of weights keeps its scale, or gets the one that the format would choose for the
    merged weights, whichever costs less.

    Args:
        model: a `PeftModel` of any method that changes the weights of linear layers, in its mergeable form, not merged,
            on the dequantised base: `from_pretrained(folder, gguf_file=name)`, or `from_pretrained(folder,
            quantization_config=CompressedTensorsConfig(dequantize=True))`. It is not changed.
        stored: the base: a GGUF file (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, F16, BF16, F32), or a folder in
            a format of compressed-tensors (integers of 4 to 8 bits, FP8, NVFP4, MXFP4).
        output: the file or the folder to write, which must not exist.
        batches: see `merge_quantized`; held out likewise.
        damping: see `merge_quantized`.
        max_memory: see `merge_quantized`.
        progress: see `merge_quantized`.
        reading: see `merge_quantized`.

    Returns:
        What rounding costs end to end and in each layer, see `merge_quantized`.

    Raises:
        UserError: the base cannot be read, or is missing; the output exists or cannot be written.
        MergeError: an adapted layer has no weight of its own there, one of another type, or other values; the adapter
            trains more than linear layers.
        CalibrationError, FormError, NotFiniteError, TypeError, ValueError: see `merge_quantized`.
    """
    stored, output = Path(stored), Path(output)
    if output.exists():
        raise ArgumentError(f"{output} exists already: choose another name")
    data = parts(batches, progress, **reading)
    base: StoredModel = CompressedFolder(stored) if stored.is_dir() else GgufFile(stored)
    check_linear_only(model)
    layers = [
        replace(one, format=base.format_of(model, one.path, one.module.get_base_layer()))
        for one in layers_with_adapters(model, "merge_stored")
    ]
    rounded, report = round_layers(model, layers, data, "merge_stored", damping, max_memory)
    changes: dict[str, Change] = {}
    for layer in layers:
        if layer.format is not None:
            changes[layer.path] = rounded[layer.path].weight, rounded[layer.path].bias
        else:
            held, merged, bias = layer.weights()
            weight = None if torch.equal(held, merged) else merged
            changes[layer.path] = weight, None if layer.bias_change(bias) is None else bias
    base.write(output, {path: change for path, change in changes.items() if any(part is not None for part in change)})
    if report.layers:
        warnings.warn(f"Merging into {stored.name} rounds it again: that costs {report.summary}.", stacklevel=2)
    return report


def compress(
    model: Any, quantization: str, dtype: Any, batches: Any = None, progress: bool = False, **reading: Unpack[Reading]
) -> tuple[Any, QuantizedMerge | None]:
    """Merge the active adapters into a base in float, and quantise all of its linear layers but the output layer.

    Args:
        model: a `PeftModel` in its mergeable form; its adapters are gone from it afterwards.
        quantization: one of `compressed.PRESETS`.
        dtype: of what stays in float, and of scales.
        batches: see `merge_quantized`, as for `progress` and `reading`. None: each weight takes the nearest value.

    Returns:
        The plain model, whose `save_pretrained` writes a folder of compressed-tensors; and what is lost, beside the
        unmerged adapter on the base in float, if there were batches.

    Raises:
        MergeError and others: see `merge_quantized` and `compressed.fresh_layers`.
    """
    layers, config = fresh_layers(model, quantization, dtype)
    if batches is None:
        rounded, report = {layer.path: unseen_layer(layer) for layer in layers if layer.format is not None}, None
    else:
        data = Parts(batches, "reading inputs" if progress else "", **reading)
        rounded, report = round_layers(model, layers, data, "compress", 1e-3, MAX_MEMORY)
    for layer in layers:
        if layer.format is not None:
            put(layer, None, rounded[layer.path].bias)
        else:
            layer.module.merge()
    plain = model.unload().to(dtype)
    for path, one in rounded.items():
        module = plain.get_submodule(path)
        del module.weight
        for name, value in one.weight.items():
            module.register_buffer(name, value)
    config.ignore = [path for path, one in plain.named_modules() if isinstance(one, nn.Linear) and path not in rounded]
    plain.config.quantization_config = config.to_dict()
    return plain, report


def check_linear_only(model: Any) -> None:
    """Raise a MergeError for an adapter that trains more than its own layers."""
    for path, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise MergeError(
                f"{path}: the adapter trains it as a whole (modules_to_save or new tokens), and changes of linear "
                "weights alone are merged"
            )
    for config in model.peft_config.values():
        if getattr(config, "bias", "none") not in ("none", False):
            raise MergeError(f"bias={config.bias!r}: the adapter trains biases, which are not merged")


def not_quantised(path: Path, base: Path | None = None) -> list[str]:
    """The weights of a model on disk that are in floating point, and should not be: those that its base has quantised;
    of another kind of base all, where the model calls itself quantised, and no weight of it is.

    Args:
        path: a GGUF file, or a folder of safetensors.
        base: what it was made from, if that is here.
    """
    said, found = _quantised(path)
    if base is not None and (base.is_file() or (base / "config.json").is_file()):
        before = _quantised(base)[1]
        if lost := [name for name, is_quantised in before.items() if is_quantised and found.get(name) is False]:
            return lost
    return list(found) if said and not any(found.values()) else []


def _quantised(path: Path) -> tuple[bool, dict[str, bool]]:
    """Whether a model calls itself quantised, and which weights of it are."""
    if path.is_file():
        tensors = GgufFile(path).tensors
        return bool(re.search(r"Q\d", path.stem)), {
            name: one.tensor_type.name not in FLOATS for name, one in tensors.items()
        }
    found: dict[str, bool] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as reader:
            for name in reader.keys():  # noqa: SIM118 (it is no dict)
                layer, _, own = name.rpartition(".")
                if own.startswith("weight"):
                    is_float = reader.get_slice(name).get_dtype() in ("F64", "F32", "F16", "BF16", "I64")
                    found[layer] = found.get(layer, False) or not is_float
    return "quantization_config" in read_json(path / "config.json"), found
