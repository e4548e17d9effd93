"""A causal language model on multiple-choice questions: from texts to tokens, and from tokens to scores."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ..data.prompts import RESPONSE, key_of, parse_answer
from ..deploy.inputs import IGNORED, plain_model
from ..errors import UserError
from .losses import per_item
from .model_inputs import cached_width, room
from .tokens import PLAIN, answers_after, open_ended, pad, padded, written_after

Example = dict[str, Any]

BEAMS, NEW_TOKENS = 4, 32
"""LLM-Adapters' generation."""
LOGITS = 2**28
"""Logits that an evaluation computes at once, at most: a batch that has more is scored in parts."""
CACHED = 2**30
"""Numbers in the keys and values that an evaluation keeps at once, at most, likewise."""


def encode_questions(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], choices: Sequence[Sequence[str]], labels: Sequence[int]
) -> list[Example]:
    """Token ids of questions.

    Prompt and choice are put through the tokenizer one by one, so that a choice has the same tokens whether it is
    trained on, scored or generated.

    Raises:
        UserError: a choice without tokens, which would be certain whatever the model.
    """
    flat = [choice for some in choices for choice in some]
    choice_ids = iter(tokenizer(flat, add_special_tokens=False)["input_ids"])
    examples: list[Example] = []
    for ids, some, label in zip(open_ended(tokenizer, prompts), choices, labels, strict=True):
        tokens = [next(choice_ids) for _ in some]
        if not ids or not all(tokens):
            raise UserError(f"a prompt or a choice is empty: {prompts[len(examples)][-60:]!r}, {list(some)}")
        lengths = [len(choice) for choice in some]
        keys = [key_of(choice) for choice in some]
        examples.append({"prompt": ids, "choices": tokens, "lengths": lengths, "keys": keys, "label": label})
    return examples


@dataclass(frozen=True)
class TrainingText:
    """Collates questions into texts to train on: prompt, right choice, end of text; (batch, longest), padded right.

    `labels` are the token ids themselves (the model's loss shifts them), `IGNORED` where nothing is to be learned.

    Args:
        padding: the tokenizer.
        max_length: tokens; of longer texts the prompt is cut at its beginning, so that no answer is lost.
        loss_on: `"all"`, prompt and answer, or `"answer"`.
    """

    padding: PreTrainedTokenizerBase
    max_length: int
    loss_on: Literal["all", "answer"]

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        texts = [self._text(example) for example in examples]
        ids, mask = padded([ids for ids, _ in texts], self.padding.pad_token_id)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            # The first token is predicted from nothing: it has no loss.
            "labels": pad([[IGNORED, *targets[1:]] for _, targets in texts], IGNORED),
        }

    def _text(self, example: Example) -> tuple[list[int], list[int]]:
        answer = [*example["choices"][example["label"]], self.padding.eos_token_id]
        prompt = cut_left(
            example["prompt"], self.max_length - len(answer), self.padding.bos_token_id, "task.max_length"
        )
        silent = [IGNORED] * len(prompt) if self.loss_on == "answer" else prompt
        return prompt + answer, silent + answer


@dataclass(frozen=True)
class Questions:
    """Collates questions for scoring: prompts (batch, tokens), padded left, and all choices (m, tokens), padded right.

    Args:
        padding: the tokenizer.
        max_choices: the most choices of any question of the task.
        positions: that the model has embeddings of; None if they are rotary or relative.
        room: tokens that are left free behind each prompt, for what the model writes; a choice has its own anyway.
    """

    padding: PreTrainedTokenizerBase
    max_choices: int
    positions: int | None = None
    room: int = 0

    @property
    def limit(self) -> int:
        """The most tokens of a prompt with its choice: those of the tokenizer, or of the model if it has fewer."""
        stated = self.padding.model_max_length
        return stated if self.positions is None else min(stated, self.positions)

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        filler, limit = self.padding.pad_token_id, self.limit
        longest = [max(self.room, *map(len, one["choices"])) for one in examples]
        prompts = [
            cut_left(one["prompt"], limit - length, self.padding.bos_token_id, f"the model's length of {limit} tokens")
            for one, length in zip(examples, longest, strict=True)
        ]
        choices = [ids for one in examples for ids in one["choices"]]
        places = [(row, column) for row, one in enumerate(examples) for column in range(len(one["choices"]))]
        prompt_ids, prompt_mask = padded(prompts, filler, left=True)
        choice_ids, choice_mask = padded(choices, filler)
        return {
            "labels": torch.tensor([one["label"] for one in examples]),
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "choice_ids": choice_ids,
            "choice_mask": choice_mask,
            "places": torch.tensor(places),  # (m, 2): the question of each choice, and its number there
            "lengths": torch.tensor([length for one in examples for length in one["lengths"]]),
            "keys": [one["keys"] for one in examples],
        }


