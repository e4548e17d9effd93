"""The batches that a user gives: as they are, or a dataset's rows put through a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..errors import CalibrationError
from ..tuner.fields import is_list_of, is_name
from ..values import is_int, require
from .batch import Batch
from .loaders import iterations_of_now
from .texts import CONVERSATIONS, Tokenized, conversations

BATCH = 32
"""Examples of a dataset in a batch, where nothing else is asked for."""


def no_batches(action: str) -> CalibrationError:
    """What to raise where a function's inputs have no batch."""
    return CalibrationError(f"{action} needs at least one batch of inputs, and was given none.")


def as_batches(
    batches: Any,
    tokenizer: Any = None,
    *,
    text_columns: str | Sequence[str] | None = None,
    batch_size: int | None = None,
    examples: int | None = None,
    max_length: int | None = None,
) -> Iterable[Batch]:
    """The batches to run: what was given, or a split of `datasets` put through a tokenizer.

    Args:
        batches: a DataLoader or another iterable of batches; or, with `tokenizer`, a `datasets.Dataset`.
        tokenizer: a Transformers tokenizer for the columns of the dataset; without a padding token it pads with its end
            of text.
        text_columns: the one or two text columns that it reads. None is "text"; a dataset that has no such column but
            conversations as TRL has them, `messages` or `prompt` and `completion`, is read as those, by the tokenizer's
            template; one of preferences, `chosen` with or without `prompt`, likewise; prompts alone as `"prompt"`.
            Prompts and completions that are texts are joined, as TRL does. The template gets `tools` and
            `chat_template_kwargs`.
        batch_size: examples in a batch of the dataset; 32 if None.
        examples: at most that many: an even sample of a dataset, or the first of the batches, to whole batches.
        max_length: tokens; longer texts of the dataset are cut. None is what the tokenizer allows.

    Raises:
        TypeError: a dataset without a tokenizer, what goes with a dataset where there is none, or a streamed one
            without `examples`.
        ValueError: the dataset has no such column; the tokenizer has no chat template or nothing to pad with;
            `examples`, `batch_size` or `max_length` is below 1; `text_columns` are not one or two names.
    """
    require(examples is None or is_int(examples, 1), "examples", examples, "a whole number of at least 1")
    require(batch_size is None or is_int(batch_size, 1), "batch_size", batch_size, "a whole number of at least 1")
    require(max_length is None or is_int(max_length, 1), "max_length", max_length, "a whole number of at least 1")
    examples = None if examples is None else int(examples)
    if tokenizer is not None and hasattr(batches, "column_names") and not hasattr(batches, "__len__"):
        batches = _first_rows(batches, examples)
    columns = getattr(batches, "column_names", None)
    if not isinstance(columns, list):
        if tokenizer is not None:
            raise TypeError(f"tokenizer goes with a datasets.Dataset, not with {type(batches).__name__}.")
        for name, value in (("text_columns", text_columns), ("batch_size", batch_size), ("max_length", max_length)):
            if value is not None:
                raise TypeError(f"{name} goes with a datasets.Dataset and its tokenizer: these are batches already.")
        if not isinstance(batches, Iterable) or isinstance(batches, (Mapping, Tensor, str)):
            raise TypeError(f"batches must be an iterable of batches, not one {type(batches).__name__}.")
        if examples is None:
            return batches
        first = _First(batches, examples)
        return iter(first) if isinstance(batches, Iterator) else first  # to be read once, and not yet
    if tokenizer is None:
        raise TypeError(
            "A datasets.Dataset needs tokenizer=, to make tokens of its texts. One that has tokens already goes into a "
            "DataLoader."
        )
    read = _read_columns(columns, text_columns)
    if missing := [column for column in read if column not in columns]:
        raise ValueError(f"The dataset has no column {missing[0]!r} (it has {', '.join(columns)}).")
    is_text = len(batches) and all(isinstance(batches[0][column], str) for column in read)  # prompts may be, as in TRL
    if read in CONVERSATIONS and not is_text and getattr(tokenizer, "chat_template", None) is None:
        raise ValueError("The dataset has conversations, and the tokenizer has no chat template for them.")
    if examples is not None and examples < len(batches):
        batches = batches.select(even_sample(len(batches), examples))
    longest = None if max_length is None else int(max_length)
    return Tokenized(batches, tokenizer, read, int(batch_size or BATCH), longest)


def _read_columns(columns: list[str], asked: str | Sequence[str] | None) -> tuple[str, ...]:
    """The columns of a dataset that are read: those that were asked for, or else its texts or conversations."""
    if asked is None:
        return ("text",) if "text" in columns else conversations(columns)
    names = [asked] if isinstance(asked, str) else asked
    are_names = is_list_of(is_name, names) and 1 <= len(names) <= 2
    require(are_names, "text_columns", asked, "the name of a column, or of two whose texts are a pair")
    return tuple(names)


def even_sample(total: int, count: int | None) -> list[int]:
    """Which `count` of so many examples an even sample has, in their order; all of them where there are no more."""
    count = total if count is None else min(count, total)
    return [index * total // count for index in range(count)]


def _first_rows(stream: Any, examples: int | None) -> Any:
    """The first rows of a streamed dataset."""
    if examples is None:
        raise TypeError(
            "A streamed dataset may have no end: give its first rows, as "
            "datasets.Dataset.from_list(list(stream.take(256)))."
        )
    from datasets import Dataset

    return Dataset.from_list(list(stream.take(examples)))


class _First:
    """The first batches, until so many examples are there."""

    def __init__(self, batches: Iterable[Batch], examples: int) -> None:
        self.batches, self.examples = batches, examples

    def __iter__(self) -> Iterator[Batch]:
        left, put_back = self.examples, iterations_of_now()
        for batch in self.batches:
            yield batch
            left -= _length(batch)
            if left <= 0:
                return put_back()


def _length(batch: Any) -> int:
    """Examples in a batch; 1 where that cannot be told."""
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else [batch]
    return next((len(value) for value in values if isinstance(value, Tensor) and value.dim()), 1)
