"""Questions with choices: a causal language model is trained to answer, and judged by the choice that it finds most
likely."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from transformers import GenerationConfig, PreTrainedTokenizerBase, Trainer

from ...data.metrics import choice_metrics
from ...data.own import columns as cells
from ...data.own.choices import options_of
from ...data.packaged import FORMS
from ...data.prompts import QUESTION_FORMS, RESPONSE, alpaca, key_of, parse_answer
from ...deploy.inputs import IGNORED, plain_model
from ...errors import UserError
from ...temporary_attributes import temporary_attributes
from ...values import check_finite
from ..data import Data, Example, open_ended, padded
from ..kind_facts import MULTIPLE_CHOICE, TrainedWith
from ..models import Processor, cached_width, most_tokens
from ..recipe import Recipe, TaskSection
from ..trainer import Arguments, RecipeTrainer
from .chat import PLAIN, answers_greedily, written_after
from .text import Kind, as_answers

BEAMS, NEW_TOKENS = 4, 32
"""LLM-Adapters' generation."""
LOGITS = 2**28
"""Logits that an evaluation computes at once, at most: a batch that has more is scored in parts."""
CACHED = 2**30
"""Numbers in the keys and values that an evaluation keeps at once, at most, likewise."""


# ---------------------------------------------------------------- questions as tokens


def encode_questions(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], choices: Sequence[Sequence[str]], labels: Sequence[int]
) -> list[Example]:
    """Token ids of questions: `prompt`, `choices`, the characters of these (`lengths`), their `keys`, and `label`.

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
        lengths, keys = [len(choice) for choice in some], [key_of(choice) for choice in some]
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
        texts, targets = [], []
        for example in examples:
            answer = [*example["choices"][example["label"]], self.padding.eos_token_id]
            bos, room = self.padding.bos_token_id, self.max_length - len(answer)
            prompt = cut_left(example["prompt"], room, bos, "task.max_length")
            texts.append(prompt + answer)
            learned = [IGNORED] * len(prompt) if self.loss_on == "answer" else prompt
            # The first token is predicted from nothing: it has no loss.
            targets.append([IGNORED, *(learned + answer)[1:]])
        ids, mask = padded(texts, self.padding.pad_token_id)
        return {"input_ids": ids, "attention_mask": mask, "labels": padded(targets, IGNORED)[0]}


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
        prompts = []
        for one in examples:
            answer, limit = max(self.room, *map(len, one["choices"])), f"the model's length of {self.limit} tokens"
            prompts.append(cut_left(one["prompt"], self.limit - answer, self.padding.bos_token_id, limit))
        choices = [ids for one in examples for ids in one["choices"]]
        places = [(row, column) for row, one in enumerate(examples) for column in range(len(one["choices"]))]
        prompt_ids, prompt_mask = padded(prompts, self.padding.pad_token_id, left=True)
        choice_ids, choice_mask = padded(choices, self.padding.pad_token_id)
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
    """Raise a UserError where an answer of so many tokens leaves no room for its prompt within a length, before hours
    of training; `limit` is what allows no more, and `where` the question stands."""
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


# ---------------------------------------------------------------- scores


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
    question, column = batch["places"].unbind(1)
    scores = torch.full((len(prompt), max_choices, 2), -torch.inf, device=prompt.device)
    for start in range(0, len(prompt), len(prompt) if whole else size):
        own = (question >= start) & (question < start + size) if not whole else torch.ones_like(question).bool()
        rows = slice(start, None if whole else start + size)
        choices, mask = batch["choice_ids"][own], batch["choice_mask"][own]
        logits = _choice_logits(
            model, prompt[rows], batch["prompt_mask"][rows], choices, mask, question[own] - start
        ).float()
        nll = cross_entropy(logits.flatten(0, 1), choices.flatten(), reduction="none").view_as(choices)
        total = -(nll * mask).sum(1)
        scores[question[own], column[own]] = torch.stack((total, total / batch["lengths"][own]), dim=1)
    return scores


def questions_at_once(config: Any, choices: int, prompt: int, choice: int) -> int:
    """How many questions a language model is given at once, by `LOGITS` and `CACHED`, one at least: each has at most so
    many choices, of so many tokens after so many of the prompt."""
    logits = choices * choice * getattr(config, "vocab_size", 1)
    cached = choices * (prompt + choice) * cached_width(config)
    return max(1, min(LOGITS // logits, CACHED // cached))


def _choice_logits(
    model: nn.Module, prompt: Tensor, prompt_mask: Tensor, choices: Tensor, choice_mask: Tensor, rows: Tensor
) -> Tensor:
    """The logits that foretell each token of each choice, (m, tokens, vocabulary); `rows` are their prompts."""
    whole, last = torch.cat((prompt_mask[rows], choice_mask), dim=1), prompt.shape[1] - 1
    first, cache = _forward(model, prompt, prompt_mask, torch.tensor([last], device=prompt.device), use_cache=True)
    layers = getattr(cache, "layers", None)
    if layers is not None and not any(hasattr(layer, "conv_states") for layer in layers):
        cache.batch_select_indices(rows)
        further, _ = _forward(model, choices, whole, past_key_values=cache, use_cache=True)
        # Position t predicts token t + 1; the first token of a choice comes from the prompt's last position.
        return torch.cat((first[rows], further[:, :-1]), dim=1)
    # what convolutions or linear attention keep of a prompt cannot be handed to each of several choices
    wanted = torch.arange(choices.shape[1], device=choices.device) + last
    return _forward(model, torch.cat((prompt[rows], choices), dim=1), whole, wanted, use_cache=False)[0]


def _forward(
    model: nn.Module, ids: Tensor, mask: Tensor, wanted: Tensor | None = None, **more: Any
) -> tuple[Tensor, Any]:
    """The logits at the wanted places, and the cache; the mask covers what is cached before the ids, too."""
    takes = inspect.signature(plain_model(model).forward).parameters
    if "position_ids" in takes:
        more["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    picks = wanted is not None and "logits_to_keep" in takes
    if picks:  # by index: the slice that Transformers takes for 1 is not contiguous, and a CPU is far slower on it
        more["logits_to_keep"] = wanted
    output = model(input_ids=ids, attention_mask=mask, **more)
    logits: Tensor = output.logits if picks or wanted is None else output.logits[:, wanted]
    return logits, getattr(output, "past_key_values", None)


# ---------------------------------------------------------------- what the model writes


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
        answer = parse_answer(RESPONSE + text.strip(), *keys)
        if answer in keys:
            chosen[row, keys.index(answer)] = 1
    return chosen


def _generation(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """LLM-Adapters': 4 beams, at most 32 new tokens."""
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    beams: dict[str, Any] = {"num_beams": BEAMS, "max_new_tokens": NEW_TOKENS, "do_sample": False}
    return GenerationConfig(**beams, **ids, **PLAIN)  # type: ignore[no-untyped-call]


