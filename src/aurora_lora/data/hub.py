"""Data sets of the Hugging Face hub, through `datasets`, or from a copy of them on this machine."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..extras import extra
from ..files import expanded
from .loading import NO_CODE, cause_of, reason
from .order import seeded_order
from .task import check_size

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

    def load(self, split: str, columns: Sequence[str]) -> datasets.Dataset:
        """One split.

        Raises:
            UserError: it cannot be had, or lacks a column.
        """
        with extra("train"):
            import datasets
        copy = self.copy()
        files = {} if self.files is None else {"data_files": {split: self.files[split]}}
        with self._plain_errors(f"the {split} split"):
            path, where = self._arguments()
            loaded = datasets.load_dataset(path, self.config, split=split, **files, **where, **NO_CODE)
        missing = [column for column in columns if column not in loaded.column_names]
        if missing:
            raise UserError(
                f"{copy or self.repo}, {split}: there is no column {missing[0]!r} (it has "
                f"{', '.join(loaded.column_names)})"
            )
        return loaded

    def load_all(self) -> tuple[datasets.DatasetDict, str]:
        """Every split, and the commit that they are of (of a copy: a hash of the names of its files).

        Raises:
            UserError: it cannot be had.
        """
        with extra("train"):
            import datasets
        with self._plain_errors("the data"):
            path, where = self._arguments()
            # newer versions run no code, whatever is said, and take the word for a setting of the data
            knows = "trust_remote_code" in inspect.signature(datasets.load_dataset_builder).parameters
            builder = datasets.load_dataset_builder(path, self.config, **where, **(NO_CODE if knows else {}))
            builder.download_and_prepare()
            return builder.as_dataset(), str(builder.hash)

    def _arguments(self) -> tuple[str, dict[str, Any]]:
        """The arguments of `datasets.load_dataset`: where the data is."""
        copy = self.copy()
        # In a copy the revision is the one that was copied.
        where = {} if copy is not None or self.revision is None else {"revision": self.revision}
        return str(copy or self.repo), where

    @contextmanager
    def _plain_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # `datasets` and the hub's client raise many kinds, some of them their own
            raise UserError(self._failure(self.copy(), what, error)) from error

    def copy(self) -> Path | None:
        """The folder of its copy on this machine, if there is one."""
        folder = os.environ.get(COPIES)
        if not folder:
            return None
        path = expanded(folder) / self.repo
        return path if path.is_dir() else None

    def _failure(self, copy: Path | None, what: str, error: Exception) -> str:
        repo = self.repo if self.config is None else f"{self.repo} ({self.config})"
        why = reason(cause_of(error))
        if copy is not None:
            return f"{copy}: {what} cannot be loaded: {why}"
        return (
            f"{what} of {repo} cannot be loaded from the Hugging Face hub: {why}; "
            f"{COPIES}=FOLDER names a folder with copies of data sets, this one in FOLDER/{self.repo}"
        )


def subset(data: datasets.Dataset, name: str, size: int | None, split_seed: int, task: str) -> datasets.Dataset:
    """`size` examples in an order that the seed alone fixes, or all as they come; a smaller subset begins a larger one.

    Args:
        data: a split.
        name: of the split, as a recipe has it.
        size: of the subset.
        split_seed: chooses the order.
        task: that the data is of, for the error.

    Raises:
        UserError: there are fewer.
    """
    if size is None:
        return data
    check_size(name, size, len(data), f"examples of {task}")
    return data.select(seeded_order(len(data), split_seed)[:size])
