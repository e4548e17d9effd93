"""The examples of a run and how they become batches, and what its folder says of the user's own data."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from .. import files
from ..data import Task
from ..data.own.source import sha256_of
from ..data.own.split import Splits
from ..deploy.texts import even_sample
from ..errors import UserError, abridged
from .models import Processor
from .publish import DATA, RESULT, SPLITS, is_begun
from .recipe import CalibrationSection, OwnFields

T = TypeVar("T")
Example = dict[str, Any]
Collate = Callable[[Sequence[Example]], dict[str, Tensor]]
TARGETS = ("labels", "base_distance")
"""What a batch holds beside the model's inputs."""


def in_batches(rows: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The rows, so many at a time; the last batch may have fewer."""
    for at in range(0, len(rows), size):
        yield rows[at : at + size]


def without_targets(batch: Mapping[str, T]) -> dict[str, T]:
    """The model's inputs in an example or a batch."""
    return {name: value for name, value in batch.items() if name not in TARGETS}


def padded(rows: Sequence[Sequence[int]], value: int | None, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor (rows, longest), filled with a value at the right or the left; and the mask of the same
    shape: 1 for an id, 0 for what was filled in."""
    longest = max(map(len, rows))
    fill = [[value] * (longest - len(row)) for row in rows]
    ids = torch.tensor([[*f, *r] if left else [*r, *f] for r, f in zip(rows, fill, strict=True)])
    places, lengths = torch.arange(longest), torch.tensor([[len(row)] for row in rows])
    return ids, ((places >= longest - lengths) if left else (places < lengths)).long()


def open_ended(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of texts that are to be gone on with: some tokenizers end each text."""
    end = tokenizer.eos_token_id
    return [ids[:-1] if ids and ids[-1] == end else ids for ids in tokenizer(list(texts))["input_ids"]]


class Examples(Protocol):
    """A split, encoded."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


class Texts(Dataset[Example]):
    """A split of texts that are tokenised when they are asked for: any number starts at once and takes no memory.

    Args:
        tokenizer: of the model.
        data: rows with the text columns and `label`.
        columns: the text columns, one or a pair.
        max_length: tokens; longer texts are cut.
        target: what is learned of a label.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        data: Any,
        columns: Sequence[str],
        max_length: int,
        target: Callable[[Any], Any],
    ) -> None:
        self.tokenizer, self.data, self.columns, self.max_length = tokenizer, data, columns, max_length
        self.target = target

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """A batch, which PyTorch's loader asks for at once."""
        rows = self.data[list(indices)]
        examples, _ = encode(self.tokenizer, [rows[column] for column in self.columns], self.max_length)
        return [{**one, "labels": self.target(label)} for one, label in zip(examples, rows["label"], strict=True)]

    def targets(self) -> list[Any]:
        """What is learned of each example, without its text."""
        return [self.target(label) for label in self.data["label"]]

    def learning(self, target: Callable[[Any], Any]) -> Texts:
        """A copy with the same texts, of whose labels something else is learned."""
        found = copy.copy(self)
        found.target = target
        return found


@dataclass(frozen=True)
class Data:
    """The encoded splits of a recipe.

    Args:
        task: the recipe's.
        processor: the tokenizer or image processor of the model.
        splits: as they are trained and scored on.
        collate: makes what the model is trained and calibrated on.
        scored: makes what it is scored on, where that is something else.
        labels: the class names, in label order; the task's own where they do not come with the data.
        unchanged: the training split without random changes, where it has some.
        rows: of each split, which rows of which source split it holds; None where that is not known.
        record: of data of the user's own, what it was: see `data.own.split.Splits`; and `cut`: `max_length`, and
            `texts`, of each split how many are longer, and of how many that were looked at; and `labels`, of numbers:
            their `mean` and `deviation` in the training split, and how they are `trained`.
        scale: the mean and the deviation that numbers are standardised by while they are learned; None if they are not.
        lengths: of each split, tokens of its texts, cut and in no order, or of an even sample of many; none of images.
    """

    task: Task
    processor: Processor
    splits: Mapping[str, Examples]
    collate: Collate
    scored: Collate | None = None
    labels: tuple[str, ...] = ()
    unchanged: Examples | None = None
    rows: dict[str, dict[str, Any]] | None = None
    record: dict[str, Any] | None = None
    scale: tuple[float, float] | None = None
    lengths: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def fixed(self, split: str) -> Examples:
        """A split for everything but training: its examples are the same at every call."""
        return self.unchanged if split == "train" and self.unchanged is not None else self.splits[split]

    def calibration_batches(self, wanted: CalibrationSection) -> list[dict[str, Tensor]]:
        """Training inputs without labels, the same ones for the same section: an even sample over the split."""
        rows = even_sample(len(self.fixed("train")), wanted.examples)
        return [without_targets(batch) for batch in self._training(rows, wanted.batch_size)]

    def training_batches(self, share: float, batch_size: int) -> list[dict[str, Tensor]]:
        """Batches of an even share (0, 1] of the training split, in its order, the same ones at every call."""
        return list(self._training(self.rows_of_share(share), batch_size))

    def rows_of_share(self, share: float) -> list[int]:
        """Which examples of the training split an even share (0, 1] of it has."""
        total = len(self.fixed("train"))
        return even_sample(total, max(1, round(share * total)))

    def _training(self, rows: Sequence[int], batch_size: int) -> Iterator[dict[str, Tensor]]:
        train = self.fixed("train")
        return (self.collate([train[row] for row in some]) for some in in_batches(rows, batch_size))


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


# ---------------------------------------------------------------- what is said of the user's own data


def notes(record: Mapping[str, Any]) -> list[str]:
    """What is said of a user's own data before it is trained on: `Data.record` for people; of others nothing."""
    if "examples" not in record:
        return []
    lines = [f"examples: {', '.join(f'{count:,} {name}' for name, count in record['examples'].items())}"]
    if classes := record.get("classes"):
        counts = abridged([f"{name if len(name) <= 40 else name[:37] + '...'!r} {n:,}" for name, n in classes.items()])
        lines.append(f"{len(classes):,} labels: {counts}")
    if record["repeated"]:
        out = f", {record['left_out']:,} of them left out of training or validation" if record["left_out"] else ""
        lines.append(f"duplicates: {record['repeated']:,}; the same example is never in two splits{out}")
    if skipped := record.get("skipped"):
        lines.append(f"{skipped:,} of {record['rows']:,} rows cannot be used and are left out (task.skip_bad_rows)")
    if record["unused"]:
        sizes = "task.train_size, validation_size and test_size take no more"
        lines.append(f"{record['unused']:,} of {record['rows']:,} rows are not used: {sizes}")
    if "said_by" in record:
        lines.append("prompts are trained as the user's, completions as the assistant's, in the model's chat template")
    lines += cut_notes(record)
    if labels := record.get("labels"):
        found = f"labels: mean {labels['mean']:,.6g}, standard deviation {labels['deviation']:,.6g}"
        lines.append(f"{found}; trained {labels['trained']}")
    return lines


def cut_notes(record: Mapping[str, Any]) -> list[str]:
    """What is said of texts that are too long, for `notes`."""
    lines, cut = [], record.get("cut", {})
    limit = f"{cut.get('max_length')} tokens (task.max_length)"
    for name, (count, of) in cut.get("texts", {}).items():
        if count:
            looked_at = "" if of == record["examples"][name] else " looked at"
            lines.append(f"{count:,} of {of:,} {name} texts{looked_at} are longer than {limit} and are cut")
    for name, count in record.get("without_answer", {}).items():
        of = cut["texts"][name][1]
        lines.append(f"{count:,} of {of:,} {name} conversations are left out: their answers begin behind {limit}")
    return lines


# ---------------------------------------------------------------- what a run's folder keeps of its data


def with_record(data: Data, loaded: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of encoded data with that of the splits that it was made of; None of data that is not the user's."""
    if not isinstance(loaded, Splits):
        return None
    more = data.record or {}
    return {**loaded.record, **more, "files": {**loaded.record["files"], **more.get("files", {})}}


def keep_data(folder: Path, data: Data) -> None:
    """Write down what the user's own data is, and which rows each split holds where that is known.

    Raises:
        UserError: it was written down before, by a run that has made something, and is another now.
    """
    if is_begun(folder):
        check_data(folder, data)
        if (folder / DATA).exists() or (folder / SPLITS).exists():
            return
    if data.record is not None:
        files.write_json(folder / DATA, data.record)
    if data.rows is not None:
        lines = [f"  {json.dumps(name)}: {json.dumps(rows)}" for name, rows in data.rows.items()]
        files.write_text(folder / SPLITS, "{\n" + ",\n".join(lines) + "\n}\n")


def data_format(folder: Path) -> str | None:
    """The format of the conversations that a run was trained on, None where its folder does not say so."""
    found = _stored(folder / DATA).get("format")
    return found if isinstance(found, str) else None


def check_data(folder: Path, data: Data) -> None:
    """Raise a UserError where the data is not what is written down in the folder of its run."""
    check_record(folder, data.record or {})
    stored = _stored(folder / SPLITS)
    for name, rows in (data.rows or {}).items():
        if stored.get(name, rows) != rows:
            raise UserError(f"{folder / SPLITS}: the {name} split is no longer the one that this run began with")


def check_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Raise a UserError where the files or images of data, by its record, are not what the folder of its run has."""
    begun = _stored(folder / DATA)
    there = begun.get("files", {})
    for name, sha256 in record.get("files", {}).items():
        if begun and sha256 not in there.values():
            hint = f"; `aurora evaluate {folder} --data {name}` scores it" if (folder / RESULT).exists() else ""
            raise UserError(
                f"{name} has changed since this run began, or is none of its data: {folder / DATA} has "
                f"{abridged(list(there))}, and no such sha256 or commit{hint}"
            )
    for name, digest in (record.get("images") or {}).items():
        if (begun.get("images") or {}).get(name, digest) != digest:
            raise UserError(
                f"the images of the {name} data have changed since this run began: {folder / DATA} has another "
                "digest of them"
            )


def check_files(folder: Path, section: OwnFields) -> None:
    """Raise a UserError where a file or folder that a finished run read has changed; it may be gone."""
    named = [name for name in (section.data, section.validation_data, section.test_data) if name]
    check_record(folder, {"files": {name: sha256 for name in named if (sha256 := sha256_of(name))}})


def _stored(path: Path) -> dict[str, Any]:
    """What a file of a run has as JSON; nothing if there is none."""
    if not path.exists():
        return {}
    with files.reading(path):
        stored = files.read_json(path)
    if not isinstance(stored, dict):
        raise UserError(f"{path} was not written by a run: choose another output folder")
    return stored
