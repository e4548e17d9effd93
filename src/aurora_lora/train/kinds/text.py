"""What a kind of task does, one object that owns encoding, trainer, metrics and prediction; and the kinds of texts, or
pairs of texts, with one label each, several, or a number."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, Trainer

from ...data.metrics import chance_levels, classification_metrics, multi_label_metrics, regression_metrics
from ...data.own.columns import text as text_in
from ...data.vision import class_names
from ...deploy.inputs import plain_model
from ...methods.parameters import head_modules
from ...values import check_finite
from ..data import Data, Texts, encode
from ..kind_facts import CLASSIFICATION, MULTI_LABEL, REGRESSION, Facts, TrainedWith
from ..models import Processor, computing, load_tokenizer
from ..recipe import ModelSection, Recipe, TaskSection
from ..trainer import Arguments, RecipeTrainer

SAMPLE = 5_000
"""Of so many texts of a split, at most, those that are cut are counted."""
PLAIN_LENGTH = 512
"""Tokens that a model's texts are cut to where it does not say which it was trained with."""
UNEVEN = 1.2
"""How many times its even share of the training examples the most frequent class has at least, for a score of its own:
below, that says no more than uniform guessing."""
AS_THEY_ARE = "as they are; the model's head ends in no layer that could hold them"
"""How labels are trained that no head can give standardised."""


class Kind:
    """A kind of task; unless a class says otherwise, of texts, or pairs of texts, in the columns that the task names,
    whose `label` the model's own loss takes.

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
        tokenizer, task = cast(PreTrainedTokenizerBase, processor), recipe.task.definition
        assert recipe.task.max_length is not None  # filled in by validation
        max_length = min(recipe.task.max_length, tokenizer.model_max_length)
        labels = task.labels or class_names(next(iter(splits.values())))
        target = functools.partial(self.target, count=len(labels))
        encoded, cut, lengths = {}, {}, {}
        for name, split in splits.items():
            looked_at = split.select(range(0, len(split), math.ceil(len(split) / SAMPLE)))
            examples, longer = encode(tokenizer, [looked_at[column] for column in task.text_columns], max_length)
            cut[name] = [sum(longer), len(looked_at)]
            lengths[name] = [len(example["input_ids"]) for example in examples]
            if name != "train":  # metrics do not depend on the order, and texts of like length need little padding
                texts = zip(*(split[column] for column in task.text_columns), strict=True)
                split = split.select(np.argsort([sum(map(len, some)) for some in texts], kind="stable"))
            encoded[name] = Texts(tokenizer, split, task.text_columns, max_length, target)
        record = {"cut": {"max_length": max_length, "texts": cut}}
        collate = cast(Any, DataCollatorWithPadding(tokenizer))
        return Data(task, tokenizer, encoded, collate, labels=labels, record=record, lengths=lengths)

    def target(self, label: Any, count: int) -> Any:
        """What is learned of a label, where there are so many classes."""
        return label

    def targets(self, data: Data, recipe: Recipe) -> Data:
        """The data with what is to be learned, where that is not in the data themselves."""
        return data

    def scaled(self, data: Data, base: nn.Module) -> Data:
        """The data with labels in the scale in which a new model is to learn them, where that is not their own."""
        return data

    def trainer(self, recipe: Recipe, data: Data, arguments: dict[str, Any], **given: Any) -> Trainer:
        """What trains and scores a model with the method applied to it, `given` with its callbacks, by arguments of
        `TrainingArguments`."""
        return RecipeTrainer(recipe, args=Arguments(**arguments), **self.of_data(data), **given)

    def of_data(self, data: Data) -> dict[str, Any]:
        """What a Trainer is told of the data; where one split alone is scored, it gets that for the others."""
        some = next(iter(data.splits.values()))
        return {
            "train_dataset": data.splits.get("train", some),
            "eval_dataset": data.splits.get("validation", some),
            "data_collator": data.collate,
            "compute_metrics": lambda scored: self.metrics(data, scored.predictions, scored.label_ids),
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
        return chance_levels([len(some) for some in self.options(data, split)])

    def options(self, data: Data, split: str) -> Sequence[Sequence[str]]:
        """The names of the answers that there are for each example of a split; nothing where they have no names."""
        return ()

    def by_option(self, predictions: np.ndarray) -> np.ndarray:
        """The logits (examples, options) in what the trainer's prediction steps gave."""
        return predictions

    def example(self, data: Data, split: str, place: int) -> str:
        """An example of a split, for people."""
        row = cast(Texts, data.fixed(split)).data[place]
        return "\n".join(row[column] for column in data.task.text_columns)

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


