"""What a kind of task does: one object that owns encoding, trainer, metrics and prediction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from ...data.metrics import chance_levels
from ...data.own.columns import text as text_in
from ..data import Data
from ..kind_facts import Facts, TrainedWith
from ..models import Processor, computing, load_tokenizer
from ..recipe import ModelSection, Recipe, TaskSection
from ..trainer import Arguments, RecipeTrainer


class Kind:
    """A kind of task; unless a class says otherwise, of texts, whose labels the model's own loss takes.

    Attributes:
        facts: what is known of the kind without loading anything.
    """

    facts: ClassVar[Facts]

    def made(self, config: Any) -> bool:
        """Whether a model's configuration is that of one made for this kind."""
        return any(name.endswith(self.facts.architectures) for name in config.architectures or ())

    # ---------------------------------------------------------------- data and training

    def processor(self, model: ModelSection | str) -> Processor:
        """What makes the inputs of a model: its tokenizer, where nothing else is said; a UserError without it."""
        return load_tokenizer(model)

    def encode(self, recipe: Recipe, processor: Processor, splits: Mapping[str, Any]) -> Data:
        """The examples and how they become batches, without the network.

        Args:
            recipe: of the run.
            processor: of the model.
            splits: of the task, by name: `datasets.Dataset`; all of them, or a test set alone, to be scored.

        Raises:
            UserError: the data do not fit the recipe.
        """
        raise NotImplementedError

    def targets(self, data: Data, recipe: Recipe) -> Data:
        """The data with what is to be learned, where that is not in the data themselves."""
        return data

    def scaled(self, data: Data, base: nn.Module) -> Data:
        """The data with labels in the scale in which a new model is to learn them, where that is not their own."""
        return data

    def trainer(
        self,
        recipe: Recipe,
        model: nn.Module,
        data: Data,
        arguments: dict[str, Any],
        callbacks: Sequence[TrainerCallback],
    ) -> Trainer:
        """What trains and scores a model with the method applied to it, by arguments of `TrainingArguments`; where one
        split alone is scored, Trainer gets that for the others."""
        return RecipeTrainer(recipe, **self.trainer_options(model, data, arguments, callbacks))

    def trainer_options(
        self, model: nn.Module, data: Data, arguments: dict[str, Any], callbacks: Sequence[TrainerCallback]
    ) -> dict[str, Any]:
        """The arguments of a Trainer."""
        some = next(iter(data.splits.values()))
        return {
            "model": model,
            "args": Arguments(**arguments),
            "train_dataset": data.splits.get("train", some),
            "eval_dataset": data.splits.get("validation", some),
            "data_collator": data.collate,
            "compute_metrics": lambda scored: self.metrics(data, scored.predictions, scored.label_ids),
            "callbacks": list(callbacks),
        }

    def loss(self, recipe: Recipe, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of a model on a batch, outside of training, in the precision of the recipe."""
        device = next(model.parameters()).device
        with computing(recipe, device):
            return self.own_loss(model, {name: value.to(device) for name, value in batch.items()})

    def own_loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of a model on a batch: what the model itself says."""
        found: Tensor = model(**batch).loss
        return found

    def keep_exact(self, model: Any) -> None:
        """Let a model that computes in a lower precision give in float32 what needs more digits than it has."""

    def finish(self, model: nn.Module, data: Data) -> None:
        """Change a trained and scored model for the labels' own scale, where it learned another."""

    def finish_merged(self, folder: Path, model: Any, processor: Processor) -> None:
        """Write what the command knows of a model, beside its weights, into the folder that it was merged into."""

    # ---------------------------------------------------------------- scores

    def metrics(self, data: Data, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The metrics of all examples of a split, from what the trainer's prediction steps gave."""
        raise NotImplementedError

    def evaluate(self, trainer: Trainer, data: Data, split: str) -> dict[str, float]:
        """The metrics on a split of the form that the model computes."""
        found = trainer.evaluate(data.fixed(split), metric_key_prefix=split)  # type: ignore[arg-type]
        named = {name.removeprefix(f"{split}_"): value for name, value in found.items()}
        return {name: named[name] for name in self.facts.metric_names(data.task) if name in named}

    def gap_batch(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch for `merge_gap`, without labels that it should not score; see `Facts.scores_batches`."""
        return batch

    def guessed(self, data: Data, split: str) -> dict[str, float]:
        """The metrics on a split of what takes no model: uniform guessing, where one can guess."""
        return chance_levels(self.answers_of(data, split))

    def answers_of(self, data: Data, split: str) -> Sequence[int]:
        """How many answers there are to guess among for each example of a split; nothing where one does not guess."""
        return ()

    def most_frequent(self, data: Data, split: str) -> dict[str, float]:
        """The metrics on a split of always answering with the class that most training examples have; nothing where
        there are no classes, or none is much more frequent than others."""
        return {}

    def reported(self, section: TaskSection) -> str:
        """The metric that a result is known by."""
        return section.definition.metric

    def before(self, recipe: Recipe, trainer: Any, data: Data) -> dict[str, float]:
        """The metrics of the base model on the first test set, for the result, where it can do the task untrained."""
        return {}

    # ---------------------------------------------------------------- prediction

    def answers(
        self, model: Any, processor: Processor, texts: Sequence[Any], source: str, trained: TrainedWith
    ) -> list[dict[str, Any]]:
        """What a model in eval mode says about a batch of texts, of images by their paths or bytes, or of what `asked`
        gives; see `predict`. `source` names the model in errors."""
        raise NotImplementedError

    def asked(self, row: Mapping[str, Any], columns: Mapping[str, Sequence[str]], folder: Path | None = None) -> Any:
        """What `answers` takes of a row of a file.

        Args:
            row: of the file.
            columns: the user's, by the field of a recipe's task that names them, or by `Facts.inputs`.
            folder: of the file, where paths in it are looked for.

        Raises:
            KeyError: the row lacks a column.
            BadRow: there is no text where one is needed, as in training.
        """
        texts = tuple(text_in(row[name], name) for name in columns.get("text", ("text",)))
        return texts[0] if len(texts) == 1 else texts

    def shown(self, answer: Mapping[str, Any]) -> tuple[str, ...]:
        """The cells of an answer's line on the terminal."""
        return answer["answer"], "", str(answer["text"])


def as_answers(
    texts: Sequence[Any], said: Iterable[Mapping[str, Any]], cut: Sequence[int | None]
) -> list[dict[str, Any]]:
    """What `Kind.answers` gives: what the model says of each text, and the tokens that it was cut to, if it was."""
    return [
        {"text": text, **one, **({} if cut_at is None else {"cut_at": cut_at})}
        for text, one, cut_at in zip(texts, said, cut, strict=True)
    ]
