"""`runs.jsonl`: the finished runs of a study in one file, a run a line, recipe and result together.

The first line has what all runs have in common, above all of their recipes; then a line for each run has its place in
the study and the rest of its `result.json`, less the digests of the adapter's files:

    {"common": {"schema": 1, "recipe": {"model": "minilm-l6", "training": {"epochs": 2, ...}, ...}, ...}}
    {"run": "lora-r=2/learning_rate=0.005/seed0", "recipe": {"method": {...}, ...}, "metric": {...}, ...}

`RunsFile.read` gives whole results. A file of an earlier version has no first line of that kind.

The folder of that run is `runs/lora-r=2/learning_rate=0.005/seed0`: what is under way lies there, and the adapter and
the log stay there. The file is replaced as a whole, under a lock: whatever moment a process is killed at, it holds each
run once or not yet, and a run that it does not hold yet is taken in from its folder.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ... import files
from ...errors import UserError
from ...locks import held
from ...train.publish import REFERENCE, RESULT
from ...train.results import Result, check_result, read_result, test_sets

RUNS_FILE = "runs.jsonl"
RUNS = "runs"
"""The folder of the runs' folders, beside `RUNS_FILE`."""
_LOCK = ".runs.lock"
_RUN = "run"
"""The key in each line with the path of the run's folder below `runs`."""
_COMMON = "common"
"""The key in the first line with what all runs have in common."""
_RECIPE = "recipe"
_DIGESTS = "adapter_sha256"
"""The key that no line has: which files the run's folder must have is told in the folder."""


@dataclass(frozen=True)
class RunsFile:
    """The finished runs of a study.

    Args:
        study: the folder of the study.
    """

    study: Path

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.study / RUNS_FILE

    def read(self) -> Mapping[Path, Result]:
        """The results by the folders of their runs, which need not be there; in the order of the folders' names.

        A last line that is not whole (the file was copied while the disk was full, say) is left out with a warning.

        Raises:
            UserError: the file cannot be read, or a line is not a run's.
        """
        return {self.study / RUNS / name: result for name, result in self._by_name().items()}

    def get(self, folder: Path) -> Result | None:
        """The result of the run of this folder, if the file has it.

        Raises:
            UserError: as `read`.
        """
        return self._by_name().get(self._name(folder))

    def add(self, results: Mapping[Path, Result]) -> int:
        """Add the results of finished runs, by their folders, to the file on the disk; gives how many are new.

        A run that the file has stays as it is, unless it has now scores of further test sets. Several processes may add
        at once.

        Raises:
            UserError: as `read`, or the file cannot be written.
        """
        with files.plain_write_errors(self.path), held(self.study / _LOCK):
            there = {name: _record(result) for name, result in self._by_name().items()}  # earlier versions kept all
            new = {self._name(folder): _record(result) for folder, result in results.items()}
            new = {name: result for name, result in new.items() if not _covers(there.get(name), result)}
            if new:
                files.write_text(self.path, _text(_in_order({**there, **new})))
        return len(new)

    def collect(self) -> int:
        """Add the finished runs in the study's folders; gives how many are new.

        They are those of a process that was killed before it added them, or of a version that kept no such file. A
        folder whose `result.json` cannot be read is left to who asks for that run.

        Raises:
            UserError: as `add`.
        """
        found = {}
        for folder in (path.parent for path in files.below(self.study / RUNS, RESULT) if path.parent.name != REFERENCE):
            with suppress(UserError):
                if (result := read_result(folder)) is not None:
                    found[folder] = result
        return self.add(found)

    def _name(self, folder: Path) -> str:
        return folder.relative_to(self.study / RUNS).as_posix()

    def _by_name(self) -> Mapping[str, Result]:
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return {}
        return _parsed(self.path, (stat.st_ino, stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=16)
def _parsed(path: Path, version: tuple[int, ...]) -> Mapping[str, Result]:
    """The results by name, of the version of the file that inode, time and size name."""
    with files.reading(path):
        lines = path.read_text(encoding="utf-8").split("\n")
    found: dict[str, Result] = {}
    common: Result = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = files.parse_json(line, finite=True)
            if number == 1 and record.keys() == {_COMMON}:
                common = dict(record[_COMMON])
                continue
            name = str(record.pop(_RUN))
            record = _merged(common, record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):  # without the newline that every whole line ends with
                warnings.warn(f"{where}: the run is left out, its line is not whole", stacklevel=2)
                continue
            raise UserError(f"{where} is not a run of aurora sweep") from error
        if name in found:
            raise UserError(f"{where}: the run {name} is there a second time")
        found[name] = check_result(record, where)
    return _in_order(found)


def _covers(there: Result | None, result: Result) -> bool:
    """Whether a line has all that a result of its run has."""
    return there is not None and set(test_sets(result)) <= set(test_sets(there))


def _record(result: Result) -> Result:
    """What a line has of a run's result."""
    return {key: value for key, value in result.items() if key != _DIGESTS}


def _text(results: Mapping[str, Result]) -> str:
    runs = [_ordered(files.finite_or_none(result)) for result in results.values()]
    common = _common(runs)
    records = [{_RUN: name, **_without(common, run)} for name, run in zip(results, runs, strict=True)]
    head = [{_COMMON: common}] if common else []
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in [*head, *records])


def _ordered(result: Result) -> Result:
    """With its names sorted, and those of its recipe: the file is the same in whatever order runs came into it."""
    recipe = json.loads(json.dumps(result[_RECIPE], sort_keys=True))
    return dict(sorted({**result, _RECIPE: recipe}.items()))


def _common(runs: Sequence[Result]) -> Result:
    """What several results have in common. Of their recipes, where the order of names means nothing, at any depth."""
    return _shared(runs, at_any_depth={_RECIPE}) if len(runs) > 1 else {}


def _shared(values: Sequence[Mapping[str, Any]], at_any_depth: Collection[str] | None = None) -> dict[str, Any]:
    """The fields that all have with the same value, and those parts of all fields, or of the named ones."""
    shared = {}
    for key in (key for key in values[0] if all(key in value for value in values)):
        fields = [value[key] for value in values]
        if all(_same(fields[0], field) for field in fields):
            shared[key] = fields[0]
        elif (at_any_depth is None or key in at_any_depth) and all(isinstance(field, dict) for field in fields):
            shared[key] = _shared(fields)
    return shared


def _same(one: Any, other: Any) -> bool:
    """Whether both are the same in JSON: 1, 1.0 and true are not."""
    return bool(one == other) and json.dumps(one) == json.dumps(other)


def _without(common: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be merged with the common values to give the whole."""
    own = {}
    for key, value in whole.items():
        if key not in common:
            own[key] = value
        elif not _same(common[key], value):
            own[key] = _without(common[key], value)
    return own


def _merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    return {**common, **own, **{key: _merged(common[key], own[key]) for key in common.keys() & own.keys()}}


def _in_order(results: Mapping[str, Result]) -> dict[str, Result]:
    """The runs as their folders are sorted: the file is the same whichever run was finished first."""
    return dict(sorted(results.items(), key=lambda run: run[0].split("/")))
