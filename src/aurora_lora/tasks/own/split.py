"""Train, validation and test of the user's own data: no example in two of them, whatever order the rows come in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from aurora_lora.errors import UserError
from aurora_lora.tasks.hub import seeded_order
from aurora_lora.tasks.own.source import SPLITS, Piece, Pieces
from aurora_lora.tasks.task import SplitSizes

Row = Mapping[str, Any]
SHARE, MOST = 10, 2_000
"""What is held out where no size is given: a tenth of the rows, and no more than so many."""
HELD_OUT = ("test", "validation")


class BadRow(Exception):  # noqa: N818
    """What is wrong with a row: becomes a UserError with its number."""


class Splits(dict[str, Any]):
    """A `datasets.Dataset` for each split.

    Args:
        splits: `train`, `validation` and `test`.
        record: for the run: `files` with their sha256, `examples` of each split, `repeated` rows (the same example as
            an earlier one) and those `left_out` because another split has them.
    """

    def __init__(self, splits: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        super().__init__(splits)
        self.record = dict(record)


def split_data(
    pieces: Pieces,
    *,
    columns: Sequence[str],
    key: Callable[[Row], str],
    sizes: SplitSizes,
    split_seed: int,
    strata: Sequence[Hashable] | None = None,
) -> Splits:
    """Train, validation and test from the pieces that the data comes in.

    The seed alone fixes one order of the examples of `train`, by a hash of their keys: the test split, where there is
    none, is its head, validation follows, and training examples are taken from its tail, so that a smaller size gives
    a part of a larger one. Rows with the same key stay together; those of `train` that a given validation or test
    split has too are left out.

    Args:
        pieces: `train`, and `validation` and `test` where they are given.
        columns: what `key` reads.
        key: identifies an example; raises a `BadRow` for one that cannot be used.
        sizes: None is all of a given split; of one that is held out, a tenth, but no more than 2,000 rows.
        split_seed: of all three.
        strata: of each row of `train`, its class: of each, at least one example stays in the training split.

    Raises:
        UserError: a row that cannot be used, or more rows asked for than there are.
    """
    keys = {name: row_keys(piece, columns, key) for name, piece in pieces.items()}
    chosen: dict[str, list[int]] = {}
    given: set[bytes] = set()
    left_out = 0
    for name in HELD_OUT:
        if name in pieces:
            fresh = [row for row, one in enumerate(keys[name]) if one not in given]
            left_out += len(keys[name]) - len(fresh)
            given.update(keys[name])
            size = _check_size(name, getattr(sizes, name), len(fresh))
            chosen[name] = fresh if size is None else [fresh[at] for at in seeded_order(len(fresh), split_seed)[:size]]
    groups: dict[bytes, list[int]] = {}
    for row, one in enumerate(keys["train"]):
        if one not in given:
            groups.setdefault(one, []).append(row)
    order = _order(groups, split_seed, strata)
    whole = left = sum(map(len, groups.values()))
    left_out += len(keys["train"]) - left
    for name in HELD_OUT:
        if name not in pieces:
            size = _check_size(name, getattr(sizes, name), left - 1) or min(MOST, -(-whole // SHARE))
            chosen[name] = _take(order, groups, size)
            left = sum(len(groups[one]) for one in order)
    if not all(chosen.values()) or not left:
        raise UserError(f"{pieces['train'].name}: {len(keys['train']):,} rows are too few to train and to test on")
    rest = [row for one in reversed(order) for row in groups[one]]
    chosen["train"] = rest[: _check_size("train", sizes.train, left)]
    every = [one for some in keys.values() for one in some]
    record = {
        "files": pieces.files,
        "examples": {name: len(chosen[name]) for name in SPLITS},
        "repeated": len(every) - len(set(every)),
        "left_out": left_out,
    }
    return Splits({name: _select(pieces.get(name, pieces["train"]), chosen[name]) for name in SPLITS}, record)


def row_keys(piece: Piece, columns: Sequence[str], key: Callable[[Row], str]) -> list[bytes]:
    """A short digest of the key of each row.

    Raises:
        UserError: a row that cannot be used; names the first of them.
    """
    found = []
    for number, row in enumerate(piece.rows(columns), start=1):
        try:
            found.append(hashlib.blake2b(key(row).encode("utf-8", "surrogatepass"), digest_size=16).digest())
        except BadRow as error:
            raise UserError(f"{piece.name}, row {number}: {error}") from error
    return found


def _order(groups: Mapping[bytes, Sequence[int]], seed: int, strata: Sequence[Hashable] | None) -> list[bytes]:
    """The keys by a hash; the last of each class comes last of all, so that training has every class."""
    order = sorted(groups, key=lambda one: hashlib.sha256(f"{seed}\n".encode() + one).digest())
    if strata is None:
        return order
    last = {strata[row]: one for one in order for row in groups[one]}
    kept = dict.fromkeys(last.values())
    return [*(one for one in order if one not in kept), *(one for one in order if one in kept)]


def _take(order: list[bytes], groups: Mapping[bytes, list[int]], size: int) -> list[int]:
    """So many rows from the head of the order, which loses them; what a cut leaves of a group is left out."""
    taken: list[int] = []
    used = 0
    while used < len(order) and len(taken) < size:
        taken += groups[order[used]]
        used += 1
    del order[:used]
    return taken[:size]


def _check_size(name: str, size: int | None, there: int) -> int | None:
    if size is not None and size > there:
        raise UserError(f"task.{name}_size: {size:,} is more than the {max(there, 0):,} rows that there are")
    return size


def _select(piece: Piece, chosen: Sequence[int]) -> Any:
    """Some rows of a piece."""
    rows = np.asarray(chosen)
    # `datasets` would take a second to find a name for so many rows
    name = hashlib.sha256(piece.data._fingerprint.encode() + rows.tobytes()).hexdigest()[:16]
    return piece.data.select(rows, new_fingerprint=name)
