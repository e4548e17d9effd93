"""What the kinds of texts share, and those with a new head."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from .base import Kind, TrainedWith, as_answers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ...data import Task
    from ...methods.base import TaskType
    from ..data import Data
    from ..model_inputs import Processor
    from ..recipe import Recipe

IN_MEMORY, SAMPLE = 20_000, 5_000
"""A training split of more texts is tokenised as it is trained on; of so many of its texts, those cut are counted."""

PLAIN_LENGTH = 512
"""Tokens that a model's texts are cut to where it does not say which it was trained with."""


class TextKind(Kind):
    """A kind of texts, or pairs of texts, in the columns that the task names, with a `label`."""

    label_dtype: ClassVar[str] = "long"

    def encode(self, recipe: Recipe, task: Task, processor: Processor, splits: Mapping[str, Any]) -> Data:
        import torch

        from ...data.vision import class_names
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
        pad = Pad(tokenizer, getattr(torch, self.dtype_of(task)))
        record = {"cut": {"max_length": max_length, "texts": cut}}
        return Data(task, tokenizer, encoded, pad, labels=labels, record=record, lengths=lengths)

    def dtype_of(self, task: Task) -> str:
        """The dtype of the labels of a batch."""
        return self.label_dtype

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
        from ...data.own.split import BadRow

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
            logits = model(**taken).logits.float().cpu()  # at once: each answer asks for several of its numbers
        names = ("an image" if isinstance(text, bytes) else text for text in texts)
        check_finite(zip(names, logits, strict=True), f"{source} has no answer")
        return as_answers(texts, (self.answer(row, model.config) for row in logits), cut)

    def answer(self, logits: Tensor, config: Any) -> dict[str, Any]:
        """What the logits (labels,) of one example say."""
        raise NotImplementedError
