"""Tensors that a run keeps in a file with their sha256, so that damage to it is noticed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import CheckpointError
from .files import new_file

SHA256 = "sha256"
"""The key in the file's metadata: the sha256 of the texts kept too and of the tensors' names and contents."""


def write(path: Path, tensors: Mapping[str, Tensor], **texts: str) -> None:
    """Write tensors, and texts that belong to them, or leave the file as it was.

    Args:
        path: of the file, whose folder is made if need be.
        tensors: on the CPU, contiguous, of any shape, by name.
        texts: by name.
    """
    with new_file(path) as partial:
        save_file(dict(tensors), str(partial), metadata={**texts, SHA256: _sha256(tensors, texts)})


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `write` has written: the tensors and the texts.

    Raises:
        CheckpointError: the file cannot be read, or is damaged.
    """
    try:
        with safe_open(str(path), "pt") as file:
            texts = dict(file.metadata() or {})
        tensors = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    if texts.pop(SHA256, None) != _sha256(tensors, texts):
        raise CheckpointError(f"{path} is damaged.")
    return tensors, texts


def _sha256(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(texts):
        digest.update(texts[name].encode())
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0")
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
