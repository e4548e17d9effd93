"""What a report is about: a section for each study, and for each task and model of other runs."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...data import TASKS
from ...errors import UserError
from ...field_errors import validated
from ...files import below, read_json, reading, slug
from ...train.publish import RESULT
from ...train.recipe import name_of, set_field, task_name, title_of
from ..experiments.runs_file import read_runs
from ..experiments.study import SUMMARY, Setting, Study
from .groups import Group, Result, find_results, groups
from .study import chosen_values


@dataclass(frozen=True)
class Section:
    """Settings that can be compared.

    Args:
        title: the study's name, or task and model.
        model: what was fine-tuned.
        groups: one for each setting.
        study: `study.json`, if it is a study.
        number: of the sections with this title; told apart by it in file names.
    """

    title: str
    model: str
    groups: Sequence[Group]
    study: Mapping[str, Any] | None = None
    number: int = 1

    @property
    def slug(self) -> str:
        """The title as a file name."""
        return (slug(self.title) or "runs") + (f"-{self.number}" if self.number > 1 else "")

    @property
    def subject(self) -> str:
        """Task and model."""
        return f"{self.groups[0].runs[0]['task']}, {self.model}"

    @property
    def metric(self) -> str:
        """What its figures show: what a study's values were chosen by, or the task's own."""
        tuned = None if self.study is None else self.study["study"]["tuning"].get("metric")
        return str(tuned or self.groups[0].metric)

    def chosen(self, group: Group) -> str:
        """What was tuned of a study's setting, and how it was chosen; empty for other runs."""
        settings = () if self.study is None else self.study["settings"]
        found = (chosen_values(self.study, one) for one in settings if self.study and one["name"] == group.label)
        return next(found, "")

    @property
    def results(self) -> list[Result]:
        """The results of all runs."""
        return [run for group in self.groups for run in group.runs]


def load_sections(paths: Iterable[Path | str]) -> list[Section]:
    """The sections of a report.

    Args:
        paths: each a run's folder, a `result.json`, a study's folder, a `study.json`, or a folder of such. Of a study,
            the chosen runs are shown, not those that it was tuned with; of its `runs.jsonl`, all.

    Raises:
        UserError: a path with neither a result nor a study in or below it, or a file that is neither.
    """
    studies: dict[Path, tuple[Path, Mapping[str, Any]]] = {}  # by resolved file: one that is given twice is there once
    others, seen = [], set[Path]()
    for path in map(Path, paths):
        is_study = path.name == SUMMARY and path.is_file()
        found = [path] if is_study else [] if path.is_file() else sorted(below(path, SUMMARY))
        for file in found:
            studies.setdefault(file.resolve(), (file, _read_study(file)))
        if is_study:
            continue
        others += find_results([path], [file.parent for file in found], seen, may_be_none=bool(found))
    sections = [_study_section(summary, path.parent) for path, summary in studies.values()]
    by_place = groups([result for _, result in others], [file.parent for file, _ in others])
    sections += [Section(f"{task}, {model}", model, found) for (task, model), found in by_place.items()]
    titles = [slug(section.title) for section in sections]
    return [replace(one, number=titles[: at + 1].count(titles[at])) for at, one in enumerate(sections)]


def _read_study(path: Path) -> Mapping[str, Any]:
    with reading(path):
        value = read_json(path)
    if not isinstance(value, dict) or not {"study", "settings"} <= value.keys():
        raise UserError(f"{path} is not what aurora sweep writes")
    return value


def _study_section(summary: Mapping[str, Any], folder: Path) -> Section:
    study = validated(Study, summary["study"], f"{folder / SUMMARY} does not fit this version")
    settings = {setting.name: setting for setting in study.settings}
    found = [_study_group(one, study, settings[one["name"]], folder) for one in summary["settings"] if one["seeds"]]
    if not found:
        raise UserError(f"{folder / SUMMARY}: none of the study's final runs is finished: run aurora sweep again")
    of_runs = {run["model"] for group in found for run in group.runs if "model" in run}
    named = {str(name) for one in study.settings if (name := _model_of(study, one)) is not None}
    return Section(study.name, ", ".join(sorted(named or of_runs)) or "several models", found, summary)


def _model_of(study: Study, setting: Setting) -> Any:
    """The name of the model that a setting fine-tunes; None where neither it nor the study names one."""
    values = copy.deepcopy({"model": study.base.get("model")})
    for field, value in setting.fields.items():
        if field.partition(".")[0] == "model":
            set_field(values, field, copy.deepcopy(value))
    return name_of("model", values)


def _study_group(summary: Mapping[str, Any], study: Study, setting: Setting, folder: Path) -> Group:
    """The chosen runs of a setting: from the study's file or their folders, or what the summary says of them."""
    finished = read_runs(folder)
    runs, folders = [], []
    for place, seed in enumerate(summary["seeds"]):
        path = folder / study.run_folder(setting, summary["chosen"], seed)
        found = finished.get(path) or (find_results([path / RESULT])[0][1] if (path / RESULT).is_file() else None)
        summarised = _summarised(summary, study, setting, place)
        if found is not None and "chosen_by_form" in summary:  # each form has the scores of its own choice
            found = {**found, "metric": {**found["metric"], "by_form": summarised["metric"]["by_form"]}}
        runs.append(summarised if found is None else found)
        folders.append(None if found is None else path)
    group = Group(setting.name, runs, setting.name, folders)
    if group.rank is not None:  # else nothing but its name tells it from others
        group.line = re.sub(r"\s*\br=\d+", "", setting.name)
    return group


def _summarised(summary: Mapping[str, Any], study: Study, setting: Setting, place: int) -> Result:
    """One run as study.json has it: without its epochs, its memory and its environment."""
    method = {"name": setting.method} if isinstance(setting.method, str) else setting.method
    seed = summary["seeds"][place]
    by_form = {
        form: {
            metric: found["scores"][place] for metric, found in metrics.items() if place not in found.get("missing", ())
        }
        for form, metrics in summary["by_form"].items()
    }
    task = TASKS.get(str(task_name(study.base)))
    split = summary.get("split") or ("test" if task is None else task.reported_split)
    selected_by = {"form": summary["deployed"], "value": summary["validation"]}
    if study.tuning.metric is not None:
        selected_by["name"] = study.tuning.metric
    return {
        "recipe": {"method": method},
        "task": title_of(study.base),
        "method": method["name"],
        "seed": seed,
        "metric": {"name": summary["metric"], "split": split, "by_form": by_form, "selected_by": selected_by},
        "params": summary["params"],
        "time": {"train_s": summary["train_s"][place]},
        "epochs": [],
    }
