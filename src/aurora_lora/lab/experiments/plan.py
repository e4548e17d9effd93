"""What a run will need: parameters, memory and hours, from the shapes of its model and its recipe.

The parameters are exact: those of the model without its numbers, on PyTorch's meta device, with the method on it.
Memory and time follow from widths and lengths by formulas, and are estimates: time is right within a factor of about 2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from importlib.resources import files
from itertools import dropwhile
from typing import Any, NamedTuple

import psutil
import torch
import transformers
from torch import nn

from ...data.loading import NO_CODE, cannot_load
from ...data.models import MODELS, PretrainedHere
from ...diffusion.recipe import SubjectRecipe
from ...errors import ArgumentError, UserError, counted, unknown
from ...extras import extra
from ...files import located
from ...forms import CALIBRATED
from ...machine import usable_cores
from ...methods import ParameterCounts, count_parameters, get_method
from ...methods.base import apply_method
from ...methods.start import ordinary
from ...train.kind_facts import FACTS
from ...train.kinds.choices import BEAMS, LOGITS, NEW_TOKENS
from ...train.models import PRECISIONS, check_attention, frozen_dtype, load_config, positions, quantization_of
from ...train.recipe import ModelSection, Recipe, RunRecipe, examples_of_a_step, steps_of, steps_of_an_epoch
from ...train.recipe_files import parse

_KNOWN = parse((files("aurora_lora.lab.experiments") / "tables" / "plan.yaml").read_text(encoding="utf-8"), "plan.yaml")
CONFIGS, LENGTHS, GPUS = (_KNOWN[name] for name in ("configs", "lengths", "gpus"))
SDXL, AUTOENCODER = "stabilityai/stable-diffusion-xl-base-1.0", 83_653_863
"""The paper's model of images, and the parameters of its autoencoder."""
QUANTISED = {"nf4": 0.5 + 4 / 64, "fp4": 0.5 + 4 / 64, "int8": 1.0}
"""Bytes of a quantised weight: 4 bits have a scale in float32 for each 64 of them."""
WHOLE_UPDATES = {"fourierft": 1, "hira": 1, "neat": 1, "sine-lora": 2, "loran": 4}
"""Matrices of a weight's size, in float32, that are kept of each layer by methods that compute the whole update."""
TRAINED_LAYER_S, FORWARD_LAYER_S = 2e-3, 0.7e-3
"""Seconds that a layer takes at least on a GPU, trained and run."""


class Machine(NamedTuple):
    """What one run has to itself: its memory, its TFLOP/s (of a CPU, of each core), its cores if it is a CPU."""

    name: str
    memory_gb: float
    fp32: float
    half: float
    cores: int | None = None

    def speed(self, precision: str) -> float:
        """Floating-point operations a second in a training: 40% of a GPU's greatest speed."""
        return 1e12 * (self.fp32 if precision == "fp32" else self.half) * (self.cores or 0.4)


def machine(name: str | None) -> Machine:
    """A GPU by its name, in any case, or else a UserError; the machine that this runs on if None or `here`."""
    if name is not None and name.lower() != "here":
        if (found := next((one for one in GPUS if one.lower() == name.lower()), None)) is None:
            raise ArgumentError(f"`gpu`: '{name}' is an {unknown('GPU', [*GPUS, 'here'], name)}")
        return Machine(found, *GPUS[found])
    if not torch.cuda.is_available():
        cores = usable_cores()
        return Machine(f"CPU of {counted(cores, 'core')}", psutil.virtual_memory().total / 1e9, 0.06, 0.112, cores)
    own = torch.cuda.get_device_properties(0)
    words, memory_gb = own.name.upper().replace("-", " ").split(), own.total_memory / 1e9
    names = [known for known in GPUS if set(known.upper().split()) <= set(words)]
    like = names[0] if names else min(GPUS, key=lambda known: abs(GPUS[known][0] - memory_gb))
    return Machine(str(own.name), memory_gb, *GPUS[like][1:])


