"""The eight GLUE tasks of the paper's Table 8 (its Table 1 reports six), from the hub's `nyu-mll/glue`.

The labels of the test splits are not public. As in the paper's sources, the score is the one of the best epoch on the
validation split; the median over `SEEDS` is reported.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..extras import extra
from .hub import HubData, subset
from .order import seeded_order
from .task import SplitSizes, Task, check_size

if TYPE_CHECKING:
    import datasets

SEEDS = (0, 11111, 22222, 33333, 44444)
"""FourierFT's five. The paper speaks of seed 0 and of a median of five: both are kept."""

REPO = "nyu-mll/glue"


def _load(
    config: str, columns: tuple[str, ...], labels: tuple[str, ...], validation: str, sizes: SplitSizes, split_seed: int
) -> datasets.DatasetDict:
    with extra("train"):
        from datasets import DatasetDict
    data = HubData(REPO, config)
    splits = {}
    for name, split, size in (("train", "train", sizes.train), ("validation", validation, sizes.validation)):
        whole = data.load(split, (*columns, "label"))
        chosen = subset(whole, name, size, split_seed, config)
        splits[name] = _checked(chosen, labels, f"{REPO} ({config}), {split}")
    return DatasetDict(splits)


def _load_mnli(
    columns: tuple[str, ...], labels: tuple[str, ...], sizes: SplitSizes, split_seed: int
) -> datasets.DatasetDict:
    """Both validation splits: the best epoch is chosen on all of them, and each is a test set of its own."""
    with extra("train"):
        from datasets import concatenate_datasets
    splits = _load("mnli", columns, labels, "validation_matched", SplitSizes(sizes.train, None, None), split_seed)
    matched, data = splits["validation"], HubData(REPO, "mnli")
    mismatched = _checked(
        data.load("validation_mismatched", (*columns, "label")), labels, f"{REPO} (mnli), validation_mismatched"
    )
    both = concatenate_datasets([matched, mismatched.cast(matched.features)])
    check_size("validation", sizes.validation, len(both), "examples of mnli")
    rows = seeded_order(len(both), split_seed)[: sizes.validation] if sizes.validation else range(len(both))
    parts = {
        "matched": [row for row in rows if row < len(matched)],
        "mismatched": [row for row in rows if row >= len(matched)],
    }
    if not all(parts.values()):
        raise UserError(f"task.validation_size: {sizes.validation} leaves nothing of one of matched and mismatched")
    splits["validation"] = both.select(rows)
    splits.update({name: both.select(part) for name, part in parts.items()})
    return splits


def _checked(data: datasets.Dataset, labels: Sequence[str], what: str) -> datasets.Dataset:
    """The data, once its labels are known to mean what the task says.

    Raises:
        UserError: other class names, an example without a label (-1, as in the test splits), or an unknown one.
    """
    feature: Any = data.features["label"]
    names = getattr(feature, "names", None)
    if labels and names is not None and tuple(names) != tuple(labels):
        raise UserError(f"{what}: the labels are {', '.join(names)}, expected {', '.join(labels)}")
    for row, label in enumerate(data["label"]):
        if label is None or label == -1:
            raise UserError(f"{what}, row {row}: there is no label")
        if labels and label not in range(len(labels)):
            raise UserError(f"{what}, row {row}: label {label} is not one of 0 to {len(labels) - 1}")
    return data


def _task(
    name: str,
    description: str,
    columns: tuple[str, ...],
    labels: tuple[str, ...],
    train_examples: int,
    validation: int,
    metric: str = "accuracy",
    also: tuple[str, ...] = (),
    never_after: tuple[str, ...] = (),
) -> Task:
    load = (
        functools.partial(_load_mnli, columns, labels)
        if name == "mnli"
        else functools.partial(_load, name, columns, labels, "validation")
    )
    return Task(
        name=name,
        description=description,
        kind="classification" if labels else "regression",
        labels=labels,
        metric=metric,
        text_columns=columns,
        source=f"GLUE (Wang et al., 2019), hub {REPO}, configuration {name}",
        license="that of each of its sources",
        load=load,
        group="GLUE",
        also=also,
        never_after=never_after,
        train_examples=train_examples,
        held_out={"validation": validation, **({"matched": 9_815, "mismatched": 9_832} if name == "mnli" else {})},
        sizes=SplitSizes(None, None, None),
        test_sets=("matched", "mismatched") if name == "mnli" else ("validation",),
    )


PAIR = ("sentence1", "sentence2")
_INFERENCE = ("entailment", "not_entailment")

GLUE = (
    _task(
        "cola",
        "Is a sentence acceptable English?",
        ("sentence",),
        ("unacceptable", "acceptable"),
        8_551,
        1_043,
        "matthews",
        ("matthews",),
    ),
    _task(
        "sst2",
        "Is a film-review phrase negative or positive?",
        ("sentence",),
        ("negative", "positive"),
        67_349,
        872,
        never_after=("movie-sentiment", "movie-rating"),
    ),
    _task(
        "mrpc", "Do two news sentences say the same?", PAIR, ("not_equivalent", "equivalent"), 3_668, 408, also=("f1",)
    ),
    _task("stsb", "How alike are two sentences, from 0 to 5?", PAIR, (), 5_749, 1_500, "pearson", ("spearman",)),
    _task(
        "qqp",
        "Do two questions ask the same?",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        363_846,
        40_430,
        also=("f1",),
    ),
    _task(
        "mnli",
        "Does a premise entail a hypothesis, leave it open, or contradict it?",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        392_702,
        19_647,
    ),
    _task(
        "qnli", "Does a sentence hold the answer to a question?", ("question", "sentence"), _INFERENCE, 104_743, 5_463
    ),
    _task("rte", "Does one sentence entail another?", PAIR, _INFERENCE, 2_490, 277),
)
