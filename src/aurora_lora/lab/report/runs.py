"""Measured runs: where their results are found, and one tidy table of their scores."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ...data.metrics import metric_named
from ...errors import UserError
from ...field_errors import validated
from ...files import below, parse_json, read_json, reading, slug
from ...train.finished_run import Result, check_result, read_result, validation_score
from ...train.publish import REFERENCE, RESULT
from ...train.recipe import CHANGE_NOTHING, flatten
from ..experiments.runs_file import RUNS_FILE, read_runs
from ..experiments.study import SUMMARY, Study
from .tables import mean, plain

NO_OTHER_SETTING = {*CHANGE_NOTHING, "training.save_updates", "training.threads"} - {"task.test_sets"}
"""Fields of a recipe that do not change the scores; which test sets there are changes their mean."""
OF_RANK = ("method.r", "method.alpha", "method.lora_alpha")
"""Options that change with the rank: settings that differ in these alone are one line of a figure."""


@dataclass(frozen=True)
class Section:
    """Settings that can be compared: a study, or runs of one task and model.

    Args:
        title: the study's name, or task and model.
        model: what was fine-tuned.
        scores: see `measured`.
        study: `study.json`, if it is a study.
        number: of the sections with this title; told apart by it in file names.
    """

    title: str
    model: str
    scores: pd.DataFrame
    study: Mapping[str, Any] | None = None
    number: int = 1

    @property
    def slug(self) -> str:
        """The title as a file name."""
        return (slug(self.title) or "runs") + (f"-{self.number}" if self.number > 1 else "")

    @property
    def subject(self) -> str:
        """Task and model."""
        return f"{self.results[0]['task']}, {self.model}"

    @property
    def metric(self) -> str:
        """What its figures show: what a study's values were chosen by, or the task's own."""
        tuned = None if self.study is None else self.study["study"]["tuning"].get("metric")
        return str(tuned or self.results[0]["metric"]["name"])

    @property
    def runs(self) -> pd.DataFrame:
        """A row a run of `scores`."""
        return self.scores.drop_duplicates(["setting", "seed"])

    @property
    def results(self) -> list[Result]:
        """The results of all runs."""
        return list(self.runs["result"])


def measured(runs: Iterable[tuple[str, str, Path, Result]], own_scores: pd.DataFrame | None = None) -> pd.DataFrame:
    """The scores of runs as one tidy table, a row for each run, form, test set and metric.

    Args:
        runs: for each its setting, its line (what settings that differ in the rank alone have in common), its folder
            and its result.
        own_scores: as of `study_scores`, in place of those in the results.

    Returns:
        The columns `setting`, `line`, `method`, `rank` (not a number without one), `deployed` and `several` (whether
        it is one of several forms), `selected_by` and `validation` (the metric that epochs were chosen by, and the
        score of the chosen one), `params` (outside the head), `train_s`, `samples_per_s`, `peak_mb`, `folder`,
        `result`, `seed`, and `form`, `test_set` (empty: the mean over them), `metric`, `score` (not a number where it
        was not finite).
    """
    facts, scores = [], []
    for setting, line, folder, result in runs:
        metric = result["metric"]
        selected = metric["selected_by"].get("name") or metric["name"]
        run = {"setting": setting, "seed": int(result["seed"])}
        facts.append(
            {
                **run,
                "line": line,
                "method": result["method"],
                "rank": _rank(result),
                "deployed": metric["selected_by"]["form"],
                "several": len(metric["by_form"]) > 1,
                "selected_by": selected,
                "validation": validation_score(result, selected),
                "params": result["params"]["adapter"],
                "train_s": result["time"]["train_s"],
                "samples_per_s": result["time"].get("samples_per_s"),
                "peak_mb": result.get("memory", {}).get("peak_mb"),
                "folder": folder,
                "result": result,
            }
        )
        for test_set, by_form in {"": metric["by_form"], **metric.get("by_test_set", {})}.items():
            for form, values in by_form.items():
                of = {**run, "form": form, "test_set": test_set}
                scores += [{**of, "metric": name, "score": score} for name, score in values.items()]
    found = pd.DataFrame(scores) if own_scores is None else own_scores
    table = pd.DataFrame(facts).merge(found, on=["setting", "seed"])
    return table.astype({"score": float, "validation": float})


def _rank(result: Result) -> float:
    """The r of all layers; not a number for a method without, and where a budget gives each layer its own."""
    method = result["recipe"]["method"]
    return float(method["r"]) if isinstance(method.get("r"), int) and not method.get("budget") else math.nan


def study_scores(summary: Mapping[str, Any]) -> pd.DataFrame:
    """The scores of a study's settings as a tidy table, a row for each seed, form and metric.

    Args:
        summary: the study.json.

    Returns:
        The columns of `measured` for a score, `params` and `most_params` (of the seeds), `train_s`, and `choice`: empty
        for the runs of a form's own choice, else the form whose choice was run.
    """
    rows = []
    for one in summary["settings"]:
        least = (one["params"] or {}).get("adapter")
        most = one.get("most_params") or least
        for choice, by_form in {"": one["by_form"], **one.get("by_choice", {})}.items():
            for form, metrics in by_form.items():
                for metric, found in metrics.items():
                    of = {"setting": one["name"], "choice": choice, "form": form, "test_set": "", "metric": metric}
                    of |= {"params": least, "most_params": most}
                    rows += [
                        {**of, "seed": seed, "score": score, "train_s": seconds}
                        for place, (seed, score, seconds) in enumerate(
                            zip(one["seeds"], found["scores"], one["train_s"], strict=True)
                        )
                        if place not in found.get("missing", ())
                    ]
    columns = ["setting", "choice", "form", "test_set", "metric", "params", "most_params", "seed", "score", "train_s"]
    return pd.DataFrame(rows, columns=columns).astype({"score": float})


def best(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of the settings to show: of those of one line and rank, one of those with the most seeds, as a mean of
    fewer may be ahead by chance; of these the best one on validation data."""
    runs = scores.drop_duplicates(["setting", "seed"])
    by_setting = runs.groupby("setting", sort=False)
    each = by_setting[["line", "rank"]].first()
    signs = by_setting["selected_by"].first().map(lambda name: metric_named(name).sign)
    each["standing"] = (signs * by_setting["validation"].agg(mean)).fillna(-math.inf)
    each["seeds"] = by_setting.size()
    each = each.sort_values(["seeds", "standing"], ascending=False, kind="stable")
    return scores[scores["setting"].isin(each.drop_duplicates(["line", "rank"]).index)]


