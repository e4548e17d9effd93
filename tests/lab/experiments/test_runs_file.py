"""A study's runs in one file: the same report as from folders, and nothing lost or twice whatever is killed."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from aurora_lora import cli, files
from aurora_lora.errors import UserError
from aurora_lora.lab.experiments.engines import InProcess
from aurora_lora.lab.experiments.jobs import Job, Outcome
from aurora_lora.lab.experiments.runs_file import RUNS, RunsFile
from aurora_lora.lab.experiments.study import load_study
from aurora_lora.lab.experiments.sweep import Sweep
from aurora_lora.lab.report.catalogue import write_figures
from aurora_lora.lab.report.page import write_page
from aurora_lora.lab.report.sections import load_sections
from aurora_lora.train import recipe_files
from aurora_lora.train.recipe import validate
from make.tables import study_page

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `study.yaml` and, in `out`, what `aurora sweep` made of it."""
    folder = tmp_path_factory.mktemp("finished")
    base = {key: value for key, value in tiny.recipe(model).items() if key not in ("name", "method")}
    base["training"] = {**base["training"], "epochs": 3}
    study = {
        "name": "tiny",
        "base": base,
        "tuning": {"budget": 1, "space": {"training.learning_rate": [3e-2]}},
        "seeds": [0, 1],
        # in folders of names that must not matter
        "settings": [{"name": "lora", "method": {"name": "lora", "r": 2}}, {"name": "build", "method": "aurora"}],
    }
    (folder / "study.yaml").write_text(recipe_files.dump(study))
    done = CliRunner().invoke(cli.app, ["sweep", str(folder / "study.yaml"), "-o", str(folder / "out")])
    assert done.exit_code == 0, done.output
    assert "were not in" not in done.output
    return folder


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return shutil.copytree(finished, tmp_path / "study")


def _reported(study: Path, into: Path) -> dict[str, bytes]:
    """All that a report and the documentation show of a study."""
    sections = load_sections([study])
    write_page(sections, into / "page.html", "t")
    write_figures(sections, into / "figures", [])
    (into / "tables.md").write_text("\n".join(study_page(one.study) for one in sections if one.study))
    return {str(path.relative_to(into)): path.read_bytes() for path in into.rglob("*") if path.is_file()}


def _sweep(study: Path) -> Any:
    return CliRunner().invoke(cli.app, ["sweep", str(study / "study.yaml"), "-o", str(study / "out")])


def test_a_report_is_the_same_from_the_file_as_from_folders(study: Path, tmp_path: Path) -> None:
    out = study / "out"
    folders = shutil.copytree(out, tmp_path / "folders" / "out")
    (folders / "runs.jsonl").unlink()
    shutil.rmtree(out / "runs")
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    one, other = _reported(out, tmp_path / "one"), _reported(folders, tmp_path / "other")
    assert one == other
    assert {"page.html", "tables.md", "figures/scores.svg", "figures/times.md"} <= one.keys()
    # of a study that is not done, all runs
    for folder in (out, folders):
        (folder / "study.json").unlink()
    results = load_sections([folders])[0].results
    for result in results:
        del result["adapter_sha256"]
    assert load_sections([out])[0].results == results
    assert len(load_sections([out / "runs.jsonl"])[0].results) == 4


def test_a_line_and_the_first_are_the_result_with_its_place_less_the_digests(finished: Path) -> None:
    out = finished / "out"
    first, *lines = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert [line["run"] for line in lines] == [
        f"{setting}/learning_rate=0.03/seed{seed}" for setting in ("build", "lora") for seed in (0, 1)
    ]
    assert first.keys() == {"common"}
    common = first["common"]
    assert common["recipe"]["training"]["epochs"] == 3
    assert common["task"] == common["recipe"]["task"]["name"]
    for line, (folder, result) in zip(lines, RunsFile(out).read().items(), strict=True):
        assert folder == out / "runs" / line["run"]
        assert not line.keys() & {"task", "versions"}
        assert "training" not in line["recipe"]  # one rate
        assert line["metric"] == result["metric"]
        there = json.loads((folder / "result.json").read_text())
        assert there.pop("adapter_sha256")  # of files that are there
        assert result == there
        assert result["recipe"] == recipe_files.read(folder / "recipe.yaml")
        assert {path.name for path in folder.iterdir()} >= {"adapter", "log.txt"}


