"""From a task's splits to batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, overload

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ..data import SplitSizes, Task
from ..data.own.split import Splits
from ..deploy.texts import even_sample
from ..errors import UserError, abridged
from .batches import in_batches
from .choices import Questions
from .label_scale import AS_THEY_ARE, LabelScale
from .model_inputs import Processor
from .recipe import Recipe
from .sections import CalibrationSection

T = TypeVar("T")
Example = dict[str, Any]
TARGETS = ("labels", "base_distance")
"""What a batch holds beside the model's inputs."""


def without_targets(batch: Mapping[str, T]) -> dict[str, T]:
    """The model's inputs in an example or a batch."""
    return {name: value for name, value in batch.items() if name not in TARGETS}


class Encoded(Dataset[Example]):
    """A tokenised split."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """A batch, which PyTorch's loader asks for at once."""
        if isinstance(self.examples, TextsOnDisk):
            return self.examples.batch(indices)
        return [self.examples[index] for index in indices]

    def targets(self) -> list[Any]:
        """What is learned of each example, without its text."""
        if isinstance(self.examples, TextsOnDisk):
            return [self.examples.target(label) for label in self.examples.data["label"]]
        return [example["labels"] for example in self.examples]


@dataclass(frozen=True)
class TextsOnDisk(Sequence[Example]):
    """Texts that are tokenised when they are asked for: any number of them starts at once and takes no memory.

    Args:
        tokenizer: of the model.
        data: rows with the text columns and `label`.
        columns: the text columns.
        max_length: tokens; longer texts are cut.
        target: makes what is learned of a label.
    """

    tokenizer: PreTrainedTokenizerBase
    data: Any
    columns: Sequence[str]
    max_length: int
    target: Callable[[Any], Any]

    def __len__(self) -> int:
        return len(self.data)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return self.batch(range(len(self))[index])
        return self.batch([range(len(self))[index]])[0]

    def batch(self, indices: Sequence[int]) -> list[Example]:
        """The examples with these numbers."""
        rows = self.data[list(indices)]
        examples, _ = encode(self.tokenizer, [rows[column] for column in self.columns], self.max_length)
        return [{**one, "labels": self.target(label)} for one, label in zip(examples, rows["label"], strict=True)]


@dataclass(frozen=True)
class Pad:
    """Collates examples into tensors (batch, longest), with labels (batch,) if there are any."""

    padding: PreTrainedTokenizerBase  # under the name `tokenizer`, Transformers would save it with each checkpoint
    dtype: torch.dtype
    """The dtype of the labels."""

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        batch = dict(self.padding.pad(list(map(without_targets, examples)), return_tensors="pt"))
        if "labels" in examples[0]:
            batch["labels"] = torch.tensor([example["labels"] for example in examples], dtype=self.dtype)
        return batch


