"""What a causal language model writes: after prompts of token ids, texts or conversations."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ..data.loading import reason
from ..data.own.chat import Question
from ..errors import UserError
from .models import room

PLAIN: dict[str, Any] = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "length_penalty": 1.0}
"""What is not left to the model's own settings of generation."""
NEW_TOKENS = 256
"""The most tokens of an answer."""
KEY = "aurora_chat_format"
"""The key in `tokenizer_config.json` that has one of the three below: what the model is trained in, and so asked in."""
CONVERSATION, PROMPT, TEXT = "conversation", "prompt", "text"
Prompt = Question | Sequence[Any] | str
"""The messages so far, with what else the chat template gets or without, or a text to go on with."""


def open_ended(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of texts that are to be gone on with: some tokenizers end each text."""
    end = tokenizer.eos_token_id
    return [ids[:-1] if ids and ids[-1] == end else ids for ids in tokenizer(list(texts))["input_ids"]]


def padded(rows: Sequence[Sequence[int]], value: int | None, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor (rows, longest), filled with a value at the right or the left; and the mask of the same
    shape: 1 for an id, 0 for what was filled in."""
    longest = max(map(len, rows))
    fill = [[value] * (longest - len(row)) for row in rows]
    ids = torch.tensor([[*f, *r] if left else [*r, *f] for r, f in zip(rows, fill, strict=True)])
    places, lengths = torch.arange(longest), torch.tensor([[len(row)] for row in rows])
    return ids, ((places >= longest - lengths) if left else (places < lengths)).long()


def written_after(
    model: Any, tokenizer: PreTrainedTokenizerBase, ids: Tensor, mask: Tensor, settings: GenerationConfig
) -> list[str]:
    """What a model writes after prompts (batch, tokens) that are padded left, without special tokens."""
    device = next(model.parameters()).device
    with torch.no_grad():
        written = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings)
    rows = [until_end(row, settings) for row in written[:, ids.shape[1] :].tolist()]
    return list(map(str, tokenizer.batch_decode(rows, skip_special_tokens=True)))


def ends_of(settings: GenerationConfig) -> set[int]:
    """The tokens that end what is written."""
    found = settings.eos_token_id
    return set(found) if isinstance(found, list) else set() if found is None else {found}


def until_end(ids: list[int], settings: GenerationConfig) -> list[int]:
    """The tokens before the one that ends them, which need not be special, and would be decoded."""
    stops = ends_of(settings)
    return ids[: next((place for place, token in enumerate(ids) if token in stops), len(ids))]


# ---------------------------------------------------------------- conversations


def is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text is given to the model as it stands, and not as what a user says in a conversation."""
    recorded = recorded_format(tokenizer)
    return tokenizer.chat_template is None if recorded is None else recorded != CONVERSATION


def recorded_format(tokenizer: Any) -> str | None:
    """What a tokenizer's model was trained in; None where nobody wrote that down."""
    found = getattr(tokenizer, "init_kwargs", {}).get(KEY)
    return found if found in (CONVERSATION, PROMPT, TEXT) else None


def answers_greedily(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int = NEW_TOKENS,
) -> tuple[list[str], list[int | None]]:
    """The most likely next token each time, until the turn ends; the prompts are padded left.

    Args:
        model: a causal language model, in eval mode.
        tokenizer: with its chat template, where prompts are messages.
        prompts: a batch; of one that is too long for the model, its end is read.
        max_new_tokens: of each answer.

    Returns:
        The answers, and the number of tokens that each prompt was cut to, if it was.

    Raises:
        UserError: the chat template refuses a conversation.
    """
    most, max_new_tokens = room(model, max_new_tokens)
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    ids, mask = padded([row[-most:] for row in rows], tokenizer.pad_token_id, left=True)
    texts = written_after(model, tokenizer, ids, mask, generation(model, tokenizer, max_new_tokens))
    goes_on = all(isinstance(prompt, str) for prompt in prompts)  # where the prompt ends
    cut = [most if len(row) > most else None for row in rows]
    return [text.rstrip() if goes_on else text.strip() for text in texts], cut


def generation(
    model: Any, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, temperature: float = 0.0
) -> GenerationConfig:
    """Greedy, or sampled at a temperature; ends where a turn does. What is not said, the model says."""
    sampled = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(ends(model, tokenizer)),
        num_beams=1,
        **PLAIN,
        **(sampled if temperature else {"do_sample": False}),
    )


def ends(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end an answer: the tokenizer's, the model's, and what the chat template ends a turn with."""
    found = getattr(model.generation_config, "eos_token_id", None)
    known = {tokenizer.eos_token_id, *(found if isinstance(found, list) else [found])}
    if tokenizer.chat_template is not None:
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        with contextlib.suppress(Exception):  # a template that wants more of a conversation
            ids = cast(Any, tokenizer).apply_chat_template(turn, return_dict=True)["input_ids"]
            special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
            known |= {[token for token in ids if str(tokenizer.decode([token])).strip()][-1]} & special
    return {token for token in known if token is not None}


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """The tokens after which an answer begins; a UserError where the chat template refuses the conversation."""
    if isinstance(prompt, str):
        return open_ended(tokenizer, [prompt])[0]
    messages, options = (prompt.messages, prompt.options) if isinstance(prompt, Question) else (prompt, {})
    more: Mapping[str, Any] = {**options, "add_generation_prompt": True, "return_dict": True}
    try:
        return list(cast(Any, tokenizer).apply_chat_template(list(messages), **more)["input_ids"])
    except Exception as error:  # Jinja's, and whatever templates raise
        raise UserError(f"the chat template refuses it: {reason(error)}") from error
