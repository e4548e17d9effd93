"""The eight GLUE tasks of the paper's Table 8 (its Table 1 reports six), from the hub's `nyu-mll/glue`.

The labels of the test splits are not public. As in the paper's sources, the score is the one of the best epoch on the
validation split; the median over `SEEDS` is reported.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import UserError
from ..extras import extra
from .hub import HubData, subset
from .task import SplitSizes, Task, check_size, seeded_order
from .vision import class_names

if TYPE_CHECKING:
    import datasets

SEEDS = (0, 11111, 22222, 33333, 44444)
"""FourierFT's five. The paper speaks of seed 0 and of a median of five: both are kept."""
REPO = "nyu-mll/glue"
ALL = SplitSizes(None, None, None)

_INFERENCE = "entailment not_entailment"
_TASKS = {  # question, columns, labels, examples of training and of validation
    "cola": ("Is a sentence acceptable English?", "sentence", "unacceptable acceptable", 8_551, 1_043),
    "sst2": ("Is a film-review phrase negative or positive?", "sentence", "negative positive", 67_349, 872),
    "mrpc": ("Do two news sentences say the same?", "sentence1 sentence2", "not_equivalent equivalent", 3_668, 408),
    "stsb": ("How alike are two sentences, from 0 to 5?", "sentence1 sentence2", "", 5_749, 1_500),
    "qqp": ("Do two questions ask the same?", "question1 question2", "not_duplicate duplicate", 363_846, 40_430),
    "mnli": (
        "Does a premise entail a hypothesis, leave it open, or contradict it?",
        *("premise hypothesis", "entailment neutral contradiction", 392_702, 19_647),
    ),
    "qnli": ("Does a sentence hold the answer to a question?", "question sentence", _INFERENCE, 104_743, 5_463),
    "rte": ("Does one sentence entail another?", "sentence1 sentence2", _INFERENCE, 2_490, 277),
}
_METRICS = {"cola": ("matthews", ("matthews",)), "stsb": ("pearson", ("spearman",))}
_METRICS |= dict.fromkeys(("mrpc", "qqp"), ("accuracy", ("f1",)))


def _split(config: str, split: str, name: str, size: int | None, split_seed: int) -> datasets.Dataset:
    """A split, once its labels are known to mean what the task says."""
    _, columns, names, *_ = _TASKS[config]
    labels, hub = tuple(names.split()), HubData(REPO, config)
    data = subset(hub.load(split, (*columns.split(), "label")), name, size, split_seed, config)
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


GLUE = tuple(
    Task(
        name=name,
        description=question,
        kind="classification" if labels else "regression",
        labels=tuple(labels.split()),
        metric=_METRICS.get(name, ("accuracy", ()))[0],
        also=_METRICS.get(name, ("accuracy", ()))[1],
        text_columns=tuple(columns.split()),
        source=f"GLUE (Wang et al., 2019), hub {REPO}, configuration {name}",
        license="that of each of its sources",
        load=functools.partial(_load, name),
        group="GLUE",
        never_after=("movie-sentiment", "movie-rating") if name == "sst2" else (),
        train_examples=train,
        held_out={"validation": validation, **({"matched": 9_815, "mismatched": 9_832} if name == "mnli" else {})},
        sizes=ALL,
        test_sets=("matched", "mismatched") if name == "mnli" else ("validation",),
    )
    for name, (question, columns, labels, train, validation) in _TASKS.items()
)
