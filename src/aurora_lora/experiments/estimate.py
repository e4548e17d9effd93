"""What a run will need: parameters counted on a model without weights, memory and time estimated from its shapes.

The parameters are exact. Memory and time are estimates, within about a factor of two, by these rules:

- weights: 4 bytes a parameter in fp32; in bf16 and fp16, 2 for the frozen ones;
- of each trained parameter: its gradient and AdamW's two moments, 4 bytes each;
- activations: 34 numbers a token, layer and hidden unit (Korthikanti et al. 2022, without the attention matrix, which
  fused attention does not keep), of one layer at a time where the head alone is trained; and the logits of a causal
  model in float32, twice;
- time: 2 floating-point operations a parameter and token forward, 2 backward through a frozen model, 4 through a
  trained one, none where the head alone is trained, at 35 % of what the GPU can do at most; but at least 2 ms a layer
  and training step, as a small model keeps a GPU waiting for some 200 launches of 10 microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch

from ..diffusion.recipe import SubjectRecipe
from ..errors import UserError
from ..methods import ParameterCounts, count_parameters, get_method
from ..methods.targets import check_modules
from ..tasks._loading import NO_CODE, reason
from ..training.recipe import Recipe, RunRecipe
from . import estimate_diffusion
from .architectures import architecture
from .reproduce import Reproduction

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
ACTIVATIONS = 34
"""Numbers kept for the backward pass, for each token, layer and hidden unit."""
UTILISATION = 0.35
LAYER_STEP_S = 2e-3
TYPICAL_TOKENS = {
    "cola": 15,
    "sst2": 30,
    "mrpc": 60,
    "stsb": 40,
    "qqp": 40,
    "mnli": 50,
    "qnli": 70,
    "rte": 80,
    "commonsense": 150,
}
"""Roughly, of an example with the padding of its batch, for the time; memory is reckoned for the longest allowed."""


@dataclass(frozen=True)
class Gpu:
    """What its data sheet says: memory in GB, dense TFLOP/s in float32 and in 16 bits."""

    memory_gb: float
    fp32: float
    half: float


GPUS = {
    "RTX 4090": Gpu(24, 82.6, 165.2),
    "L20": Gpu(48, 59.8, 119.5),
    "A100": Gpu(80, 19.5, 312),
    "H100": Gpu(80, 66.9, 989),
}


@dataclass(frozen=True)
class Estimate:
    """What one run needs.

    Args:
        params: trained outside and inside the head, and all.
        memory_gb: at the peak of training.
        hours: of training on one GPU; None where the number of examples is not known.
    """

    params: ParameterCounts
    memory_gb: float
    hours: float | None


def estimate(recipe: RunRecipe, gpu: Gpu) -> Estimate:
    """What a recipe needs on a GPU.

    Raises:
        UserError: its model is not known, or its method does not fit the model.
    """
    if isinstance(recipe, SubjectRecipe):
        return _estimate_subject(recipe, gpu)
    assert isinstance(recipe, Recipe)
    params = trained_parameters(recipe)
    config, training = architecture(recipe.model), recipe.training
    text = config.get_text_config()
    tokens = training.batch_size * _tokens(recipe, config)
    trained, width = params.adapter + params.head, BYTES[training.precision]
    weights = 4 * trained + width * (params.total - trained)
    layers = text.num_hidden_layers if params.adapter else 1
    activations = ACTIVATIONS * tokens * layers * text.hidden_size * width
    logits = 8 * tokens * text.vocab_size if recipe.task.definition.task_type == "CAUSAL_LM" else 0
    memory = weights + 12 * trained + activations + logits
    speed = 1e12 * UTILISATION * (gpu.fp32 if training.precision == "fp32" else gpu.half)
    task = recipe.task.definition
    examples = recipe.task.train_size or task.train_examples
    length = min(_tokens(recipe, config), TYPICAL_TOKENS.get(task.name, _tokens(recipe, config)))
    backward = 0 if not params.adapter else 4 if trained > params.total / 2 else 2
    operations = (2 + backward) * params.total * length
    least = text.num_hidden_layers * LAYER_STEP_S / training.batch_size
    hours = None if examples is None else max(operations / speed, least) * examples * training.epochs / 3600
    return Estimate(params, memory / 1e9, hours)


def _estimate_subject(recipe: SubjectRecipe, gpu: Gpu) -> Estimate:
    """Of subject-driven generation; see `estimate_diffusion`."""
    params, training = estimate_diffusion.trained_parameters(recipe), recipe.training
    operations, kept = estimate_diffusion.passes(recipe)
    trained, width = params.adapter, BYTES[training.precision]
    weights = width * (params.total - trained + estimate_diffusion.AUTOENCODER) + 16 * trained
    rounds = (3 if training.gradient_checkpointing else 2) * training.steps * training.gradient_accumulation_steps
    speed = 1e12 * UTILISATION * (gpu.fp32 if training.precision == "fp32" else gpu.half)
    return Estimate(params, (weights + kept) / 1e9, operations * rounds / speed / 3600)


def trained_parameters(recipe: Recipe) -> ParameterCounts:
    """The parameters that the recipe trains, counted on the meta device: no weights are loaded.

    Raises:
        UserError: the model is not known, or the method does not fit it.
    """
    options = json.dumps(recipe.method.options, sort_keys=True)
    task = recipe.task.definition
    return _count(recipe.model, recipe.method.name, options, task.task_type, task.num_labels)


@lru_cache(maxsize=256)
def _count(model: str, method: str, options: str, task_type: str, labels: int) -> ParameterCounts:
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageClassification,
        AutoModelForSequenceClassification,
    )

    classes = {
        "SEQ_CLS": AutoModelForSequenceClassification,
        "CAUSAL_LM": AutoModelForCausalLM,
        "FEATURE_EXTRACTION": AutoModel,
        "IMAGE_CLS": AutoModelForImageClassification,
    }
    config = architecture(model)
    config.num_labels = labels
    with torch.device("meta"):
        try:
            base = classes[task_type].from_config(config, **NO_CODE)  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise UserError(f"model: '{model}' cannot be loaded: {reason(error)}") from error
        try:
            check_modules(base, json.loads(options))
            return count_parameters(get_method(method).apply(base, json.loads(options), task_type))  # type: ignore[arg-type]
        except ValueError as error:
            raise UserError(f"method: {' '.join(str(error).split())}") from error


def _tokens(recipe: Recipe, config: Any) -> int:
    """Of one example: the longest that the recipe allows, or an image's patches."""
    if hasattr(config, "patch_size") and hasattr(config, "image_size"):
        return int((config.image_size // config.patch_size) ** 2 + 1)
    return recipe.task.max_length or recipe.task.definition.max_length


def describe(todo: Reproduction) -> list[dict[str, Any]]:
    """One row for each run of a suite: what it is, what it needs, and whether it is done.

    Raises:
        UserError: a recipe's model or method cannot be had.
    """
    gpu = GPUS.get(todo.suite.gpu or "", GPUS["RTX 4090"])
    rows = []
    for (name, seed), job in todo.jobs.items():
        needs = estimate(job.recipe, gpu)
        rows.append(
            {
                "recipe": name,
                "seed": seed,
                "model": job.recipe.model,
                "data": job.recipe.task.name,
                "method": job.recipe.method.name,
                "params": asdict(needs.params),
                "memory_gb": float(f"{needs.memory_gb:.3g}"),
                "hours": None if needs.hours is None else float(f"{needs.hours:.3g}"),
                "gpu": todo.suite.gpu or "RTX 4090",
                "status": job.status(),
                "folder": str(job.folder),
            }
        )
    return rows


def total_hours(rows: list[Mapping[str, Any]]) -> float:
    """Of the runs that are not finished."""
    return sum(row["hours"] or 0.0 for row in rows if row["status"] != "finished")
