"""`--dry-run`: parameters, steps, memory and hours of a run or of a suite, from the shapes of its model and its recipe.

The parameters are exact: those of the model without its numbers, on PyTorch's meta device, with the method on it.
Memory and time follow from widths and lengths by formulas, and are estimates: time is right within a factor of about 2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import psutil
import torch
import transformers
from torch import nn

from ...data.loading import NO_CODE, cannot_load
from ...data.models import MODELS, PretrainedHere, is_missing
from ...diffusion.recipe import SubjectRecipe
from ...errors import ArgumentError, UserError, abridged, counted, unknown
from ...extras import extra
from ...files import located
from ...forms import CALIBRATED
from ...machine import usable_cores
from ...methods import ParameterCounts, count_parameters, get_method
from ...methods.base import apply_method
from ...methods.start import ordinary
from ...text_table import TextTable
from ...train.data import notes
from ...train.kind_facts import FACTS
from ...train.kinds import kind_of
from ...train.kinds.choices import BEAMS, LOGITS, NEW_TOKENS
from ...train.models import PRECISIONS, check_attention, frozen_dtype, load_config, positions, quantization_of
from ...train.publish import check_recipe
from ...train.recipe import ModelSection, Recipe, RunRecipe, examples_of_a_step, steps_of_an_epoch
from ...train.recipe_files import parse
from ...train.run import check_contamination, load_data
from .reproduce import Reproduction

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
ESTIMATES = "Memory and time are estimates from shapes"
LESS = (
    "Smaller training.batch_size with more gradient_accumulation_steps, training.gradient_checkpointing=true or "
    "training.precision=bf16 need less."
)


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
    """The examples of each split, the tokens of its texts on average and at most, where known, and the labels."""

    examples: Mapping[str, int | None]
    lengths: Mapping[str, Sequence[float]]
    labels: int

    @classmethod
    def known(cls, recipe: Recipe) -> Sizes:
        """What is known of a recipe's data without loading them."""
        task, section = recipe.task.definition, recipe.task
        wanted = {"train": section.train_size, "validation": section.validation_size}
        there = {"train": task.train_examples, **task.held_out}
        splits = ("train", "validation", *recipe.test_sets)
        examples = {name: wanted.get(name, section.test_size) or there.get(name) for name in splits}
        lengths = dict.fromkeys(splits, LENGTHS[section.name]) if section.name in LENGTHS else {}
        return cls(examples, lengths, task.num_labels)


class Shapes(NamedTuple):
    """A model without numbers: its parameters; the bytes that are there all the time, of the weights and of AdamW's
    moments; the weights that an example is multiplied with; the bytes that calibrating the widest layer takes; and of
    each layer the bytes that autograd keeps, a constant and for each token."""

    params: ParameterCounts
    held: float
    multiplied: int
    calibration: float
    layers: tuple[tuple[float, float], ...]


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
    params, every = count_parameters(model), list(model.modules())
    if (budget := fields.get("budget")) is not None:  # about what it comes to
        params = replace(params, adapter=budget, total=params.total - params.adapter + budget)
    size = sum(one.nbytes for one in model.parameters())
    frozen = [one.weight for one in every if isinstance(one, nn.Linear) and not one.weight.requires_grad]
    if quantization and (narrow := [one for one in frozen if one is not output]):  # the widest as it is computed with
        size += sum(QUANTISED[quantization] * one.numel() - one.nbytes for one in narrow) + max(
            x.nbytes for x in narrow
        )
    tables = {one.weight for one in every if isinstance(one, nn.Embedding)}
    looked_up = sum(one.numel() for one in tables if one is not output)
    layers: list[tuple[float, float]] = []
    for block in max((list(one) for one in every if isinstance(one, nn.ModuleList)), key=len, default=[]):
        is_reached = any(map(any, layers)) or any(one.requires_grad for one in block.parameters())
        layers.append(_kept(block, config.get_text_config(), precision, method_name) if is_reached else (0.0, 0.0))
    widest = max((one.base_layer.weight[0].numel() for one in every if hasattr(one, "base_layer")), default=0)
    calibration = 24.0 * widest**2 if CALIBRATED in method.forms else 0.0  # the moment and twice its factor, in float64
    held = size + 8.0 * (params.adapter + params.head)
    return Shapes(params, held, params.total - looked_up, calibration, tuple(layers))