# ---------------------------------------------------------------- texts with labels


class HeadKind(Kind):
    """A kind whose model gets a new head, of one output a label."""

    def batch(
        self, processor: Processor, texts: Sequence[Any], trained: TrainedWith
    ) -> tuple[dict[str, Tensor], list[int | None]]:
        """The model's inputs for a batch to predict, and the number of tokens that each was cut to, if it was."""
        tokenizer = cast(PreTrainedTokenizerBase, processor)
        columns = [texts] if isinstance(texts[0], str) else list(zip(*texts, strict=True))  # pairs of texts
        max_length = min(tokenizer.model_max_length, trained.max_length or PLAIN_LENGTH)
        examples, longer = encode(tokenizer, columns, max_length)
        return dict(tokenizer.pad(examples, return_tensors="pt")), [max_length if one else None for one in longer]

    def answers(
        self, model: Any, processor: Processor, texts: Sequence[Any], source: str, trained: TrainedWith
    ) -> list[dict[str, Any]]:
        inputs, cut = self.batch(processor, texts, trained)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        with torch.no_grad():  # on the CPU at once: each answer asks for several of its numbers
            logits = model(**{name: value.to(model.device) for name, value in inputs.items()}).logits.float().cpu()
        names = ("an image" if isinstance(text, bytes) else text for text in texts)
        check_finite(zip(names, logits, strict=True), f"{source} has no answer")
        return as_answers(texts, (self.answer(row, model.config) for row in logits), cut)

    def answer(self, logits: Tensor, config: Any) -> dict[str, Any]:
        """What the logits (labels,) of one example say."""
        raise NotImplementedError


class WeightedTrainer(RecipeTrainer):
    """`RecipeTrainer` with a weight (classes,) for the cross-entropy of each example, by its label."""

    weights: Tensor

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *args: Any, **kwargs: Any) -> Any:
        outputs, labels = model(**inputs), inputs["labels"]
        losses = cross_entropy(outputs.logits.float(), labels, self.weights.to(labels.device), reduction="none")
        return (losses.mean(), outputs) if return_outputs else losses.mean()


