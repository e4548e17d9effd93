"""Pretrained models and tokenizers for a recipe's task."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..errors import UserError
from ..tasks import Task
from ..tasks.models import ResolvedModel, resolve_model


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a packaged model, a local folder or a hub model; it can pad.

    Raises:
        UserError: it cannot be loaded.
    """
    source = resolve_model(model)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.path, **_gguf(source))
    except (OSError, ValueError, ImportError) as error:
        raise _unusable(model, error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base_model(model: str, task: Task, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The pretrained model in float32, with a new head for the task.

    For multiple choice the language model as it is; for distillation the body without a head.

    Raises:
        UserError: it cannot be loaded.
    """
    source = resolve_model(model)
    labels = dict(enumerate(task.labels or (task.name,)))
    try:
        config = AutoConfig.from_pretrained(source.path, **_gguf(source))
        if config.pad_token_id is None:
            config.pad_token_id = tokenizer.pad_token_id
        if task.kind == "multiple-choice":
            return _pretrained(AutoModelForCausalLM, source, config)
        if task.kind == "distillation":
            return _pretrained(AutoModel, source, config)
        config.num_labels = len(labels)
        config.id2label = labels
        config.label2id = {label: index for index, label in labels.items()}
        config.problem_type = "regression" if task.kind == "regression" else "single_label_classification"
        return _pretrained(AutoModelForSequenceClassification, source, config)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise _unusable(model, error) from error


def load_causal_model(model: str) -> PreTrainedModel:
    """The pretrained causal language model, in float32.

    Raises:
        UserError: it cannot be loaded.
    """
    source = resolve_model(model)
    try:
        return _pretrained(AutoModelForCausalLM, source, AutoConfig.from_pretrained(source.path, **_gguf(source)))
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise _unusable(model, error) from error


def _pretrained(kind: Any, source: ResolvedModel, config: Any) -> PreTrainedModel:
    loaded: PreTrainedModel = kind.from_pretrained(
        source.path,
        config=config,
        dtype=torch.float32,
        # a pickle can run code; a GGUF file is not one
        use_safetensors=source.gguf_file is None,
        **_gguf(source),
        **_as_plain_weights(source),
    )
    return loaded


def _gguf(source: ResolvedModel) -> dict[str, Any]:
    return {} if source.gguf_file is None else {"gguf_file": source.gguf_file}


def _as_plain_weights(source: ResolvedModel) -> dict[str, Any]:
    """Newer Transformers mark a model from a GGUF file as quantised, and its Trainer refuses that, unless told so."""
    config = getattr(transformers, "GgufConfig", None)
    return {} if source.gguf_file is None or config is None else {"quantization_config": config(dequantize=True)}


def _unusable(model: str, error: Exception) -> UserError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    return UserError(f"model: '{model}' cannot be loaded: {reason}")