def check_room(prompt: Sequence[int], answer: int, length: int, limit: str, where: str) -> None:
    """Raise a UserError where an answer leaves no room for its prompt: before hours of training, and not in its batch.

    Args:
        prompt: its tokens.
        answer: how many tokens that has, with the end of a text that is trained on.
        length: how many both may have; `limit` is what allows no more, for errors.
        where: the question stands.
    """
    if length - answer < min(2, len(prompt)):
        raise UserError(f"{where}: {limit} leaves no room for the question beside an answer of {answer:,} tokens")


def cut_left(ids: list[int], length: int, bos: int | None, limit: str) -> list[int]:
    """The last `length` tokens, with the beginning-of-text token kept; `limit` is what allows no more, for errors.

    Raises:
        UserError: no room at all.
    """
    if len(ids) <= length:
        return ids
    if length < 2:
        raise UserError(f"{limit} leaves no room for a prompt beside its answer")
    return [ids[0], *ids[1 - length :]] if ids[0] == bos else ids[-length:]


# ---------------------------------------------------------------- loss and scores


def next_token_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Cross-entropy of each next token, over all tokens of a step that have a label.

    Args:
        outputs: the model's, with logits (batch, tokens, vocabulary).
        labels: (batch, tokens), `IGNORED` where there is none.
        num_items_in_batch: tokens with a label in the whole step, over accumulated batches and all processes.
    """
    logits, targets = outputs["logits"][:, :-1], labels[:, 1:].reshape(-1)
    total = cross_entropy(logits.float().reshape(-1, logits.shape[-1]), targets, ignore_index=IGNORED, reduction="sum")
    return per_item(total, targets != IGNORED, num_items_in_batch)


def learned_positions(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A training batch that asks for the logits of those positions alone whose next token has a label.

    Args:
        batch: from `TrainingText`.

    Returns:
        The batch with `logits_to_keep`, the k positions after which any text of the batch has a label, and the last
        one, which has none; and labels (batch, k + 1), which `next_token_loss` shifts as ever.
    """
    labels = batch["labels"]
    positions = (labels[:, 1:] != IGNORED).any(0).nonzero().squeeze(1)
    ends = labels.new_tensor([labels.shape[1] - 1])
    nothing = torch.full_like(labels[:, :1], IGNORED)
    shorter = torch.cat((nothing, labels[:, positions + 1]), dim=1)
    return {**batch, "labels": shorter, "logits_to_keep": torch.cat((positions, ends))}


def takes(model: nn.Module, name: str) -> bool:
    """Whether the model below the adapter has such an argument."""
    return name in inspect.signature(plain_model(model).forward).parameters


def choice_scores(model: nn.Module, batch: Mapping[str, Any], max_choices: int, *, whole: bool = False) -> Tensor:
    """The log-likelihood of each choice after its prompt.

    The prompt is run once: its keys and values serve all of its choices. A batch of more than `LOGITS` or `CACHED` is
    scored in parts, each of whole questions.

    Args:
        model: a causal language model, in eval mode.
        batch: from `Questions`.
        max_choices: columns of the result.
        whole: in one part, however large.

    Returns:
        (batch, max_choices, 2): the sum over the choice's tokens, and the same per character; -inf for no choice.
    """
    prompt, config = batch["prompt_ids"], cast(Any, plain_model(model)).config.get_text_config()
    size = questions_at_once(config, max_choices, prompt.shape[1], batch["choice_ids"].shape[1])
    if whole or size >= len(prompt):
        return _scores(model, batch, max_choices)
    parts = (_part(batch, start, start + size) for start in range(0, len(prompt), size))
    return torch.cat([_scores(model, part, max_choices) for part in parts])


