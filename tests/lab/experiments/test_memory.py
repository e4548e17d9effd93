"""The memory of a training step at full shapes, measured on fake tensors with the trainer's own code, and the plan's.

Fake tensors have shapes and no numbers: a model of 8 billion parameters takes no memory. What is alive is counted by
storage, as an allocator would.
"""

import contextlib
import functools
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer

from aurora_lora.lab.experiments import shapes, text_lengths
from aurora_lora.lab.experiments.architectures import architecture
from aurora_lora.lab.experiments.estimate import (
    MOMENTS,
    calibration_memory,
    estimate,
    evaluation_memory,
    training_memory,
)
from aurora_lora.lab.experiments.fake_models import fused_attention, to_fake
from aurora_lora.lab.experiments.machines import named
from aurora_lora.lab.experiments.reproduce import prepare
from aurora_lora.lab.experiments.text_lengths import Sizes
from aurora_lora.train import choice_trainer, models
from aurora_lora.train.kinds.choices import ChoiceTrainer, choice_scores, questions_at_once
from aurora_lora.train.models import base_for, cached_width, checkpoint_activations, make_model
from aurora_lora.train.recipe import Recipe, divide
from aurora_lora.train.trainer import RecipeTrainer, training_arguments

LIMIT_GB = 24
COMMONSENSE = [
    *(("table2", name) for name in ("lora", "pissa", "milora", "aurora-paper", "aurora")),
    ("table7", "aurora-paper-s"),
    *(("figure5", name) for name in ("lora-r16", "moslora-r16", "aurora-paper-r16")),
]
OTHERS = [
    *(("table1", f"base-{name}-stsb") for name in ("aurora-paper", "full")),
    *(("table1", f"large-{name}-cola") for name in ("aurora-paper", "fourierft")),
    *(("table3", f"base-{name}-cifar10") for name in ("aurora-paper", "lora", "full", "linear-probe")),
]


class Alive(TorchDispatchMode):
    """Bytes of the storages that are alive, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in _pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: Any) -> None:
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def suite_recipe(suite: str, name: str, tmp_path: Path) -> Recipe:
    todo = prepare(suite, "hub", tmp_path / "runs", only=[name])
    recipe = next(job.recipe for (found, _), job in todo.jobs.items() if found == name)
    assert isinstance(recipe, Recipe)
    return recipe


@contextlib.contextmanager
def without_weights(recipe: Recipe, layers: int | None) -> Iterator[None]:
    """Within this context, models are made on the meta device, with the published shapes, or fewer layers."""
    config = architecture(recipe.model)
    config.dtype = torch.bfloat16 if "Llama" in recipe.model else torch.float32  # as they are stored
    config.num_hidden_layers = layers or config.num_hidden_layers

    def build(kind: Any, source: Any, config: Any, *, dtype: torch.dtype, **_: Any) -> Any:
        return kind.from_config(config, dtype=dtype)

    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(models, "_pretrained", build)
        patch.setattr(models, "resolve_model", lambda model: model)
        patch.setattr(models.AutoConfig, "from_pretrained", lambda *_, **__: config)
        yield


def peak(recipe: Recipe, tmp_path: Path, layers: int | None = None) -> float:
    """GB at the peak of the second training step, whose optimizer has its moments already."""
    with without_weights(recipe, layers):
        labels = [str(number) for number in range(recipe.task.definition.num_labels)]
        model: Any = make_model(recipe, base_for(recipe, recipe.task.definition, None, labels))  # type: ignore[arg-type]
    kind: Any = RecipeTrainer
    if recipe.task.definition.kind == "multiple-choice":
        kind = functools.partial(ChoiceTrainer, questions=None)
    with (
        pytest.MonkeyPatch.context() as patch,
        FakeTensorMode(allow_non_fake_inputs=True),
        fused_attention(),
        Alive() as alive,
    ):
        to_fake(model)
        if recipe.training.gradient_checkpointing:
            checkpoint_activations(model)
        patch.setattr(Trainer, "_move_model_to_device", lambda *_: None)
        args = training_arguments(recipe, divide(recipe.training, 1), tmp_path, 1000, "accuracy")
        trainer = kind(recipe, tmp_path, model=model, args=args, train_dataset=[], eval_dataset=[])
        patch.setattr(choice_trainer, "learned_positions", every_position)
        optimizer = trainer.create_optimizer()
        model.train()
        prepared = trainer.accelerator.prepare_model(model, device_placement=False)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        alive.peak = alive.now
        for _ in range(min(2, recipe.training.gradient_accumulation_steps)):  # the second finds the first's gradients
            trainer.training_step(prepared, batch(recipe, model.config))
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    return alive.peak / 1e9


def batch(recipe: Recipe, config: Any) -> dict[str, torch.Tensor]:
    """One forward pass's examples, as long as the longest of the data."""
    size = recipe.training.batch_size
    if recipe.task.kind.inputs == "image":
        return {"pixel_values": torch.zeros(size, 3, 224, 224), "labels": torch.zeros(size, dtype=torch.long)}
    ids = torch.zeros(size, text_lengths.longest(recipe, config.max_position_embeddings), dtype=torch.long)
    of_choices = recipe.task.definition.kind == "multiple-choice"
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids if of_choices else ids[:, 0]}