class Classification(HeadKind):
    """Integer labels; cross-entropy."""

    facts = CLASSIFICATION

    def trainer(self, recipe: Recipe, data: Data, arguments: dict[str, Any], **given: Any) -> Trainer:
        if recipe.training.class_weights is None:
            return super().trainer(recipe, data, arguments, **given)
        trainer = WeightedTrainer(recipe, args=Arguments(**arguments), **self.of_data(data), **given)
        labels = cast(Any, trainer.train_dataset).targets()
        there, trainer.weights = np.unique(labels), torch.ones(len(data.labels))  # which not all may have an example of
        trainer.weights[there] = torch.tensor(compute_class_weight("balanced", classes=there, y=labels)).float()
        return trainer

    def metrics(self, data: Data, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return classification_metrics(predictions, labels, also=data.task.also)

    def options(self, data: Data, split: str) -> Sequence[Sequence[str]]:
        return [data.labels] * len(data.splits[split]) if data.labels else ()

    def most_frequent(self, data: Data, split: str) -> dict[str, float]:
        train, scored = (cast(Any, data.fixed(name)).targets() for name in ("train", split))
        (label, count), *_ = Counter(train).most_common(1)
        if count * len(data.labels) < UNEVEN * len(train):
            return {}
        always = np.zeros((len(scored), len(data.labels)))
        always[:, label] = 1
        found = self.metrics(data, always, np.asarray(scored))
        return {name: value for name, value in found.items() if name != "nll"}  # it has no probabilities

    def answer(self, logits: Tensor, config: Any) -> dict[str, Any]:
        probability, index = logits.softmax(-1).max(-1)
        return {"label": config.id2label[int(index)], "probability": probability.item()}

    def shown(self, answer: Mapping[str, Any]) -> tuple[str, ...]:
        return answer["label"], f"{100 * answer['probability']:.1f}%", answer["text"]


class MultiLabel(HeadKind):
    """Lists of integers as labels; binary cross-entropy of each label."""

    facts = MULTI_LABEL

    def made(self, config: Any) -> bool:
        return super().made(config) and config.problem_type == self.facts.problem_type

    def target(self, label: Any, count: int) -> Any:
        return [float(place in label) for place in range(count)]

    def metrics(self, data: Data, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return multi_label_metrics(predictions, labels)

    def answer(self, logits: Tensor, config: Any) -> dict[str, Any]:
        found = {config.id2label[place]: one for place, one in enumerate(logits.sigmoid().tolist())}
        labels = sorted((name for name, one in found.items() if one > 0.5), key=lambda name: -found[name])
        return {"labels": labels, "probabilities": found}

    def shown(self, answer: Mapping[str, Any]) -> tuple[str, ...]:
        return ", ".join(answer["labels"]) or "none", "", answer["text"]


class Regression(HeadKind):
    """Numbers as labels; squared error, of standardised numbers where the task says so.

    AdamW moves a weight by about the learning rate a step, so that it never reaches a price or a year: the model learns
    (label - mean) / deviation, and its head gets the scale when it is trained.
    """

    facts = REGRESSION

    def made(self, config: Any) -> bool:
        return super().made(config) and config.num_labels == 1

    def target(self, label: Any, count: int) -> Any:
        return float(label)

    def scaled(self, data: Data, base: nn.Module) -> Data:
        if not data.task.standardise:
            return data
        targets = cast(Any, data.fixed("train")).targets()
        mean = math.fsum(targets) / len(targets)  # exactly, so that a run that goes on elsewhere has the same
        deviation = math.sqrt(math.fsum((label - mean) ** 2 for label in targets) / len(targets))
        layer, scale = output_layer(base), (mean, deviation or 1.0)
        trained = AS_THEY_ARE if layer is None else "standardised, saved in their own units"
        if layer is not None and layer.bias is None:  # labels far from 0 would else be out of its reach
            trained, scale = "divided by their root mean square", (0.0, math.hypot(mean, deviation) or 1.0)
        labels = {"mean": mean, "deviation": deviation, "trained": trained}
        data = replace(data, record={**(data.record or {}), "labels": labels})
        if layer is None:
            return data
        target = functools.partial(_standardised, scale=scale)
        splits = {name: cast(Texts, split).learning(target) for name, split in data.splits.items()}
        return replace(data, splits=splits, scale=scale)

    def metrics(self, data: Data, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        mean, deviation = data.scale or (0.0, 1.0)
        given, wanted = (np.asarray(one, dtype=np.float64) * deviation + mean for one in (predictions, labels))
        return regression_metrics(given, wanted, also=data.task.also)

    def guessed(self, data: Data, split: str) -> dict[str, float]:
        """The scores of always guessing the mean of the training labels; a constant has no correlation."""
        train, scored = (np.asarray(cast(Any, data.fixed(name)).targets()) for name in ("train", split))
        deviation = 1.0 if data.scale is None else data.scale[1]
        return {"mse": float(np.square(scored - train.mean()).mean() * deviation**2)}

    @torch.no_grad()
    def finish(self, model: nn.Module, data: Data) -> None:
        layer = output_layer(model)
        if data.scale is not None and layer is not None:
            mean, deviation = data.scale
            layer.weight.copy_(layer.weight.double() * deviation)
            if layer.bias is not None:
                layer.bias.copy_(layer.bias.double() * deviation + mean)

    def keep_exact(self, model: Any) -> None:
        """Let the output layer give float32 under autocast: bfloat16 has 8 bits, too few for a year, and float16 ends
        at 65,504."""
        if (layer := output_layer(model)) is not None:
            layer.register_forward_hook(_in_float32)

    def answer(self, logits: Tensor, config: Any) -> dict[str, Any]:
        return {"value": logits.item()}

    def shown(self, answer: Mapping[str, Any]) -> tuple[str, ...]:
        return f"{answer['value']:+.2f}", answer["text"]


def _standardised(label: Any, scale: tuple[float, float]) -> float:
    return float((label - scale[0]) / scale[1])


def _in_float32(layer: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    if output.dtype == torch.float32 or layer.weight.dtype != torch.float32:
        return output
    with torch.autocast(output.device.type, enabled=False):
        return linear(inputs[0].float(), layer.weight, layer.bias)


def output_layer(model: nn.Module) -> nn.Linear | None:
    """The linear layer of one output that the head of a plain or a PEFT model ends in; None where none can be told."""
    plain = plain_model(model)
    found = []
    for name in head_modules(plain):
        for path, module in plain.get_submodule(name).named_modules():
            is_output = isinstance(module, nn.Linear) and module.out_features == 1
            untrained = "original_module" in path.split(".")  # the copy in PEFT's wrapper
            if is_output and module.weight.is_floating_point() and not untrained:
                found.append(module)
    return found[0] if len(found) == 1 else None
