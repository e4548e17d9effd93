"""A digest of the weights in a folder that costs little beside loading them: of a sample of each tensor's bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .. import files

SAMPLED = "sampled-sha256:"
BLOCK, BLOCKS = 4096, 16
"""How many bytes are read, in how many places, of a tensor that is larger than all blocks together."""


def sampled_digest(folder: Path, variant: str | None = None) -> str | None:
    """The sha256 of every tensor's name, dtype, shape and a sample of its bytes; None where no safetensors are.

    A tensor of up to 64 KiB is read whole; of a larger one, 16 blocks of 4 KiB, evenly spread from its first byte to
    its last. The same weights have the same digest however they are divided among files; another training of a layer
    changes it, a single number in a large tensor may not.

    Args:
        folder: of a model, as Transformers writes it; or of a pipeline of diffusers, with a folder for each part.
        variant: of a pipeline's weights that is loaded, such as `fp16`; parts without it have their plain weights.
    """
    tensors = dict(_tensors(folder, variant))
    if not tensors:
        return None
    digest = hashlib.sha256()
    for name, (path, start, entry) in sorted(tensors.items()):
        first, last = entry["data_offsets"]
        digest.update(f"{name} {entry['dtype']} {entry['shape']}\n".encode())
        with path.open("rb") as file:
            for block in _sample(file, start + first, last - first):
                digest.update(block)
    return f"{SAMPLED}{digest.hexdigest()}"


def _tensors(folder: Path, variant: str | None) -> Iterator[tuple[str, tuple[Path, int, dict[str, Any]]]]:
    """Each tensor by its name, with its file, where the bytes begin there, and what the file's header says of it."""
    for path in _weight_files(folder, variant):
        part = "" if path.parent == folder else f"{path.parent.name}/"
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                yield part + name, (path, 8 + length, entry)


def _weight_files(folder: Path, variant: str | None) -> list[Path]:
    """What Transformers loads: `model.safetensors`, or the files of an index; of a pipeline all that its parts have."""
    if (folder / "model_index.json").is_file():
        parts = sorted({path.parent for path in folder.glob("*/*.safetensors")})
        return [path for part in parts for path in _of_variant(part, variant) or _of_variant(part, None)]
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        return []
    return [folder / name for name in sorted(set(files.read_json(index)["weight_map"].values()))]


def _of_variant(part: Path, variant: str | None) -> list[Path]:
    """The files that diffusers loads of a pipeline's part, such as `model.fp16.safetensors`, or its shards: with the
    variant's name, and `-00001-of-00002` after that."""
    return [path for path in sorted(part.glob("*.safetensors")) if _variant(path) == variant]


def _variant(path: Path) -> str | None:
    return path.stem.partition(".")[2].partition("-")[0] or None


def _sample(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    if size <= BLOCK * BLOCKS:
        file.seek(start)
        yield file.read(size)
        return
    for number in range(BLOCKS):
        file.seek(start + number * (size - BLOCK) // (BLOCKS - 1))
        yield file.read(BLOCK)
