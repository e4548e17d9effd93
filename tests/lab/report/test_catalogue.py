"""The figures that are written, and what is said of those that are not."""

import json
from pathlib import Path
from typing import Any

import pytest

from aurora_lora.errors import UserError
from aurora_lora.lab.report.groups import groups
from aurora_lora.lab.report.page import write_figures
from aurora_lora.lab.report.sections import Section, load_sections


def test_those_that_apply_are_written(runs: Path, tmp_path: Path) -> None:
    written, left_out = write_figures(load_sections([runs]), tmp_path / "figures")
    names = [path.relative_to(tmp_path / "figures").as_posix() for path in written]
    assert names == ["scores.png", "scores.svg", "curves.png", "curves.svg", "times.md"]
    assert all(path.stat().st_size for path in written)
    assert "t, <m>: no ranks: score against rank needs runs of one method at two ranks at least" in left_out


def test_what_commands_left_in_the_folders_is_drawn(runs: Path, tmp_path: Path) -> None:
    sections = load_sections([runs])
    for name in ("sigma", "gap"):
        with pytest.raises(UserError, match=f"it needs runs with a {name}.json, which `aurora {name} DIR` writes"):
            write_figures(sections, tmp_path / "figures", [name])
    aurora = [folder for folder in sections[0].groups[-1].folders if folder]
    channel = {"z": [0, 1], "before": [0, 1], "after": [0, 2], "edges": [0, 1], "counts": [3]}
    sigma = {"examples": 3, "train_form": "dynamic", "layers": [{"layer": "l.0.q", "channels": [channel]}]}
    gap = {"layers": [{"layer": "l.0.q", "form": "static", "relative_error": 0.1}]}
    for folder in aurora[1:]:
        (folder / "sigma.json").write_text(json.dumps(sigma))
        (folder / "gap.json").write_text(json.dumps(gap))
    written, _ = write_figures(sections, tmp_path / "figures", ["sigma", "gap"])
    assert [path.name for path in written] == [
        "sigma-aurora.png",
        "sigma-aurora.svg",
        "gap-aurora.png",
        "gap-aurora.svg",
    ]
    (aurora[1] / "gap.json").write_text("{")
    with pytest.raises(UserError, match=r"gap\.json cannot be read"):
        write_figures(sections, tmp_path / "figures", ["gap"])


def test_what_was_asked_for_must_apply(runs: Path, tmp_path: Path) -> None:
    sections = load_sections([runs])
    written, left_out = write_figures(sections, tmp_path / "figures", ["curves"])
    assert [path.name for path in written] == ["curves.png", "curves.svg"]
    assert left_out == []
    with pytest.raises(UserError, match="t, <m>: score against rank needs"):
        write_figures(sections, tmp_path / "figures", ["ranks"])
    with pytest.raises(UserError, match="'curve' is an unknown figure; did you mean 'curves'"):
        write_figures(sections, tmp_path / "figures", ["curve"])


def test_each_section_has_a_folder(results: list[dict[str, Any]], tmp_path: Path) -> None:
    found = next(iter(groups(results).values()))
    written, _ = write_figures([Section("A b", "m", found), Section("c", "m", found)], tmp_path, ["scores"])
    assert [path.relative_to(tmp_path).as_posix() for path in written][::2] == ["a-b/scores.png", "c/scores.png"]
