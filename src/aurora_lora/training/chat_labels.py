"""Which tokens of a conversation are its answers', by what each message adds in the chat template, in batches."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..tasks.own.chat import template_options
from .batches import IGNORED
from .chat_format import template_ids

KEPT = ("input_ids", "labels")


def label_answers(rows: Mapping[str, Sequence[Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """`input_ids` of conversations, and `labels` at the tokens of answers: by what each message adds to earlier ones.

    Args:
        rows: of conversations, a list for each column.
        tokenizer: with its chat template.

    Raises:
        ValueError: the template writes earlier messages anew as a conversation grows.
    """
    known = _Prefixes(tokenizer)
    made: dict[str, list[list[int]]] = {name: [] for name in KEPT}
    several = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    known.read(several)
    for at, row in enumerate(several):
        messages, whole = row["messages"], known.ids[at, len(row["messages"]), False]
        labels = [IGNORED] * len(whole)
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = known.ids[at, number, True] if number else [], known.ids[at, number + 1, False]
            if whole[: len(after)] != after or whole[: len(before)] != before:
                raise ValueError(
                    "it writes earlier messages anew as a conversation grows, so that its answers cannot be told "
                    "apart: task.loss_on=all, or a template with {% generation %} around them"
                )
            end = len(after)
            while end > len(before) and known.is_blank(whole[end - 1]):
                end -= 1  # the line break after the end of a turn
            labels[len(before) : end] = whole[len(before) : end]
        made["input_ids"].append(whole)
        made["labels"].append(labels)
    return made


class _Prefixes:
    """The tokens of conversations up to where each answer begins and ends.

    Args:
        tokenizer: with its chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.ids: dict[tuple[int, int, bool], list[int]] = {}
        """By the row, how many of its messages, and whether an answer is to follow."""
        self.is_blank = functools.cache(lambda token: not str(tokenizer.decode([token])).strip())

    def read(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put all of them through the chat template, those at once for which it is given nothing else."""
        for follows in (False, True):
            plain: dict[tuple[int, int, bool], Any] = {}
            for at, row in enumerate(rows):
                messages, more = row["messages"], template_options(row)
                for count in self._counts(messages, follows):
                    if more:
                        options = {**more, "add_generation_prompt": follows}
                        self.ids[at, count, follows] = template_ids(self.tokenizer, messages[:count], **options)
                    else:
                        plain[at, count, follows] = messages[:count]
            if plain:
                made: Any = self.tokenizer.apply_chat_template(
                    list(plain.values()), tokenize=True, return_dict=True, add_generation_prompt=follows
                )
                self.ids |= dict(zip(plain, made["input_ids"], strict=True))

    @staticmethod
    def _counts(messages: Sequence[Mapping[str, Any]], follows: bool) -> Sequence[int]:
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if follows:
            return [number for number in answers if number]
        return list(dict.fromkeys([*(number + 1 for number in answers), len(messages)]))