def evaluations(scores: pd.DataFrame) -> pd.DataFrame:
    """A row for each evaluation in training: `setting`, `seed`, `epoch`, `train_loss`, and `validation`, the score by
    which the best epoch is chosen."""
    rows = [
        {
            "setting": run.setting,
            "seed": run.seed,
            "epoch": entry["epoch"],
            "train_loss": entry.get("train_loss"),
            "validation": entry["validation"].get(run.selected_by),
        }
        for run in scores.drop_duplicates(["setting", "seed"]).itertuples()
        for entry in run.result["epochs"]
    ]
    columns = ["setting", "seed", "epoch", "train_loss", "validation"]
    return pd.DataFrame(rows, columns=columns).astype({"train_loss": float, "validation": float})


# ---------------------------------------------------------------- reading


def load_results(paths: Iterable[Path | str]) -> list[Result]:
    """The results of runs: each path a `result.json`, a `runs.jsonl`, a run's folder, or a folder of such.

    Raises:
        UserError: a path with no result in or below it, or one that is not a result.
    """
    return list(_find(paths, {}).values())


def load_sections(paths: Iterable[Path | str]) -> list[Section]:
    """The sections of a report.

    Args:
        paths: each a run's folder, a `result.json`, a study's folder, a `study.json`, or a folder of such. Of a study,
            the chosen runs are shown, not those that it was tuned with; of its `runs.jsonl`, all. What is given twice
            is there once.

    Raises:
        UserError: a path with neither a result nor a study in or below it, or a file that is neither.
    """
    given, studies = [*map(Path, paths)], dict[Path, Path]()
    for path in given:
        inside = [path] if path.name == SUMMARY else sorted(below(path, SUMMARY))
        studies |= {file.resolve(): file for file in inside if file.is_file()}
    sections = [_study_section(file) for file in studies.values()]
    by_place: dict[tuple[str, str], dict[Path, Result]] = {}
    for file, result in _find((path for path in given if path.resolve() not in studies), studies).items():
        by_place.setdefault((result["task"], result["model"]), {})[file] = result
    for (task, model), there in by_place.items():
        sections.append(Section(f"{task}, {model}", model, measured(_settings(there))))
    slugs = [slug(section.title) for section in sections]
    return [replace(one, number=slugs[: at + 1].count(slugs[at])) for at, one in enumerate(sections)]


def _find(paths: Iterable[Path | str], studies: Iterable[Path]) -> dict[Path, Result]:
    """The results by their files, or what the file of a run in a `runs.jsonl` would be; not those of studies below."""
    found: dict[Path, Result] = {}
    for path in map(Path, paths):
        there = [path] if path.is_file() else sorted((*below(path, RUNS_FILE), *below(path, RESULT)))
        left_out = {study.parent for study in studies if path.resolve() in study.parents}
        if not there and not left_out:
            raise UserError(f"{path} holds no result.json of a finished run")
        for file in (file.resolve() for file in there):
            if left_out.isdisjoint(file.parents):
                for place, result in _read(file):
                    found.setdefault(place, result)
    return found


