"""The tables in docs/ are those that `make docs` writes from the committed results, word for word."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot

import fill

FIGURES = Path(__file__).parents[2] / "docs" / "figures"


def test_the_pages_are_what_make_docs_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    changed: list[str] = []
    drawn: set[str] = set()

    def compare(path: Path, text: str) -> None:
        if path.read_text(encoding="utf-8") != text:
            changed.append(path.name)

    def note(figure: Any, path: Path) -> list[Path]:
        drawn.add(path.name)
        pyplot.close(figure)
        return [path.with_name(f"{path.name}.svg")]

    monkeypatch.setattr(fill, "write_text", compare)
    monkeypatch.setattr(fill, "FIGURES", tmp_path / "figures")
    ours = {name: task for name, task in fill.TASKS.items() if task.group != "other"}  # other tests add some
    monkeypatch.setattr(fill, "TASKS", ours)
    monkeypatch.setattr(fill, "save", note)
    fill.main()
    assert not changed, "make docs writes them"
    assert drawn == {path.stem for path in FIGURES.glob("*.svg")}