# ---------------------------------------------------------------- the kind


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question and its options, with the place of each among all that are given, blank ones too."""

    text: str
    options: Sequence[str]
    places: Sequence[int]


class MultipleChoice(Kind):
    """Columns `prompt`, `choices` and `label`; cross-entropy of the next token."""

    facts = MULTIPLE_CHOICE

    def metrics(self, data: Data, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return choice_metrics(predictions, labels)

    def options(self, data: Data, split: str) -> Sequence[Sequence[str]]:
        """The options' keys in the prompt, or their texts."""
        tokenizer, examples = cast(Any, data.processor), cast(Sequence[Example], data.splits[split])
        return [
            [key or tokenizer.decode(ids).strip() for key, ids in zip(one["keys"], one["choices"], strict=True)]
            for one in examples
        ]

    def by_option(self, predictions: np.ndarray) -> np.ndarray:
        return predictions[:, :, 0]

    def example(self, data: Data, split: str, place: int) -> str:
        """The prompt."""
        return str(cast(Any, data.processor).decode(data.splits[split][place]["prompt"], skip_special_tokens=True))

    def reported(self, section: TaskSection) -> str:
        return "accuracy_generated" if section.scorer == "generated" else super().reported(section)

    def encode(self, recipe: Recipe, processor: Processor, splits: Mapping[str, Any]) -> Data:
        section, task, tokenizer = recipe.task, recipe.task.definition, cast(PreTrainedTokenizerBase, processor)
        assert section.max_length is not None  # filled in by validation
        assert section.loss_on is not None
        encoded, cut, tokens = {}, {}, {}
        longest = tokenizer.model_max_length
        max_length = min(section.max_length, longest)
        for name, split in splits.items():
            examples = encode_questions(tokenizer, split["prompt"], split["choices"], split["label"])
            rows = split["row"] if "row" in split.column_names else range(1, len(examples) + 1)
            for row, one in zip(rows, examples, strict=True):
                where = row if isinstance(row, str) else f"{task.name}, question {row} of {name}"
                lengths = list(map(len, one["choices"]))
                if name == "train":
                    limit = f"task.max_length: {max_length}"
                    check_room(one["prompt"], lengths[one["label"]] + 1, max_length, limit, where)
                check_room(one["prompt"], max(lengths), longest, f"the model's length of {longest} tokens", where)
            trained = [len(one["prompt"]) + len(one["choices"][one["label"]]) + 1 for one in examples]
            if name == "train":  # others are scored whole
                cut[name] = [sum(length > max_length for length in trained), len(examples)]
            else:
                examples.sort(key=lambda example: len(example["prompt"]))
            tokens[name] = [min(length, max_length if name == "train" else longest) for length in trained]
            encoded[name] = examples
        max_choices = max(len(one["choices"]) for split in encoded.values() for one in split)
        collate, questions = TrainingText(tokenizer, max_length, section.loss_on), Questions(tokenizer, max_choices)
        record = {"cut": {"max_length": max_length, "texts": cut}}
        return Data(task, tokenizer, encoded, collate, questions, task.labels, record=record, lengths=tokens)

    def trainer(self, recipe: Recipe, data: Data, arguments: dict[str, Any], **given: Any) -> Trainer:
        given |= {"args": Arguments(**arguments), **self.of_data(data)}
        return ChoiceTrainer(recipe, cast(Questions, data.scored), **given)

    def evaluate(self, trainer: Trainer, data: Data, split: str) -> dict[str, float]:
        choices, section = cast(ChoiceTrainer, trainer), cast(ChoiceTrainer, trainer).recipe.task
        choices.generate = section.scorer == "generated" and split in (section.test_sets or ())
        return super().evaluate(trainer, data, split)

    def asked(self, row: Mapping[str, Any], columns: Mapping[str, Sequence[str]], folder: Path | None = None) -> Any:
        """A `ChoiceQuestion`; where no column has options, a text that is answered freely, as an instruction."""
        (question,) = columns.get("question", ("question" if "question" in row else "text",))
        options = columns.get("options", ("options",) if "options" in row else ())
        text = cells.text(row[question], question)
        if not options:
            return text
        found = options_of(row[options[0]] if len(options) == 1 else [row[name] for name in options])
        return ChoiceQuestion(text, found.texts, found.places)

    def answers(
        self, model: Any, processor: Processor, texts: Sequence[Any], source: str, trained: TrainedWith
    ) -> list[dict[str, Any]]:
        tokenizer = cast(PreTrainedTokenizerBase, processor)
        if isinstance(texts[0], ChoiceQuestion):
            return self._chosen(model, tokenizer, texts, source, trained)
        written, cut = answers_greedily(model, tokenizer, [alpaca(text) for text in texts])
        return as_answers(texts, ({"answer": answer} for answer in written), cut)

    def _chosen(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        asked: Sequence[ChoiceQuestion],
        source: str,
        trained: TrainedWith,
    ) -> list[dict[str, Any]]:
        """The likeliest option of each question, as it is scored in training."""
        name = trained.prompt or "cloze"
        own = FORMS.get(trained.task or "", QUESTION_FORMS)[name]

        def prompted(one: ChoiceQuestion) -> tuple[str, list[str]]:
            try:
                return own(one.text, list(one.options))
            except (UserError, ValueError):  # options that the task never has
                return QUESTION_FORMS[name](one.text, list(one.options))

        prompts, choices = zip(*map(prompted, asked), strict=True)
        examples = encode_questions(tokenizer, prompts, choices, [0] * len(asked))
        most = max(map(len, choices))
        collate, device = Questions(tokenizer, most, most_tokens(model)), next(model.parameters()).device
        batch = {name: one.to(device) if isinstance(one, Tensor) else one for name, one in collate(examples).items()}
        with torch.no_grad():
            scores = choice_scores(model, batch, most)[:, :, 0]
        found = [row[: len(one.options)] for row, one in zip(scores, asked, strict=True)]
        check_finite(zip((one.text for one in asked), found, strict=True), f"{source} has no answer")
        said: list[dict[str, Any]] = []
        cut = []
        for one, row, example in zip(asked, found, examples, strict=True):
            best = int(row.argmax())
            by_place = dict(zip(one.places, row.tolist(), strict=True))
            by_option = [by_place.get(place) for place in range(max(one.places) + 1)]
            said.append({"answer": one.options[best], "index": one.places[best], "scores": by_option})
            is_cut = len(example["prompt"]) + max(map(len, example["choices"])) > collate.limit
            cut.append(collate.limit if is_cut else None)
        return as_answers([one.text for one in asked], said, cut)


