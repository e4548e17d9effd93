"""The texts and conversations of a `datasets.Dataset` as batches of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..chat_template import OPTIONS, template_options, without_none

CONVERSATIONS = (("messages",), ("prompt", "completion"), ("prompt", "chosen"), ("chosen",), ("prompt",))
"""The columns of conversations, as TRL names them; of preferences, the answer that was chosen."""


def conversations(columns: list[str]) -> tuple[str, ...]:
    """The columns of `CONVERSATIONS` that a dataset has; "text" where it has none. Prompts alone must be asked for:
    beside them may be answers under any name."""
    found = (names for names in CONVERSATIONS if names != ("prompt",) and set(names) <= set(columns))
    return next(found, ("text",))


@contextmanager
def can_pad(tokenizer: Any) -> Iterator[None]:
    """Within the block a tokenizer without a padding token pads with its end of text: padding is masked.

    Raises:
        ValueError: it has neither.
    """
    if getattr(tokenizer, "pad_token_id", 0) is not None:
        yield
        return
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has neither a padding token nor one for the end of a text: set its pad_token.")
    tokenizer.pad_token = tokenizer.eos_token
    try:
        yield
    finally:
        tokenizer.pad_token = None


class Tokenized:
    """A dataset as padded batches; can be iterated again.

    Args:
        dataset: the rows.
        tokenizer: of Transformers.
        columns: of texts, or one of `CONVERSATIONS`.
        batch_size: examples in a batch.
        max_length: tokens; longer texts are cut. The tokenizer's own length if None.
    """

    def __init__(
        self, dataset: Any, tokenizer: Any, columns: tuple[str, ...], batch_size: int, max_length: int | None = None
    ) -> None:
        self.dataset, self.tokenizer = dataset, tokenizer
        self.columns, self.batch_size = columns, batch_size
        self._options: dict[str, Any] = {"padding": True, "truncation": True, "return_tensors": "pt"}
        if max_length is not None:
            self._options["max_length"] = max_length

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self.dataset), self.batch_size):
            rows = self.dataset[start : start + self.batch_size]
            parts = [list(rows[column]) for column in self.columns]
            for column, values in zip(self.columns, parts, strict=True):
                if None in values:
                    row = start + values.index(None)
                    raise ValueError(
                        f"The dataset has a row without {column!r} (row {row} of those read): leave it out."
                    )
            if self.columns in CONVERSATIONS:
                _check_alike(start, parts)
            with can_pad(self.tokenizer):
                batch = dict(self._tokens(start, rows, parts))
            yield batch

    def _tokens(self, start: int, rows: Mapping[str, Any], parts: list[list[Any]]) -> Mapping[str, Any]:
        """The tokens of rows from number `start` on; `parts` are their columns of texts or messages."""
        if self.columns not in CONVERSATIONS:
            tokens: Mapping[str, Any] = self.tokenizer(*parts, **self._options)
            return tokens
        if all(isinstance(one, str) for part in parts for one in part):
            joined: Mapping[str, Any] = self.tokenizer(
                ["".join(row) for row in zip(*parts, strict=True)], **self._options
            )
            return joined
        chats = [without_none(_messages(row)) for row in zip(*parts, strict=True)]
        return self._by_template(chats, self._options_of_rows(rows, start, len(chats)))

    def _options_of_rows(self, rows: Mapping[str, Any], start: int, count: int) -> list[dict[str, Any]]:
        """What the template gets of each row, beside the messages."""
        given = {name: list(rows[name]) for name in OPTIONS if name in rows}
        found = []
        for number in range(count):
            try:
                found.append(without_none(template_options({name: given[name][number] for name in given})))
            except ValueError as error:
                raise ValueError(f"In row {start + number} of those read, {error}.") from error
        return found

    def _by_template(self, chats: list[Any], more: list[dict[str, Any]]) -> Mapping[str, Any]:
        """All at once where the template is given nothing else."""
        if not any(more):
            at_once: Mapping[str, Any] = self.tokenizer.apply_chat_template(chats, return_dict=True, **self._options)
            return at_once
        texts = [
            self.tokenizer.apply_chat_template(chat, **{**one, "tokenize": False})
            for chat, one in zip(chats, more, strict=True)
        ]
        tokens: Mapping[str, Any] = self.tokenizer(texts, add_special_tokens=False, **self._options)
        return tokens


def _check_alike(start: int, parts: list[list[Any]]) -> None:
    """Raise a ValueError where a row has a text beside messages."""
    for number, row in enumerate(zip(*parts, strict=True)):
        if len({isinstance(part, str) for part in row}) > 1:
            raise ValueError(
                f"Row {start + number} of those read has a text beside a list of messages: both must be of one kind."
            )


def _messages(parts: tuple[Any, ...]) -> list[dict[str, Any]]:
    """A conversation, from its messages, or from those of prompt and completion."""
    return [message for part in parts for message in part]