def _part(batch: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
    """The questions from one place to another, of a batch from `Questions`."""
    question, column = batch["places"].unbind(1)
    own = (question >= start) & (question < stop)
    questions = {name: batch[name][start:stop] for name in ("prompt_ids", "prompt_mask")}
    choices = {name: batch[name][own] for name in ("choice_ids", "choice_mask", "lengths")}
    return {**questions, **choices, "places": torch.stack((question[own] - start, column[own]), dim=1)}


def questions_at_once(config: Any, choices: int, prompt: int, choice: int) -> int:
    """How many questions are scored at once, by `LOGITS` and `CACHED`; one at least.

    Args:
        config: of the language model.
        choices: of a question, at most.
        prompt, choice: tokens of the longest.
    """
    logits = choices * choice * getattr(config, "vocab_size", 1)
    cached = choices * (prompt + choice) * cached_width(config)
    return max(1, min(LOGITS // logits, CACHED // cached))


def _scores(model: nn.Module, batch: Mapping[str, Any], max_choices: int) -> Tensor:
    """`choice_scores` of a batch at once."""
    prompt, choices = batch["prompt_ids"], batch["choice_ids"]
    rows, columns = batch["places"].unbind(1)
    logits = _choice_logits(model, batch).float()
    nll = cross_entropy(logits.flatten(0, 1), choices.flatten(), reduction="none").view_as(choices)
    total = -(nll * batch["choice_mask"]).sum(1)
    scores: Tensor = total.new_full((len(prompt), max_choices, 2), -torch.inf)
    scores[rows, columns] = torch.stack((total, total / batch["lengths"]), dim=1)
    return scores


def _choice_logits(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The logits that foretell each token of each choice, (m, tokens, vocabulary)."""
    prompt, mask, choices = batch["prompt_ids"], batch["prompt_mask"], batch["choice_ids"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    # By index: the slice that Transformers takes for 1 is not contiguous, and a CPU is far slower on it.
    end = torch.tensor([prompt.shape[1] - 1], device=prompt.device)
    last = {"logits_to_keep": end} if takes(model, "logits_to_keep") else {}
    kept = {"position_ids": positions} if takes(model, "position_ids") else {}
    output = model(input_ids=prompt, attention_mask=mask, use_cache=True, **kept, **last)
    rows = batch["places"][:, 0]
    cache: Any = getattr(output, "past_key_values", None)
    if _has_states(cache):
        return _whole_logits(model, batch)
    cache.batch_select_indices(rows)
    if kept:
        ahead = torch.arange(1, choices.shape[1] + 1, device=choices.device)
        kept = {"position_ids": positions[rows, -1:] + ahead}
    whole_mask = torch.cat((mask[rows], batch["choice_mask"]), dim=1)
    further = model(input_ids=choices, attention_mask=whole_mask, past_key_values=cache, use_cache=True, **kept)
    # Position t predicts token t + 1; the first token of a choice comes from the prompt's last position.
    return torch.cat((output.logits[rows, -1:], further.logits[:, :-1]), dim=1)


def _has_states(cache: Any) -> bool:
    """Whether a model keeps more of a prompt than keys and values, as those with convolutions or linear attention do:
    that cannot be handed to each of several choices."""
    layers = getattr(cache, "layers", None)
    return layers is None or any(hasattr(layer, "conv_states") for layer in layers)


def _whole_logits(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """`_choice_logits` by a pass over each choice behind its prompt."""
    rows, choices = batch["places"][:, 0], batch["choice_ids"]
    prompt = batch["prompt_ids"][rows]
    mask = torch.cat((batch["prompt_mask"][rows], batch["choice_mask"]), dim=1)
    wanted = torch.arange(choices.shape[1], device=choices.device) + prompt.shape[1] - 1
    kept = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if takes(model, "position_ids") else {}
    some = {"logits_to_keep": wanted} if takes(model, "logits_to_keep") else {}
    ids = torch.cat((prompt, choices), dim=1)
    logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False, **kept, **some).logits
    return logits if some else logits[:, wanted]


def generated_choices(
    model: nn.Module, batch: Mapping[str, Any], max_choices: int, tokenizer: PreTrainedTokenizerBase
) -> Tensor:
    """What the model answers when it may write freely.

    Returns:
        (batch, max_choices, 1): 1 for the choice whose key is the answer found in the text, else 0.
    """
    texts = written_after(model, tokenizer, batch["prompt_ids"], batch["prompt_mask"], _generation(tokenizer))
    chosen = torch.zeros(len(texts), max_choices, 1, device=batch["prompt_ids"].device)
    for row, (text, keys) in enumerate(zip(texts, batch["keys"], strict=True)):
        answer = parse_answer(RESPONSE + text, *keys)
        if answer in keys:
            chosen[row, keys.index(answer)] = 1
    return chosen


def answers_by_beam_search(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> tuple[list[str], list[int | None]]:
    """What a causal language model writes after each prompt, as in `generated_choices`; see `answers_after`."""
    most, new = room(model, NEW_TOKENS)
    shortened = functools.partial(cut_left, bos=tokenizer.bos_token_id, limit="the model's length")
    rows = open_ended(tokenizer, prompts)
    return answers_after(model, tokenizer, rows, most, _generation(tokenizer, new), shortened)


def _generation(tokenizer: PreTrainedTokenizerBase, most: int = NEW_TOKENS) -> GenerationConfig:
    """LLM-Adapters': 4 beams, at most 32 new tokens, or `most` where a model has positions for fewer."""
    return GenerationConfig(  # type: ignore[no-untyped-call]
        num_beams=BEAMS,
        max_new_tokens=most,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **PLAIN,
    )
