"""What a run will need: parameters counted on a model without weights, memory and time estimated from its shapes.

The parameters are exact; with a budget they are about what it comes to. Memory, at the peak of a training step,
is the sum of

- the weights, each in its precision; of each trained one AdamW's two moments, and its gradient, 4 bytes each;
- what autograd keeps for the longest texts that there are: counted, see `shapes`; with gradient checkpointing the
  inputs of the layers and all of one;
- of a causal model's loss, 12 bytes a logit: the log-probabilities, their gradient and that of the logits, in float32;

or, where that is more, the weights and the moments with what an evaluation or calibrating the widest layer takes.

Time is work by the speed that a machine attains in a training, see `flops` and `machines`; within a factor of about 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from ...data.loading import reason
from ...diffusion.recipe import SubjectRecipe
from ...errors import UserError
from ...methods import ParameterCounts
from ...train.kinds.choices import BEAMS, LOGITS, NEW_TOKENS, questions_at_once
from ...train.models import cached_width, positions
from ...train.recipe import Recipe, RunRecipe
from . import estimate_diffusion, flops, shapes, text_lengths
from .architectures import architecture, image_tokens, is_stored_quantised
from .engines import DAY
from .flops import Hours
from .machines import GPUS, PROCESS_GB, Machine, here, named
from .reproduce import Reproduction
from .text_lengths import Sizes

MOMENTS = 8
"""Bytes of AdamW's two for each trained weight."""
LOGIT = 12
"""Bytes of the loss for each logit."""
RECOMPUTED = 1.5
"""How many times what a layer keeps is there while checkpointing goes back through it: gradients of some of it, too."""

AT_WORK = 3
"""Tensors of a layer's greatest width that are there at a time where nothing is kept."""


@dataclass(frozen=True)
class Estimate:
    """What one run needs.

    Args:
        params: trained outside and inside the head, and all.
        memory_gb: at the peak of the run: of its training, an evaluation or the calibration, whichever takes most.
        parts: the hours of each part; None where the number of examples is not known.
    """

    params: ParameterCounts
    memory_gb: float
    parts: Hours | None

    @property
    def hours(self) -> float | None:
        """Hours of the whole run, on one machine."""
        return None if self.parts is None else self.parts.total


class NotEstimatedError(UserError):
    """A model of which memory and time cannot be told, as its shapes cannot be counted."""


def estimate(recipe: RunRecipe, machine: Machine, sizes: Sizes | None = None) -> Estimate:
    """What a recipe needs on a machine.

    Args:
        recipe: of the run.
        machine: that it is planned for.
        sizes: of its data, where these are loaded.

    Raises:
        UserError: its model is not known, or its method does not fit the model.
        NotEstimatedError: its model cannot be counted.
    """
    if isinstance(recipe, Recipe) and is_stored_quantised(recipe.base):
        raise NotEstimatedError(f"the weights of {recipe.model} are stored quantised, which a plan does not count")
    with _counting(recipe):
        return _estimate(recipe, machine, sizes)


