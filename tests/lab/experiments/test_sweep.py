"""Studies: the same budget for each setting, choice on validation data, resuming, and several processes."""

import itertools
import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.errors import DIVERGED, UserError
from aurora_lora.lab.experiments.jobs import Job, Outcome, Runner, in_turn, run_job
from aurora_lora.lab.experiments.study import Study, load_study
from aurora_lora.lab.experiments.sweep import Sweep
from aurora_lora.lab.report.runs import load_sections
from aurora_lora.lab.report.study import missing_note, study_tables
from aurora_lora.train import publish, recipe_files

RATES = [1e-3, 3e-2]
ONE = {"name": "a", "method": {"name": "lora", "target_modules": ["query"]}}


@pytest.fixture
def write(tmp_path: Path, base: dict[str, Any]) -> Callable[..., Path]:
    """Write a study with changes; gives its path."""

    def study(**changes: Any) -> Path:
        own = {key: value for key, value in base.items() if key not in ("name", "method")}
        values = {
            "name": "tiny",
            "base": own,
            "tuning": {"budget": 2, "space": {"training.learning_rate": RATES}},
            "seeds": [0, 1],
            "settings": [
                {"name": "LoRA r=2", "method": {"name": "lora", "r": 2, "target_modules": ["query"]}},
                {"name": "AuroRA", "method": {"name": "aurora", "target_modules": ["query"]}},
            ],
            **changes,
        }
        path = tmp_path / "study.yaml"
        path.write_text(recipe_files.dump(values))
        return path

    return study


def engine(run: Callable[[Job], Outcome]) -> Runner:
    """Runs jobs by a function, and writes down what comes out as `aurora train` does."""

    def kept(job: Job) -> Outcome:
        outcome = run(job)
        if outcome.result is not None and not (job.folder / "result.json").exists():
            job.folder.mkdir(parents=True, exist_ok=True)
            publish.write_recipe(job.folder, job.recipe)
            (job.folder / "result.json").write_text(json.dumps({"model": "m", **outcome.result}))
        return outcome

    return lambda jobs: in_turn(jobs, kept)


def fake(job: Job) -> Outcome:
    """A run whose validation score is its learning rate's distance from 3e-2."""
    rate = job.recipe.training.learning_rate
    value = 1 - abs(rate - 3e-2)
    score = {"accuracy": value - 0.1 * (job.recipe.seed == 1)}
    result = {
        "schema": 1,
        "model": "m",
        "method": "m",
        "task": "t",
        "seed": job.recipe.seed,
        "recipe": job.recipe.resolved(),
        "metric": {
            "name": "accuracy",
            "split": "test",
            "examples": {"test": 10},
            "by_form": {"merged": score},
            "selected_by": {
                "split": "validation",
                "form": "merged",
                "value": value,
                "name": "accuracy",
                "epoch": 2.0,
            },
        },
        "epochs": [
            {"epoch": 1.0, "step": 1, "train_loss": 1.0, "validation": {"accuracy": 0.1, "nll": 9.0}},
            {"epoch": 2.0, "step": 2, "train_loss": 1.0, "validation": {"accuracy": value, "nll": rate}},
        ],
        "params": {"adapter": 5, "head": 1, "total": 10},
        "time": {"train_s": 1.0, "samples_per_s": 1.0},
        "memory": {"peak_mb": 1.0},
        "versions": {},
        "git_commit": None,
        "model_commit": None,
        "device": "cpu",
        "processes": 1,
        "adapter_sha256": {},
        "status": "finished",
    }
    return Outcome(job, result)


def test_a_study_whose_runs_are_selected_by_a_metric_names_its_own(write: Callable[..., Path], base: Any) -> None:
    """The one says which epoch of a run is scored, the other which values are best."""
    own = {key: value for key, value in base.items() if key not in ("name", "method")}
    by_nll = {**own, "training": {**own["training"], "select_by": "nll"}}
    space = {"training.learning_rate": RATES}
    tuned = {"budget": 2, "space": {"training.select_by": ["accuracy", "nll"]}}
    of_one = [{**ONE, "fields": {"training.select_by": "nll"}}]
    for changes in ({"base": by_nll}, {"tuning": tuned}, {"settings": of_one}):
        with pytest.raises(UserError, match=r"tuning\.metric: this field must be given where training\.select_by is"):
            load_study(write(**changes))
    study = load_study(write(base=by_nll, tuning={"budget": 2, "space": space, "metric": "accuracy"}))
    assert not study.metric.lower_is_better
    assert study.recipe(study.settings[0], {}, 0).selected_by == "nll"
    assert load_study(write(tuning={**tuned, "metric": "nll"})).metric.lower_is_better


