"""Whether a folder holds the same study: only then its trials choose for this one, and its scores are compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...training.recipe import CHANGE_NOTHING
from ...training.results import Result
from ...training.storage import differences, flatten
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
    if any(value != here[field] for field, value in there.items() if field != "base"):
        raise UserError(f"{journal.parent} holds a study whose setting '{name}' was another ({there}): {choose}")
    if differing := differences(there.get("base", here["base"]), here["base"], missing=None):
        shown = ", ".join(differing)
        raise UserError(f"{journal.parent} holds a study of another base; they differ in {shown}: {choose}")


class SameData:
    """The user's own files that the runs of a study were on."""

    def __init__(self) -> None:
        self.digests: list[str] = []
        self.first: Path | None = None
        """The first run that had them."""

    def check(self, result: Result, folder: Path) -> None:
        """Raise a UserError for a run on other files than the runs before: scores on both are not compared."""
        files = (result.get("data") or {}).get("files")
        if not files:
            return
        digests = sorted(files.values())
        if self.first is None:
            self.digests, self.first = digests, folder
        elif digests != self.digests:
            raise UserError(
                f"the data has changed: {folder} and {self.first} were run on files of other contents: choose another "
                "output folder"
            )