class Examples(Protocol):
    """A split, encoded."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


Collate = Callable[[Sequence[Example]], dict[str, Tensor]]


@dataclass(frozen=True)
class Data:
    """The encoded splits of a recipe.

    Args:
        task: the recipe's.
        processor: the tokenizer or image processor of the model.
        splits: as they are trained and scored on.
        collate: makes what the model is trained and calibrated on.
        questions: for multiple choice, makes what it is scored on.
        labels: the class names, in label order; the task's own where they do not come with the data.
        unchanged: the training split without random changes, where it has some.
        rows: of each split, which rows of which source split it holds; None where that is not known.
        record: of data of the user's own, what it was: see `tasks.own.split.Splits`; and `cut`: `max_length`, and
            `texts`, of each split how many are longer, and of how many that were looked at; and `labels`, of numbers:
            their `mean` and `deviation` in the training split, and how they are `trained`.
        scale: what numbers are learned in, where that is not their own units.
        lengths: of each split, tokens of its texts, cut and in no order, or of an even sample of many; none of images.
    """

    task: Task
    processor: Processor
    splits: Mapping[str, Examples]
    collate: Collate
    questions: Questions | None = None
    labels: tuple[str, ...] = ()
    unchanged: Examples | None = None
    rows: dict[str, dict[str, Any]] | None = None
    record: dict[str, Any] | None = None
    scale: LabelScale | None = None
    lengths: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def fixed(self, split: str) -> Examples:
        """A split for everything but training: its examples are the same at every call."""
        return self.unchanged if split == "train" and self.unchanged is not None else self.splits[split]

    def calibration_batches(self, wanted: CalibrationSection) -> list[dict[str, Tensor]]:
        """Training inputs without labels, the same ones for the same section: an even sample over the split."""
        chosen = self._chosen(self.calibration_rows(wanted))
        return [without_targets(self.collate(some)) for some in in_batches(chosen, wanted.batch_size)]

    def calibration_rows(self, wanted: CalibrationSection) -> list[int]:
        """Which examples of the training split `calibration_batches` has."""
        return even_sample(len(self.fixed("train")), wanted.examples)

    def training_batches(self, share: float, batch_size: int) -> list[dict[str, Tensor]]:
        """Batches of an even share (0, 1] of the training split, in its order, the same ones at every call."""
        return [self.training_batch(rows) for rows in in_batches(self.rows_of_share(share), batch_size)]

    def training_batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """A batch of these examples of the training split, the same one at every call."""
        return self.collate(self._chosen(rows))

    def rows_of_share(self, share: float) -> list[int]:
        """Which examples of the training split an even share (0, 1] of it has."""
        total = len(self.fixed("train"))
        return even_sample(total, max(1, round(share * total)))

    def _chosen(self, rows: Sequence[int]) -> list[Example]:
        train = self.fixed("train")
        return [train[row] for row in rows]


def encode(
    tokenizer: PreTrainedTokenizerBase, columns: Sequence[Sequence[str]], max_length: int
) -> tuple[list[Example], list[bool]]:
    """Token ids and masks for texts, or for pairs of texts when there are two columns; cut, not padded.

    Returns:
        The examples, and whether each was cut.

    Raises:
        UserError: there is no room for a text; tokenizers would then cut nothing.
    """
    added = tokenizer.num_special_tokens_to_add(pair=len(columns) == 2)
    if max_length < (least := added + len(columns)):
        raise UserError(
            f"task.max_length: {max_length} is not allowed: the tokenizer adds {added} tokens: at least {least}"
        )
    encoded = tokenizer(*[list(column) for column in columns], truncation=True, max_length=max_length)
    names = [name for name in encoded if name in tokenizer.model_input_names]
    examples = [{name: encoded[name][index] for name in names} for index in range(len(columns[0]))]
    cut = [bool(one.overflowing) for one in encoded.encodings or ()] or [False] * len(examples)
    return examples, cut


def load_data(recipe: Recipe, processor: Processor, scored: Splits | None = None) -> Data:
    """Load and encode all splits of the recipe's task.

    Args:
        recipe: what to train.
        processor: of the model.
        scored: splits to take in place of those of the recipe.

    Raises:
        UserError: a model that cannot do the task, sizes that the data cannot give, or data that cannot be fetched.
    """
    task, section = recipe.task.definition, recipe.task
    if section.kind.task_type == "CAUSAL_LM" and getattr(processor, "eos_token_id", None) is None:
        raise UserError(
            f"model: '{recipe.model}' is no language model, which {section.name} needs: its tokenizer has no token "
            "that ends a text"
        )
    sizes = SplitSizes(section.train_size, section.validation_size, section.test_size)
    loaded: Mapping[str, Any] | None = scored
    if loaded is None:
        loaded = task.load_splits(sizes, section.split_seed, section.test_sets, section.prompt)
    data = section.kind.encode(recipe, task, processor, loaded)
    least = section.kind.scored_at_least
    for name, split in data.splits.items():
        if name != "train" and len(split) < least:
            raise UserError(_too_few(recipe, name, len(split), loaded, least))
    if not isinstance(loaded, Splits):
        return replace(data, record=None)
    more = data.record or {}
    read = {**loaded.record["files"], **more.get("files", {})}
    return replace(data, record={**loaded.record, **more, "files": read})


def _too_few(recipe: Recipe, split: str, count: int, loaded: Mapping[str, Any], least: int) -> str:
    """Why a split of so many examples cannot be scored: its size, if that is given, or the rows that there are."""
    section = recipe.task
    field = "validation_size" if split == "validation" else "test_size"
    if getattr(section, field) is not None:
        return f"task.{field}: {count} is not allowed: {section.kind.name} is scored on {least} or more"
    too_few = f"too few, as {section.kind.name} is scored on {least} or more"
    if (own := getattr(section, f"{split}_data", None)) is not None:
        return f"{own}: the {split} split has {count} {'row' if count == 1 else 'rows'}: {too_few}"
    rows = loaded.record["rows"] if isinstance(loaded, Splits) else sum(map(len, loaded.values()))
    return f"{section.definition.source}: the {split} split has {count} of {rows} rows: {too_few}"


def notes(record: Mapping[str, Any]) -> list[str]:
    """What is said of a user's own data before it is trained on: `Data.record` for people; of others nothing."""
    if "examples" not in record:
        return []
    sizes = ", ".join(f"{count:,} {name}" for name, count in record["examples"].items())
    lines = [f"examples: {sizes}"]
    if classes := record.get("classes"):
        short = {name: name if len(name) <= 40 else f"{name[:37]}..." for name in classes}
        counts = abridged([f"{short[name]!r} {count:,}" for name, count in classes.items()])
        lines.append(f"{len(classes):,} labels: {counts}")
    if record.get("untrained"):
        few, elsewhere = "task.train_size takes too few, or ", "their rows are in the validation or test data as well"
        why = (few if record["unused"] else "") + elsewhere
        lines.append(f"{record['untrained']:,} of the labels have no training example: {why}")
    if (place := record.get("only_place")) is not None:
        lines.append(
            f"the right option is number {place + 1} in every row: with task.prompt=instruction, which answers by that "
            "number, nothing is learned from the questions; mix the options, or take task.prompt=cloze"
        )
    if record["repeated"]:
        out = f", {record['left_out']:,} of them left out of training or validation" if record["left_out"] else ""
        differ = f", {record['contradict']:,} of them with different labels" if record.get("contradict") else ""
        lines.append(f"duplicates: {record['repeated']:,}{differ}; the same example is never in two splits{out}")
    if record["unused"]:
        sizes = "task.train_size, validation_size and test_size take no more"
        lines.append(f"{record['unused']:,} of {record['rows']:,} rows are not used: {sizes}")
    lines += cut_notes(record)
    if behind := record.get("asked_otherwise"):
        lines.append(
            f"the chat template ends a prompt with {behind!r}, behind which no answer is trained: name another by "
            "task.chat_template=FILE, or give what switches it off in the rows' chat_template_kwargs"
        )
    if labels := record.get("labels"):
        ending = "; the model's head ends in no layer that could hold them"
        ending = ending if labels["trained"] == AS_THEY_ARE else ", saved in their own units"
        found = f"labels: mean {labels['mean']:,.6g}, standard deviation {labels['deviation']:,.6g}"
        lines.append(f"{found}; trained {labels['trained']}{ending}")
    return lines


def cut_notes(record: Mapping[str, Any]) -> list[str]:
    """What is said of texts that are too long, for `notes`."""
    lines, cut = [], record.get("cut", {})
    for name, (count, of) in cut.get("texts", {}).items():
        if count:
            looked_at = "" if of == record["examples"][name] else " looked at"
            limit = f"{cut['max_length']} tokens (task.max_length)"
            lines.append(f"{count:,} of {of:,} {name} texts{looked_at} are longer than {limit} and are cut")
    for name, count in record.get("without_answer", {}).items():
        behind = f"their answers begin behind {cut['max_length']} tokens (task.max_length)"
        lines.append(f"{count:,} of {cut['texts'][name][1]:,} {name} conversations are left out: {behind}")
    return lines
