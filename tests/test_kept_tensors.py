"""Tensors kept with their digest: they come back as they were, and what is damaged is noticed."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from aurora_lora import kept_tensors
from aurora_lora.errors import CheckpointError

TENSORS = {
    "b": torch.arange(6, dtype=torch.float64).reshape(2, 3),
    "a": torch.tensor([1.5, -2], dtype=torch.bfloat16),
    "none": torch.zeros(0, 4),
    "one": torch.tensor(3),
}


def test_they_come_back(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "kept.safetensors"
    kept_tensors.write(path, TENSORS, facts="the facts")
    tensors, texts = kept_tensors.read(path)
    assert texts == {"facts": "the facts"}
    assert tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value)


def test_the_digest_is_the_one_of_earlier_files(tmp_path: Path) -> None:
    """Runs that were begun before go on: the text first, then names and contents in the order of the names."""
    path = tmp_path / "kept.safetensors"
    kept_tensors.write(path, {"y": torch.ones(2), "x": torch.zeros(1)}, facts="the facts")
    content = b"the facts" + b"x\0" + bytes(4) + b"y\0" + b"\0\0\x80\x3f" * 2
    with safe_open(path, "pt") as file:
        assert file.metadata()["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("what", [b"the facts", b"\xc0\x3f"])
def test_damage_is_noticed(tmp_path: Path, what: bytes) -> None:
    path = tmp_path / "kept.safetensors"
    kept_tensors.write(path, TENSORS, facts="the facts")
    whole = path.read_bytes()
    assert whole.count(what) == 1
    path.write_bytes(whole.replace(what, what[:-1] + bytes([what[-1] ^ 1])))
    with pytest.raises(CheckpointError, match=r"kept\.safetensors is damaged\.$"):
        kept_tensors.read(path)
    path.write_bytes(whole[:40])
    with pytest.raises(CheckpointError, match=r"kept\.safetensors cannot be read: "):
        kept_tensors.read(path)
