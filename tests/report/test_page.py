"""The report page: what stands in it, and that it opens in a browser without network or errors."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import t

from aurora_lora.report.groups import groups, interval, labels
from aurora_lora.report.page import curves_figure, score_figure, write_page

SEEDS = (0, 1, 2)


def result(method: str, rate: float, seed: int, params: int, scores: dict[str, float]) -> dict[str, Any]:
    deployed = "calibrated" if "calibrated" in scores else "merged"
    epochs = [{"epoch": e, "step": e, "train_loss": 1.0, "validation": {"accuracy": 0.6 + 0.05 * e}} for e in (1, 2)]
    return {
        "schema": 1,
        "recipe": {"model": "m", "task": {"name": "t"}, "method": {"name": method}, "training": {"learning_rate": rate}}
        | {"seed": seed, "name": "n"},
        "method": method,
        "model": "<m>",
        "task": "t",
        "seed": seed,
        "metric": {
            "name": "accuracy",
            "split": "test",
            "by_form": {form: {"accuracy": value + seed / 100} for form, value in scores.items()},
            "selected_by": {"form": deployed, "name": "accuracy", "epoch": 2},
        },
        "params": {"adapter": params, "head": 2, "total": 9},
        "time": {"train_s": 10.0, "samples_per_s": 5.0},
        "memory": {"peak_mb": 100.0},
        "epochs": epochs,
        "versions": {"python": "3.11", "datasets": None},
        "git_commit": "abc",
        "device": "cpu",
    }


@pytest.fixture
def results() -> list[dict[str, Any]]:
    made = []
    for seed in reversed(SEEDS):
        made.append(result("lora", 1e-3, seed, 5000, {"merged": 0.8}))
        made.append(result("lora", 2e-3, seed, 5000, {"merged": 0.7}))
        made.append(result("aurora", 1e-3, seed, 1250, {"dynamic": 0.82, "static": 0.5, "calibrated": 0.81}))
    return made


def test_groups(results: list[dict[str, Any]]) -> None:
    (found,) = groups(results).values()
    assert [group.label for group in found] == ["lora: learning_rate 0.001", "lora: learning_rate 0.002", "aurora"]
    assert [run["seed"] for run in found[0].runs] == list(SEEDS)
    assert found[0].scores("merged", "accuracy") == pytest.approx([0.8, 0.81, 0.82])
    assert labels(results[:1]) == ["lora"]


def test_interval() -> None:
    values = [0.80, 0.81, 0.82]
    low, high = t.interval(0.95, 2, loc=0.81, scale=0.01 / 3**0.5)
    assert interval(values) == pytest.approx((low, high))
    assert interval([1.0]) == (None, None)


def test_figures(results: list[dict[str, Any]]) -> None:
    (found,) = groups(results).values()
    (ax,) = score_figure(found, "accuracy").axes
    assert ax.get_xscale() == "log"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("trained parameters outside the head", "accuracy, %")
    drawn = {bars.get_label(): [tuple(point) for point in bars.lines[0].get_xydata()] for bars in ax.containers}
    assert drawn["lora"] == [pytest.approx((5000, 81)), pytest.approx((5000, 71))]
    assert drawn["aurora"] == [pytest.approx((1250, 82))]
    probe = groups([result("linear-probe", 1e-3, 0, 0, {"merged": 0.6}), *results])
    assert score_figure(next(iter(probe.values())), "accuracy").axes[0].get_xscale() == "symlog"
    curves = curves_figure(found, "accuracy")
    assert curves is not None
    first = curves.axes[0].lines[0]
    assert first.get_label() == "aurora"  # the best one first
    assert first.get_ydata().tolist() == pytest.approx([65, 70])


def test_the_page(results: list[dict[str, Any]], tmp_path: Path) -> None:
    write_page(results, tmp_path / "page.html", "Runs <1>")
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


def test_a_browser_opens_it_without_errors(results: list[dict[str, Any]], tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    write_page(results, tmp_path / "page.html", "Runs")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--disable-background-networking", "--window-size=390,900", "--dump-dom"]
    done = subprocess.run([*command, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "learning_rate 0.001" in done.stdout
    assert "CONSOLE" not in done.stderr
