"""Every benchmark starts: what it imports of the package is there."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = [path.stem for path in (ROOT / "benchmarks").glob("*.py") if "def main" in path.read_text()]


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_does(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    assert stop.value.code == 0
    assert "--output" in capsys.readouterr().out