def architecture(name: str, revision: str | None = None) -> Any:
    """The configuration of a model, a new one at each call; a UserError where it is not known and cannot be loaded."""
    if name in CONFIGS and revision is None:
        return transformers.AutoConfig.for_model(**CONFIGS[name])
    if isinstance(here := MODELS.get(name), PretrainedHere):
        return transformers.AutoConfig.for_model("vit", **here.vit)
    return load_config(ModelSection(name=name, revision=revision))


class Sizes(NamedTuple):
    """The examples of each split, the tokens of a text on average and at most, where known, and the labels."""

    examples: Mapping[str, int | None]
    tokens: Sequence[float] | None
    labels: int

    @classmethod
    def known(cls, recipe: Recipe) -> Sizes:
        """What is known of a recipe's data without loading them."""
        task, section = recipe.task.definition, recipe.task
        wanted = {"train": section.train_size, "validation": section.validation_size}
        there = {"train": task.train_examples, **task.held_out}
        splits = ("train", "validation", *recipe.test_sets)
        examples = {name: wanted.get(name, section.test_size) or there.get(name) for name in splits}
        return cls(examples, LENGTHS.get(section.name), task.num_labels)


class Shapes(NamedTuple):
    """A model without numbers: its parameters; bytes that are there all the time, of weights and of AdamW's moments;
    weights that an example is multiplied with; bytes of calibrating the widest layer; how many layers there are; and
    bytes that autograd keeps of all of them, at least and for each token."""

    params: ParameterCounts
    held: float
    multiplied: int
    calibration: float
    layers: int
    constant: float
    slope: float


def shapes(recipe: Recipe, labels: int) -> Shapes:
    """The shapes of a recipe's model with so many labels; a UserError where it is not known or does not fit."""
    model = (recipe.model, recipe.base.revision, recipe.base.quantization, frozen_dtype(recipe))
    options = json.dumps(recipe.method.options, sort_keys=True)
    return _shapes(*model, recipe.task.definition.kind, labels, recipe.method.name, options, recipe.training.precision)


@lru_cache(maxsize=256)
def _shapes(
    name: str, revision: str | None, quantization: str | None, dtype: torch.dtype, kind: str, labels: int,
    method_name: str, options: str, precision: str,
) -> Shapes:  # fmt: skip
    config, fields = architecture(name, revision), json.loads(options)
    if quantization_of(config) is not None:
        raise UserError(f"the weights of {name} are stored quantised, which a plan does not count")
    config.num_labels = labels
    method = get_method(method_name).bind(ordinary(fields))
    with torch.device("meta"):
        try:
            check_attention(config)
            model: Any = getattr(transformers, FACTS[kind].auto).from_config(config, dtype=dtype, **NO_CODE)
        except ValueError as error:
            raise cannot_load("model", name, error) from error
        output = getattr(model.get_output_embeddings(), "weight", None)
        model = apply_method(method, model, FACTS[kind].task_type)
    params, every = count_parameters(model), list[Any](model.modules())
    if (budget := fields.get("budget")) is not None:  # about what it comes to
        params = replace(params, adapter=budget, total=params.total - params.adapter + budget)
    frozen = [one.weight for one in every if isinstance(one, nn.Linear) and not one.weight.requires_grad]
    narrow = [one for one in frozen if quantization and one is not output]
    size = sum(one.nbytes for one in model.parameters()) - sum(one.nbytes for one in narrow)
    size += sum(QUANTISED[quantization or ""] * one.numel() for one in narrow)
    tables = {one.weight for one in every if isinstance(one, nn.Embedding)}
    blocks = max((list(one) for one in every if isinstance(one, nn.ModuleList)), key=len, default=[])
    reached = dropwhile(lambda block: not any(one.requires_grad for one in block.parameters()), blocks)
    width, adapted = PRECISIONS[precision].itemsize, [one for one in every if hasattr(one, "base_layer")]
    inside = {part for one in adapted for part in one.modules()}
    slope, constant = sum(_kept(block, config.get_text_config(), width) for block in reached), 0.0
    for one in (one for one in every if one in adapted or (isinstance(one, nn.Linear) and one not in inside)):
        if any(x.requires_grad for x in (one.parameters() if one in adapted else [one.weight])):
            weight = getattr(one, "base_layer", one).weight
            of_trained = [part for part in one.modules() if isinstance(part, nn.Linear) and part.weight.requires_grad]
            drops = one in adapted and any(isinstance(part, nn.Dropout) and part.p for part in one.modules())
            slope += (width + 4 * drops) * max((part.in_features for part in of_trained), default=weight[0].numel())
            slope += 2 * width * len(weight) * bool(len(getattr(one, "lora_magnitude_vector", ())))
            constant += 4.0 * weight.numel() * WHOLE_UPDATES.get(method_name, 0)
    widest = max((one.base_layer.weight[0].numel() for one in adapted), default=0)
    calibration = 24.0 * widest**2 * (CALIBRATED in method.forms)  # the moment and twice its factor, in float64
    held, multiplied = size + 8.0 * (params.adapter + params.head), sum(x.numel() for x in tables if x is not output)
    return Shapes(params, held, params.total - multiplied, calibration, max(len(blocks), 1), constant, slope)