@contextmanager
def _counting(recipe: RunRecipe) -> Iterator[None]:
    """What is counted within this context runs any model's own code without data, which may fail in any way."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise NotEstimatedError(f"the shapes of {recipe.model} cannot be counted: {reason(error)}") from error


def _estimate(recipe: RunRecipe, machine: Machine, sizes: Sizes | None) -> Estimate:
    more = 0.0 if machine.is_gpu else PROCESS_GB
    if isinstance(recipe, SubjectRecipe):
        params, memory = estimate_diffusion.trained_parameters(recipe), estimate_diffusion.memory(recipe)
    else:
        assert isinstance(recipe, Recipe)
        reference = recipe.reference_recipe()
        params = trained_parameters(recipe, sizes)
        trained = (recipe,) if reference is None else (recipe, reference)
        memory = max(peak(one, sizes) for one in trained for peak in PEAKS)
    return Estimate(params, memory / 1e9 + more, _parts(recipe, machine, sizes))


def _parts(recipe: RunRecipe, machine: Machine, sizes: Sizes | None = None) -> Hours | None:
    if isinstance(recipe, SubjectRecipe):
        return estimate_diffusion.hours(recipe, machine)
    assert isinstance(recipe, Recipe)
    parts, reference = flops.hours(recipe, machine, sizes), recipe.reference_recipe()
    if reference is None or parts is None:
        return parts
    other = flops.hours(reference, machine, sizes)
    return None if other is None else parts + other


def trained_parameters(recipe: Recipe, sizes: Sizes | None = None) -> ParameterCounts:
    """The parameters that the recipe trains, counted on the meta device: no weights are loaded.

    Raises:
        UserError: the model is not known, or the method does not fit it.
    """
    return shapes.weights(recipe, sizes).params


def training_memory(recipe: Recipe, sizes: Sizes | None = None) -> float:
    """Bytes of GPU memory at the peak of a training step.

    Raises:
        UserError: as `trained_parameters`.
    """
    training, config = recipe.training, architecture(recipe.base).get_text_config()
    own, kept = shapes.weights(recipe, sizes), shapes.step_shapes(recipe, sizes)
    longest = image_tokens(config) or text_lengths.longest(recipe, positions(config), sizes)
    batch = min(training.batch_size, text_lengths.examples(recipe, "train", sizes) or training.batch_size)
    tokens = batch * longest
    layers = config.num_hidden_layers
    outside, layer = (constant + slope * tokens for constant, slope in (kept.outside, kept.layer))
    head = 0
    if recipe.task.kind.task_type == "CAUSAL_LM":
        few = None if recipe.task.loss_on == "all" else recipe.task.kind.learned_tokens
        learned = tokens if few is None else min(tokens, batch * few)
        head = LOGIT * learned * config.vocab_size
    trained = own.params.adapter + own.params.head
    gradients = 4 * trained
    if training.gradient_checkpointing:
        passing = outside + layers * kept.entering * tokens + max(head, RECOMPUTED * layer)
    else:
        passing = outside + max(layers * layer, _at_work(recipe, tokens)) + head
    before = gradients if recipe.training.gradient_accumulation_steps > 1 else 0
    return _held(own) + float(max(gradients, before + passing))


def calibration_memory(recipe: Recipe, sizes: Sizes | None = None) -> float:
    """Bytes of GPU memory while the layer that needs most is calibrated after the training; 0 where there is none.

    Raises:
        UserError: as `trained_parameters`.
    """
    own = shapes.weights(recipe, sizes)
    return _held(own) + own.calibration if own.calibration else 0.0


def evaluation_memory(recipe: Recipe, sizes: Sizes | None = None) -> float:
    """Bytes of GPU memory while held-out examples are scored.

    Raises:
        UserError: as `trained_parameters`.
    """
    training, config = recipe.training, architecture(recipe.base).get_text_config()
    width, own = flops.WIDTH[training.precision], shapes.weights(recipe, sizes)
    longest = image_tokens(config) or text_lengths.longest_scored(recipe, positions(config), sizes)
    held_out = [text_lengths.examples(recipe, split, sizes) for split in ("validation", *recipe.test_sets)]
    batch = min(training.eval_batch_size, max(size or training.eval_batch_size for size in held_out))
    rows, logits, cached = batch, 0, 0
    if recipe.task.kind.has_choices:
        choices, tokens = text_lengths.choices(recipe, sizes)
        rows = min(batch, questions_at_once(config, choices, longest, tokens))
        logits = rows * choices * tokens * config.vocab_size
        cached = rows * choices * (longest + tokens) * cached_width(config)
        if recipe.task.scorer == "generated":  # not in parts
            rows = max(rows, BEAMS * batch)
            cached = max(cached, BEAMS * batch * (longest + NEW_TOKENS) * cached_width(config))
    elif recipe.task.kind.task_type == "CAUSAL_LM":
        at_once = min(batch, max(1, LOGITS // (longest * config.vocab_size)))
        logits = at_once * longest * config.vocab_size
        rows = at_once if recipe.task.loss_on == "all" else batch  # the whole batch, where few tokens have a loss
    return _held(own) + float(_at_work(recipe, rows * longest) + LOGIT * logits + width * cached)


PEAKS = (training_memory, evaluation_memory, calibration_memory)
"""Of these a run needs the largest."""


def _at_work(recipe: Recipe, tokens: int) -> int:
    """Bytes of what a layer computes with at a time on so many tokens, where nothing is kept."""
    config = architecture(recipe.base).get_text_config()
    inner: int = getattr(config, "intermediate_size", 4 * config.hidden_size)
    return AT_WORK * flops.WIDTH[recipe.training.precision] * tokens * inner


def _held(own: shapes.Weights) -> float:
    """Bytes that are there all the time: the weights, and AdamW's moments of those that are trained."""
    return float(own.bytes + MOMENTS * (own.params.adapter + own.params.head))


def describe(todo: Reproduction, gpu: str | None = None) -> list[dict[str, Any]]:
    """One row for each run of a suite: what it is, what it needs, and whether it is done.

    Args:
        todo: the runs.
        gpu: the machine that the plan is for, see `machines.named`; that of the suite, or else this one, if None.

    Raises:
        UserError: a recipe's model or method cannot be had, or the GPU is not known.
    """
    machine = machine_for(todo, gpu)
    rows = []
    for (name, seed), job in todo.jobs.items():
        about = {
            "recipe": name,
            "seed": seed,
            "model": job.recipe.model,
            "data": job.recipe.task.name,
            "method": job.recipe.method.name,
        }
        needs = record_of(estimate(job.recipe, machine), machine)
        rows.append({**about, **needs, "status": job.status(), "folder": str(job.folder)})
    return rows


def record_of(needs: Estimate, machine: Machine) -> dict[str, Any]:
    """An estimate for a machine, in plain values."""
    parts = {} if needs.parts is None else asdict(needs.parts)
    return {
        "params": asdict(needs.params),
        "memory_gb": _rounded(needs.memory_gb),
        "fits": machine.fits(needs.memory_gb),
        "hours": None if needs.hours is None else _rounded(needs.hours),
        "hours_of": {key: _rounded(value) for key, value in parts.items()},
        "machine": machine.name,
        "machine_memory_gb": _rounded(machine.memory_gb),
    }


def machine_for(todo: Reproduction, gpu: str | None) -> Machine:
    """The machine that is named, that of the suite, or this one.

    Raises:
        UserError: the GPU is not known.
    """
    name = gpu or todo.suite.gpu
    return here() if name is None else named(name)


def time_limit(recipe: RunRecipe, gpu: str | None) -> int:
    """Minutes to ask a cluster for: twice the estimate, which is no better than that, and half an hour at least; a day
    where there is none.

    Args:
        recipe: of the run.
        gpu: what the cluster has, see `machines.named`; the slowest that is known if None.

    Raises:
        UserError: the GPU or the model is not known, or the method does not fit it.
    """
    machine = min(GPUS.values(), key=lambda one: one.half) if gpu is None else named(gpu)
    try:
        with _counting(recipe):
            parts = _parts(recipe, machine)
    except NotEstimatedError:
        return DAY
    return DAY if parts is None else max(30, math.ceil(2 * 60 * parts.total))


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def unfit(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The runs that are not finished and need more memory than the machine has."""
    return [row for row in rows if row["status"] != "finished" and not row["fits"]]