def test_a_study(write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write()
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "runs" / "studies" / "tiny"
    made: list[list[str]] = []
    monkeypatch.setattr("aurora_lora.cli.research.make_models", made.append)
    done = CliRunner().invoke(cli.app, ["sweep", str(path), "--json"])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert not summary.pop("failed")
    assert summary == json.loads((out / "study.json").read_text())
    assert len(made) == 1  # before the first run
    for setting in summary["settings"]:
        assert sorted(trial["values"]["training.learning_rate"] for trial in setting["trials"]) == RATES
        best = max(setting["trials"], key=lambda trial: trial["validation"])
        assert setting["chosen"] == best["values"]
        assert setting["validation"] == best["validation"]
        assert setting["seeds"] == [0, 1]
        assert setting["most_params"] == setting["params"]["adapter"]
        for form, metrics in setting["by_form"].items():
            folder = out / "runs" / {"LoRA r=2": "lora-r=2", "AuroRA": "aurora"}[setting["name"]]
            folder /= f"learning_rate={setting['chosen']['training.learning_rate']:g}"
            scores = [
                json.loads((folder / f"seed{seed}" / "result.json").read_text())["metric"]["by_form"][form]["accuracy"]
                for seed in (0, 1)
            ]
            assert metrics["accuracy"]["scores"] == scores
            assert metrics["accuracy"]["mean"] == pytest.approx(sum(scores) / 2)
            assert metrics["accuracy"]["std"] == pytest.approx(statistics.stdev(scores))
    assert {form for setting in summary["settings"] for form in setting["by_form"]} >= {"merged", "calibrated"}
    # 2 settings x 2 rates on seed 0, and one more seed of the chosen
    assert len(list((out / "runs").rglob("result.json"))) == 6
    (section,) = load_sections([out])  # a report finds the chosen runs
    table = section.scores.set_index(["setting", "form", "metric"]).sort_index()
    for setting in summary["settings"]:
        scores = setting["by_form"][setting["deployed"]]["accuracy"]["scores"]
        assert table.loc[(setting["name"], setting["deployed"], "accuracy"), "score"].tolist() == scores
    shown = CliRunner().invoke(cli.app, ["sweep", str(path), "-o", str(out)])
    assert shown.exit_code == 0
    assert max(map(len, shown.stdout.splitlines()[:-1])) <= 80
    assert "tiny: 2 runs to tune each, 2 seeds" in shown.stdout
    assert json.loads((out / "study.json").read_text()) == summary
    assert len(made) == 1  # with every run there, nothing is made for them
    shutil.rmtree(out / "runs")  # a report needs what is committed alone
    (again,) = load_sections([out])
    assert again.scores["score"].tolist() == section.scores["score"].tolist()
    assert all(run["epochs"] and run["recipe"]["training"] for run in again.results)


def test_a_setting_may_have_values_of_its_own(write: Callable[..., Path], tmp_path: Path) -> None:
    full = {"name": "full", "method": "full", "space": {"training.learning_rate": [2e-2, 4e-2]}, "why": "all weights"}
    study = load_study(write(settings=[full, {"name": "lora", "method": "lora"}]))
    sweep = Sweep(study, tmp_path / "out", engine(fake))
    sweep.tune()
    tried = [sorted(values["training.learning_rate"] for values, _ in sweep.trials(one)) for one in study.settings]
    assert tried == [[2e-2, 4e-2], RATES]
    full["space"]["training.learning_rate"].append(1)
    with pytest.raises(UserError, match="setting full: space: budget=2 is not allowed: the grid has 3 points"):
        load_study(write(settings=[full]))


def fake_forms(job: Job) -> Outcome:
    """As `fake`, of AuroRA's forms: the static one is best at the low rate, the others at the high one."""
    outcome = fake(job)
    assert outcome.result is not None
    rate, metric = job.recipe.training.learning_rate, outcome.result["metric"]
    if job.recipe.method.name == "aurora":
        metric["selected_by"]["form"] = "calibrated"
        metric["validation_by_form"] = {
            "dynamic": {"accuracy": rate},
            "static": {"accuracy": 1 - rate},
            "calibrated": {"accuracy": metric["selected_by"]["value"]},
        }
        shown = {"accuracy": rate + 10 * job.recipe.seed}
        metric["by_form"] = {form: dict(shown) for form in ("dynamic", "static", "calibrated")}
    else:
        metric["selected_by"]["form"] = "merged"
    outcome.result.update(method=job.recipe.method.name, model="m", task="t", seed=job.recipe.seed)
    metric.update(name="accuracy", split="test")
    return outcome


def test_each_form_may_have_its_own_choice(write: Callable[..., Path], tmp_path: Path) -> None:
    out, space = tmp_path / "out", {"training.learning_rate": RATES}
    before = Sweep(load_study(write()), out, engine(fake_forms))
    before.tune()
    before.run_seeds()
    assert len(before.final_jobs()) == 4
    assert before.summary()["settings"][1]["by_form"]["static"]["accuracy"]["scores"] == [3e-2, 10 + 3e-2]
    assert "chosen_by_form" not in before.summary()["settings"][1]

    done: list[str] = []
    study = load_study(write(tuning={"budget": 2, "space": space, "each_form": True}))
    after = Sweep(study, out, engine(fake_forms), lambda outcome: done.append(outcome.job.name))
    after.tune()  # in the journal of the study without it
    assert not done
    assert len(after.final_jobs()) == 6  # LoRA's choice, and two of AuroRA's forms, over two seeds
    after.run_seeds()
    lora, aurora = after.summary()["settings"]
    assert "chosen_by_form" not in lora  # one form
    low, high = ({"training.learning_rate": rate} for rate in RATES)
    assert aurora["chosen"] == high
    assert aurora["chosen_by_form"] == {"dynamic": high, "static": low, "calibrated": high}
    assert aurora["validation_by_form"] == {"dynamic": 3e-2, "static": 1 - 1e-3, "calibrated": 1.0}
    scores = {form: found["accuracy"]["scores"] for form, found in aurora["by_form"].items()}
    assert scores == {"dynamic": [3e-2, 10 + 3e-2], "static": [1e-3, 10 + 1e-3], "calibrated": [3e-2, 10 + 3e-2]}
    for chosen_by, rate in (("dynamic", 3e-2), ("static", 1e-3), ("calibrated", 3e-2)):
        of_it = aurora["by_choice"][chosen_by]
        assert all(found["accuracy"]["scores"] == [rate, 10 + rate] for found in of_it.values())

    (section,) = load_sections([out])
    table = section.scores[section.scores["setting"] == "AuroRA"].set_index(["form", "metric"]).sort_index()
    assert table.loc[("static", "accuracy"), "score"].tolist() == [1e-3, 10 + 1e-3]
    assert table.loc[("dynamic", "accuracy"), "score"].tolist() == [3e-2, 10 + 3e-2]
    shown = study_tables(after.summary(), full=True)[-1]
    assert [row[2:4] for row in shown.rows if row[0] == "AuroRA"] == [
        ["lr 0.03, highest", "dynamic"],
        ["lr 0.001, lowest", "static"],
        ["lr 0.03, highest", "calibrated"],
    ]


def test_a_form_whose_own_run_failed_has_no_score_there(write: Callable[..., Path], tmp_path: Path) -> None:
    """That of the deployed form's choice would be another run's."""

    def fails(job: Job) -> Outcome:
        rate, seed = job.recipe.training.learning_rate, job.recipe.seed
        return Outcome(job, error="out of memory") if (rate, seed) == (1e-3, 1) else fake_forms(job)

    tuning = {"budget": 2, "space": {"training.learning_rate": RATES}, "each_form": True}
    sweep = Sweep(load_study(write(tuning=tuning)), tmp_path / "out", engine(fails))
    sweep.tune()
    sweep.run_seeds()
    _, aurora = sweep.summary()["settings"]
    assert aurora["by_form"]["static"]["accuracy"]["scores"] == [1e-3, None]
    table = study_tables(sweep.summary())[-1].markdown()
    (line,) = [line for line in table.splitlines() if "static" in line]
    assert "(1 of 2 seeds)" in line
    assert "finite" not in table
    assert aurora["by_form"]["dynamic"]["accuracy"]["scores"] == [3e-2, 10 + 3e-2]


def test_finalists_are_compared_over_the_seeds(write: Callable[..., Path], tmp_path: Path) -> None:
    """The rate that is best on the tuned seed is the worse one on the other, or fails there."""

    def by_seed(job: Job) -> Outcome:
        rate, seed = job.recipe.training.learning_rate, job.recipe.seed
        if job.recipe.method.name == "lora" and (rate, seed) == (3e-2, 1):
            return Outcome(job, error="out of memory")
        outcome = fake_forms(job)
        assert outcome.result is not None
        if seed == 1 and rate == 3e-2:
            metric = outcome.result["metric"]
            metric["selected_by"]["value"] = metric["validation_by_form"]["calibrated"]["accuracy"] = 0.5
        return outcome

    out, space = tmp_path / "out", {"training.learning_rate": [1e-3, 3e-2, 1e-1]}
    before = Sweep(load_study(write(tuning={"budget": 3, "space": space})), out, engine(by_seed))
    before.tune()
    before.run_seeds()
    low, high, highest = ({"training.learning_rate": rate} for rate in space["training.learning_rate"])
    assert [one["chosen"] for one in before.summary()["settings"]] == [high, high]

    done: list[str] = []
    two = {"budget": 3, "space": space, "each_form": True, "finalists": 2}
    after = Sweep(load_study(write(tuning=two)), out, engine(by_seed), lambda outcome: done.append(outcome.job.name))
    after.tune()  # in the journal of the study without them
    assert not done
    assert after.chosen(after.study.settings[1])[0] == high  # the others are still to be run
    assert len(after.final_jobs()) == 10  # LoRA's two; and AuroRA's three, as the dynamic form has others
    after.run_seeds()
    lora, aurora = after.summary()["settings"]
    assert lora["chosen"] == low
    assert aurora["chosen"] == low
    assert aurora["validation"] == pytest.approx(1 - 29e-3)
    assert aurora["chosen_by_form"] == {"dynamic": highest, "static": low, "calibrated": low}
    assert [trial["values"] for trial in aurora["trials"]] == [high, low, highest]
    assert (
        "The best 2 values on the tuned seed, of each form with a choice of its own, were run over"
        in study_tables(after.summary())[-1].note
    )
    with pytest.raises(UserError, match="finalists=4 is not allowed: budget=3 values are tried"):
        load_study(write(tuning={**two, "finalists": 4}))


def sweep_command(
    path: Path, out: Path, run: Callable[[Job], Outcome], monkeypatch: pytest.MonkeyPatch
) -> tuple[Result, dict[str, Any]]:
    """`aurora sweep --json` whose runs are done by a function, and its answer."""
    monkeypatch.setattr("aurora_lora.lab.experiments.jobs.make_runner", lambda _: engine(run))
    monkeypatch.setattr("aurora_lora.cli.research.make_models", lambda models: None)
    done = CliRunner().invoke(cli.app, ["sweep", str(path), "-o", str(out), "--json"])
    return done, json.loads(done.stdout)


@pytest.mark.parametrize("finalists", [1, 2])
def test_a_final_run_that_diverged_is_not_run_again(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finalists: int
) -> None:
    """It is no failure where another finalist has all its runs, which is chosen."""
    ran: list[str] = []

    def diverges(job: Job) -> Outcome:
        ran.append(job.name)
        at = job.recipe.method.name, job.recipe.training.learning_rate, job.recipe.seed
        if at == ("lora", 3e-2, 1):
            return Outcome(job, error=f"{DIVERGED}: the loss is nan at step 3")
        return fake_forms(job)

    path = write(tuning={"budget": 2, "space": {"training.learning_rate": RATES}, "finalists": finalists})
    for call in (1, 2):
        ran.clear()
        done, answer = sweep_command(path, tmp_path / "out", diverges, monkeypatch)
        assert bool(ran) == (call == 1)
        lora, aurora = answer["settings"]
        assert "excluded" not in aurora
        if finalists == 1:
            assert (done.exit_code, len(answer["failed"])) == (1, 1)
            assert answer["failed"][0]["error"] == f"{DIVERGED}: the loss is nan at step 3"
            assert "1 failed; the same command tries them again, but for runs that diverged" in done.stderr
            assert (lora["chosen"], lora["seeds"]) == ({"training.learning_rate": 3e-2}, [0])
            assert "excluded" not in lora
        else:
            assert (done.exit_code, answer["failed"]) == (0, [])
            assert (lora["chosen"], lora["seeds"]) == ({"training.learning_rate": 1e-3}, [0, 1])
            why = f"seed 1: {DIVERGED}: the loss is nan at step 3"
            assert lora["excluded"] == [{"values": {"training.learning_rate": 3e-2}, "why": why}]
            assert f"Finalists that were left out: LoRA r=2, lr 0.03 ({why})." in missing_note(answer)


def test_of_equal_finalists_the_loss_decides(write: Callable[..., Path], tmp_path: Path) -> None:
    """Equal are means that the rounding of a sum alone tells apart, too."""
    scores = {1e-3: (0.51, 0.81), 3e-2: (0.50, 0.82)}
    assert 0 < abs(statistics.fmean(scores[1e-3]) - statistics.fmean(scores[3e-2])) < 1e-15

    def equal(job: Job) -> Outcome:
        outcome = fake(job)
        assert outcome.result is not None
        outcome.result["metric"]["selected_by"]["value"] = scores[job.recipe.training.learning_rate][job.recipe.seed]
        outcome.result["epochs"][-1]["validation"]["nll"] = losses[job.recipe.training.learning_rate]
        return outcome

    tuning = {"budget": 2, "space": {"training.learning_rate": [1e-3, 3e-2]}, "finalists": 2}
    for number, (better, other) in enumerate(itertools.product((1e-3, 3e-2), (0.5, None))):  # None: not finite
        losses = {1e-3: other, 3e-2: other, better: 0.4}
        sweep = Sweep(load_study(write(tuning=tuning)), tmp_path / str(number), engine(equal))
        sweep.tune()
        sweep.run_seeds()
        for setting in sweep.study.settings:
            assert sweep.chosen(setting)[0] == {"training.learning_rate": better}


def test_each_seed_may_have_its_own_split(write: Callable[..., Path]) -> None:
    for wanted, splits in ((False, [7, 7]), (True, [0, 1])):
        study = load_study(write(split_by_seed=wanted))
        study.base["task"]["split_seed"] = 7
        recipes = [study.recipe(study.settings[0], {}, seed) for seed in (0, 1)]
        assert [recipe.task.split_seed for recipe in recipes] == splits
        assert [recipe.seed for recipe in recipes] == [0, 1]


def test_another_metric_may_choose(write: Callable[..., Path], tmp_path: Path) -> None:
    """The likelihood of the chosen epoch, of which less is better."""
    tuning = {"budget": 3, "space": {"training.learning_rate": [1e-3, 3e-2, 1e-1]}}
    study = load_study(write(tuning={**tuning, "metric": "nll"}))
    sweep = Sweep(study, tmp_path / "out", engine(fake))
    sweep.tune()
    for setting in study.settings:
        assert [score for _, score in sweep.trials(setting)] == [1e-3, 3e-2, 1e-1]
        assert sweep.chosen(setting) == ({"training.learning_rate": 1e-3}, 1e-3)
        assert sweep._trials[setting.name].best_value == 1e-3  # a sampler looks where it is low, too

    def first_epoch(job: Job) -> Outcome:
        outcome = fake(job)
        assert outcome.result is not None
        outcome.result["metric"]["selected_by"]["epoch"] = 1.0
        outcome.result["epochs"][0]["validation"]["nll"] = 1 - job.recipe.training.learning_rate
        return outcome

    sweep = Sweep(study, tmp_path / "first", engine(first_epoch))
    sweep.tune()
    assert sweep.chosen(study.settings[0]) == ({"training.learning_rate": 1e-1}, 0.9)
    with pytest.raises(UserError, match=r"tuning\.metric: 'nl' is an unknown metric; did you mean 'nll'\?"):
        load_study(write(tuning={**tuning, "metric": "nl"}))


def test_a_run_that_fails_counts_and_is_not_chosen(write: Callable[..., Path], tmp_path: Path) -> None:
    study = load_study(write())

    def half(job: Job) -> Outcome:
        ran.append(job.name)
        return Outcome(job, error=DIVERGED) if job.recipe.training.learning_rate == 3e-2 else fake(job)

    ran: list[str] = []
    Sweep(study, tmp_path / "out", engine(half)).tune()
    sweep = Sweep(study, tmp_path / "out", engine(half))
    assert sweep.told() == 4
    sweep.tune()  # it would diverge again
    assert len(ran) == 4
    for setting in study.settings:
        assert sweep.trials(setting)[-1] == ({"training.learning_rate": 3e-2}, None)
        assert sweep.chosen(setting)[0] == {"training.learning_rate": 1e-3}
    none = Sweep(study, tmp_path / "none", engine(lambda job: Outcome(job, error=DIVERGED)))
    none.tune()
    with pytest.raises(UserError, match="setting LoRA r=2: none of its runs gave a validation score"):
        none.summary()


def test_a_run_that_failed_of_something_else_is_tried_again(write: Callable[..., Path], tmp_path: Path) -> None:
    study = load_study(write())
    full = Sweep(study, tmp_path / "out", engine(lambda job: Outcome(job, error="the disk is full")))
    full.tune()
    full.tune()
    assert full.without_score() == list(study.settings)
    sweep = Sweep(study, tmp_path / "out", engine(fake))
    assert sweep.told() == 0
    sweep.tune()
    for setting in study.settings:
        assert [score for _, score in sweep.trials(setting)] == [1.0, pytest.approx(0.971)]


def test_a_setting_without_a_score_does_not_stop_the_others(write: Callable[..., Path], tmp_path: Path) -> None:
    questions = [{"ask": "a", "first": "AuroRA", "second": "LoRA r=2"}]
    study = load_study(write(questions=questions))

    def diverges(job: Job) -> Outcome:
        return Outcome(job, error=DIVERGED) if job.recipe.method.name == "aurora" else run_job(job)

    sweep = Sweep(study, tmp_path / "out", engine(diverges))
    sweep.tune()
    sweep.run_seeds()
    assert [setting.name for setting in sweep.without_score()] == ["AuroRA"]
    summary = sweep.summary()
    assert [(one["name"], one["seeds"], one["split"]) for one in summary["settings"]] == [("LoRA r=2", [0, 1], "test")]
    (table,) = study_tables(summary)
    assert table.title == "tiny: 2 runs to tune each, 2 seeds; mean ± standard deviation"
    assert table.note.startswith("No result: AuroRA. Not answered: a. 2 tuning runs gave no score.")


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_study_that_goes_on_draws_new_values(write: Callable[..., Path], tmp_path: Path, sampler: str) -> None:
    space = {"training.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}}
    study = load_study(write(tuning={"budget": 6, "sampler": sampler, "space": space}, settings=[ONE]))
    left = iter([True, True, True, False])

    def dies(job: Job) -> Outcome:
        if not next(left):
            raise Killed
        return fake(job)

    with pytest.raises(Killed):
        Sweep(study, tmp_path / "out", engine(dies)).tune()
    sweep = Sweep(study, tmp_path / "out", engine(fake))
    sweep.tune()
    assert len({values["training.learning_rate"] for values, _ in sweep.trials(study.settings[0])}) == 6


class Killed(BaseException):
    """What a kill does to the journal: nothing more is written."""


def test_a_killed_study_goes_on(write: Callable[..., Path], tmp_path: Path) -> None:
    study = load_study(write())
    ran: list[str] = []

    def dies(job: Job) -> Outcome:
        ran.append(job.name)
        if len(ran) == 2:
            raise Killed
        return fake(job)

    with pytest.raises(Killed):
        Sweep(study, tmp_path / "out", engine(dies)).tune()
    reported: list[str] = []
    sweep = Sweep(study, tmp_path / "out", engine(dies), lambda outcome: reported.append(outcome.job.name))
    told = sweep.told()
    sweep.tune()
    assert len(ran) == 5  # the one that was lost, twice
    assert told + len(reported) == 4 == sweep.told()  # what a bar counts is all of it
    for setting in study.settings:
        assert sorted(values["training.learning_rate"] for values, _ in sweep.trials(setting)) == RATES
        assert None not in [score for _, score in sweep.trials(setting)]


def test_a_finished_run_of_a_killed_study_is_not_run_again(write: Callable[..., Path], tmp_path: Path) -> None:
    study = load_study(write(settings=[ONE]))

    def dies_after(job: Job) -> Outcome:
        assert run_job(job).result is not None
        raise Killed

    with pytest.raises(Killed):
        Sweep(study, tmp_path / "out", engine(dies_after)).tune()
    ran: list[str] = []

    def count(job: Job) -> Outcome:
        ran.append(job.name)
        return run_job(job)

    sweep = Sweep(study, tmp_path / "out", engine(count))
    sweep.tune()
    assert len(ran) == 1
    assert len(sweep.trials(study.settings[0])) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuning": {"budget": 3, "space": {"training.learning_rate": RATES}}}, "budget=3 is not allowed: the grid"),
        ({"settings": [{"name": "a", "method": "full"}, {"name": "A", "method": "lora"}]}, "a, A are not distinct"),
        ({"tuning": {"budget": 1, "space": {"training.learning_rat": [1]}}}, "did you mean 'learning_rate'"),
        ({"questions": [{"ask": "a", "first": "AuroRa", "second": "AuroRA"}]}, "'AuroRa' is an unknown setting"),
    ],
)
def test_wrong_studies(write: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        load_study(write(**changes))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_one_sweep_at_a_time_is_at_a_study(write: Callable[..., Path], tmp_path: Path) -> None:
    study = load_study(write())
    sweep = Sweep(study, tmp_path / "out", engine(fake))
    with sweep._held(), pytest.raises(UserError, match="another aurora sweep is at this study"):
        Sweep(study, tmp_path / "out", engine(fake))


def test_data_that_changes_between_runs(write: Callable[..., Path], tmp_path: Path) -> None:
    digest = ["one"]

    def on_files(job: Job) -> Outcome:
        done = fake(job)
        assert done.result is not None
        return Outcome(job, {**done.result, "data": {"files": {"mine.csv": digest[0]}}})

    sweep = Sweep(load_study(write()), tmp_path / "out", engine(on_files))
    sweep.tune()
    digest[0] = "two"
    with pytest.raises(UserError, match=r"the file mine\.csv has changed: "):
        sweep.run_seeds()
    with pytest.raises(UserError, match="has changed"):
        Sweep(load_study(write()), tmp_path / "out", engine(on_files)).run_seeds()


def test_another_study_in_the_folder(write: Callable[..., Path], tmp_path: Path) -> None:
    Sweep(load_study(write()), tmp_path / "out", engine(fake))
    changed: Study = load_study(write(tuning={"budget": 1, "space": {"training.learning_rate": [1e-3]}}))
    with pytest.raises(UserError, match=r"another; they differ in tuning\.budget \(there 2, here 1\)"):
        Sweep(changed, tmp_path / "out", engine(fake))


def test_half_a_line_of_the_journal_is_removed(write: Callable[..., Path], tmp_path: Path) -> None:
    """As a full disk leaves it: what is appended to it could never be read again."""
    study = load_study(write())
    Sweep(study, tmp_path / "out", engine(fake))
    with (tmp_path / "out" / "journal.log").open("a") as journal:
        journal.write('{"op_code": 4, "wor')
    for _ in range(2):
        Sweep(study, tmp_path / "out", engine(fake)).tune()
    assert all(map(json.loads, (tmp_path / "out" / "journal.log").read_text().splitlines()))


def test_a_grid_of_its_own_needs_a_reason(write: Callable[..., Path]) -> None:
    own = {"name": "full", "method": "full", "space": {"training.learning_rate": [2e-2, 4e-2]}}
    with pytest.raises(UserError, match=r"setting full: .* tuned on one grid: .* goes with `why`"):
        load_study(write(settings=[own]))
    assert load_study(write(settings=[{**own, "why": "all weights"}])).settings[0].why == "all weights"
