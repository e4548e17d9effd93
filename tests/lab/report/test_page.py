"""The report page, which opens in a browser without network, and the figures that are written."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aurora_lora.errors import UserError
from aurora_lora.lab.report.page import figures_of, write_figures, write_page
from aurora_lora.lab.report.runs import load_sections
from aurora_lora.lab.report.study import section_tables


def test_the_page(runs: Path, tmp_path: Path) -> None:
    path = runs / "02" / "result.json"
    path.write_text(path.read_text().replace('"adapter": 1250', '"adapter": 1300'))
    write_page(load_sections([runs]), tmp_path / "page.html", "Runs <1>")
    page = (tmp_path / "page.html").read_text()
    assert "<h1>Runs &lt;1&gt;</h1>" in page
    assert "t, &lt;m&gt;" in page
    assert 'data-name="accuracy %">81.0 ± 1.0</td>' in page
    assert ">1,250 to 1,300</td>" in page
    assert page.count("<svg") == 2
    own = ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink")
    assert not [url for url in re.findall(r"https?://[^\"' <)]+", page) if url not in own]
    assert not re.findall(r"<(?:script|link [^>]*href=\"(?!data:))", page)


def test_scores_that_are_not_finite(runs: Path, tmp_path: Path) -> None:
    """A result has null for them: two seeds of one setting, all of another, also on the way."""
    for path in runs.glob("*/result.json"):
        found = json.loads(path.read_text())
        method, seed = found["method"], found["seed"]
        if method == "lora" or seed < 2:
            for scores in found["metric"]["by_form"].values():
                scores["accuracy"] = None
        if method == "lora":
            found["metric"]["selected_by"]["value"] = None
            for epoch in found["epochs"]:
                epoch["train_loss"] = None
                epoch["validation"]["accuracy"] = None
        path.write_text(json.dumps(found))
    sections = load_sections([runs])
    (table,) = section_tables(sections[0], full=True)
    cells = {(row[0], row[2]): row[3] for row in table.rows}
    assert cells["lora: learning_rate 0.001", "merged"] == "not finite"
    assert cells["aurora", "calibrated"] == "83.0 (1 of 3 finite)"
    write_page(sections, tmp_path / "page.html", "Runs")
    page = (tmp_path / "page.html").read_text()
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL).casefold()
    written, _ = write_figures(sections, tmp_path / "figures")
    assert {path.stem for path in written} >= {"scores", "curves"}


def test_what_applies_is_written_and_why_the_rest_does_not(runs: Path, tmp_path: Path) -> None:
    sections = load_sections([runs])
    folders = sections[0].runs.query("method == 'aurora'")["folder"].tolist()
    channel = {"z": [0, 1], "before": [0, 1], "after": [0, 2], "edges": [0, 1], "counts": [3]}
    sigma = {"examples": 3, "train_form": "dynamic", "layers": [{"layer": "l.0.q", "channels": [channel]}]}
    gap = {"layers": [{"layer": "l.0.q", "form": "static", "relative_error": 0.1}]}
    for folder in folders[1:]:
        (folder / "sigma.json").write_text(json.dumps(sigma))
        (folder / "gap.json").write_text(json.dumps(gap))
    written, left_out = write_figures(sections, tmp_path / "figures")
    names = [path.relative_to(tmp_path / "figures").as_posix() for path in written]
    assert names[::2] == ["scores.png", "curves.png", "sigma-aurora.png", "gap-aurora.png"]
    assert all(path.stat().st_size for path in written)
    assert "t, <m>: no ranks: score against rank needs runs of one method at two ranks at least" in left_out
    (folders[1] / "gap.json").write_text("{")
    (why,) = (made for kind, made in figures_of(sections[0]) if kind.name == "gap")
    assert isinstance(why, UserError)
    assert re.search(r"gap\.json cannot be read", str(why))


def test_the_page_of_a_single_run_speaks_of_no_seeds(
    make_result: Callable[..., Any], load: Callable[..., Any], tmp_path: Path
) -> None:
    section = load([make_result("lora", 1e-3, 0, 5000, {"merged": 0.8})])
    write_page([section], tmp_path / "page.html", "Runs")
    page = (tmp_path / "page.html").read_text()
    assert "<p>1 run." in page
    assert "over the seeds" not in page
    assert page.count("<svg") == 1, "the learning curves; a single dot is no figure"
