"""The file that keeps what a probe has found: tensors by layer, and facts beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ..kept_tensors import read, write

FACTS = "probe"


def write_probe(path: Path, tensors: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
    """Write a file, or leave it as it was.

    Args:
        path: of the file, whose folder is made if need be.
        tensors: by what they are, and by layer.
        facts: ready for JSON.
    """
    by_name = {f"{layer}/{what}": one.contiguous() for what, of in tensors.items() for layer, one in of.items()}
    write(path, by_name, **{FACTS: json.dumps(facts, sort_keys=True)})


def read_probe(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What `write_probe` has written.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or is none of a probe.
    """
    by_name, texts = read(path)
    if FACTS not in texts:
        raise CheckpointError(f"{path} keeps no probe.")
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, value in by_name.items():
        layer, _, what = name.rpartition("/")
        tensors.setdefault(what, {})[layer] = value
    return tensors, json.loads(texts[FACTS])
