"""`runs.jsonl`: the runs of a study over its seeds in one file, a run a line, recipe and result together.

The first line has what all runs have in common, above all of their recipes; then a line for each run has its place in
the study and the rest of its `result.json`:

    {"common": {"schema": 1, "recipe": {"model": "minilm-l6", "training": {"epochs": 2, ...}, ...}, ...}}
    {"run": "lora-r=2/learning_rate=0.005/seed0", "recipe": {"method": {...}, ...}, "metric": {...}, ...}

It is written when a study is done, for reports; a study that goes on reads the folders of its runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import files
from ...errors import UserError
from ...train.finished_run import Result, check_result
from ...train.result_schema import StudyRun

RUNS_FILE, RUNS = "runs.jsonl", "runs"
"""The file, and the folder of the runs' folders beside it."""
LEFT_OUT = ("adapter_sha256", "lora_sha256", "versions", "device", "by_class", "confusion", "losses")
"""Of a result: about files that are not there, the machine, and what only the report of a single run shows."""


def read_runs(study: Path) -> dict[Path, Result]:
    """The results by the folders of their runs, which need not be there; none where a study has no such file.

    Args:
        study: its folder.

    Raises:
        UserError: the file cannot be read, or a line is not a run's.
    """
    path = study / RUNS_FILE
    if not path.exists():
        return {}
    with files.reading(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    found: dict[Path, Result] = {}
    common: Result = {}
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            record = files.parse_json(line, finite=True)
            if number == 1 and record.keys() == {"common"}:
                common = record["common"]
                continue
            name = str(record.pop("run"))
            found[study / RUNS / name] = check_result(_merged(common, record), where, StudyRun)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where} is not a run of aurora sweep") from error
    return found


def write_runs(study: Path, results: Mapping[Path, Result]) -> None:
    """Write the results of runs of a study by their folders, in the order of the folders' names."""
    names = {folder.relative_to(study / RUNS).as_posix(): folder for folder in results}
    runs = {name: _record(results[names[name]]) for name in sorted(names, key=lambda name: name.split("/"))}
    common = _common(list(runs.values()))
    records = [{"common": common}, *({"run": name, **_without(common, run)} for name, run in runs.items())]
    files.write_text(study / RUNS_FILE, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records))


def _record(result: Result) -> Result:
    kept = {key: value for key, value in files.finite_or_none(result).items() if key not in LEFT_OUT}
    return {**kept, "epochs": _rounded(kept["epochs"])} if "epochs" in kept else kept


def _rounded(value: Any) -> Any:
    """Numbers with five digits: learning curves need no more."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _common(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all mappings have, mapping by mapping."""
    first: Mapping[str, Any] = next(iter(runs), {})
    shared: dict[str, Any] = {}
    for key, value in first.items():
        own = [run.get(key) for run in runs]
        if all(isinstance(one, dict) for one in own):
            shared[key] = _common([one for one in own if isinstance(one, dict)])
        elif all(key in run for run in runs) and len({json.dumps(one) for one in own}) == 1:
            shared[key] = value
    return shared


def _without(common: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be merged with the common values to give the whole."""
    own = {key: value for key, value in whole.items() if key not in common}
    inside = {key: _without(common[key], value) for key, value in whole.items() if isinstance(common.get(key), dict)}
    return {**own, **{key: value for key, value in inside.items() if value}}


def _merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    return {**common, **own, **{key: _merged(common[key], own[key]) for key in common.keys() & own.keys()}}