def every_position(inputs: dict[str, Any]) -> dict[str, Any]:
    """In place of `learned_positions`, which asks numbers: the loss is on all of these texts."""
    return {**inputs, "logits_to_keep": torch.arange(inputs["labels"].shape[1])}


def sizes_of_questions(recipe: Recipe, examples: int, prompt: int, choices: int, answer: int) -> Sizes:
    """Of data with so many questions in each split, of so many tokens, with so many answers of so many tokens."""
    splits = ("train", "validation", *recipe.test_sets)
    return Sizes(dict.fromkeys(splits, examples), {split: [prompt] for split in splits}, 1, choices, answer)


def scored_peak(recipe: Recipe, sizes: Sizes, layers: int, questions: int) -> float:
    """GB while so many questions are scored at once, without AdamW's moments."""
    with without_weights(recipe, layers):
        model: Any = make_model(recipe, base_for(recipe, recipe.task.definition, None, []))  # type: ignore[arg-type]
    (choices, answer), prompt = text_lengths.choices(recipe, sizes), text_lengths.longest_scored(recipe, None, sizes)
    count = questions * choices
    long = functools.partial(torch.zeros, dtype=torch.long)
    with FakeTensorMode(allow_non_fake_inputs=True), fused_attention(), Alive() as alive:
        to_fake(model)
        rows = {"prompt_ids": long(questions, prompt), "prompt_mask": long(questions, prompt)}
        columns = {"choice_ids": long(count, answer), "choice_mask": long(count, answer), "lengths": long(count)}
        alive.peak = alive.now
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            choice_scores(model.eval(), {**rows, **columns, "places": long(count, 2)}, choices)
    return alive.peak / 1e9


def full_peak(recipe: Recipe, tmp_path: Path) -> float:
    """Of the whole model, from two and three of its layers: they are all alike."""
    two, three = (peak(recipe, tmp_path, layers) for layers in (2, 3))
    return two + (three - two) * (architecture(recipe.model).num_hidden_layers - 2)


@pytest.mark.parametrize(("suite", "name"), COMMONSENSE)
def test_commonsense_fits_in_24_gb(suite: str, name: str, tmp_path: Path) -> None:
    recipe = suite_recipe(suite, name, tmp_path)
    assert recipe.training.batch_size * recipe.training.gradient_accumulation_steps == 16
    measured = full_peak(recipe, tmp_path)
    assert measured <= LIMIT_GB
    assert training_memory(recipe) / 1e9 == pytest.approx(measured, rel=0.15)