class ChoiceTrainer(RecipeTrainer):
    """The trainer of `aurora train` for questions with choices.

    Args:
        recipe: of the run.
        kwargs: as in `RecipeTrainer`; the data collator is the one for training.
        questions: the collator for evaluation.
    """

    def __init__(self, recipe: Recipe, questions: Questions, **kwargs: Any) -> None:
        super().__init__(recipe, **kwargs)
        self.questions = questions
        self.generate = False
        """Whether evaluations also let the model write its answer, which takes many times as long."""

    def get_eval_dataloader(self, eval_dataset: str | Dataset[Any] | None = None) -> DataLoader[Any]:
        room = NEW_TOKENS if self.generate else 0
        questions = replace(self.questions, positions=most_tokens(cast(nn.Module, self.model)), room=room)
        with temporary_attributes([self], data_collator=questions):
            loader: DataLoader[Any] = super().get_eval_dataloader(eval_dataset)
        return loader

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """No loss; scores of the choices, (batch, choices, 2 or 3), see `choice_metrics`; and the right ones."""
        most = self.questions.max_choices
        with torch.no_grad(), self.accelerator.autocast():
            scores = choice_scores(model, inputs, most, whole=self.is_sharded)
            if self.generate:
                written = generated_choices(self.accelerator.unwrap_model(model), inputs, most, self.questions.padding)
                scores = torch.cat((scores, written), dim=-1)
        return None, scores, inputs["labels"]
