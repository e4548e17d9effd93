"""Whether a folder holds the same study: only then its trials choose for this one, and its scores are compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...data.models import MODELS, PretrainedHere
from ...data.own.files import sha256_of
from ...errors import UserError
from ...train.data import data_of
from ...train.models import digest_of
from ...train.recipe import CHANGE_NOTHING, OwnFields, differences, flatten
from ...train.results import Result
from .jobs import Job
from .journal import JOURNAL
from .runs_file import RUNS_FILE
from .study import Study


def base_of(study: Study) -> dict[str, Any]:
    """What all runs of a study have in common, with dotted names."""
    return {field: value for field, value in flatten(study.base).items() if field not in CHANGE_NOTHING}


def check_same_setting(there: Mapping[str, Any] | None, here: Mapping[str, Any], name: str, journal: Path) -> None:
    """Raise a UserError if the journal describes another setting of this name, or another base.

    Args:
        there: what the journal has of it, if it has something; of an earlier version, no `base`.
        here: the same of this study.
        name: of the setting.
        journal: where the trials are.
    """
    there = there or {}
    choose = f"choose another output folder, or delete {journal}; finished runs are taken as they are"
    kept = {field: value for field, value in there.items() if field != "base"}
    if differing := differences(flatten(kept), flatten({field: here[field] for field in kept}), missing=None):
        shown = ", ".join(differing)
        raise UserError(f"{journal.parent} holds a study whose setting '{name}' was another; {shown}: {choose}")
    if differing := differences(there.get("base", here["base"]), here["base"], missing=None):
        shown = ", ".join(differing)
        raise UserError(f"{journal.parent} holds a study of another base; they differ in {shown}: {choose}")


class SameInputs:
    """What the runs of a study have to share beside their recipes: the user's own files, and the base's weights."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[Any, Path]] = {}
        """What the first run with each file and model had of it, and that run's folder."""

    def check(self, result: Result, folder: Path) -> None:
        """Raise a UserError for a run on other files, or on another base model of the same name, than the runs before:
        their scores are not compared."""
        for file, sha256 in ((result.get("data") or {}).get("files") or {}).items():
            if other := self._other(f"file {file}", sha256, folder):
                raise UserError(
                    f"the data has changed: {folder} and {other} were run on other contents of {file}: choose another "
                    f"output folder, or delete the wrong one, its line in {RUNS_FILE}, and {JOURNAL}"
                )
        name, commit = result.get("model", ""), result.get("model_commit")
        if commit or isinstance(MODELS.get(name), PretrainedHere):  # early results do not say it of these
            asked = (result.get("recipe") or {}).get("model")
            self._check_base(name, commit, folder, asked.get("revision") if isinstance(asked, Mapping) else None)

    def check_before(self, *jobs: Job) -> None:
        """Raise a UserError for runs that are yet to be done, if their data, or the base model that was pretrained
        here, are not those of the runs before."""
        read: dict[str, str | None] = {}
        for job in (job for job in jobs if job.finished() is None):
            for file in data_of(job.recipe.task) if isinstance(job.recipe.task, OwnFields) else ():
                if (before := self._first.get(f"file {file}")) is None:
                    continue
                if file not in read:  # once for all runs
                    read[file] = sha256_of(file)
                if read[file] not in (None, before[0]):
                    raise UserError(
                        f"the data has changed: {file} is not what it was when {before[1]} was run: put it back, or "
                        "choose another output folder"
                    )
            made = MODELS.get(job.recipe.model)
            if isinstance(made, PretrainedHere) and made.is_there:
                self._check_base(made.name, digest_of(str(made.folder)), job.folder)

    def _check_base(self, name: str, commit: str | None, folder: Path, revision: str | None = None) -> None:
        """A study may compare revisions of one model, each of which is one commit."""
        if other := self._other(f"model {name}, revision {revision}", commit, folder):
            raise UserError(
                f"the base model has changed: {folder} is run on other weights of {name} than {other}, or on ones that "
                "are not known: choose another output folder"
            )

    def _other(self, what: str, found: Any, folder: Path) -> Path | None:
        """The first run, if it had something else."""
        first, there = self._first.setdefault(what, (found, folder))
        return None if first == found else there
