"""What a kind of task needs, and what the kinds of texts with a new head share.

These files load neither PyTorch nor Transformers before a method asks for them: lists of tasks need only the metrics.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase, TrainerCallback

    from ...methods.base import TaskType
    from ...tasks import Task
    from ..data import Data
    from ..models import Processor
    from ..recipe import Recipe, TaskSection
    from ..sections import ModelSection
    from ..trainer import RecipeTrainer

IN_MEMORY, SAMPLE = 20_000, 5_000
"""A training split of more texts is tokenised as it is trained on; of so many of its texts, those cut are counted."""

PLAIN_LENGTH = 512
"""Tokens that a model's texts are cut to where it does not say which it was trained with."""

Loss = Callable[..., "Tensor"]
"""From the model's outputs, the labels, and how many items the whole step has, as `losses.mean_loss`."""


@dataclass(frozen=True)
class TrainedWith:
    """What a model was trained with, as far as it is asked in the same way; None where that is not known.

    Args:
        max_length: tokens; longer texts were cut.
        prompt: the form of questions with options.
    """

    max_length: int | None = None
    prompt: str | None = None


class Kind:
    """A kind of task.

    Attributes:
        name: what `Task.kind` says.
        task_type: PEFT's name for the kind of model; image classifiers have none there.
        auto: the class of Transformers that loads the model.
        architectures: how the names of the models' own classes end.
        load_options: further arguments of its `from_pretrained`.
        pipeline: the tag of a model card.
        inputs: what an example is, `"text"` or `"image"`.
        metrics: those that every task of this kind has; `Task.also` adds to them.
        fields: those of a recipe's task that only some kinds have.
        scores_batches: whether `compute_metrics` takes the outputs on batches as they are trained on.
        scored_at_least: examples that its metrics need.
        scored_tokens: tokens of an example that come on top of its text when it is scored, for plans.
        learned_tokens: tokens of a text that have a loss where not all do, for plans; None where all may have one.
        no_answer: why `predict` has nothing to say.
    """

    name: ClassVar[str]
    task_type: ClassVar[TaskType]
    auto: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]] = ()
    load_options: ClassVar[Mapping[str, Any]] = {}
    pipeline: ClassVar[str]
    inputs: ClassVar[str] = "text"
    metrics: ClassVar[tuple[str, ...]]
    fields: ClassVar[tuple[str, ...]] = ("max_length",)
    scores_batches: ClassVar[bool] = True
    scored_at_least: ClassVar[int] = 1
    scored_tokens: ClassVar[int] = 0
    learned_tokens: ClassVar[int | None] = None
    no_answer: ClassVar[str | None] = None

    # ---------------------------------------------------------------- metrics

    def metric_names(self, task: Task) -> tuple[str, ...]:
        """The keys that `compute_metrics` may have, the main one first."""
        return tuple(dict.fromkeys((task.metric, *task.also, *self.metrics)))

    def validation_metrics(self, task: Task) -> tuple[str, ...]:
        """Those that the scores on validation data have too, by which a study can choose."""
        return self.metric_names(task)

    def compute_metrics(self, task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The metrics of all examples of a split, from what the trainer's prediction steps gave."""
        raise NotImplementedError

    def gap_batch(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch for `merge_gap`, without labels that it should not score; see `scores_batches`."""
        return batch

    def answers_of(self, data: Data, split: str) -> Sequence[int]:
        """Of each example of a split, how many answers there are to guess among; nothing where one does not guess."""
        return ()

    def guessed(self, data: Data, split: str) -> dict[str, float]:
        """The metrics on a split of what takes no model: uniform guessing, where one can guess."""
        from ...tasks.metrics import chance_levels

        return chance_levels(self.answers_of(data, split))

    def most_frequent(self, data: Data, split: str) -> dict[str, float]:
        """The metrics on a split of always answering with the class that most training examples have; nothing where
        there are no classes, or none is much more frequent than others."""
        return {}

    def reported(self, section: TaskSection, task: Task) -> str:
        """The metric that a result is known by."""
        return task.metric

    # ---------------------------------------------------------------- recipe

    def defaults(self, task: Task) -> dict[str, Any]:
        """The fields of a recipe's task that are filled in where it does not give them."""
        return {"max_length": task.max_length}

    def check(self, section: TaskSection, task: Task) -> None:
        """Raise a UserError, which begins with the field, where fields do not fit each other or the task."""

    # ---------------------------------------------------------------- model

    def processor(self, model: ModelSection | str) -> Processor:
        """What makes the inputs of a model: its tokenizer, where nothing else is said.

        Raises:
            UserError: it cannot be loaded.
        """
        from ..models import load_tokenizer

        return load_tokenizer(model)

    def set_head(self, config: Any, labels: Sequence[str]) -> None:
        """Write the head that the task needs into a model's configuration, where it needs a new one."""

    def made(self, config: Any) -> bool:
        """Whether a model's configuration is that of one made for this kind."""
        return any(name.endswith(self.architectures) for name in config.architectures or ())

    # ---------------------------------------------------------------- data and training

    def encode(self, recipe: Recipe, task: Task, processor: Processor, splits: Mapping[str, Any]) -> Data:
        """The examples and how they become batches, without the network.

        Args:
            recipe: of the run.
            task: of the recipe.
            processor: of the model.
            splits: of the task, by name: `datasets.Dataset`; all of them, or a test set alone, to be scored.

        Raises:
            UserError: the data do not fit the recipe.
        """
        raise NotImplementedError

    def with_targets(self, data: Data, recipe: Recipe) -> Data:
        """The data with what is to be learned, where that is not in the data themselves."""
        return data

    def standardised(self, data: Data, model: Any) -> Data:
        """The data with the scale in which a new model is to learn the labels, where that is not their own.

        Args:
            data: of the recipe.
            model: with the head that is going to be trained.
        """
        return data

    def loss(self) -> Loss:
        """The loss of a batch."""
        from ..losses import mean_loss

        return mean_loss

    def trainer(self, data: Data) -> Callable[..., RecipeTrainer]:
        """What trains and scores: takes the arguments of `RecipeTrainer`."""
        from ..trainer import RecipeTrainer

        return RecipeTrainer

    def callbacks(self, data: Data) -> list[TrainerCallback]:
        """Trainer callbacks that the data need."""
        return []

    def before(self, recipe: Recipe, trainer: RecipeTrainer, data: Data) -> dict[str, float]:
        """The metrics of the base model on the first test set, for the result, where it can do the task untrained."""
        return {}

    def samples(self, recipe: Recipe, trainer: RecipeTrainer, data: Data) -> list[dict[str, str]]:
        """A few answers before and after the training, for the result: `prompt`, `expected`, `before`, `after`."""
        return []

    # ---------------------------------------------------------------- prediction

    def keep_exact(self, model: Any) -> None:
        """Let a model that computes in a lower precision give in float32 what needs more digits than it has."""

    def finish_merged(self, model: Any, processor: Processor) -> None:
        """Tell a model that will stand alone what the command knows of it beside its weights."""

    def answers(
        self, model: Any, processor: Processor, texts: Sequence[Any], source: str, trained: TrainedWith
    ) -> list[dict[str, Any]]:
        """What a model says about a batch of texts, or of images by their paths or bytes; see `predict`.

        Args:
            model: in eval mode.
            processor: of the model.
            texts: the batch, also of what `asked` gives.
            source: names the model in errors.
            trained: what the model was trained with.
        """
        raise NotImplementedError

    def check_text(self, given: str, name: str, columns: Mapping[str, Sequence[str]]) -> None:
        """Raise a BadRow for what `answers` cannot take of a command, as `asked` does of a row."""
        from ...tasks.own.columns import text

        text(given, name)

    def named(self, columns: Sequence[str]) -> dict[str, Sequence[str]]:
        """The columns that `predict` is given, by the field of a recipe's task that names such."""
        return {self.inputs: columns}

    def asked(self, row: Mapping[str, Any], columns: Mapping[str, Sequence[str]]) -> Any:
        """What `answers` takes of a row of a file.

        Args:
            row: of the file.
            columns: the user's, by the field of a recipe's task that names them.

        Raises:
            KeyError: the row lacks a column.
            BadRow: there is no text where one is needed, as in training.
        """
        from ...tasks.own.columns import text

        texts = tuple(text(row[name], name) for name in columns.get(self.inputs, (self.inputs,)))
        return texts[0] if len(texts) == 1 else texts

    def located(
        self, row: Mapping[str, Any], columns: Mapping[str, Sequence[str]], folder: Path | None
    ) -> Mapping[str, Any]:
        """A row of a table in a folder, for `asked`: with the paths in it resolved.

        Raises:
            BadRow: there is no such file.
        """
        return row

    def check_asked(self, asked: Any, processor: Processor) -> None:
        """Raise a BadRow for what `asked` gives of a row and the model's processor refuses."""

    def shown(self, answer: Mapping[str, Any]) -> tuple[str, ...]:
        """The cells of an answer's line on the terminal."""
        raise NotImplementedError


class TextKind(Kind):
    """A kind of texts, or pairs of texts, in the columns that the task names, with a `label`."""

    label_dtype: ClassVar[str] = "long"

    def encode(self, recipe: Recipe, task: Task, processor: Processor, splits: Mapping[str, Any]) -> Data:
        import torch

        from ...tasks.vision import class_names
        from ..data import Data, Encoded, Pad, TextsOnDisk, encode

        tokenizer = cast("PreTrainedTokenizerBase", processor)
        assert recipe.task.max_length is not None  # filled in by validation
        max_length = min(recipe.task.max_length, tokenizer.model_max_length)
        labels = task.labels or class_names(next(iter(splits.values())))
        target = functools.partial(self.target, count=len(labels))
        encoded, cut, lengths = {}, {}, {}
        for name, split in splits.items():
            texts = TextsOnDisk(tokenizer, split, task.text_columns, max_length, target)
            many = name == "train" and len(split) > IN_MEMORY
            looked_at = split.select(range(0, len(split), -(-len(split) // SAMPLE))) if many else split
            examples, longer = encode(tokenizer, [looked_at[column] for column in task.text_columns], max_length)
            cut[name] = [sum(longer), len(looked_at)]
            lengths[name] = [len(example["input_ids"]) for example in examples]
            if many:
                encoded[name] = Encoded(texts)
                continue
            for example, label in zip(examples, split["label"], strict=True):
                example["labels"] = target(label)
            if name != "train":  # metrics do not depend on the order, and texts of like length need little padding
                examples.sort(key=lambda example: len(example["input_ids"]))
            encoded[name] = Encoded(examples)
        pad = Pad(tokenizer, getattr(torch, self.label_dtype))
        record = {"cut": {"max_length": max_length, "texts": cut}}
        return Data(task, tokenizer, encoded, pad, labels=labels, record=record, lengths=lengths)

    def target(self, label: Any, count: int) -> Any:
        """What is learned of a label, where there are so many classes."""
        return label


class HeadKind(TextKind):
    """A kind whose model gets a new head, of one output a label."""

    task_type: ClassVar[TaskType] = "SEQ_CLS"
    auto = "AutoModelForSequenceClassification"
    architectures = ("ForSequenceClassification",)
    # a head that was trained on other classes is replaced
    load_options: ClassVar[Mapping[str, Any]] = {"ignore_mismatched_sizes": True}
    pipeline = "text-classification"
    problem_type: ClassVar[str] = "single_label_classification"

    def set_head(self, config: Any, labels: Sequence[str]) -> None:
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        config.problem_type = self.problem_type

    def batch(
        self, processor: Processor, texts: Sequence[Any], trained: TrainedWith
    ) -> tuple[dict[str, Tensor], list[int | None]]:
        """The model's inputs for a batch to predict, and the number of tokens that each was cut to, if it was."""
        from ..data import encode

        tokenizer = cast("PreTrainedTokenizerBase", processor)
        columns = [texts] if isinstance(texts[0], str) else list(zip(*texts, strict=True))  # pairs of texts
        max_length = min(tokenizer.model_max_length, trained.max_length or PLAIN_LENGTH)
        examples, longer = encode(tokenizer, columns, max_length)
        return dict(tokenizer.pad(examples, return_tensors="pt")), [max_length if one else None for one in longer]

    def check_text(self, given: str, name: str, columns: Mapping[str, Sequence[str]]) -> None:
        from ...tasks.own.split import BadRow

        super().check_text(given, name, columns)
        if len(pair := columns.get("text", ())) > 1:
            raise BadRow(
                f"the model takes pairs of texts ({', '.join(pair)}), from the rows of a file, and {name!r} is one"
            )

    def answers(
        self, model: Any, processor: Processor, texts: Sequence[Any], source: str, trained: TrainedWith
    ) -> list[dict[str, Any]]:
        import torch

        from ...finite import check_finite

        device, dtype = next(model.parameters()).device, model.dtype
        inputs, cut = self.batch(processor, texts, trained)
        taken = {
            name: value.to(device, dtype if value.is_floating_point() else value.dtype)  # of images, the pixels
            for name, value in inputs.items()
        }
        with torch.no_grad():
            logits = model(**taken).logits.float()
        names = ("an image" if isinstance(text, bytes) else text for text in texts)
        check_finite(zip(names, logits, strict=True), f"{source} has no answer")
        return [
            {"text": text, **self.answer(row, model.config), **({"cut_at": cut_at} if cut_at else {})}
            for text, row, cut_at in zip(texts, logits, cut, strict=True)
        ]

    def answer(self, logits: Tensor, config: Any) -> dict[str, Any]:
        """What the logits (labels,) of one example say."""
        raise NotImplementedError