def _kept(block: nn.Module, config: Any, width: int) -> float:
    """Bytes that autograd keeps for each token of a layer of width h with a feed-forward of width m, but for the inputs
    of trained weights: queries, keys, values and outputs of a fused attention; inputs of the norms, in float32; m for
    the activation, 3 m where it is gated; masks of dropout."""
    h, every = config.hidden_size, list[Any](block.modules())
    m = getattr(config, "intermediate_size", 4 * h)
    is_gated = sum(isinstance(one, nn.Linear) and (one.in_features, one.out_features) == (h, m) for one in every) == 2
    norms = sum(4 * one.weight.numel() for one in every if type(one).__name__.endswith("Norm"))
    masks = 2 * h if getattr(config, "hidden_dropout_prob", 0) else 0
    return float(norms + width * (4 * h + (3 * m if is_gated else m) + masks))


def estimate(recipe: Recipe, sizes: Sizes, on: Machine) -> tuple[float, float | None]:
    """Bytes at the peak of a training step, an evaluation or the calibration, whichever is the largest; and the hours,
    None where it is not known how many examples there are."""
    training, task, found = recipe.training, recipe.task, shapes(recipe, sizes.labels)
    whole = architecture(recipe.model, recipe.base.revision)
    config, width = whole.get_text_config(), PRECISIONS[training.precision].itemsize
    most = min(task.max_length or task.definition.max_length, positions(config) or 2**31)
    if hasattr(whole, "image_size"):
        most = (whole.image_size // whole.patch_size) ** 2 + 1
    mean, longest = (min(one, most) for one in sizes.tokens or (most, most))
    vocabulary = config.vocab_size if task.kind.task_type == "CAUSAL_LM" else 0
    inner = 3 * width * getattr(config, "intermediate_size", 4 * config.hidden_size)  # three tensors at work at a time
    batch = min(training.batch_size, sizes.examples["train"] or training.batch_size)
    seen = batch * longest
    learned = seen if task.loss_on == "all" else min(seen, batch * (task.kind.learned_tokens or seen))
    kept, head = found.constant + found.slope * seen, 12 * learned * vocabulary
    passing = max(kept, inner * seen) + head
    if training.gradient_checkpointing:  # layers keep their inputs, and one of them all
        passing = found.layers * width * config.hidden_size * seen + max(head, 1.5 * kept / found.layers)
    gradients = 4 * (found.params.adapter + found.params.head)
    before = gradients if training.gradient_accumulation_steps > 1 else 0
    step = max(gradients, before + passing + 8 * config.hidden_size * seen)
    is_written = task.scorer == "generated"
    rows = min(training.eval_batch_size, max(n or training.eval_batch_size for n in sizes.examples.values()))
    scored = (task.definition.classes or 5) * (task.kind.learned_tokens or 1) if task.kind.has_choices else longest
    evaluation = inner * rows * longest * (BEAMS if is_written else 1) + 12 * min(LOGITS, rows * scored * vocabulary)
    memory = found.held + max(step, evaluation, found.calibration)
    if None in sizes.examples.values():
        return memory, None

    def seconds(split: str, tokens: float, at_once: int, passes: float, layer: float) -> float:
        count = sizes.examples[split] or 0
        launching = 0.0 if on.cores else found.layers * layer * math.ceil(count / at_once)
        return max(2 * passes * found.multiplied * tokens * count / on.speed(training.precision), launching)

    def scoring(split: str) -> float:
        written = BEAMS * (mean + NEW_TOKENS) if is_written and split in recipe.test_sets else 0
        tokens = mean + task.kind.scored_tokens + written
        return seconds(split, tokens, training.eval_batch_size, 1, FORWARD_LAYER_S)

    passes = 1 + (found.params.adapter > 0) * (1 + training.gradient_checkpointing)
    passes += found.params.adapter > found.params.total / 2
    padded = math.sqrt(mean * longest)  # of a batch: between the mean and the longest
    rows = sizes.examples["train"] or 0
    epochs = steps_of(training, rows) / max(1, steps_of_an_epoch(training, rows))
    took = epochs * (seconds("train", padded, batch, passes, TRAINED_LAYER_S) + scoring("validation"))
    took += len(recipe.method.forms) * sum(map(scoring, {"validation", *recipe.test_sets}))
    return memory, (took + 10 + found.held / 0.5e9) / 3600


@lru_cache(maxsize=32)
def _subject_params(model: str, method: str, options: str) -> ParameterCounts:
    with extra("diffusion"):
        from diffusers import UNet2DConditionModel
    try:
        config = _KNOWN["unet"] if model == SDXL else UNet2DConditionModel.load_config(located(model), subfolder="unet")
    except (OSError, ValueError) as error:
        raise cannot_load("model", model, error) from error
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(dict(config))  # type: ignore[no-untyped-call]
        bound = get_method(method).bind(json.loads(options))
        return count_parameters(apply_method(bound, unet.requires_grad_(False), "TEXT_TO_IMAGE"))


def subject_needs(recipe: SubjectRecipe, on: Machine) -> tuple[ParameterCounts, float, float]:
    """Parameters, bytes at the peak, and hours of a run of subject-driven generation: operations and what is kept are
    SDXL's, in the ratio of the parameters and of the pixels."""
    training, forms = recipe.training, len(recipe.method.forms)
    params = _subject_params(recipe.model, recipe.method.name, json.dumps(recipe.method.options))
    size = (params.total - params.adapter) / 2.567e9 * (recipe.task.resolution / 1024) ** 2
    weight, width = (PRECISIONS[one].itemsize for one in (recipe.weights_precision, training.precision))
    passing = width * training.batch_size * size * (3.081e8 if training.gradient_checkpointing else 2.664e9)
    memory = weight * (params.total - params.adapter + AUTOENCODER) + passing + 16 * params.adapter
    looks = 1 + math.ceil(training.steps / recipe.validation.every) + forms
    scored = 0 if recipe.scores is None else len(recipe.scores.prompts) * recipe.scores.images_per_prompt
    passes = (2 + training.gradient_checkpointing) * examples_of_a_step(training) * training.steps
    passes += 2 * (len(recipe.validation_prompts) * looks + scored * forms) * recipe.validation.inference_steps
    took = passes * 6.761e12 * size / on.speed(training.precision)
    return params, memory, (took + 10 + weight * params.total / 0.5e9) / 3600


def needs(recipe: RunRecipe, on: Machine, sizes: Sizes | None = None) -> dict[str, Any]:
    """What a run needs: `params`, `memory_gb` at its peak, whether it `fits` the `machine`, and `hours` (None where it
    is not known how many examples there are). A reference comes on top."""
    hours: float | None
    if isinstance(recipe, SubjectRecipe):
        params, memory, hours = subject_needs(recipe, on)
    else:
        assert isinstance(recipe, Recipe)
        sizes = sizes or Sizes.known(recipe)
        params, (memory, hours) = shapes(recipe, sizes.labels).params, estimate(recipe, sizes, on)
    # Python, PyTorch and the data share a CPU's memory; of a GPU, CUDA and its caches take a tenth
    memory_gb = memory / 1e9 + (0.7 if on.cores else 0.0)
    return {
        "params": asdict(params),
        "memory_gb": float(f"{memory_gb:.3g}"),
        "fits": memory_gb <= on.memory_gb * (1 if on.cores else 0.9),
        "hours": None if hours is None else float(f"{hours:.3g}"),
        "machine": f"{on.memory_gb:.0f} GB of one {on.name}",
    }
