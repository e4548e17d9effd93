"""Copies of hub data sets for the loaders."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import hub_copy

Hub = Callable[..., Path]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """`hub(fixture, ...)` makes these fixtures what the loaders find; gives the folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AURORA_LORA_DATA", str(tmp_path / "data"))

    def make(*fixtures: dict[str, Any]) -> Path:
        for fixture in fixtures:
            hub_copy.write(fixture, tmp_path / "data")
        return tmp_path / "data"

    return make
