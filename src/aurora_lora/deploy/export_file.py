"""The files of an export: how they are written, and known again when one is to be replaced."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import NotFiniteError
from ..finite import check_finite, is_finite
from ..tuner.peft_names import CONFIG_NAME, PEFT_PREFIX, SAFETENSORS_WEIGHTS_NAME
from ..values import require

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
EXPORTS = (SAFETENSORS_WEIGHTS_NAME, CONFIG_NAME), (DIFFUSERS_WEIGHTS,)
"""The files of an export for PEFT and of one for diffusers, weights first."""
METADATA = {"format": "pt", "writer": "aurora_lora.export_lora"}
"""The metadata of weights that are written: by it an export is known again, and only an export is replaced."""
_BESIDE = "beside"
"""The field of the metadata with what a tokenizer or an image processor has written beside the weights."""
_COMPONENTS = "components"
"""The field with the components of a diffusers pipeline whose LoRA the file holds."""


def write_export(
    path: Path, weights: dict[str, Tensor], beside: Sequence[str] = (), components: Sequence[str] = ()
) -> None:
    """Write the weights of an export, which name the other files of it: the same bytes for the same weights.

    safetensors writes the entries of a file's metadata in another order in each process.

    Args:
        path: of the file.
        weights: what it holds.
        beside: names of further files of the export.
        components: of a diffusers pipeline, whose names the keys begin with.
    """
    metadata = {**METADATA, _BESIDE: json.dumps(beside)}
    if components:
        metadata[_COMPONENTS] = json.dumps(components)
    save_file(weights, path, metadata)
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        assert len(text) <= length  # the same entries in another order
        file.seek(8)
        file.write(text.ljust(length))


def in_dtype(weights: dict[str, Tensor], dtype: torch.dtype | str) -> dict[str, Tensor]:
    """LoRA factors as they are written, in main memory.

    Raises:
        ValueError: the dtype is not allowed.
        NotFiniteError: NaN or infinity among them, or a number that is too large for the dtype.
    """
    kind = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    require(kind in DTYPES.values(), "dtype", dtype, f"one of {', '.join(DTYPES)}")
    assert kind is not None
    check_finite(weights.items(), "the adapter cannot be exported")
    return {key: rounded(key, value, kind).contiguous().cpu() for key, value in weights.items()}


def rounded(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of finite numbers in one of `DTYPES`.

    Raises:
        NotFiniteError: a number is too large for the dtype; the error has the tensor's name.
    """
    cast = tensor.to(dtype)
    if not is_finite(cast):
        largest, limit = float(tensor.abs().max()), torch.finfo(dtype).max
        called = next(one for one, kind in DTYPES.items() if kind == dtype)
        raise NotFiniteError(
            f"dtype={called!r} cannot hold {name}, whose largest number is {largest:.3g} (the limit is {limit:.3g}): "
            "choose 'float32'."
        )
    return cast


def check_replaceable(folder: Path, beside: Collection[str] = ()) -> None:
    """Raise a ValueError unless the folder is new, empty, or an earlier export: a LoRA from elsewhere is none.

    Args:
        folder: to be replaced.
        beside: names of other files that may be replaced with an export.
    """
    if not folder.exists():
        return
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else [folder.name]
    written = next((found for files in EXPORTS if (found := _files_of(folder, files))), set())
    added = [name for name in held if name not in {*written, *beside}]
    if added or (held and not written):
        first = next((name for name in added if name.endswith(".safetensors")), (added or held)[0])
        raise ValueError(f"{folder} holds {first}, which no LoRA export wrote: move it away, or choose another folder.")


def read_components(path: Path) -> dict[str, dict[str, Tensor]]:
    """What an earlier export for diffusers holds of each component of a pipeline, by the names in the component.

    Args:
        path: of the file, which may not be there.
    """
    metadata = _metadata_of(path)
    if not metadata:
        return {}
    weights = load_file(path)
    names: list[str] = [name for name in json.loads(metadata.get(_COMPONENTS, "[]")) if name]
    return {
        name: {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
        for name in names
    }


def beyond_lora(folder: Path) -> list[str]:
    """What an export for PEFT holds beside LoRA's factors and the embeddings under them: few engines load that."""
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, "pt") as file:
        keys: list[str] = list(file.keys())
    factors = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B", ".base_layer.weight")
    return sorted(key.removeprefix(PEFT_PREFIX) for key in keys if not key.endswith(factors))


def _files_of(folder: Path, files: tuple[str, ...]) -> set[str]:
    """What `export_lora` wrote into a folder: these files, weights first, and what is beside them; if it did."""
    metadata = _metadata_of(folder / files[0])
    return {*files, *json.loads(metadata.get(_BESIDE, "[]"))} if metadata else set()


def _metadata_of(path: Path) -> dict[str, str]:
    """The metadata of weights that an export wrote; empty of other files, and where there is none."""
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError):
        return {}
    return metadata if metadata.get("writer") == METADATA["writer"] else {}
