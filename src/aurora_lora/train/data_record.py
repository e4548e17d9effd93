"""What a run writes down of its data, so that it is noticed where that changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import files
from ..data.own.files import sha256_of
from ..errors import UserError, abridged
from . import storage
from .data import Data
from .own_section import OwnFields
from .storage import DATA, RESULT, SPLITS


def keep_data(folder: Path, data: Data) -> None:
    """Write down what the user's own data is, and which rows each split holds where that is known.

    Raises:
        UserError: it was written down before, by a run that has made something, and is another: the data, or the way it
            is split, has changed; or an earlier version began the run, which trained labels otherwise.
    """
    stored, is_begun = _stored(folder / DATA), storage.is_begun(folder)
    if is_begun:
        check_data(folder, data)
        if stored is not None:
            _check_order(folder, stored, data)
    elif stored is not None:
        if "files" not in stored:
            raise _not_ours(folder / DATA)
        stored = None  # of a run that made nothing
    if stored is not None and stored.get("labels") != (data.record or {}).get("labels"):
        raise UserError(
            f"{folder} was started by a version that trained labels in another scale: finish it with that version, or "
            "choose another output folder"
        )
    if data.record is not None and stored is None:
        files.write_json(folder / DATA, data.record)
    if data.rows is not None and not (is_begun and (folder / SPLITS).exists()):
        lines = [f"  {json.dumps(name)}: {json.dumps(rows)}" for name, rows in data.rows.items()]
        files.write_text(folder / SPLITS, "{\n" + ",\n".join(lines) + "\n}\n")


def _check_order(folder: Path, stored: Mapping[str, Any], data: Data) -> None:
    """Raise a UserError where a run would go on with other of its files as training, validation and test data."""
    there, here = stored.get("files", {}), (data.record or {}).get("files", {})
    if list(dict.fromkeys(there.values())) != list(dict.fromkeys(here.values())):
        raise UserError(
            f"{folder} was started with {abridged(list(there))} as its data, in this order, and these files are now "
            "given in another: name them as before"
        )


def data_format(folder: Path) -> str | None:
    """The format of the conversations that a run was trained on, None where its folder does not say so."""
    try:
        stored = files.read_json(folder / DATA)
    except (OSError, ValueError):
        return None
    found = stored.get("format") if isinstance(stored, dict) else None
    return found if isinstance(found, str) else None


def check_data(folder: Path, data: Data) -> None:
    """Raise a UserError where the data is not what is written down in the folder of its run."""
    check_record(folder, data.record or {})
    for name, rows in (data.rows or {}).items():
        stored = _stored(folder / SPLITS)
        if stored is not None and stored.get(name) != rows:
            raise UserError(f"{folder / SPLITS}: the {name} split is no longer the one that this run began with")


def check_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Raise a UserError where the files or images of data, by its record, are not what the folder of its run has."""
    _check_files(folder, record.get("files", {}))
    if images := record.get("images"):  # of a table of paths, whose own sha256 says nothing of them
        begun = (_stored(folder / DATA) or {}).get("images", images)  # earlier versions wrote none
        if not isinstance(begun, Mapping):
            raise _not_ours(folder / DATA)
        for name, digest in images.items():
            if begun.get(name) != digest:
                raise UserError(
                    f"the images of the {name} data have changed since this run began: {folder / DATA} has another "
                    "digest of them"
                )


def check_files(folder: Path, section: OwnFields) -> None:
    """Raise a UserError where a file or folder that a finished run read has changed; it may be gone."""
    _check_files(folder, {name: sha256 for name in data_of(section) if (sha256 := sha256_of(name))})


def data_of(section: OwnFields) -> list[str]:
    """The files and folders of data that a recipe names."""
    return [name for name in (section.data, section.validation_data, section.test_data) if name]


def _check_files(folder: Path, files: Mapping[str, str]) -> None:
    stored = _stored(folder / DATA) if files else None
    begun = {} if stored is None else stored.get("files", {})
    for name, sha256 in files.items():
        if stored is None or sha256 in begun.values():
            continue
        if name in begun:
            raise UserError(
                f"{name} has changed since this run began: {folder / DATA} has another sha256 or commit of it"
            )
        hint = f"; `aurora evaluate {folder} --data {name}` scores the run on it" if (folder / RESULT).exists() else ""
        raise UserError(
            f"{name} is none of the data that this run began with, or has changed: {folder / DATA} has "
            f"{abridged(list(begun))}, and no such sha256 or commit{hint}"
        )


def _stored(path: Path) -> dict[str, Any] | None:
    """What a file of a run has as JSON, None if there is none."""
    with files.reading(path):
        try:
            stored = files.read_json(path)
        except FileNotFoundError:
            return None
    if not isinstance(stored, dict):
        raise _not_ours(path)
    return stored


def _not_ours(path: Path) -> UserError:
    return UserError(f"{path} was not written by a run: choose another output folder")
