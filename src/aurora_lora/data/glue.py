"""The eight GLUE tasks of the paper's Table 8 (its Table 1 reports six), from the hub's `nyu-mll/glue`.

The labels of the test splits are not public. As in the paper's sources, the score is the one of the best epoch on the
validation split; the median over `SEEDS` is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import UserError
from ..extras import extra
from .hub import HubData, subset
from .task import CATALOGUE, SplitSizes, check_size, seeded_order, tasks_of
from .vision import class_names

if TYPE_CHECKING:
    import datasets

SEEDS = (0, 11111, 22222, 33333, 44444)
"""FourierFT's five. The paper speaks of seed 0 and of a median of five: both are kept."""
REPO = "nyu-mll/glue"


def _split(config: str, split: str, name: str, size: int | None, split_seed: int) -> datasets.Dataset:
    """A split, once its labels are known to mean what the task says."""
    row = CATALOGUE["glue"]["tasks"][config]
    labels, hub = tuple(row.get("labels", ())), HubData(REPO, config)
    data = subset(hub.load(split, (*row["text_columns"], "label")), name, size, split_seed, config)
    if labels:
        there = class_names(data)
        if there and there != labels:
            raise UserError(f"{hub}, {split}: the labels are {', '.join(there)}, expected {', '.join(labels)}")
        hub.check_labels(data["label"][:], len(labels), split)
    return data


def _load(config: str, sizes: SplitSizes, split_seed: int) -> datasets.DatasetDict:
    """The two splits; of MNLI both validation splits: the best epoch is chosen on all of them, and each is a test set
    of its own."""
    with extra("train"):
        from datasets import DatasetDict, concatenate_datasets
    splits = {"train": _split(config, "train", "train", sizes.train, split_seed)}
    if config != "mnli":
        splits["validation"] = _split(config, "validation", "validation", sizes.validation, split_seed)
        return DatasetDict(splits)
    matched, mismatched = (
        _split(config, f"validation_{name}", "validation", None, split_seed) for name in ("matched", "mismatched")
    )
    both = concatenate_datasets([matched, mismatched.cast(matched.features)])
    check_size("validation", sizes.validation, len(both), "examples of mnli")
    rows: Sequence[int] = range(len(both))
    rows = seeded_order(len(both), split_seed)[: sizes.validation] if sizes.validation else rows
    splits["validation"] = both.select(rows)
    splits["matched"] = both.select([row for row in rows if row < len(matched)])
    splits["mismatched"] = both.select([row for row in rows if row >= len(matched)])
    if not len(splits["matched"]) or not len(splits["mismatched"]):
        raise UserError(f"task.validation_size: {sizes.validation} leaves nothing of one of matched and mismatched")
    return DatasetDict(splits)


GLUE = tasks_of("glue", _load)
