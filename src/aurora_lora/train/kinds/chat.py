"""Conversations: a causal language model is trained to answer, and judged by the tokens of held-out answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

from ...data.metrics import chat_metrics
from ...data.own import columns as cells
from ...errors import ArgumentError, UserError
from ..chat_answers import answers_greedily, check_prompt, ends
from ..chat_data import asked_in, encode_chats
from ..chat_format import is_plain
from ..chat_samples import sample_answers, untrained_scores
from ..chat_trainer import ChatTrainer
from ..data import Data
from ..kind_facts import CHAT, TrainedWith
from ..models import Processor
from ..recipe import Recipe
from .base import Kind, as_answers


class Chat(Kind):
    """Columns `messages`; `prompt` and `completion`; or `text`."""

    facts = CHAT

    def metrics(self, data: Data, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return chat_metrics(predictions)

    def made(self, config: Any) -> bool:
        return False  # its models look like those of multiple choice

    def encode(self, recipe: Recipe, processor: Processor, splits: Mapping[str, Any]) -> Data:
        return encode_chats(recipe, recipe.task.definition, cast(PreTrainedTokenizerBase, processor), splits)

    def trainer(
        self,
        recipe: Recipe,
        model: nn.Module,
        data: Data,
        arguments: dict[str, Any],
        callbacks: Sequence[TrainerCallback],
    ) -> Trainer:
        return ChatTrainer(recipe, **self.trainer_options(model, data, arguments, callbacks))

    def before(self, recipe: Recipe, trainer: Any, data: Data) -> dict[str, float]:
        return untrained_scores(recipe, trainer, data)

    def samples(self, recipe: Recipe, trainer: Any, data: Data) -> list[dict[str, str]]:
        return sample_answers(recipe, trainer, data)

    def finish_merged(self, model: Any, processor: Processor) -> None:
        """An answer ends where a turn does, which the base's own generation config need not say."""
        settings = model.generation_config
        is_as_published = getattr(settings, "_original_object_hash", None) == hash(settings)
        last = sorted(ends(model, cast(PreTrainedTokenizerBase, processor)))
        settings.eos_token_id = last[0] if len(last) == 1 else last
        if is_as_published:  # what Transformers warns of in a file as published, it refuses to save in a changed one
            settings._original_object_hash = hash(settings)

    def answers(
        self, model: Any, processor: Processor, texts: Sequence[Any], source: str, trained: TrainedWith
    ) -> list[dict[str, Any]]:
        tokenizer = cast(PreTrainedTokenizerBase, processor)
        if tokenizer.chat_template is None and not all(isinstance(text, str) for text in texts):
            raise UserError(f"{source} answers plain texts alone, and no messages: its tokenizer has no chat template")
        prompts = texts if is_plain(tokenizer) else [_as_said(text) for text in texts]
        written, cut = answers_greedily(model, tokenizer, prompts)
        return as_answers(texts, ({"answer": answer} for answer in written), cut)

    def asked(self, row: Mapping[str, Any], columns: Mapping[str, Sequence[str]]) -> Any:
        """The messages up to the last answer, left out where there is one; or a text, that of a named column."""
        if named := columns.get("text"):
            if len(named) > 1:
                raise ArgumentError(f"`columns`: {', '.join(named)} are too many: a language model is asked one text")
            return cells.text(row[named[0]], named[0])
        return asked_in(row, *columns.get("format", ()))

    def check_asked(self, asked: Any, processor: Processor) -> None:
        tokenizer = cast(PreTrainedTokenizerBase, processor)
        check_prompt(tokenizer, asked if is_plain(tokenizer) else _as_said(asked))

    def shown(self, answer: Mapping[str, Any]) -> tuple[str, ...]:
        return answer["answer"], "", str(answer["text"])


def _as_said(text: Any) -> Any:
    """A text as what the user says."""
    return [{"role": "user", "content": text}] if isinstance(text, str) else text