def test_the_calibration_after_it_fits_in_24_gb_too(tmp_path: Path) -> None:
    """Of `down_proj`, whose moment has 14,336^2 numbers of 8 bytes, and two factors of that size while it is solved."""
    recipe = suite_recipe("table2", "aurora-paper", tmp_path)
    needs = calibration_memory(recipe)
    counts = shapes.weights(recipe).params
    beside = 2 * (counts.total - counts.adapter) + 12 * counts.adapter  # weights in bf16 and float32, AdamW's moments
    assert needs - beside == pytest.approx(3 * 8 * 14336**2, rel=0.05)
    assert needs > training_memory(recipe)
    assert named("RTX 4090").fits(estimate(recipe, named("RTX 4090")).memory_gb)
    lora = suite_recipe("table2", "lora", tmp_path)
    assert calibration_memory(lora) == 0


@pytest.mark.parametrize("questions", [4, 64])
def test_the_plan_of_what_is_scored_at_once(questions: int, tmp_path: Path) -> None:
    """Of 8 billion parameters; of 64 questions, as many as `choice_scores` takes at a time: all would keep 9 GB."""
    recipe = suite_recipe("table2", "aurora-paper", tmp_path)
    training = recipe.training.model_copy(update={"eval_batch_size": questions})
    recipe = recipe.model_copy(
        update={"training": training, "task": recipe.task.model_copy(update={"scorer": "choices"})}
    )
    config, sizes = (
        architecture(recipe.model),
        sizes_of_questions(recipe, examples=1000, prompt=300, choices=4, answer=20),
    )
    at_once = min(questions, questions_at_once(config, 4, 300, 20))
    assert at_once == {4: 4, 64: 12}[questions]
    measured = scored_peak(recipe, sizes, config.num_hidden_layers, at_once)  # of few layers the peak is elsewhere
    planned = evaluation_memory(recipe, sizes) - MOMENTS * shapes.weights(recipe).params.adapter
    assert planned / 1e9 == pytest.approx(measured, rel=0.1)


def test_what_an_evaluation_holds_at_once(tmp_path: Path) -> None:
    """No more questions than there are; all of them, with four beams each, where answers are written."""
    recipe = suite_recipe("table2", "lora", tmp_path)
    training = recipe.training.model_copy(update={"eval_batch_size": 64})
    task = recipe.task.model_copy(update={"scorer": "choices"})
    chosen = recipe.model_copy(update={"training": training, "task": task})
    written = recipe.model_copy(update={"training": training})
    assert text_lengths.longest_scored(recipe) == 1000  # of BoolQ, whatever the texts that are trained on
    assert written.task.scorer == "generated"
    few, many = (sizes_of_questions(recipe, n, prompt=1000, choices=2, answer=4) for n in (2, 1000))
    assert evaluation_memory(chosen, few) < evaluation_memory(chosen, many)
    kept = 4 * 64 * (1000 + 32) * cached_width(architecture(recipe.model)) * 2
    assert kept == pytest.approx(34.6e9, rel=0.01)
    counts = shapes.weights(recipe).params
    weights = 2 * (counts.total - counts.adapter) + 12 * counts.adapter
    at_work = 3 * 2 * 4 * 64 * 1000 * 14336  # three tensors of a layer's greatest width, of all beams
    logits = 8 * 2 * 4 * 128256 * 12  # of 8 questions, which are scored at once
    assert evaluation_memory(written, many) == pytest.approx(weights + at_work + kept + logits, rel=0.001)
    assert evaluation_memory(written, few) < weights + (at_work + kept) / 16 + logits


def test_aurora_with_all_its_layers(tmp_path: Path) -> None:
    """What two and three layers tell is true of all 32; one forward pass is enough for that."""
    recipe = suite_recipe("table2", "aurora-paper", tmp_path)
    training = recipe.training.model_copy(update={"gradient_accumulation_steps": 1})
    recipe = recipe.model_copy(update={"training": training})
    measured = peak(recipe, tmp_path)
    assert measured <= LIMIT_GB
    assert full_peak(recipe, tmp_path) == pytest.approx(measured, rel=1e-3)


@pytest.mark.parametrize(("suite", "name"), OTHERS)
def test_the_plan_of_smaller_models(suite: str, name: str, tmp_path: Path) -> None:
    recipe = suite_recipe(suite, name, tmp_path)
    assert training_memory(recipe) / 1e9 == pytest.approx(full_peak(recipe, tmp_path), rel=0.15)
