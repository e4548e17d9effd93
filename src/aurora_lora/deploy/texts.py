"""The texts and conversations of a `datasets.Dataset` as batches of tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from ..chat_template import OPTIONS, template_options, without_none

CONVERSATIONS = (("messages",), ("prompt", "completion"), ("prompt", "chosen"), ("chosen",), ("prompt",))
"""The columns of conversations, as TRL names them; of preferences, the answer that was chosen."""


def even_sample(total: int, count: int | None) -> list[int]:
    """Which `count` of so many examples an even sample has, in their order; all of them where there are no more."""
    count = total if count is None else min(count, total)
    return [index * total // count for index in range(count)]


class Tokenized:
    """A `datasets.Dataset` as padded batches of tokens; can be iterated again.

    Args:
        dataset: of texts or conversations.
        tokenizer: of Transformers; without a padding token it pads with its end of text.
        text_columns: this and the following as in `inputs.Reading`.
        batch_size: examples in a batch.
        examples: an even sample of so many.
        max_length: tokens.

    Raises:
        TypeError: no dataset, or a streamed one.
        ValueError: the dataset has no such column.
    """

    def __init__(
        self,
        dataset: Any,
        tokenizer: Any,
        text_columns: str | Sequence[str] | None = None,
        batch_size: int | None = None,
        max_length: int | None = None,
        examples: int | None = None,
    ) -> None:
        columns = getattr(dataset, "column_names", None)
        if not isinstance(columns, list) or not hasattr(dataset, "__len__"):
            raise TypeError(
                f"tokenizer goes with a datasets.Dataset, not with {type(dataset).__name__}. Of a streamed one give "
                "the first rows: datasets.Dataset.from_list(list(stream.take(256)))."
            )
        if text_columns is None:
            # prompts alone must be asked for: beside them may be answers under any name
            kinds = (names for names in CONVERSATIONS if names != ("prompt",) and set(names) <= set(columns))
            text_columns = "text" if "text" in columns else next(kinds, "text")
        self.columns = (text_columns,) if isinstance(text_columns, str) else tuple(text_columns)
        if missing := [column for column in self.columns if column not in columns]:
            raise ValueError(f"The dataset has no column {missing[0]!r} (it has {', '.join(columns)}).")
        if getattr(tokenizer, "pad_token_id", 0) is None:
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.pad_token = tokenizer.eos_token  # padding is masked
        if examples is not None and examples < len(dataset):
            dataset = dataset.select(even_sample(len(dataset), int(examples)))
        self.dataset, self.tokenizer, self.batch_size = dataset, tokenizer, int(batch_size or 32)
        self._options: dict[str, Any] = {"padding": True, "truncation": True, "return_tensors": "pt"}
        if max_length is not None:
            self._options["max_length"] = int(max_length)

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self.dataset), self.batch_size):
            rows = self.dataset[start : start + self.batch_size]
            for column in self.columns:
                if None in (values := list(rows[column])):
                    row = start + values.index(None)
                    raise ValueError(
                        f"The dataset has a row without {column!r} (row {row} of those read): leave it out."
                    )
            yield dict(self._tokens(rows))

    def _tokens(self, rows: dict[str, list[Any]]) -> Any:
        parts = [list(rows[column]) for column in self.columns]
        if self.columns not in CONVERSATIONS:
            return self.tokenizer(*parts, **self._options)
        if all(isinstance(one, str) for part in parts for one in part):
            return self.tokenizer(["".join(row) for row in zip(*parts, strict=True)], **self._options)
        rows_of_options = ({name: rows[name][i] for name in OPTIONS if name in rows} for i in range(len(parts[0])))
        texts = [
            self.tokenizer.apply_chat_template(
                without_none([message for part in row for message in part]),
                **{**without_none(template_options(given)), "tokenize": False},
            )
            for row, given in zip(zip(*parts, strict=True), rows_of_options, strict=True)
        ]
        return self.tokenizer(texts, add_special_tokens=False, **self._options)
