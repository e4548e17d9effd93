"""Questions with choices: a causal language model is trained to answer, and judged by the choice that it finds most
likely."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ...data.metrics import choice_metrics
from ...data.prompts import alpaca
from ...errors import UserError
from .base import Kind, Loss, TrainedWith, as_answers

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from ...data import Task
    from ..data import Data
    from ..model_inputs import Processor
    from ..recipe import Recipe, TaskSection
    from ..trainer import RecipeTrainer


WRITTEN = ("accuracy_generated", "unanswered")
"""Metrics of what the model writes; on test data alone, where they are asked for."""


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question and its options, with the place of each among all that are given, blank ones too."""

    text: str
    options: Sequence[str]
    places: Sequence[int]


class MultipleChoice(Kind):
    """Columns `prompt`, `choices` and `label`; cross-entropy of the next token."""

    name = "multiple-choice"
    task_type = "CAUSAL_LM"
    auto = "AutoModelForCausalLM"
    architectures = ("ForCausalLM", "LMHeadModel")
    pipeline = "text-generation"
    metrics = ("accuracy", "accuracy_norm", "nll", "nll_norm", *WRITTEN)
    fields = ("max_length", "prompt", "scorer", "loss_on")
    scores_batches = False
    has_choices = True
    scored_tokens = 18
    learned_tokens = 8

    def compute_metrics(self, task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return choice_metrics(predictions, labels)

    def answers_of(self, data: Data, split: str) -> Sequence[int]:
        examples = data.splits[split]
        return [len(examples[place]["choices"]) for place in range(len(examples))]

    def reported(self, section: TaskSection, task: Task) -> str:
        return "accuracy_generated" if section.scorer == "generated" else task.metric

    def defaults(self, task: Task) -> dict[str, Any]:
        return {**super().defaults(task), "prompt": task.prompt_forms[0], "scorer": "choices", "loss_on": "all"}

    def validation_metrics(self, task: Task) -> tuple[str, ...]:
        return tuple(name for name in self.metric_names(task) if name not in WRITTEN)

    def check(self, section: TaskSection, task: Task) -> None:
        if section.prompt not in task.prompt_forms:
            allowed = ", ".join(map(repr, task.prompt_forms))
            raise UserError(
                f"prompt: {section.prompt!r} is not a form of the prompts of {task.name} (allowed: {allowed})"
            )
        if section.scorer == "generated" and section.prompt == "cloze":
            raise UserError("scorer: 'generated' needs prompt: instruction, whose answers can be found in a text")

    def encode(self, recipe: Recipe, task: Task, processor: Processor, splits: Mapping[str, Any]) -> Data:
        from ..choices import Questions, TrainingText, check_room, encode_questions
        from ..data import Data, Encoded

        section, tokenizer = recipe.task, cast("PreTrainedTokenizerBase", processor)
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
            cut[name] = [sum(length > max_length for length in trained), len(examples)]
            tokens[name] = [min(length, max_length if name == "train" else longest) for length in trained]
            if name != "train":
                examples.sort(key=lambda example: len(example["prompt"]))
            encoded[name] = Encoded(examples)
        max_choices = max(len(one["choices"]) for split in encoded.values() for one in split.examples)
        collate, questions = TrainingText(tokenizer, max_length, section.loss_on), Questions(tokenizer, max_choices)
        # others are scored whole
        record = {"cut": {"max_length": max_length, "texts": {name: cut[name] for name in cut if name == "train"}}}
        return Data(task, tokenizer, encoded, collate, questions, task.labels, record=record, lengths=tokens)

    def loss(self) -> Loss:
        from ..choices import next_token_loss

        return next_token_loss

    def trainer(self, data: Data) -> Callable[..., RecipeTrainer]:
        from ..choice_trainer import ChoiceTrainer

        assert data.questions is not None
        return functools.partial(ChoiceTrainer, questions=data.questions)

    def named(self, columns: Sequence[str]) -> dict[str, Sequence[str]]:
        """The question, and the options after it."""
        return {"question": columns[:1], **({"options": columns[1:]} if columns[1:] else {})}

    def asked(self, row: Mapping[str, Any], columns: Mapping[str, Sequence[str]]) -> Any:
        """A `ChoiceQuestion`; where no column has options, a text that is answered freely, as an instruction."""
        from ...data.own import columns as cells
        from ...data.own.options import options_of

        options = columns.get("options", ("options",) if "options" in row else ())
        (question,) = columns.get("question", ("question" if "question" in row else "text",))
        text = cells.text(row[question], question)
        if not options:
            return text
        found = options_of(row[options[0]] if len(options) == 1 else [row[name] for name in options])
        return ChoiceQuestion(text, found.texts, found.places)

    def answers(
        self, model: Any, processor: Processor, texts: Sequence[Any], source: str, trained: TrainedWith
    ) -> list[dict[str, Any]]:
        from ..choices import answers_by_beam_search

        tokenizer = cast("PreTrainedTokenizerBase", processor)
        if isinstance(texts[0], ChoiceQuestion):
            return self._chosen(model, tokenizer, texts, source, trained)
        written, cut = answers_by_beam_search(model, tokenizer, [alpaca(text) for text in texts])
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
        import torch

        from ...data.bigbench import FORMS
        from ...data.prompts import QUESTION_FORMS
        from ...finite import check_finite
        from ..choices import Questions, choice_scores, encode_questions
        from ..model_inputs import most_tokens

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
        batch = collate(examples)
        batch = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
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

    def shown(self, answer: Mapping[str, Any]) -> tuple[str, ...]:
        return answer["answer"], "", answer["text"]


MULTIPLE_CHOICE = MultipleChoice()
