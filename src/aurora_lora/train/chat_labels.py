"""Which tokens of a conversation are its answers', by what each message adds in the chat template, in batches.

A conversation is tokenised once. Where an answer begins and ends is told by the text of the messages up to there, of
which only what follows the last special token is tokenised anew: special tokens cut a text into parts, each by itself.
A token of which a part only is an answer's, as where a blank before it is one with its first word, is learned with it.
An answer that comes first begins where the text changes with its content: no generation prompt tells what precedes it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..data.own.chat import template_options
from ..deploy.inputs import IGNORED

KEPT = ("input_ids", "labels")
Place = tuple[int, int, bool]
"""A row, how many of its messages, and whether an answer is to follow."""
_SAID = ("content", "reasoning_content", "reasoning", "thinking")
"""The fields of a message that have what is said in it."""


def label_answers(rows: Mapping[str, Sequence[Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """`input_ids` of conversations, and `labels` at the tokens of answers: by what each message adds to earlier ones.

    Args:
        rows: of conversations, a list for each column.
        tokenizer: with its chat template.

    Returns:
        Of each row, two arrays (tokens,), which `datasets` writes faster than lists.

    Raises:
        ValueError: the template writes earlier messages anew as a conversation grows.
    """
    several = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    known = _Prefixes(tokenizer, several)
    made: dict[str, list[Any]] = {name: [] for name in KEPT}
    for at, row in enumerate(several):
        whole = known.whole[at]
        ids = np.asarray(whole, dtype=np.int64)
        labels = np.full_like(ids, IGNORED)
        for number, message in enumerate(row["messages"]):
            if message["role"] != "assistant":
                continue
            place = known.answer(at, number)
            if place is None:
                raise ValueError(
                    "it writes earlier messages anew as a conversation grows, so that its answers cannot be told "
                    "apart: task.loss_on=all, or a template with {% generation %} around them"
                )
            labels[place] = ids[place]
        made["input_ids"].append(ids)
        made["labels"].append(labels)
    return made


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many of the first are the same in both."""
    pairs = zip(one, other, strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


class _Prefixes:
    """The tokens of conversations, and which of them each answer is.

    Args:
        tokenizer: with its chat template.
        rows: of conversations.
    """

    whole: list[list[int]]
    """The tokens of each."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]]) -> None:
        self.tokenizer = tokenizer
        self.is_blank = functools.cache(lambda token: not str(tokenizer.decode([token])).strip())
        self.texts = texts = {**self._render(rows, False), **self._render(rows, True)}
        self.ends = ends = [(at, len(row["messages"]), False) for at, row in enumerate(rows)]
        for at, row in enumerate(rows):
            if row["messages"][0]["role"] == "assistant":
                texts[at, 0, True] = self._before_first(row, texts[ends[at]])
        encoded = self._encode([texts[end] for end in ends])
        self.whole, self.encodings = list(encoded["input_ids"]), encoded.encodings
        cuts = [
            self._cuts(texts[end], ids, encoding)
            for end, ids, encoding in zip(ends, self.whole, self.encodings or [None] * len(ends), strict=True)
        ]
        self.tails: dict[Place, tuple[int, str]] = {}
        for place, text in texts.items():
            at = place[0]
            if place != ends[at]:
                begin, token = 0, 0
                if texts[ends[at]].startswith(text):
                    begin, token = next((cut[1:] for cut in reversed(cuts[at]) if cut[0] <= len(text)), (0, 0))
                self.tails[place] = token, text[begin:]
        different = list({tail for _, tail in self.tails.values()})
        self.ids = dict(zip(different, self._encode(different)["input_ids"], strict=True)) if different else {}

    def answer(self, at: int, number: int) -> slice | None:
        """The tokens of a row that an answer has a part in, without blanks at its end; None where the row's text does
        not begin with that of the messages up to there.
        """
        begin, end = (at, number, True), (at, number + 1, False)
        start, stop = self._length(begin), self._length(end, since=len(self.texts[begin]))
        if start is None or stop is None:
            return None
        while stop > start and self.is_blank(self.whole[at][stop - 1]):
            stop -= 1  # the line break after the end of a turn
        return slice(start, stop)

    def _length(self, place: Place, since: int | None = None) -> int | None:
        """How many tokens of a row its first messages are; None where it does not begin with them.

        Args:
            place: where the messages end.
            since: where in the text an answer begins that ends there. A token that goes on behind the messages is
                theirs where it has a part of the answer that is not blank.
        """
        at, whole = place[0], self.whole[place[0]]
        if place not in self.tails:
            return len(whole)
        token, tail = self.tails[place]
        ids = self.ids[tail]
        if whole[token : token + len(ids)] == ids:
            return token + len(ids)
        text, length = self.texts[self.ends[at]], len(self.texts[place])
        if not text.startswith(self.texts[place]):
            return None
        if not self.encodings:  # a tokenizer that does not tell which text a token is of
            return token + _common(ids, whole[token:])
        places = self.encodings[at].offsets
        count = next((number for number, (_, end) in enumerate(places) if end > length), len(places))
        is_shared = since is not None and count < len(places) and text[max(places[count][0], since) : length].strip()
        return count + bool(is_shared)

    def _encode(self, texts: list[str]) -> Any:
        return self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False)

    @functools.cached_property
    def _special(self) -> dict[int, str]:
        """What texts are cut at: tokens that are found before anything is made of the text."""
        if getattr(self.tokenizer, "split_special_tokens", False):
            return {}
        known = self.tokenizer.added_tokens_decoder
        return {number: one.content for number, one in known.items() if not (one.normalized or one.single_word)}

    def _cuts(self, text: str, ids: Sequence[int], encoding: Any) -> list[tuple[int, int, int]]:
        """Where each special token ends and begins in the text, and which token of the text it is."""
        found: list[tuple[int, int, int]] = []
        if encoding is None:
            return found
        special = self._special
        for number, token in enumerate(ids):
            if token in special:
                begin, end = encoding.token_to_chars(number) or (0, 0)
                if text[begin:end].strip() == special[token].strip():
                    found.append((end, begin, number))
        return found

    def _render(self, rows: Sequence[Mapping[str, Any]], follows: bool) -> dict[Place, str]:
        """Put all of them through the chat template, those at once for which it is given nothing else."""
        plain: dict[Place, Any] = {}
        made: dict[Place, str] = {}
        for at, row in enumerate(rows):
            messages, more = row["messages"], template_options(row)
            for count in self._counts(messages, follows):
                if more:
                    options = {**more, "add_generation_prompt": follows, "tokenize": False}
                    made[at, count, follows] = str(self.tokenizer.apply_chat_template(messages[:count], **options))
                else:
                    plain[at, count, follows] = messages[:count]
        if plain:
            texts: Any = self.tokenizer.apply_chat_template(
                list(plain.values()), tokenize=False, add_generation_prompt=follows
            )
            made |= dict(zip(plain, texts, strict=True))
        return made

    def _before_first(self, row: Mapping[str, Any], whole: str) -> str:
        """What stands before the content of an answer that comes first: what does not change with it. Where the
        template refuses another content, everything, so that nothing of the answer is learned.
        """
        first, *others = row["messages"]
        mark = next(char for char in map(chr, range(0xE000, 0xF900)) if char not in whole)
        said = [name for name in _SAID if isinstance(first.get(name), str)] or ["content"]
        changed = [{**first, **dict.fromkeys(said, mark)}, *others]
        try:
            other = str(self.tokenizer.apply_chat_template(changed, tokenize=False, **template_options(row)))
        except Exception:  # Jinja's, and whatever templates raise
            return whole
        return whole[: _common(whole, other)]

    @staticmethod
    def _counts(messages: Sequence[Mapping[str, Any]], follows: bool) -> Sequence[int]:
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if follows:
            return [number for number in answers if number]
        return list(dict.fromkeys([*(number + 1 for number in answers), len(messages)]))
