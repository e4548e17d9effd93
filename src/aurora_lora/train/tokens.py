"""Token ids of texts that a language model goes on with, of many texts as one tensor, and what it writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

PLAIN: dict[str, Any] = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "length_penalty": 1.0}
"""What is not left to the model's own settings of generation."""


def open_ended(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of texts that are to be gone on with: some tokenizers end each text."""
    end = tokenizer.eos_token_id
    return [ids[:-1] if ids and ids[-1] == end else ids for ids in tokenizer(list(texts))["input_ids"]]


def pad(rows: Sequence[Sequence[int]], value: int | None, *, left: bool = False) -> Tensor:
    """Rows of ids as one tensor (rows, longest), filled with a value at the right or the left."""
    longest = max(map(len, rows))
    fill = [[value] * (longest - len(row)) for row in rows]
    return torch.tensor([[*f, *r] if left else [*r, *f] for r, f in zip(rows, fill, strict=True)])


def padded(rows: Sequence[Sequence[int]], value: int | None, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor, see `pad`; and the mask (rows, longest): 1 for an id, 0 for what was filled in."""
    return pad(rows, value, left=left), pad([[1] * len(row) for row in rows], 0, left=left)


def answers_after(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    most: int,
    settings: GenerationConfig,
    shortened: Callable[[list[int], int], list[int]] = lambda ids, most: ids[-most:],
    *,
    as_it_begins: bool = False,
) -> tuple[list[str], list[int | None]]:
    """What a model writes after each prompt, of which it reads at most so many tokens.

    Args:
        model: a causal language model, in eval mode.
        tokenizer: its.
        prompts: a batch of token ids.
        most: that are read of a prompt.
        settings: of the generation.
        shortened: what is read of a prompt that has more; its end, unless something else is given.
        as_it_begins: see `written_after`.

    Returns:
        The answers, and the number of tokens that each prompt was cut to, if it was.
    """
    ids, mask = padded([shortened(prompt, most) for prompt in prompts], tokenizer.pad_token_id, left=True)
    texts = written_after(model, tokenizer, ids, mask, settings, as_it_begins=as_it_begins)
    return texts, [most if len(prompt) > most else None for prompt in prompts]


def written_after(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    ids: Tensor,
    mask: Tensor,
    settings: GenerationConfig,
    *,
    as_it_begins: bool = False,
) -> list[str]:
    """What a model writes after prompts (batch, tokens) that are padded left, without special tokens and without blanks
    around it; those before it stay with `as_it_begins`."""
    device = next(model.parameters()).device
    with torch.no_grad():
        written = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings)
    rows = [until_end(row, settings) for row in written[:, ids.shape[1] :].tolist()]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [str(text).rstrip() if as_it_begins else str(text).strip() for text in texts]


def ends_of(settings: GenerationConfig) -> set[int]:
    """The tokens that end what is written."""
    found = settings.eos_token_id
    return set(found) if isinstance(found, list) else set() if found is None else {found}


def until_end(ids: list[int], settings: GenerationConfig) -> list[int]:
    """The tokens before the one that ends them, which need not be special, and would be decoded."""
    stops = ends_of(settings)
    return ids[: next((place for place, token in enumerate(ids) if token in stops), len(ids))]