def test_a_file_of_an_earlier_version_is_read_and_rewritten(study: Path) -> None:
    """Its lines are whole results."""
    runs = RunsFile(study / "out")
    whole, found = runs.path.read_bytes(), dict(runs.read())
    place = study / "out" / "runs"
    earlier = [json.dumps({"run": str(folder.relative_to(place)), **result}) + "\n" for folder, result in found.items()]
    runs.path.write_text("".join(earlier[:3]))
    last = list(found)[3]
    assert dict(runs.read()) == {folder: result for folder, result in found.items() if folder != last}
    runs.add({last: found[last]})
    assert runs.path.read_bytes() == whole


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 1) | st.sampled_from([0.0, -0.0, 1.0, "", "a"]),
    lambda some: st.lists(some, max_size=2) | st.dictionaries(st.sampled_from("abc"), some, max_size=3),
    max_leaves=8,
)
_PARTS = st.dictionaries(st.sampled_from("abc"), _VALUES, max_size=3)
_RESULTS = st.lists(st.tuples(_PARTS, _PARTS, _PARTS), max_size=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=_RESULTS)
@example(parts=[({"a": 1}, {}, {"b": True}), ({"a": 1.0}, {}, {"b": 1})])  # equal in Python, not in JSON
@example(parts=[({}, {"a": 0, "b": 1}, {}), ({}, {"a": 1, "b": 1}, {})])  # the order, if b alone were taken out
def test_whatever_the_results_have_in_common_they_come_back(
    tmp_path: Path, parts: list[tuple[dict[str, Any], ...]]
) -> None:
    runs = RunsFile(tmp_path)
    runs.path.unlink(missing_ok=True)
    results = {
        tmp_path / "runs" / str(number): {"schema": 1, "recipe": recipe, "metric": metric, **more}
        for number, (recipe, metric, more) in enumerate(parts)
    }
    for folder, result in results.items():  # the common part becomes smaller with each
        runs.add({folder: result})
    back = runs.read()
    assert back.keys() == results.keys()
    for folder, result in results.items():
        assert json.dumps(back[folder], sort_keys=True) == json.dumps(result, sort_keys=True)
        assert json.dumps(back[folder]["metric"]) == json.dumps(result["metric"])  # forms in their order


def test_a_study_goes_on_from_the_file_alone(study: Path) -> None:
    out = study / "out"
    before = {path.name: path.read_bytes() for path in (out / "runs.jsonl", out / "study.json")}
    for path in out.iterdir():
        if path.name != "runs.jsonl":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = _sweep(study)
    assert done.exit_code == 0, done.output
    assert not (out / "runs").exists()  # nothing was run
    assert {name: (out / name).read_bytes() for name in before} == before


def test_a_study_of_an_earlier_version_is_taken_in(study: Path) -> None:
    out = study / "out"
    whole = (out / "runs.jsonl").read_bytes()
    (out / "runs.jsonl").unlink()
    written = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    done = _sweep(study)
    assert done.exit_code == 0, done.output
    assert f"finished runs in folders that were not in {out / 'runs.jsonl'} yet, and now are: 4" in done.stderr
    assert (out / "runs.jsonl").read_bytes() == whole
    assert {path: path.stat().st_mtime_ns for path in out.rglob("result.json")} == written


def test_another_recipe_is_refused(study: Path) -> None:
    plan = recipe_files.read(study / "study.yaml")
    plan["base"]["training"]["epochs"] = 2
    (study / "study.yaml").write_text(recipe_files.dump(plan))
    shutil.rmtree(study / "out" / "runs")
    done = _sweep(study)
    assert done.exit_code == 2
    assert "holds a study of another base" in done.stderr
    assert "they differ in training.epochs (there 3, here 2)" in " ".join(done.stderr.split())
    (study / "out" / "journal.log").unlink()
    done = _sweep(study)
    assert done.exit_code == 2
    assert "runs.jsonl holds for" in done.stderr
    assert "they differ in training.epochs (there 3, here 2)" in " ".join(done.stderr.split())


