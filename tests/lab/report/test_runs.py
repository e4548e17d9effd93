"""Which runs belong together, and what a report is about, from folders of runs and of studies."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.errors import UserError
from aurora_lora.lab.report.page import write_page
from aurora_lora.lab.report.runs import Section, best, load_results, load_sections

Result = dict[str, Any]
Load = Callable[[list[Result]], Section]
Make = Callable[..., Result]


def settings(section: Section) -> list[str]:
    return list(section.scores["setting"].unique())


def shown(section: Section) -> list[tuple[str, float, float]]:
    """Line, rank and learning rate of the settings to show."""
    firsts = best(section.scores).drop_duplicates("setting")
    rates = [result["recipe"]["training"]["learning_rate"] for result in firsts["result"]]
    return list(zip(firsts["line"], firsts["rank"], rates, strict=True))


def test_one_table_of_all_scores(results: list[Result], load: Load) -> None:
    section = load(results)
    assert (section.title, section.subject, section.metric) == ("t, <m>", "t, <m>", "accuracy")
    assert settings(section) == ["lora: learning_rate 0.001", "lora: learning_rate 0.002", "aurora"]
    table = section.scores.set_index(["setting", "seed", "form"]).sort_index()
    assert len(table) == 3 * (1 + 1 + 3)
    assert table.loc[("aurora", slice(None), "static"), "score"].tolist() == pytest.approx([0.5, 0.51, 0.52])
    row = table.loc["aurora", 1, "calibrated"]
    assert (row["method"], row["deployed"], row["params"], row["train_s"]) == ("aurora", "calibrated", 1250, 11.0)
    assert section.runs["folder"].iloc[0].name == "06"  # seed 0 of the first setting


@pytest.mark.parametrize("field", [{"save_updates": True}, {"threads": 2}, {"workers": 4}, {"eval_batch_size": 8}])
def test_what_has_no_say_makes_no_other_setting(make_result: Make, load: Load, field: dict[str, Any]) -> None:
    one, other = (make_result("aurora", 1e-3, seed, 5000, {"dynamic": 0.8, "calibrated": 0.8}) for seed in (0, 1))
    other["recipe"]["training"] |= field
    assert settings(load([one, other])) == ["aurora"]


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("task", ({"name": "movie-sentiment", "train_size": 64}, {"name": "movie-sentiment", "train_size": 1000})),
        ("calibration", ({"examples": 16}, {"examples": 256})),
        ("model", ({"name": "m", "quantization": None}, {"name": "m", "quantization": "nf4"})),
    ],
)
def test_runs_that_differ_in_more_than_their_training_are_other_lines(
    make_result: Make, load: Load, section: str, values: tuple[Any, Any]
) -> None:
    """The best of one validation split is not to be chosen by its score on another."""
    made = [make_result("aurora", rate, 0, 100, {"calibrated": 0.9}, r=2) for _ in values for rate in (1e-3, 2e-3)]
    for place, one in enumerate(made):
        one["recipe"][section] = values[place // 2]
    found = load(made)
    assert len(settings(found)) == 4
    assert len({line for line, *_ in shown(found)}) == len(shown(found)) == 2


def test_a_line_is_a_method_over_its_ranks_at_the_best_learning_rate(make_result: Make, load: Load) -> None:
    made = []
    for r in (8, 2):
        for rate in (2e-3, 1e-3):  # the second is better on validation data
            made.append(make_result("lora", rate, 0, 100 * r, {"merged": 0.9}, r=r, lora_alpha=2 * r))
            made.append(make_result("aurora", rate, 0, 100 * r, {"calibrated": 0.9}, r=r, alpha=2 * r, skip=r == 2))
    assert sorted(shown(load(made))) == [
        ("aurora: skip False", 8, 1e-3),
        ("aurora: skip True", 2, 1e-3),
        ("lora", 2, 1e-3),
        ("lora", 8, 1e-3),
    ]
    of_budget = make_result("lora", 1e-3, 0, 100, {"merged": 0.5}, r=8, budget=4096)
    assert load([of_budget]).scores["rank"].isna().all()


def test_the_least_error_is_the_best_and_a_rate_of_fewer_seeds_is_not(make_result: Make, load: Load) -> None:
    made = [make_result("lora", rate, 0, 100, {"merged": 0.9}) for rate in (1e-3, 2e-3)]
    for one, error in zip(made, (0.5, 0.4), strict=True):
        one["metric"]["selected_by"] |= {"name": "mse", "value": error}
    assert [rate for *_, rate in shown(load(made))] == [2e-3]
    made.append(make_result("lora", 1e-3, 1, 100, {"merged": 0.9}))
    made[-1]["metric"]["selected_by"] |= {"name": "mse", "value": 0.6}
    for several in (made, made[::-1]):
        assert [rate for *_, rate in shown(load(several))] == [1e-3]


def test_seeds_with_splits_of_their_own_are_one_setting(make_result: Make, load: Load) -> None:
    """As in a study with `split_by_seed`, also where a setting lacks a seed."""
    made = [make_result("aurora", rate, seed, 100, {"calibrated": 0.9}) for rate in (1e-3, 2e-3) for seed in (0, 1)][1:]
    for one in made:
        one["recipe"]["task"]["split_seed"] = one["seed"]
    section = load(made)
    assert settings(section) == ["aurora: learning_rate 0.001", "aurora: learning_rate 0.002"]
    assert section.runs["seed"].tolist() == [1, 0, 1]
    made[0]["recipe"]["task"]["split_seed"] = 7
    assert len(settings(load(made))) == 3


def test_runs_that_are_not_compared(results: list[Result], load: Load, tmp_path: Path) -> None:
    runs = [{**run, "data": {"files": {"reviews.csv": "sha256"}}} for run in results[:3:2]]
    assert len(load(runs).runs) == 2
    runs[1]["data"] = {"files": {"reviews.csv": "other"}}
    with pytest.raises(UserError, match=r"runs on other contents of reviews\.csv are not compared: .*00.* and .*01"):
        load(runs)
    with pytest.raises(UserError, match=r"two runs of lora on t have seed 2: .*; leave one out"):
        load([results[0], results[0]])
    reference = tmp_path / "runs0" / "00" / "reference"
    reference.mkdir()
    shutil.copy(tmp_path / "runs0" / "01" / "result.json", reference)  # it was compared with the other one
    assert len(load_sections([tmp_path / "runs0"])[0].runs) == 2


def test_results_are_found_below_a_folder_and_by_name(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(load_results([runs])) == 9
    monkeypatch.chdir(runs.parent)
    assert len(load_results([runs, "runs0/06", runs / "06" / "result.json"])) == 9  # what is given twice counts once
    (runs / "other.json").write_text("{")  # nobody's
    assert len(load_results([runs])) == 9
    with pytest.raises(UserError, match="holds no result"):
        load_sections([runs / "none"])
    with pytest.raises(UserError, match=r"other\.json cannot be read"):
        load_results([runs / "other.json"])
    (runs / "06" / "result.json").write_text("{")  # a mean over two of three seeds would look like one over all
    with pytest.raises(UserError, match=r"06/result\.json"):
        load_sections([runs])


# ---------------------------------------------------------------- studies


@pytest.fixture
def study(tmp_path: Path, make_result: Make) -> Path:
    """A study of LoRA at two ranks and AuroRA, with the runs that it chose and others."""
    folder = tmp_path / "studies" / "s"
    methods = {
        "LoRA r=2": {"name": "lora", "r": 2, "lora_alpha": 4},
        "LoRA r=8": {"name": "lora", "r": 8, "lora_alpha": 16},
        "AuroRA r=2, no F": {"name": "aurora-no-f", "r": 2},
    }
    settings = []
    for name, method in methods.items():
        forms = ["static", "calibrated"] if "AuroRA" in name else ["merged"]
        options = {key: value for key, value in method.items() if key != "name"}
        for rate in (0.005, 0.01):
            for seed in (0, 1):
                of_rate = "-".join(re.findall(r"[\w.=]+", name.lower()))
                path = folder / "runs" / of_rate / f"learning_rate={rate}" / f"seed{seed}"
                path.mkdir(parents=True)
                scores = dict.fromkeys(forms, 0.7 if rate == 0.005 else 0.1)
                one = make_result(method["name"], rate, seed, 100 * method["r"], scores, **options)
                (path / "result.json").write_text(json.dumps(one))
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
    (folder / "study.json").write_text(json.dumps({"study": plan, "settings": settings}))
    return folder


def change(study: Path, update: Callable[[dict[str, Any]], Any]) -> None:
    found = json.loads((study / "study.json").read_text())
    update(found)
    (study / "study.json").write_text(json.dumps(found))


def test_of_a_study_the_chosen_runs(study: Path) -> None:
    for paths in ([study], [study.parent], [study, study / "study.json"]):
        (section,) = load_sections(paths)
        assert (section.title, section.model, section.slug) == ("s", "<m>", "s")
    firsts = section.scores.drop_duplicates("setting")
    assert firsts["line"].tolist() == ["LoRA", "LoRA", "AuroRA, no F"]
    assert (firsts["rank"].tolist(), firsts["params"].tolist()) == ([2, 8, 2], [200, 800, 200])
    assert section.scores["score"].tolist() == [0.7, 0.8] * 2 + [0.7, 0.7, 0.8, 0.8]  # of study.json, seed by seed
    assert section.runs["folder"].iloc[1] == study / "runs" / "lora-r=2" / "learning_rate=0.005" / "seed1"
    change(study, lambda found: found["study"]["tuning"].update(metric="nll"))
    assert load_sections([study])[0].metric == "nll"  # which its figures show
    shutil.rmtree(study / "runs" / "lora-r=8")
    with pytest.raises(UserError, match=r"lora-r=8.* is missing: run aurora sweep again"):
        load_sections([study])


def test_the_page_and_the_tables_of_a_study(study: Path, runs: Path, tmp_path: Path) -> None:
    sides = ({"setting": "LoRA r=8", "form": None}, {"setting": "LoRA r=2", "form": None})
    asked = [{"ask": "Does rank matter", "first": sides[0], "second": sides[1]}]
    change(study, lambda found: found["study"].update(questions=asked))
    write_page(load_sections([study]), tmp_path / "page.html", "s")
    page = (tmp_path / "page.html").read_text()
    assert '<h2 id="s">s, &lt;m&gt;</h2>' in page
    assert "<nav>" not in page
    for said in (
        "Each setting had 2 runs to tune it",
        "at the edge of the grid, so that another value may be better, for 3 of 3 settings",
        "lr 0.005, lowest</td>",
        ">Does rank matter</td>",
        "Score against rank",
    ):
        assert said in page
    write_page(load_sections([study, runs]), tmp_path / "page.html", "both")
    page = (tmp_path / "page.html").read_text()
    assert re.findall(r'<a href="#(.*?)">', page) == re.findall(r'<h2 id="(.*?)">', page)
    text = (study / "study.json").read_text()
    (study / "study.json").write_text(text.replace('"name": "s"', '"name": "[/i]"'))
    done = CliRunner().invoke(cli.app, ["report", str(study)])
    assert done.exit_code == 0, done.output
    assert "[/i]: 2 runs to tune each, 2 seeds; mean ± standard deviation" in done.stdout
    assert "Does rank matter" in " ".join(done.stdout.split())


def test_a_study_beside_other_runs(study: Path, make_result: Make) -> None:
    other = study.parent / "other"
    other.mkdir()
    (other / "result.json").write_text(json.dumps(make_result("lora", 1e-3, 0, 5, {"merged": 0.5})))
    assert [section.title for section in load_sections([study.parent])] == ["s", "t, <m>"]
    (other / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"other/result\.json"):
        load_sections([study.parent])
