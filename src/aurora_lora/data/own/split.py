"""Train, validation and test of the user's own data: no example in two of them, whatever order the rows come in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import UserError, abridged
from ..task import SplitSizes, check_size, place, seeded_order
from .source import SPLITS, Piece, Pieces, one_line

Row = Mapping[str, Any]
SHARE, MOST = 10, 2_000
"""What is held out where no size is given: a tenth of the rows, and no more than so many."""
_ROWS = "rows that there are"
HELD_OUT = ("test", "validation")


class BadRow(ValueError):  # noqa: N818
    """What is wrong with a row: becomes a UserError with its number."""


class NoLabel(BadRow):
    """A row has no label, as all of a test split whose labels are not public."""


def bad_row(piece: Piece, number: int, error: ValueError) -> UserError:
    """The error of a row, which names it."""
    hint = f"; {piece.split_field} takes another split" if piece.split_field and isinstance(error, NoLabel) else ""
    return UserError(f"{piece.name}, {piece.places()[number - 1]}: {error}{hint}")


class BadRows(UserError):  # noqa: N818
    """Rows of a piece that cannot be used: how many, and the first three.

    Args:
        piece: which.
        wrong: what is wrong with each, by its number.
    """

    def __init__(self, piece: Piece, wrong: Mapping[int, ValueError]) -> None:
        self.piece, self.wrong, rows = piece, wrong, len(piece.data)
        self.are_all, places, first = len(wrong) == rows, piece.places(), min(wrong)
        which = abridged([places[number - 1] for number in wrong], 3)
        many = "; no other row can be used either" if self.are_all else f"; {len(wrong):,} of {rows:,} rows: {which}"
        super().__init__(f"{bad_row(piece, first, wrong[first])}{many if len(wrong) > 1 else ''}")

    def left_out(self, pieces: Pieces) -> Pieces:
        """The pieces without these rows."""
        found = dict(pieces)
        for name, piece in pieces.items():
            if piece.name == self.piece.name:
                places, good = piece.places(), [row for row in range(len(piece.data)) if row + 1 not in self.wrong]
                found[name] = replace(piece, data=piece.data.select(good), kept=[places[row] for row in good])
        return Pieces(found, pieces.files)


class Splits(dict[str, Any]):
    """A `datasets.Dataset` for each split.

    Args:
        splits: `train`, `validation` and `test`.
        record: for the run: `files` with their sha256; the `rows` of all pieces, which are `examples` of each split,
            `left_out` because another split has them, `unused` because of the sizes that are asked for, or `skipped`,
            as they cannot be used; how many are `repeated`; of `classes`, the rows of each. Of conversations, the
            `format` of their columns; of `images`, a digest for each piece.
    """

    def __init__(self, splits: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        super().__init__(splits)
        self.record = dict(record)


@dataclass(frozen=True)
class Prepared:
    """Pieces that are checked and have the columns of their task: to be split, or scored whole.

    Args:
        pieces: `train`, and `validation` and `test` where they are given; or `test` alone.
        columns: what `key` reads.
        key: identifies an example; raises a `BadRow` for one that cannot be used.
        strata: of each row of `train`, its classes: of each, an example stays in the training split.
        least: rows of a split that is held out.
        digests: what the record calls the sha256 over the keys of each piece's rows; None where `files` says it all.
        finish: makes of the chosen rows of a split what the task has, where that is dear.
        record: what is known of the data beside what `split` says.
    """

    pieces: Pieces
    columns: Sequence[str]
    key: Callable[[Row], str]
    strata: Sequence[Iterable[Hashable]] | None = None
    least: int = 1
    digests: str | None = None
    finish: Callable[[Any], Any] = lambda split: split
    record: Mapping[str, Any] = field(default_factory=dict)

    def split(self, sizes: SplitSizes, split_seed: int) -> Splits:
        """Train, validation and test from the pieces that the data comes in; a UserError for a row that cannot be used,
        or where more rows are asked for than there are.

        The seed alone fixes one order of the examples of `train`, by a hash of their keys: the test split, where there
        is none, is its head, validation follows, and training examples are taken from its tail, so that a smaller size
        gives a part of a larger one. Rows with the same key go to one split together. Those of `train` that a given
        validation or test split has too are left out.

        Args:
            sizes: None is all of a given split; of one that is held out, a tenth, but no more than 2,000 rows.
            split_seed: of all three.
        """
        return self._finished(self._chosen(sizes, split_seed))

    def whole(self, name: str) -> Splits:
        """All rows of a piece, as the split of its name: the same example twice counts twice."""
        data = self.pieces[name].data
        return self._finished(
            Splits({name: data}, {"files": self.pieces.files, "rows": len(data), "examples": {name: len(data)}})
        )

    def keys(self, piece: Piece) -> list[bytes]:
        """A digest of the example in each row of a piece; `BadRows` where some cannot be used."""
        found, bad = [], {}
        for number, row in enumerate(piece.rows(self.columns), start=1):
            try:
                key = self.key(row).encode("utf-8", "surrogatepass")
            except ValueError as error:
                bad[number] = error.with_traceback(None)
                continue
            found.append(hashlib.blake2b(key, digest_size=16).digest())
        if bad:
            raise BadRows(piece, bad)
        return found

    def _finished(self, splits: Splits) -> Splits:
        with one_line(next(iter(self.pieces.values())).name):
            finished = {name: self.finish(split) for name, split in splits.items()}
        return Splits(finished, {**splits.record, **self.record})

    def _chosen(self, sizes: SplitSizes, split_seed: int) -> Splits:
        pieces, strata = self.pieces, self.strata
        keys = {name: self.keys(piece) for name, piece in pieces.items()}
        chosen: dict[str, list[int]] = {}
        given: set[bytes] = set()
        left_out = 0
        for name in HELD_OUT:
            if name in pieces:
                fresh = [row for row, one in enumerate(keys[name]) if one not in given]
                if not fresh:
                    raise UserError(f"{pieces[name].name}: each of its rows is in the {HELD_OUT[0]} data as well")
                left_out += len(keys[name]) - len(fresh)
                given.update(keys[name])
                size = check_size(name, getattr(sizes, name), len(fresh), _ROWS)
                order_of = None if size is None else seeded_order(len(fresh), split_seed)[:size]
                chosen[name] = fresh if order_of is None else [fresh[at] for at in order_of]
        groups: dict[bytes, list[int]] = {}
        for row, one in enumerate(keys["train"]):
            if one not in given:
                groups.setdefault(one, []).append(row)
        left_out += len(keys["train"]) - _rows(groups.values())
        order = sorted(groups, key=lambda one: place(one, split_seed))
        # training begins with a row of each class, or one at all: of its largest group, the last in the order
        first_of: dict[Hashable, int] = {}
        for one in sorted(order, key=lambda one: len(groups[one])):  # stable
            for row in groups[one]:
                first_of.update(dict.fromkeys((None,) if strata is None else strata[row], row))
        first = set(first_of.values())
        stays = {keys["train"][row] for row in first}
        free = {one: groups[one] for one in order if one not in stays}
        share = max(self.least, _share(groups.values()))
        for name in HELD_OUT:
            if name not in pieces:
                size = check_size(name, getattr(sizes, name), _rows(free.values()), _ROWS)
                chosen[name] = _take(free, share if size is None else size)
        rest = [row for one in reversed(order) if one in stays or one in free for row in groups[one]]
        if not rest or not all(chosen.values()):
            there = f"{len(keys['train']):,} rows, {len(groups):,} without duplicates and what other data has"
            raise UserError(f"{pieces['train'].name}: {there}, are too few to train and to test on")
        rest.sort(key=lambda row: row not in first)
        chosen["train"] = rest[: check_size("train", sizes.train, len(rest), _ROWS)]
        rows, examples = _rows(keys.values()), {name: len(chosen[name]) for name in SPLITS}
        record: dict[str, Any] = {"files": pieces.files, "rows": rows, "examples": examples}
        record |= {"repeated": rows - len(set().union(*keys.values())), "left_out": left_out}
        record["unused"] = rows - sum(examples.values()) - left_out
        if self.digests is not None:
            record[self.digests] = {name: hashlib.sha256(b"".join(some)).hexdigest() for name, some in keys.items()}
        return Splits({name: pieces.get(name, pieces["train"]).data.select(chosen[name]) for name in SPLITS}, record)


def _share(groups: Collection[Sequence[int]]) -> int:
    """A tenth of the rows; those that are repeated more often than that are for training, and do not count."""
    share = -(-_rows(groups) // SHARE)
    return max(1, min(MOST, -(-_rows(some for some in groups if len(some) <= share) // SHARE)))


def _take(free: dict[bytes, list[int]], size: int) -> list[int]:
    """So many rows of whole groups, which are gone from `free`: the first that fit, or the smallest if none does."""
    taken: list[int] = []
    for one in list(free):
        if len(taken) + len(free[one]) <= size:
            taken += free.pop(one)
        if len(taken) == size:
            break
    if not taken and free:
        taken = free.pop(min(free, key=lambda one: len(free[one])))
    return taken


def _rows(groups: Iterable[Collection[object]]) -> int:
    return sum(map(len, groups))