def test_a_run_that_ended_unseen_is_not_lost(study: Path) -> None:
    """Killed between the run's `result.json` and the study's file."""
    out = study / "out"
    runs = RunsFile(out)
    whole, path = runs.path.read_bytes(), runs.path
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))

    def never(job: Job) -> Outcome:
        raise AssertionError(f"{job.name} is run again")

    sweep = Sweep(load_study(study / "study.yaml"), out, InProcess(never))
    assert sweep.taken_in == 1
    sweep.tune()
    sweep.run_seeds()
    assert path.read_bytes() == whole


# ---------------------------------------------------------------- the file


def _result(number: int) -> dict[str, Any]:
    return {
        "schema": 1,
        "recipe": {"seed": number, "task": {}},
        "metric": {"text": "x" * 20_000, "value": float(number)},
    }


def _add(study: Path, numbers: list[int], barrier: Any) -> None:
    barrier.wait()
    runs = RunsFile(study)
    for number in numbers:
        runs.add({study / "runs" / "s" / f"seed{number}": _result(number)})


def _numbers(study: Path) -> list[int]:
    return sorted(result["recipe"]["seed"] for result in RunsFile(study).read().values())


@pytest.mark.filterwarnings("error:.*line is not whole")
def test_processes_that_finish_at_the_same_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    shares = [[*range(12), 30], [*range(12, 24), 30], [*range(6, 18), 30]]  # some runs are added by two or three
    processes = [context.Process(target=_add, args=(tmp_path, share, barrier)) for share in shares]
    for process in processes:
        process.start()
    seen = [0]
    while any(process.is_alive() for process in processes):  # one that reads meanwhile sees whole files only
        seen.append(len(_numbers(tmp_path)))
    assert seen == sorted(seen)
    assert _numbers(tmp_path) == [*range(24), 30]
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 1 + 25


def _die(study: Path, at: int) -> None:
    """Add a run, and die at this of the flushes to disk: the first is before the new file takes its name."""
    flush, left = files.flush, [at]

    def dies(path: Path) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(path)

    files.flush = dies
    RunsFile(study).add({study / "runs" / "s" / "seed1": _result(1)})


@pytest.mark.parametrize(("at", "numbers"), [(1, [0]), (2, [0, 1])])
def test_a_kill_at_any_moment(tmp_path: Path, at: int, numbers: list[int]) -> None:
    runs = RunsFile(tmp_path)
    runs.add({tmp_path / "runs" / "s" / "seed0": _result(0)})
    process = multiprocessing.get_context("fork").Process(target=_die, args=(tmp_path, at))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert _numbers(tmp_path) == numbers
    assert runs.add({tmp_path / "runs" / "s" / "seed1": _result(1)}) == 2 - len(numbers)
    assert _numbers(tmp_path) == [0, 1]


def test_a_torn_last_line(tmp_path: Path) -> None:
    runs = RunsFile(tmp_path)
    folders = [tmp_path / "runs" / "s" / f"seed{number}" for number in range(3)]
    runs.add({folder: _result(number) for number, folder in enumerate(folders)})
    whole = runs.path.read_bytes()
    last = len(whole.splitlines()[-1])
    for cut in (2, 10, 10_000, last):
        runs.path.write_bytes(whole[:-cut])
        with pytest.warns(UserWarning, match=r"runs\.jsonl, line 4: the run is left out, its line is not whole"):
            assert runs.get(folders[2]) is None
        assert runs.get(folders[1]) == _result(1)
        assert runs.add({folders[2]: _result(2), folders[1]: _result(9)}) == 1
        assert runs.path.read_bytes() == whole
    runs.path.write_bytes(whole[:-1])  # the run is whole without its newline
    assert runs.get(folders[2]) == _result(2)


