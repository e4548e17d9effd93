"""The report page: what stands in it, and that it opens in a browser without network or errors."""

import json
import re
from pathlib import Path

from aurora_lora.lab.report.groups import interval
from aurora_lora.lab.report.page import write_figures, write_page
from aurora_lora.lab.report.sections import load_sections


def test_the_page(runs: Path, tmp_path: Path) -> None:
    write_page(load_sections([runs]), tmp_path / "page.html", "Runs <1>")
    page = (tmp_path / "page.html").read_text()
    assert "<h1>Runs &lt;1&gt;</h1>" in page
    assert "t, &lt;m&gt;" in page
    low, high = interval([80.0, 81.0, 82.0])
    assert f'<td class="n">81.0<small>{low:.1f} to {high:.1f}</small></td>' in page
    assert page.count('class="deployed"') == 1
    assert page.count("<svg") == 2
    own = ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink")
    assert not [url for url in re.findall(r"https?://[^\"' <)]+", page) if url not in own]
    assert not re.findall(r"<(?:script|link [^>]*href=\"(?!data:))", page)


def test_both_ends_of_the_parameters_where_runs_differ(runs: Path, tmp_path: Path) -> None:
    path = runs / "2" / "result.json"
    path.write_text(path.read_text().replace('"adapter": 1250', '"adapter": 1300'))
    sections = load_sections([runs])
    assert [group.params for group in sections[0].groups] == [5000, 5000, 1250]
    write_page(sections, tmp_path / "page.html", "Runs")
    assert ">1,250 to 1,300</td>" in (tmp_path / "page.html").read_text()


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
    write_page(sections, tmp_path / "page.html", "Runs")
    page = (tmp_path / "page.html").read_text()
    assert page.count('<td class="n">not finite') == 2  # LoRA at two rates
    assert '<td class="n">83.0<small>(1 of 3 finite)</small></td>' in page
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL).casefold()
    written, _ = write_figures(sections, tmp_path / "figures")
    assert {path.stem for path in written} >= {"scores", "curves", "times"}
