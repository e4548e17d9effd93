"""Data sets of the Hugging Face hub, through `datasets`, or from a copy of them on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..extras import extra
from ..files import expanded
from .loading import cause_of, reason
from .task import check_size, seeded_order

if TYPE_CHECKING:
    import datasets

COPIES = "AURORA_LORA_DATA"
"""Environment variable: a folder with copies of data sets, each in a folder that is called like it, `owner/name`."""


@dataclass(frozen=True)
class HubData:
    """A data set on the hub.

    Where `AURORA_LORA_DATA` names a folder that holds `owner/name`, that copy is read instead, in the same way:
    `hf download --repo-type dataset owner/name --local-dir FOLDER/owner/name` (with `--revision` where there is one).

    Args:
        repo: `owner/name`.
        config: name of the configuration.
        revision: where the hub keeps the Parquet files, for a data set that is a script: scripts are not run.
        files: pattern of the files of each split, with a revision.
    """

    repo: str
    config: str | None = None
    revision: str | None = None
    files: Mapping[str, str] | None = None

    def load(self, split: str, columns: Sequence[str] = ()) -> datasets.Dataset:
        """One split.

        Raises:
            UserError: it cannot be had, or lacks a column.
        """
        found, _ = self._loaded(split)
        for column in columns:
            if column not in found.column_names:
                raise UserError(
                    f"{self}, {split}: there is no column {column!r} (it has {', '.join(found.column_names)})"
                )
        return found

    def load_all(self) -> tuple[datasets.DatasetDict, str]:
        """Every split, and the commit that they are of (of a copy: a hash of the names of its files).

        Raises:
            UserError: it cannot be had.
        """
        return self._loaded(None)

    def _loaded(self, split: str | None) -> tuple[Any, str]:
        with extra("train"):
            import datasets
        copy = self.copy()
        more: dict[str, Any] = {} if self.files is None else {"data_files": {split: self.files[split or ""]}}
        if copy is None:  # in a copy the revision is the one that was copied
            more["revision"] = self.revision
        try:
            builder = datasets.load_dataset_builder(str(copy or self.repo), self.config, **more)
            if copy is not None:
                check_inside(copy, [file for files in (builder.config.data_files or {}).values() for file in files])
            builder.download_and_prepare()
            return builder.as_dataset(split=split), str(builder.hash)
        except Exception as error:  # `datasets` and the hub's client raise many kinds, some of them their own
            what, why = "the data" if split is None else f"the {split} split", reason(cause_of(error))
            if copy is not None:
                raise UserError(f"{copy}: {what} cannot be loaded: {why}") from error
            raise UserError(
                f"{what} of {self} cannot be loaded from the Hugging Face hub: {why}; {COPIES}=FOLDER names a folder "
                f"with copies of data sets, this one in FOLDER/{self.repo}"
            ) from error

    def copy(self) -> Path | None:
        """The folder of its copy on this machine, if there is one."""
        folder = os.environ.get(COPIES)
        path = expanded(folder) / self.repo if folder else None
        return path if path is not None and path.is_dir() else None

    def __str__(self) -> str:
        return f"{self.copy() or self.repo}{f' ({self.config})' if self.config else ''}"

    def check_labels(self, labels: Sequence[Any], classes: int, split: str) -> None:
        """Raise a UserError that names the first row whose label is none of 0 to `classes - 1`."""
        for row, label in enumerate(labels):
            if label is None or label not in range(classes):
                raise UserError(f"{self}, {split}, row {row}: label {label} is not one of 0 to {classes - 1}")


def check_inside(folder: Path, names: Sequence[str]) -> None:
    """Raise a UserError if one of the files that `datasets` would read for a folder is not in it; see `check_links`."""
    for name in names:
        if not Path(os.path.realpath(Path(name).parent)).is_relative_to(os.path.realpath(folder)):
            raise UserError(f"{folder} takes rows from {name}, which is not in it: put the file itself there")


def subset(data: datasets.Dataset, name: str, size: int | None, split_seed: int, task: str) -> datasets.Dataset:
    """`size` examples in an order that the seed alone fixes, or all as they come; a smaller subset begins a larger one.

    Raises:
        UserError: there are fewer; `name`, of the split as a recipe has it, and `task` say of what.
    """
    if check_size(name, size, len(data), f"examples of {task}") is None:
        return data
    return data.select(seeded_order(len(data), split_seed)[:size])