def _kept(block: nn.Module, config: Any, precision: str, method: str) -> tuple[float, float]:
    """What autograd keeps of a layer of width h with a feed-forward of width m: queries, keys, values and outputs of a
    fused attention; the inputs of the norms in float32; m for the activation, 3 m where it is gated; the masks of
    dropout; the input of each trained weight, shared in one module but in float32; whole updates of a method."""
    width, h, every = PRECISIONS[precision].itemsize, config.hidden_size, list[Any](block.modules())
    m, heads = getattr(config, "intermediate_size", 4 * h), getattr(config, "num_attention_heads", 1)
    is_gated = sum(isinstance(one, nn.Linear) and (one.in_features, one.out_features) == (h, m) for one in every) == 2
    attention = 4 * heads * (getattr(config, "head_dim", None) or h // heads)
    masks = 2 * h if getattr(config, "hidden_dropout_prob", 0) else 0
    norms = sum(4 * one.weight.numel() for one in every if type(one).__name__.endswith("Norm"))
    slope, constant = norms + width * (attention + (3 * m if is_gated else m) + masks) + 4 * heads, 0.0
    adapted, shared = {part for one in every if hasattr(one, "base_layer") for part in one.modules()}, set()
    for parent, one in [(above, one) for above in every if above not in adapted for one in above.children()]:
        trained = [part for part in one.modules() if isinstance(part, nn.Linear) and part.weight.requires_grad]
        if not (any(weight.requires_grad for weight in one.parameters()) if one in adapted else one in trained):
            continue
        weight = getattr(one, "base_layer", one).weight
        d_in = max((part.in_features for part in trained), default=weight[0].numel())
        drops = one in adapted and any(isinstance(part, nn.Dropout) and part.p for part in one.modules())
        if drops or width < 4 or (parent, d_in) not in shared:
            slope += d_in * (width + 4 * drops)
        shared.add((parent, d_in))
        if one in adapted:
            slope += 2 * len(weight) * width * bool(len(getattr(one, "lora_magnitude_vector", ())))
            constant += 4.0 * weight.numel() * WHOLE_UPDATES.get(method, 0)
    return constant, float(slope)


def estimate(recipe: Recipe, sizes: Sizes, on: Machine) -> tuple[float, float | None]:
    """Bytes at the peak of a training step, an evaluation or the calibration, whichever is the largest; and the hours,
    None where it is not known how many examples there are."""
    training, task, found = recipe.training, recipe.task, shapes(recipe, sizes.labels)
    whole = architecture(recipe.model, recipe.base.revision)
    config, width = whole.get_text_config(), PRECISIONS[training.precision].itemsize
    limit = min(task.max_length or task.definition.max_length, positions(config) or 2**31)
    most = (whole.image_size // whole.patch_size) ** 2 + 1 if hasattr(whole, "image_size") else limit
    lengths = {name: [min(one, most) for one in sizes.lengths.get(name, (most, most))] for name in sizes.examples}
    vocabulary, is_causal = getattr(config, "vocab_size", 0), task.kind.task_type == "CAUSAL_LM"
    inner = 3 * width * getattr(config, "intermediate_size", 4 * config.hidden_size)  # three tensors at work at a time
    batch = min(training.batch_size, sizes.examples["train"] or training.batch_size)
    seen = batch * lengths["train"][1]
    learned = seen if task.loss_on == "all" else min(seen, batch * (task.kind.learned_tokens or seen))
    head = 12 * learned * vocabulary if is_causal else 0
    layers = [constant + slope * seen for constant, slope in found.layers] or [0.0]
    passing = max(sum(layers), inner * seen) + head
    if training.gradient_checkpointing:  # layers keep their inputs, and one of them all
        passing = len(layers) * width * config.hidden_size * seen + max(head, 1.5 * max(layers))
    gradients = 4 * (found.params.adapter + found.params.head)
    before = gradients if training.gradient_accumulation_steps > 1 else 0
    step = max(gradients, before + passing + 8 * config.hidden_size * seen)
    rows = min(training.eval_batch_size, max(n or training.eval_batch_size for n in sizes.examples.values()))
    length = max(longest for _, longest in lengths.values())
    scored = (
        rows * (task.definition.classes or 5) * (task.kind.learned_tokens or 1)
        if task.kind.has_choices
        else rows * length
    )
    at_work = rows * length * (BEAMS if task.scorer == "generated" else 1)
    evaluation = inner * at_work + 12 * min(LOGITS, scored * vocabulary) * is_causal
    memory = found.held + max(step, evaluation, found.calibration)
    if None in sizes.examples.values():
        return memory, None

    def seconds(split: str, each: float, at_once: int, passes: float, layer: float) -> float:
        count = sizes.examples[split] or 0
        launching = 0.0 if on.cores else len(found.layers) * layer * math.ceil(count / at_once)
        work = 2 * passes * found.multiplied * each * count
        return max(work / on.speed(training.precision), launching)

    def scoring(split: str) -> float:
        each = lengths[split][0] + task.kind.scored_tokens
        each += BEAMS * (each + NEW_TOKENS) * (task.scorer == "generated" and split in recipe.test_sets)
        return seconds(split, each, training.eval_batch_size, 1, FORWARD_LAYER_S)

    passes = 1 + (found.params.adapter > 0) * (1 + training.gradient_checkpointing)
    passes += found.params.adapter > found.params.total / 2
    padded = math.sqrt(math.prod(lengths["train"]))  # of a batch: between the mean and the longest
    took = training.epochs * (seconds("train", padded, batch, passes, TRAINED_LAYER_S) + scoring("validation"))
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
    drawing = (2 if recipe.validation.guidance_scale > 1 else 1) * recipe.validation.inference_steps + 1
    passes = (3 if training.gradient_checkpointing else 2) * examples_of_a_step(training) * training.steps
    passes += recipe.validation.noise_samples * looks
    passes += (len(recipe.validation_prompts) * looks + scored * forms) * drawing
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


def dry_run(
    recipe: RunRecipe, gpu: str | None = None, output: Path | None = None, say: Callable[[Iterable[str]], Any] = list
) -> dict[str, Any]:
    """What a run will train, whether it fits a machine, and how long it takes. Data are loaded and checked as a
    training does it; weights are not.

    Args:
        recipe: of the run.
        gpu: see `machine`.
        output: folder of the run, which is looked at alone.
        say: takes the lines about the data that a training begins with.
    """
    record, sizes, steps = dict[str, Any](), None, None
    if output is not None:
        check_recipe(output, recipe)
    if isinstance(recipe, Recipe):
        check_contamination(recipe)
        sizes = Sizes.known(recipe)
        if is_missing(recipe.model):
            say([f"{recipe.model} is pretrained first, and what makes its images is not there yet: no data are loaded"])
        else:
            data = load_data(recipe, kind_of(recipe.task.definition).processor(recipe.base))
            record = data.record or {}
            say(notes(record))
            lengths = {name: (fmean(of), max(of)) for name, of in data.lengths.items() if of}
            examples = {name: len(split) for name, split in data.splits.items()}
            sizes = Sizes(examples, lengths, len(data.labels) or data.task.num_labels)
        if (rows := sizes.examples["train"]) is not None:
            epoch, of_a_step = steps_of_an_epoch(recipe.training, rows), min(examples_of_a_step(recipe.training), rows)
            steps = {"all": epoch * recipe.training.epochs, "epoch": epoch, "examples": of_a_step}
    elif isinstance(recipe, SubjectRecipe):
        steps = {"all": recipe.training.steps, "examples": examples_of_a_step(recipe.training)}
    mean, longest = sizes.lengths.get("train", (None, None)) if sizes else (None, None)
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "model": recipe.model,
        "task": recipe.task_title,
        "method": recipe.method.name,
        **needs(recipe, machine(gpu), sizes),
        "examples": record.get("examples") or (sizes.examples if sizes else {}),
        "rows": record.get("packed"),
        "texts": {"mean": mean, "longest": longest},
        "steps": steps,
    }


def describe(todo: Reproduction, gpu: str | None = None) -> list[dict[str, Any]]:
    """One row for each run of a suite: what it is, what it needs on a machine (that of the suite, or else this one, if
    None), and whether it is done."""
    on, rows = machine(gpu or todo.suite.gpu), []
    known = {name: needs(job.recipe, on) for (name, seed), job in todo.jobs.items() if seed == todo.seeds[0]}
    for (name, seed), job in todo.jobs.items():
        about = {"model": job.recipe.model, "data": job.recipe.task.name, "method": job.recipe.method.name}
        there = {"status": job.status(), "folder": str(job.folder)}
        rows.append({"recipe": name, "seed": seed, **about, **known[name], **there})
    return rows


def plan_tables(title: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[TextTable]:
    """A table for each model, one line for each recipe, and below it what all runs come to."""
    left = [row for row in rows if row["status"] != "finished"]
    took = f"about {_time(sum(row['hours'] or 0.0 for row in left))}, one after the other"
    note = f"{counted(len(rows), 'run')}, {len(left)} of them to do: {took}. "
    if too_large := list(dict.fromkeys(row["recipe"] for row in left if not row["fits"])):
        note += f"{len(too_large)} of them do NOT fit in the {rows[0]['machine']}: {abridged(too_large, 3)}. {LESS} "
    for model in (models := list(dict.fromkeys(row["model"] for row in rows))):
        table = TextTable(f"{title}: {model}", ["recipe", "params", "memory", "time", "done"], align="lr")
        for recipe in dict.fromkeys(row["recipe"] for row in rows if row["model"] == model):
            first, *_ = runs = [row for row in rows if row["recipe"] == recipe]
            memory = f"{first['memory_gb']:.1f} GB{'' if first['fits'] else '!'}"
            done = f"{sum(row['status'] == 'finished' for row in runs)}/{len(runs)}"
            params = f"{first['params']['adapter'] / 1e6:,.3f}M"
            table.rows.append([recipe, params, memory, _time(first["hours"]), done])
        table.note = f"{note}{ESTIMATES}. Params are trained; the head is not among them." * (model == models[-1])
        yield table


def run_rows(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What one run of `dry_run` trains, needs and takes: a name and a value for each row."""
    params, texts, steps = run["params"], run["texts"], run["steps"]
    yield "model", f"{run['model']}, {params['total']:,} parameters in all"
    trained = f"{params['adapter']:,} trained ({100 * params['adapter'] / params['total']:.3g}%)"
    yield "method", f"{run['method']}, {trained}, {params['head']:,} in the head"
    sizes = ", ".join(f"{count:,} {name}" for name, count in run["examples"].items() if count is not None)
    packed = f"; packed into {run['rows']:,} rows to train on" if run["rows"] else ""
    yield "data", run["task"] + f": {sizes}{packed}" * bool(sizes)
    if texts["mean"] is not None:
        yield "tokens", f"{texts['longest']:,} in the longest text, {texts['mean']:,.0f} on average"
    if steps is not None:
        epochs = f", {steps['epoch']:,} an epoch" if "epoch" in steps else ""
        yield "steps", f"{steps['all']:,} in all{epochs}, of {steps['examples']:,} examples each"
    fits = "it fits" if run["fits"] else "it does NOT fit"
    yield "memory", f"about {max(run['memory_gb'], 0.1):.1f} GB at the peak, of {run['machine']}: {fits}"
    yield "time", "not known: the data were not loaded" if run["hours"] is None else f"about {_time(run['hours'])}"
    yield "", f"{'' if run['fits'] else LESS + ' '}{ESTIMATES}. Nothing was trained."


def _time(hours: float | None) -> str:
    if hours is None:
        return "?"
    return f"{max(60 * hours, 1):.0f} min" if hours < 1 else f"{hours:,.1f} h"
