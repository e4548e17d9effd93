"""Copies of hub data sets for the loaders; where `datasets` keeps what it has read: a folder of the test's own."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "own"))

import hub_copy

Hub = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AURORA_LORA_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """`hub(fixture, ...)` makes these fixtures what the loaders find; gives the folder."""
    monkeypatch.setenv("AURORA_LORA_DATA", str(tmp_path / "data"))

    def make(*fixtures: dict[str, Any]) -> Path:
        for fixture in fixtures:
            hub_copy.write(fixture, tmp_path / "data")
        return tmp_path / "data"

    return make
