"""TRL's SFTTrainer for conversations: what it makes of them, and how it scores. The one file that needs TRL."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from trl.chat_template_utils import get_training_chat_template, has_generation_markers
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from ...deploy.calibrate import to_float64
from ...errors import UserError
from ...machine import usable_cores
from ...temporary_attributes import temporary_attributes
from ..recipe import Recipe
from ..trainer import OneDevice, arguments, state

__all__ = ["ChatConfig", "ChatTrainer", "DataCollatorForLanguageModeling", "made", "prepared", "training_template"]

ROWS_EACH = 10_000
"""Conversations for which a further process is worth its start."""
_TURN = re.compile(
    r"\{\{ ?('<\|im_start\|>' \+ message\['role'\] \+ '(?:\\n|\n)') \+ (message\['content'\] \+ '<\|im_end\|>') \+ "
    r"('(?:\\n|\n)') ?\}\}"
)
"""A turn as most templates of ChatML write it, SmolLM2's for one; TRL knows few of them."""
_MARKED = (
    r"{{ \1 }}{% if message['role'] == 'assistant' %}{% generation %}{{ \2 }}{% endgeneration %}"
    r"{% else %}{{ \2 }}{% endif %}{{ \3 }}"
)


class ChatConfig(OneDevice, SFTConfig):
    """`SFTConfig` of one device."""


class ChatTrainer(SFTTrainer):
    """SFTTrainer, whose evaluations give the sums of `chat_metrics` of each text."""

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, Tensor, Tensor]:
        with torch.no_grad(), self.compute_loss_context_manager():
            found = model(**inputs, fused_lm_head=True)
        parts = (-found.log_probs, found.label_mask, found.is_top1)
        sums = torch.stack([to_float64(part).sum(1) for part in parts], dim=1)
        return None, sums, sums[:, 0]  # without labels, Trainer would not score


def made(model: Any, fields: Mapping[str, Any], **given: Any) -> ChatTrainer:
    """A trainer by fields of `SFTConfig`, of which nothing is told to the hub; the model checkpoints its activations
    already, or never."""
    with temporary_attributes([constants], HF_HUB_DISABLE_TELEMETRY=True), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of names that newer versions of Transformers have
        return ChatTrainer(model, ChatConfig(**{**fields, "gradient_checkpointing": False}), **given)


def prepared(recipe: Recipe, tokenizer: Any, splits: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """The splits, of conversations or of `input_ids` and `labels`, as SFTTrainer prepares them, which it does before it
    looks at its model: `input_ids`, `labels`, and of those that are packed `seq_lengths`."""
    first, *others = splits
    nothing = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    processes = min(usable_cores() // state().num_processes, max(map(len, splits.values())) // ROWS_EACH)
    with tempfile.TemporaryDirectory() as nowhere:
        fields = arguments(recipe, Path(nowhere), 1) | {"eval_strategy": "no", "save_strategy": "no"}
        fields |= {"load_best_model_at_end": False, "dataset_num_proc": processes if processes > 1 else None}
        trainer: Any = made(
            LlamaForCausalLM(nothing),
            {**fields, **options},
            train_dataset=splits[first],
            eval_dataset={name: splits[name] for name in others} or None,
            processing_class=tokenizer,
        )
    found: dict[str, Any] = {first: trainer.train_dataset, **(trainer.eval_dataset or {})}
    kept = ("input_ids", "labels", "seq_lengths")
    return {name: one.select_columns([key for key in kept if key in one.column_names]) for name, one in found.items()}


def training_template(tokenizer: Any, model: str) -> Any:
    """The tokenizer's chat template with the marks `{% generation %}` around answers, by which TRL masks: its own, or
    TRL's version of it.

    Raises:
        UserError: it has none, and TRL knows no version that has.
    """
    own = tokenizer.chat_template
    if has_generation_markers(own):
        return own
    try:
        return get_training_chat_template(tokenizer)
    except ValueError as error:
        plain = own["default"] if isinstance(own, dict) else own
        marked, turns = _TURN.subn(_MARKED, plain)
        if turns == 1:
            return marked
        raise UserError(
            f"the chat template of {model} does not say which tokens are an answer: it has no {{% generation %}} "
            "marks, and TRL no version of it that has. task.chat_template=FILE takes one with marks, "
            "task.chat_template=chatml a plain ChatML, and with task.loss_on=all everything is learned"
        ) from error