def test_scores_of_further_test_sets_come_into_the_line(tmp_path: Path) -> None:
    recipe = validate(tiny.recipe(tmp_path), "tiny")
    wanted = recipe.model_copy(update={"task": recipe.task.model_copy(update={"test_sets": ("test", "other")})})
    runs, folder = RunsFile(tmp_path), tmp_path / "runs" / "s" / "seed0"
    few, more = ({**_result(0), "recipe": recipe.resolved()} for _ in range(2))
    few["metric"]["by_test_set"], more["metric"]["by_test_set"] = {"test": {}}, {"test": {}, "other": {}}
    one, both = (Job("r", which, folder, runs) for which in (recipe, wanted))
    assert runs.add({folder: few}) == 1
    assert one.result() == few
    with pytest.raises(UserError, match=r"has the run .*seed0 without other, and its adapter, .* is gone"):
        both.result()  # trained anew, it would take the place of the scores that are there
    assert [runs.add({folder: result}) for result in (more, few)] == [1, 0]
    assert (one.result(), both.result()) == (more, more)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0][:-20] + "\n", *lines[1:]], "line 1 is not a run of aurora sweep"),
        (lambda lines: ["[]\n", *lines], "line 1 is not a run of aurora sweep"),
        (lambda lines: [*lines[:2], lines[0], lines[2]], "line 3 is not a run of aurora sweep"),
        (lambda lines: ['{"common": 3}\n', *lines[1:]], "line 1 is not a run of aurora sweep"),
        (lambda lines: ['{"common": {"recipe": 3}}\n', *lines[1:]], "line 2 is not a run of aurora sweep"),
        (lambda lines: lines[1:], "line 1 is not a result of aurora train"),
        (lambda lines: [*lines, lines[1]], "line 4: the run s/seed0 is there a second time"),
        (lambda lines: [lines[0].replace('"schema": 1', '"schema": 2'), lines[1]], "line 2 has schema 2, this version"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, change: Callable[[list[str]], list[str]], message: str) -> None:
    runs = RunsFile(tmp_path)
    runs.add({tmp_path / "runs" / "s" / f"seed{number}": _result(number) for number in range(2)})
    before = runs.path.read_text()
    runs.path.write_text("".join(change(before.splitlines(keepends=True))))
    changed = runs.path.read_text()
    with pytest.raises(UserError, match=message):
        runs.add({tmp_path / "runs" / "s" / "seed7": _result(7)})
    assert runs.path.read_text() == changed


def test_git_keeps_the_file_whatever_the_study_is_called(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / ".gitignore", tmp_path)
    try:
        subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    names = ("lora", "build", "adapter", "group/lora")
    for name in names:
        study = tmp_path / "results" / "studies" / name
        RunsFile(study).study.mkdir(parents=True)
        RunsFile(study).add({study / "runs" / "lora" / "seed0": _result(0)})
        (study / "study.json").write_text("{}")
        (study / "journal.log").write_text("")
        weights = study / "runs" / "lora" / "seed0" / "adapter" / "weights"
        weights.parent.mkdir(parents=True)
        weights.write_text("")
    kept = subprocess.run(
        ["git", "-C", str(tmp_path), "ls-files", "-co", "--exclude-standard", "results"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert set(kept.split()) == {
        f"results/studies/{name}/{file}" for name in names for file in ("runs.jsonl", "study.json")
    }


def test_folders_that_go_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training process deletes its earlier checkpoints."""
    checkpoints = tmp_path / RUNS / "lora" / "seed0" / "checkpoints"
    for step in (10, 20):
        (checkpoints / f"checkpoint-{step}").mkdir(parents=True)
    listed = os.scandir

    gone = checkpoints / "checkpoint-10"

    class Listed:
        """What was there before one of them went."""

        def __init__(self, entries: list[Any]) -> None:
            self.left = iter(entries)

        def __enter__(self) -> "Listed":
            return self

        def __exit__(self, *_: object) -> None: ...

        def __iter__(self) -> "Listed":
            return self

        def __next__(self) -> Any:
            return next(self.left)

    def scandir(path: Any) -> Any:
        if str(path) != str(checkpoints):
            return listed(path)
        there = Listed(list(listed(path)))
        if gone.exists():
            gone.rmdir()
        return there

    monkeypatch.setattr(os, "scandir", scandir)
    assert RunsFile(tmp_path).collect() == 0
