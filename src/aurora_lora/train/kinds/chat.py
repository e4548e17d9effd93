"""Conversations: a causal language model is trained to answer, and judged by the tokens of held-out answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from ...data.metrics import chat_metrics
from ...errors import ArgumentError, UserError
from .base import Kind, Loss, TrainedWith, as_answers

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from ...data import Task
    from ..data import Data
    from ..model_inputs import Processor
    from ..recipe import Recipe
    from ..trainer import RecipeTrainer


class Chat(Kind):
    """Columns `messages`; `prompt` and `completion`; or `text`."""

    name = "chat"
    task_type = "CAUSAL_LM"
    auto = "AutoModelForCausalLM"
    pipeline = "text-generation"
    metrics = ("nll", "perplexity", "token_accuracy")
    fields = ("max_length", "loss_on", "chat_template", "packing", "samples")
    scores_batches = False

    def compute_metrics(self, task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return chat_metrics(predictions)

    def made(self, config: Any) -> bool:
        return False  # its models look like those of multiple choice

    def encode(self, recipe: Recipe, task: Task, processor: Processor, splits: Mapping[str, Any]) -> Data:
        from ..chat_data import encode_chats

        return encode_chats(recipe, task, cast("PreTrainedTokenizerBase", processor), splits)

    def loss(self) -> Loss:
        from ..choices import next_token_loss

        return next_token_loss

    def trainer(self, data: Data) -> Callable[..., RecipeTrainer]:
        from ..chat_trainer import ChatTrainer

        return ChatTrainer

    def before(self, recipe: Recipe, trainer: RecipeTrainer, data: Data) -> dict[str, float]:
        from ..chat_samples import untrained_scores

        return untrained_scores(recipe, trainer, data)

    def samples(self, recipe: Recipe, trainer: RecipeTrainer, data: Data) -> list[dict[str, str]]:
        from ..chat_samples import sample_answers

        return sample_answers(recipe, trainer, data)

    def finish_merged(self, model: Any, processor: Processor) -> None:
        """An answer ends where a turn does, which the base's own generation config need not say."""
        from ..chat_answers import ends

        settings = model.generation_config
        is_as_published = getattr(settings, "_original_object_hash", None) == hash(settings)
        last = sorted(ends(model, cast("PreTrainedTokenizerBase", processor)))
        settings.eos_token_id = last[0] if len(last) == 1 else last
        if is_as_published:  # what Transformers warns of in a file as published, it refuses to save in a changed one
            settings._original_object_hash = hash(settings)

    def answers(
        self, model: Any, processor: Processor, texts: Sequence[Any], source: str, trained: TrainedWith
    ) -> list[dict[str, Any]]:
        from ..chat_answers import answers_greedily
        from ..chat_format import is_plain

        tokenizer = cast("PreTrainedTokenizerBase", processor)
        if tokenizer.chat_template is None and not all(isinstance(text, str) for text in texts):
            raise UserError(f"{source} answers plain texts alone, and no messages: its tokenizer has no chat template")
        prompts = texts if is_plain(tokenizer) else [_as_said(text) for text in texts]
        written, cut = answers_greedily(model, tokenizer, prompts)
        return as_answers(texts, ({"answer": answer} for answer in written), cut)

    def asked(self, row: Mapping[str, Any], columns: Mapping[str, Sequence[str]]) -> Any:
        """The messages up to the last answer, left out where there is one; or a text, that of a named column."""
        from ...data.own import columns as cells
        from ..chat_data import asked_in

        if named := columns.get("text"):
            if len(named) > 1:
                raise ArgumentError(f"`columns`: {', '.join(named)} are too many: a language model is asked one text")
            return cells.text(row[named[0]], named[0])
        return asked_in(row, *columns.get("format", ()))

    def check_asked(self, asked: Any, processor: Processor) -> None:
        from ..chat_answers import check_prompt
        from ..chat_format import is_plain

        tokenizer = cast("PreTrainedTokenizerBase", processor)
        check_prompt(tokenizer, asked if is_plain(tokenizer) else _as_said(asked))

    def shown(self, answer: Mapping[str, Any]) -> tuple[str, ...]:
        return answer["answer"], "", str(answer["text"])


def _as_said(text: Any) -> Any:
    """A text as what the user says."""
    return [{"role": "user", "content": text}] if isinstance(text, str) else text


CHAT = Chat()