def _read(file: Path) -> Iterator[tuple[Path, Result]]:
    if file.name == RUNS_FILE:
        yield from ((folder / RESULT, result) for folder, result in read_runs(file.parent).items())
        return
    with reading(file):
        value = parse_json(file.read_text(encoding="utf-8"), finite=True)
    yield file, check_result(value, str(file))


def _study_section(file: Path) -> Section:
    with reading(file):
        summary = read_json(file)
    if not isinstance(summary, dict) or not {"study", "settings"} <= summary.keys():
        raise UserError(f"{file} is not what aurora sweep writes")
    study = validated(Study, summary["study"], f"{file} does not fit this version")
    settings, finished = {setting.name: setting for setting in study.settings}, read_runs(file.parent)
    runs = []
    for one in summary["settings"]:
        for seed in one["seeds"]:
            folder = file.parent / study.run_folder(settings[one["name"]], one["chosen"], seed)
            result = finished.get(folder) or read_result(folder)
            if result is None:
                raise UserError(f"{file}: the run {folder} is missing: run aurora sweep again")
            # of a rank that is the layers' own, nothing but the name tells a setting from others
            line = one["name"] if math.isnan(_rank(result)) else re.sub(r"\s*\br=\d+", "", one["name"])
            runs.append((one["name"], line, folder, result))
    if not runs:
        raise UserError(f"{file}: none of the study's final runs is finished: run aurora sweep again")
    own = study_scores(summary)
    own = own[own["choice"] == ""][["setting", "seed", "form", "test_set", "metric", "score"]]
    models = ", ".join(sorted({run["model"] for *_, run in runs}))
    return Section(study.name, models, measured(runs, own), summary)


# ---------------------------------------------------------------- the settings of runs


def _settings(results: Mapping[Path, Result]) -> list[tuple[str, str, Path, Result]]:
    """The runs, setting by setting and seed by seed, with the names of their settings and lines.

    Raises:
        UserError: two runs of one setting and seed, or runs on other contents of a file of one name.
    """
    recipes = [
        flatten({key: value for key, value in result["recipe"].items() if key not in ("seed", "name", "reference")})
        for result in results.values()
    ]
    seeds = [int(result["seed"]) for result in results.values()]
    left_out = {*NO_OTHER_SETTING}
    if all(recipe.get("task.split_seed") == seed for recipe, seed in zip(recipes, seeds, strict=True)):
        left_out.add("task.split_seed")  # as in a study with `split_by_seed`
    kept = [{key: value for key, value in recipe.items() if key not in left_out} for recipe in recipes]
    methods = [result["method"] for result in results.values()]
    of_line = [
        {
            key: value
            for key, value in one.items()
            if key not in OF_RANK and (key == "training.select_by" or not key.startswith("training."))
        }
        for one in kept
    ]
    by_setting: dict[str, dict[int, tuple[str, str, Path, Result]]] = {}
    contents: dict[str, tuple[str, Path]] = {}
    named = zip(_names(methods, kept), _names(methods, of_line), seeds, results.items(), strict=True)
    for label, line, seed, (file, result) in named:
        for name, sha256 in ((result.get("data") or {}).get("files") or {}).items():
            if (first := contents.setdefault(name, (sha256, file)))[0] != sha256:
                raise UserError(f"runs on other contents of {name} are not compared: {first[1]} and {file}")
        there = by_setting.setdefault(label, {})
        if seed not in there or there[seed][2].name == REFERENCE:
            there[seed] = label, line, file.parent, result
        elif file.parent.name != REFERENCE:  # runs that were compared with one reference have each a copy of it
            raise UserError(
                f"two runs of {result['method']} on {result['task']} have seed {seed}: {there[seed][2]} and "
                f"{file.parent}; leave one out"
            )
    return [by_seed[seed] for by_seed in by_setting.values() for seed in sorted(by_seed)]


def _names(methods: Sequence[str], fields: Sequence[Mapping[str, Any]]) -> list[str]:
    """The method of each run, and those of its fields in which the runs of that method differ."""
    first: dict[str, Mapping[str, Any]] = {}
    differing: dict[str, set[str]] = defaultdict(set)
    for method, own in zip(methods, fields, strict=True):
        other = first.setdefault(method, own)
        differing[method] |= {key for key in {*own, *other} if own.get(key) != other.get(key)}
    given = [
        ", ".join(f"{key.rpartition('.')[2]} {plain(own[key])}" for key in own if key in differing[method])
        for method, own in zip(methods, fields, strict=True)
    ]
    return [f"{method}: {shown}" if shown else method for method, shown in zip(methods, given, strict=True)]
