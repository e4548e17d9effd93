"""Tables and figures on known results."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from aurora_lora.errors import UserError
from aurora_lora.lab.report.figures import save
from aurora_lora.lab.report.groups import load_results
from aurora_lora.lab.report.measured import forms_figure, forms_table
from aurora_lora.lab.report.tables import insert, spread


def result(rate: float, seed: int, static: float, method: str = "aurora") -> dict[str, Any]:
    scores = {"dynamic": (0.84, 0.40), "static": (static, 0.90), "calibrated": (0.839, 0.41)}
    return {
        "schema": 1,
        "recipe": {"training": {"learning_rate": rate}},
        "method": method,
        "task": "t",
        "model": "m",
        "seed": seed,
        "metric": {"by_form": {form: {"accuracy": a, "nll": n} for form, (a, n) in scores.items()}},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for rate, seed, static in ((1e-2, 0, 0.70), (1e-2, 1, 0.72), (5e-3, 0, 0.78), (5e-3, 1, 0.78)):
        run = tmp_path / "runs" / f"{rate}-{seed}"
        run.mkdir(parents=True)
        (run / "result.json").write_text(json.dumps(result(rate, seed, static)))
        (run / "other.json").write_text("{}")
    return tmp_path / "runs"


def test_results_are_found_below_a_folder_and_by_name(folder: Path) -> None:
    assert len(load_results([folder])) == 4
    assert len(load_results([folder / "0.01-0", folder / "0.01-1" / "result.json"])) == 2
    with pytest.raises(UserError, match="holds no result"):
        load_results([folder / "nothing"])
    with pytest.raises(UserError, match="is not a result"):
        load_results([folder / "0.01-0" / "other.json"])


def test_forms_table(folder: Path) -> None:
    lines = forms_table(load_results([folder])).splitlines()
    assert len(lines) == 2 + 2 * 3
    assert lines[2] == "| 0.005 | dynamic (trained) | 84.0 ± 0.0 | 0.400 ± 0.000 |  |  |"
    static, calibrated = lines[6], lines[7]
    assert static.startswith(
        "| 0.01 | static (the paper's merge) | 71.0 ± 1.4 | 0.900 ± 0.000 | -13.00 ± 1.41 | 0.5000"
    )
    assert "| -0.10 ± 0.00 | 0.0100 ± 0.0000 |" in calibrated
    assert spread([0.5], 1, 100) == "50.0"


def test_scores_that_are_not_finite(folder: Path, tmp_path: Path) -> None:
    """A result has null for them."""
    for seed, forms in ((0, ("static",)), (1, ("static", "calibrated"))):
        path = folder / f"0.01-{seed}" / "result.json"
        found = json.loads(path.read_text())
        for form in forms:
            found["metric"]["by_form"][form]["nll"] = None
        path.write_text(json.dumps(found))
    *_, dynamic, static, calibrated = forms_table(load_results([folder])).splitlines()
    assert dynamic.endswith("| 84.0 ± 0.0 | 0.400 ± 0.000 |  |  |")
    assert static.endswith("| 71.0 ± 1.4 | not finite | -13.00 ± 1.41 | not finite |")
    assert "| 83.9 ± 0.0 | 0.410 (1 of 2 finite) |" in calibrated
    assert calibrated.endswith("| 0.0100 (1 of 2 finite) |")
    _, likelihood = forms_figure(load_results([folder])).axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in likelihood.get_lines() if line.get_label()[0] != "_"}
    assert not drawn or all(len(values) == 2 for values in drawn.values())
    assert len(save(forms_figure(load_results([folder])), tmp_path / "forms")) == 2
    assert spread([None, math.inf], 1) == "not finite"


def test_other_methods_are_left_out(folder: Path) -> None:
    (folder / "lora.json").write_text(json.dumps(result(1.0, 0, 0.1, method="lora")))
    assert "| 1 |" not in forms_table(load_results([folder]))


def test_insert_replaces_what_is_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- forms -->\nold\n<!-- end forms -->\nafter\n")
    for _ in range(2):
        insert(page, "forms", "| new \\1 |")
    assert page.read_text() == "before\n<!-- forms -->\n\n| new \\1 |\n\n<!-- end forms -->\nafter\n"
    with pytest.raises(UserError, match="no marks"):
        insert(page, "other", "x")


def series(ax: Any) -> dict[str, list[float]]:
    return {container.get_label(): list(container.lines[0].get_ydata()) for container in ax.containers}


def test_forms_figure_shows_the_means_of_the_forms(folder: Path, tmp_path: Path) -> None:
    figure = forms_figure(load_results([folder]))
    accuracy, nll = figure.axes
    shown = series(accuracy)
    assert shown["static (the paper's merge)"] == pytest.approx([78, 71])
    assert shown["calibrated (ours)"] == pytest.approx([83.9, 83.9])
    assert [label.get_text() for label in accuracy.get_xticklabels()] == ["0.005", "0.01"]
    assert (accuracy.get_ylabel(), nll.get_ylabel()) == ("accuracy, %", "negative log-likelihood")
    written = save(figure, tmp_path / "out" / "forms")
    assert [path.name for path in written] == ["forms.png", "forms.svg"]
    assert written[0].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in written[1].read_bytes()


def test_results_that_do_not_go_together_are_refused(folder: Path) -> None:
    other = result(5e-3, 2, 0.7)
    other["recipe"] |= {"model": "another", "task": {"name": "t"}}
    (folder / "other.json").write_text(json.dumps(other))
    with pytest.raises(UserError) as error:
        forms_table(load_results([folder]))
    assert str(error.value) == (
        "the runs differ in more than learning rate and seed, in model (one 'not given', another 'another'), task.name "
        "(one 'not given', another 't'): report those of one setting at a time; `html` FILE.html shows any runs"
    )
    other["recipe"] |= {f"field{n}": n for n in range(4)}
    with pytest.raises(UserError, match=r"field3 \(one 'not given', another 3\) and 2 more: report"):
        forms_table([*load_results([folder / "0.01-0"]), other])
    rating = result(5e-3, 0, 0.7)
    rating["metric"]["by_form"] = {"dynamic": {"pearson": 0.5, "mse": 1.0}}
    with pytest.raises(UserError, match="forms dynamic, static"):
        forms_figure([rating])
    rating["metric"]["by_form"] = {form: {"pearson": 0.5, "mse": 1.0} for form in ("dynamic", "static", "calibrated")}
    with pytest.raises(UserError, match="classification"):
        forms_figure([rating])
    assert forms_table([rating]).splitlines()[0].split("|")[3:5] == [" pearson % ", " mse "]
    with pytest.raises(UserError, match="no result of a run of aurora"):
        forms_table([result(5e-3, 0, 0.7, method="lora")])
    static = result(5e-3, 0, 0.7)
    del static["metric"]["by_form"]["dynamic"]
    with pytest.raises(UserError, match="needs runs with the forms"):
        forms_figure([static])
    with pytest.raises(UserError, match="cannot be read"):
        insert(folder / "none.md", "forms", "x")
