"""What makes a model's inputs, and what the model says of them: which token pads texts, and how long these may be."""

from __future__ import annotations

from typing import Any, TypeAlias, cast

from torch import nn
from transformers import BaseImageProcessor, PretrainedConfig, PreTrainedTokenizerBase

from ..errors import UserError

Processor: TypeAlias = PreTrainedTokenizerBase | BaseImageProcessor
"""What makes a model's inputs: its `save_pretrained` writes it beside the model."""
_POSITIONS = ("position_embeddings", "wpe", "embed_positions")
"""What the models of Transformers call their embeddings of positions."""


def padding_of(config: Any) -> int | None:
    """The padding token that a model's configuration names, or that of its texts where it sees images, too."""
    found: int | None = getattr(config, "pad_token_id", None)
    return getattr(config.get_text_config(), "pad_token_id", None) if found is None else found


def fill_padding(config: Any, processor: Processor, *, replace: bool = False) -> None:
    """Let a model know its tokenizer's padding token if it names none.

    Args:
        config: of the model.
        processor: its tokenizer; nothing is done of images.
        replace: also one that it names; see `reads_last_token`.
    """
    if not isinstance(processor, PreTrainedTokenizerBase):
        return
    texts = config.get_text_config()  # itself, where a model sees nothing else
    for one in (config, texts):
        is_open = replace or getattr(one, "pad_token_id", None) is None
        if is_open and (one is texts or hasattr(one, "pad_token_id")):
            one.pad_token_id = processor.pad_token_id


def reads_last_token(model: nn.Module) -> bool:
    """Whether a model classifies a text by its last token, which it finds as the last that is none of padding: those
    of Transformers whose head is called so. The padding must be that of the tokenizer then."""
    return hasattr(model, "score")


def longest_text(max_length: int | None, processor: Processor) -> int | None:
    """The tokens that a recipe's `max_length` and its tokenizer leave a text; None where none is cut."""
    if max_length is None or not isinstance(processor, PreTrainedTokenizerBase):
        return None
    return min(max_length, processor.model_max_length)


def check_positions(model: nn.Module, name: str, max_length: int) -> None:
    """Raise a UserError where texts of so many tokens have more positions than the model has embeddings of.

    Most tokenizers state that limit, and texts are cut at it.
    """
    limit = most_tokens(model)
    if limit is not None and max_length > limit:
        raise UserError(f"task.max_length: {max_length} tokens are more than the {limit} positions of {name}")


def most_tokens(model: nn.Module) -> int | None:
    """How many positions a model has embeddings of; None where they are rotary or relative."""
    limits = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and path.rsplit(".", 1)[-1] in _POSITIONS:
            # RoBERTa counts from behind the index that pads, OPT and BART from an offset
            first = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - first)
    return min(limits, default=None)


def positions(config: PretrainedConfig) -> int | None:
    """How long a text its config gives a model positions for, learned or rotary; None where it does not say."""
    most = getattr(config, "max_position_embeddings", None)
    return int(most) if most is not None and most > 0 else None  # XLNet has -1


def cached_width(config: PretrainedConfig) -> int:
    """How many numbers a causal language model keeps as the keys and values of one token, in all layers; an upper
    bound where they are kept compressed, or where a layer keeps a state instead."""
    if getattr(config, "is_heterogeneous", False):  # Gemma 4: its layers differ
        return sum(map(_cached_in_a_layer, cast(Any, config).per_layer_config))
    return int(config.num_hidden_layers) * _cached_in_a_layer(config)


def _cached_in_a_layer(config: PretrainedConfig) -> int:
    heads = getattr(config, "num_attention_heads", None) or 1
    one = getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False)  # Falcon
    groups = getattr(config, "num_key_value_heads", None) or (1 if one else heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * int(groups * width)


def room(model: Any, max_new_tokens: int) -> tuple[int, int]:
    """The tokens of a prompt and of its answer that a model has positions for: at most half are the answer's."""
    most = positions(model.config.get_text_config()) or 2**31
    new = min(max_new_tokens, max(1, most // 2))
    return most - new, new
