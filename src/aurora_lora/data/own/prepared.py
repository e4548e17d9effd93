"""Data of the user's own with the columns that a task has: to be split, or scored whole."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..task import SplitSizes
from .source import Piece, Pieces
from .split import Row, Splits, row_keys, split_data


@dataclass(frozen=True)
class Prepared:
    """Pieces that are checked and have the columns of their task.

    Args:
        pieces, columns, key, strata, answers, least, digests: as `split_data` takes them.
        finish: makes of the chosen rows of a split what the task has, where that is dear.
        record: what is known of the data beside what `split_data` says.
    """

    pieces: Pieces
    columns: Sequence[str]
    key: Callable[[Row], str]
    strata: Sequence[Iterable[Hashable]] | None = None
    answers: Callable[[Piece], Iterable[Hashable]] | None = None
    least: int = 1
    digests: str | None = None
    finish: Callable[[Any], Any] = lambda split: split
    record: Mapping[str, Any] = field(default_factory=dict)

    def split(self, sizes: SplitSizes, split_seed: int) -> Splits:
        """Train, validation and test; the errors are those of `split_data`."""
        return self._finished(self._chosen(sizes, split_seed))

    def whole(self, name: str) -> Splits:
        """All rows of a piece, as the split of its name: the same example twice counts twice."""
        piece = self.pieces[name]
        rows = len(piece.data)
        record = {"files": self.pieces.files, "rows": rows, "examples": {name: rows}}
        return self._finished(Splits({name: piece.data}, record))

    def keys(self, name: str) -> list[bytes]:
        """A digest of the example in each row of a piece; the errors are those of `row_keys`."""
        return row_keys(self.pieces[name], self.columns, self.key)

    def keys_of_training(self, sizes: SplitSizes, split_seed: int) -> tuple[set[bytes], dict[str, Any]]:
        """The examples of the training split as `keys` has them, and the record of the splits."""
        splits = self._chosen(sizes, split_seed)
        chosen = replace(self.pieces["train"], data=splits["train"])
        return set(row_keys(chosen, self.columns, self.key)), splits.record

    def _chosen(self, sizes: SplitSizes, split_seed: int) -> Splits:
        return split_data(
            self.pieces,
            columns=self.columns,
            key=self.key,
            sizes=sizes,
            split_seed=split_seed,
            strata=self.strata,
            answers=self.answers,
            least=self.least,
            digests=self.digests,
        )

    def _finished(self, splits: Splits) -> Splits:
        return Splits({name: self.finish(split) for name, split in splits.items()}, {**splits.record, **self.record})
