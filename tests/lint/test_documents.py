"""The tables in docs/ are those that `make docs` writes from the committed results, word for word; and how many words
a person has written beside them."""

import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot

import fill

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "figures"
README_WORDS, WRITTEN_WORDS = 700, 20_200


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


def test_the_documents_are_short() -> None:
    """The README as `wc -w` counts; of the others what is neither made by a program nor a row of a table."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= README_WORDS
    pages = [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    words: dict[str, int] = {}
    for page in (page for page in pages if page.parent.name != "studies"):
        written = re.sub(
            r"<!-- (?!end )(.*?) -->\n.*?<!-- end \1 -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL
        )
        lines = (line for line in written.splitlines() if not line.lstrip().startswith("|"))
        words[str(page.relative_to(ROOT))] = sum(len(line.split()) for line in lines)
    assert sum(words.values()) <= WRITTEN_WORDS, words
