"""What a task is: data, in one frozen dataclass; those that have a name are in `catalogue.toml`."""

from __future__ import annotations

import functools
import hashlib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UserError

if TYPE_CHECKING:
    import datasets

CATALOGUE: dict[str, Any] = tomllib.loads(Path(__file__).with_name("catalogue.toml").read_text("utf-8"))
Augment = Literal["crop-flip", "shift-flip", "shift", "none"]
"""What is done to training images: a random part is taken, or the image is shifted by up to an eighth; half of them are
mirrored."""


def place(key: str | bytes, seed: int) -> bytes:
    """What to sort by for an order that the seed alone fixes, and no library's generator can change: a hash."""
    return hashlib.sha256(f"{seed}\n".encode() + (key if isinstance(key, bytes) else key.encode())).digest()


def seeded_order(count: int, seed: int) -> list[int]:
    """0 to count - 1 in the order of the seed."""
    return sorted(range(count), key=lambda index: place(str(index), seed))


@dataclass(frozen=True)
class SplitSizes:
    """How many examples each split holds.

    Args:
        train: number of training examples; `None` takes all that validation and test leave.
        validation: number of validation examples; `None` takes the whole split, where the data comes with one.
        test: number of test examples (of each test set); `None` as for validation.

    Raises:
        UserError: a size below 1.
    """

    train: int | None = None
    validation: int | None = None
    test: int | None = None

    def __post_init__(self) -> None:
        for name, size in vars(self).items():
            if size is not None and size < 1:
                raise UserError(f"task.{name}_size: {size} is not a number of at least 1")

    def held_out(self) -> tuple[int, int]:
        """The sizes of validation and test, of data that comes in one piece.

        Raises:
            UserError: one of them is not given.
        """
        if self.validation is None or self.test is None:
            raise UserError("task.validation_size and task.test_size must be given: this data has no splits of its own")
        return self.validation, self.test


def nothing_left(there: int, things: str) -> UserError:
    """What to raise where validation and test leave nothing to train on of that many examples."""
    return UserError(f"task.validation_size, task.test_size: nothing is left to train on of {there:,} {things}")


def check_size(name: str, size: int | None, there: int, which: str) -> int | None:
    """The size of a split, None for all, if there are as many examples.

    Raises:
        UserError: there are fewer; `which` says what they are.
    """
    if size is not None and size > there:
        raise UserError(f"task.{name}_size: {size:,} is more than the {max(there, 0):,} {which}")
    return size


@dataclass(frozen=True)
class Task:
    """A data set with its splits and its metric.

    Args:
        name: the name on the command line and in `TASKS`.
        description: one line for `aurora list tasks`.
        kind: the key of `training.kinds.KINDS`, such as `"classification"` (integer labels).
        metric: the one of `METRICS` that is reported and selected by.
        text_columns: the columns that go to the tokenizer, one sentence or a pair. A multiple-choice task has
            `prompt`, `choices` (a list of strings) and `label` (the index of the right one). Empty for images, which
            are in the column `image`.
        source: where the data comes from.
        license: the licence of the data.
        load: `load(sizes, split_seed)` gives a `datasets.DatasetDict` with `train`, `validation` and the test sets. A
            column `row`, where there is one, says which row of the source split (`Dataset.split`) an example is.
        labels: the class names in label order; empty for the other kinds, and where they come with the data.
        group: heading in lists.
        also: further metrics of the kind: `"matthews"`, `"f1"`, `"spearman"`.
        sizes: what a recipe gets that gives no sizes.
        max_length: what a recipe gets that gives no length.
        test_sets: the splits that are scored in the end. `("validation",)` where the test labels are not public, so
            that the scores are those of the best epoch on validation data.
        load_test: `load_test(name, size, split_seed)` gives a test set that `load` does not give.
        train_examples: how many the whole training split has, where that is known without loading it.
        held_out: the same of the validation split and the test sets, by name.
        prompt_forms: the forms of the prompt that a recipe can choose from, the default first; where there are several,
            `load` takes one as `form`.
        never_after: tasks that a model must not have been trained on before it is trained or scored on this one.
        classes: how many classes there are, where their names come with the data; of multiple choice, how many answers
            a question has, where all have as many.
        standardise: whether numbers to learn are standardised while a model learns them.
        augment: what a recipe gets that does not say what is done to training images.
    """

    name: str
    description: str
    kind: str
    metric: str
    text_columns: tuple[str, ...]
    source: str
    license: str
    load: Callable[..., datasets.DatasetDict]
    labels: tuple[str, ...] = ()
    group: str = "other"
    also: tuple[str, ...] = ()
    sizes: SplitSizes = SplitSizes(None, 1000, 2000)
    max_length: int = 128
    test_sets: tuple[str, ...] = ("test",)
    load_test: Callable[[str, int | None, int], datasets.Dataset] | None = None
    train_examples: int | None = None
    held_out: Mapping[str, int] = field(default_factory=dict)
    prompt_forms: tuple[str, ...] = ()
    never_after: tuple[str, ...] = ()
    classes: int | None = None
    standardise: bool = False
    augment: Augment = "crop-flip"

    @property
    def num_labels(self) -> int:
        """The outputs of the model's head."""
        return len(self.labels) or self.classes or 1

    @property
    def reported_split(self) -> Literal["test", "validation"]:
        """What the scores of a result are scores of."""
        return "test" if "test" in self.test_sets or self.load_test is not None else "validation"

    def load_splits(
        self, sizes: SplitSizes, split_seed: int, test_sets: Sequence[str] | None = None, form: str | None = None
    ) -> datasets.DatasetDict:
        """`load`, with the test sets (all if None) and the form of the prompt (the first if None) asked for.

        Raises:
            UserError: there is no such test set; or as `load`.
        """
        wanted = self.check_test_sets(test_sets)
        forms = {"form": form or self.prompt_forms[0]} if len(self.prompt_forms) > 1 else {}
        splits = self.load(sizes, split_seed, **forms)
        for name in wanted:
            if self.load_test is not None and name not in splits:
                splits[name] = self.load_test(name, sizes.test, split_seed)
        return splits

    def check_test_sets(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """The test sets of these names, all if None.

        Raises:
            UserError: one of them is not a test set of this task.
        """
        for name in names or ():
            if name not in self.test_sets:
                raise UserError(f"{self.name} has no test set {name!r} (it has {', '.join(self.test_sets)})")
        return tuple(names) if names else self.test_sets


def tasks_of(section: str, load: Callable[..., Any], **more: Any) -> tuple[Task, ...]:
    """The tasks of a section of the catalogue; `load(name, sizes, split_seed)` gives the splits of each."""
    made = []
    for name, own in CATALOGUE[section]["tasks"].items():
        row = {**CATALOGUE[section].get("all", {}), **own, **more}
        if "sizes" in row:
            row["sizes"] = SplitSizes(**row["sizes"])
        made.append(Task(name=name, load=functools.partial(load, name), **as_tuples(row)))
    return tuple(made)


def as_tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the catalogue with tuples for its lists."""
    return {
        name: as_tuples(value) if isinstance(value, dict) else tuple(value) if isinstance(value, list) else value
        for name, value in row.items()
    }
