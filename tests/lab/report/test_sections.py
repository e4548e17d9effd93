"""What a report is about, from folders of runs and of studies."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.errors import UserError
from aurora_lora.lab.report.page import write_page
from aurora_lora.lab.report.sections import load_sections

Result = dict[str, Any]


@pytest.fixture
def study(tmp_path: Path, make_result: Callable[..., Result]) -> Path:
    """A study of LoRA at two ranks and AuroRA; the folder has the runs of LoRA r=2."""
    folder = tmp_path / "studies" / "s"
    methods = {
        "LoRA r=2": {"name": "lora", "r": 2, "lora_alpha": 4},
        "LoRA r=8": {"name": "lora", "r": 8, "lora_alpha": 16},
        "AuroRA r=2, no F": {"name": "aurora-no-f", "r": 2},
    }
    settings = []
    for name, method in methods.items():
        forms = ["static", "calibrated"] if "AuroRA" in name else ["merged"]
        scores = {"accuracy": {"scores": [0.7, 0.8], "mean": 0.75, "std": 0.07}}
        settings.append(
            {
                "name": name,
                "chosen": {"training.learning_rate": 0.005},
                "validation": 0.75,
                "deployed": forms[-1],
                "metric": "accuracy",
                "trials": [],
                "seeds": [0, 1],
                "by_form": dict.fromkeys(forms, scores),
                "params": {"adapter": 100 * method["r"], "head": 2, "total": 9},
                "train_s": [10.0, 12.0],
            }
        )
    plan = {
        "name": "s",
        "base": {"model": "m", "task": {"name": "t"}},
        "tuning": {"budget": 2, "space": {"training.learning_rate": [0.005, 0.01]}},
        "seeds": [0, 1],
        "settings": [{"name": name, "method": method} for name, method in methods.items()],
    }
    for rate in (0.005, 0.01):
        for seed in (0, 1):
            path = folder / "runs" / "lora-r=2" / f"learning_rate={rate}" / f"seed{seed}"
            path.mkdir(parents=True)
            one = make_result("lora", rate, seed, 200, {"merged": 0.7 if rate == 0.005 else 0.1}, r=2, lora_alpha=4)
            (path / "result.json").write_text(json.dumps(one))
    (folder / "study.json").write_text(json.dumps({"study": plan, "settings": settings}))
    return folder


def test_of_a_study_the_chosen_runs(study: Path) -> None:
    for path in (study, study.parent, study / "study.json"):
        (section,) = load_sections([path])
        assert (section.title, section.model, section.slug) == ("s", "m", "s")
        assert [group.label for group in section.groups] == ["LoRA r=2", "LoRA r=8", "AuroRA r=2, no F"]
        assert [group.line for group in section.groups] == ["LoRA", "LoRA", "AuroRA, no F"]
    with_runs, without, aurora = section.groups
    assert with_runs.scores("merged", "accuracy") == pytest.approx([0.7, 0.71])  # of the runs
    assert without.scores("merged", "accuracy") == [0.7, 0.8]  # of study.json
    assert [len(group.runs[0]["epochs"]) for group in section.groups] == [3, 0, 0]
    assert with_runs.folders[1] == study / "runs" / "lora-r=2" / "learning_rate=0.005" / "seed1"
    assert without.folders == [None, None]
    assert (without.rank, without.params, without.validation) == (8, 800, 0.75)
    assert (aurora.deployed, aurora.forms) == ("calibrated", ["static", "calibrated"])


def test_the_page_and_the_tables_of_a_study(study: Path, runs: Path, tmp_path: Path) -> None:
    write_page(load_sections([study]), tmp_path / "page.html", "s")
    page = (tmp_path / "page.html").read_text()
    assert '<h2 id="s">s, m</h2>' in page
    assert "<nav>" not in page
    assert "Each setting had 2 runs to tune it" in page
    assert "AuroRA r=2, no F<small>lr 0.005, lowest</small>" in page
    assert "at the edge of the grid, so that another value may be better, for 3 of 3 settings" in page
    assert "Score against rank" in page
    plan = json.loads((study / "study.json").read_text())
    sides = ({"setting": "LoRA r=8", "form": None}, {"setting": "LoRA r=2", "form": None})
    plan["study"]["questions"] = [{"ask": "Does rank matter", "first": sides[0], "second": sides[1]}]
    (study / "study.json").write_text(json.dumps(plan))
    write_page(load_sections([study, runs]), tmp_path / "page.html", "both")
    page = (tmp_path / "page.html").read_text()
    assert "<td>Does rank matter<small>LoRA r=8, merged, less LoRA r=2, merged</small></td>" in page
    assert re.findall(r'<a href="#(.*?)">', page) == re.findall(r'<h2 id="(.*?)">', page)
    done = CliRunner().invoke(cli.app, ["report", str(study)])
    assert done.exit_code == 0, done.output
    assert "s: 2 runs to tune each, 2 seeds; mean ± standard deviation" in done.stdout
    assert "Does rank matter" in " ".join(done.stdout.split())
    text = (study / "study.json").read_text()
    (study / "study.json").write_text(
        text.replace("AuroRA r=2, no F", "A [/b]").replace('"name": "s"', '"name": "[/i]"')
    )
    done = CliRunner().invoke(cli.app, ["report", str(study)])
    assert done.exit_code == 0, done.output
    assert "[/i]: 2 runs to tune each" in done.stdout
    assert "A [/b]" in done.stdout


def test_a_study_that_chose_by_the_likelihood(study: Path) -> None:
    summary = json.loads((study / "study.json").read_text())
    summary["study"]["tuning"]["metric"] = "nll"
    (study / "study.json").write_text(json.dumps(summary))
    (section,) = load_sections([study])
    assert (section.groups[1].selected_by, section.groups[1].validation) == ("nll", -0.75)
    assert section.metric == "nll"  # which its figures show


def test_the_page_of_a_study_some_of_whose_runs_failed(study: Path, tmp_path: Path) -> None:
    summary = json.loads((study / "study.json").read_text())
    summary["study"]["seeds"] = [0, 1, 2]
    summary["settings"][0].update(seeds=[], by_form={}, params=None, train_s=[])
    (study / "study.json").write_text(json.dumps(summary))
    write_page(load_sections([study]), tmp_path / "page.html", "A study")
    page = (tmp_path / "page.html").read_text()
    assert page.count("(2 of 3 seeds)</small>") == 3  # LoRA r=8, and both forms of AuroRA
    assert '<p class="note">No result: LoRA r=2.</p>' in page


def test_a_study_beside_other_runs(study: Path, make_result: Callable[..., Result]) -> None:
    other = study.parent / "other"
    other.mkdir()
    (other / "result.json").write_text(json.dumps(make_result("lora", 1e-3, 0, 5, {"merged": 0.5})))
    titles = [section.title for section in load_sections([study.parent])]
    assert titles == ["s", "t, <m>"]


@pytest.mark.parametrize("beside_a_study", [False, True])
def test_a_damaged_result_is_not_left_out(
    study: Path, make_result: Callable[..., Result], tmp_path: Path, beside_a_study: bool
) -> None:
    """A mean over two of three seeds would look like one over all."""
    place = study.parent if beside_a_study else tmp_path / "runs"
    for seed in (0, 1):
        (place / f"run{seed}").mkdir(parents=True)
        text = json.dumps(make_result("lora", 0.005, seed, 200, {"merged": 0.7}, r=2, lora_alpha=4))
        (place / f"run{seed}" / "result.json").write_text(text if seed else text[:100])
    with pytest.raises(UserError, match=r"run0/result\.json"):
        load_sections([place])
    (place / "run0" / "result.json").unlink()
    (place / "other.json").write_text("{")  # nobody's
    assert len(load_sections([place])) == (2 if beside_a_study else 1)


def test_what_is_given_twice_counts_once(
    study: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (once,) = load_sections([runs])
    monkeypatch.chdir(tmp_path)
    (section,) = load_sections([runs, "runs/6", runs / "6" / "result.json"])
    assert [len(group.runs) for group in section.groups] == [len(group.runs) for group in once.groups]
    assert len(load_sections([study, "studies", study / "study.json"])) == 1


def test_what_is_no_study_is_refused(study: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no result"):
        load_sections([tmp_path / "none"])
    (study / "study.json").write_text("{}")
    with pytest.raises(UserError, match="is not what aurora sweep writes"):
        load_sections([study])
    (study / "study.json").write_text(json.dumps({"study": {"name": "s"}, "settings": []}))
    with pytest.raises(UserError, match=r"does not fit this version: base: this field must be given"):
        load_sections([study])


@pytest.mark.parametrize(
    ("fields", "model"),
    [({"model": "k"}, "k, m"), ({"model.name": "k"}, "k, m"), ({"model.dtype": "bf16"}, "m")],
    ids=str,
)
def test_a_study_of_several_models(study: Path, fields: dict[str, str], model: str) -> None:
    path = study / "study.json"
    found = json.loads(path.read_text())
    found["study"]["settings"][1]["fields"] = fields
    path.write_text(json.dumps(found))
    (section,) = load_sections([study])
    assert section.model == model
