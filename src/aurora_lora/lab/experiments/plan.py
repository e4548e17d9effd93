"""What a run will need: parameters, steps, memory and hours, from the shapes of its model and from its recipe.

The parameters are exact: those of the model without its numbers, on PyTorch's meta device, with the method on it.
Memory and time follow from widths and lengths by formulas (`kept`, `peaks`, `hours`), and are estimates: time is right
within a factor of about 2. The paper's models need no download; of another one, its config is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
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
from ...train.kinds.choices import BEAMS, CACHED, LOGITS, NEW_TOKENS
from ...train.models import (
    PRECISIONS,
    cached_width,
    check_attention,
    frozen_dtype,
    load_config,
    positions,
    quantization_of,
)
from ...train.recipe import ModelSection, Recipe, RunRecipe, examples_of_a_step, steps_of_an_epoch

_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
_LLAMA3 = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
_LLAMA3 |= {"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "FacebookAI/roberta-base": ("roberta", _ROBERTA),
    "FacebookAI/roberta-large": ("roberta", {**_ROBERTA, **_LARGE}),
    "meta-llama/Meta-Llama-3-8B": ("llama", _LLAMA3),
    "google/vit-base-patch16-224-in21k": ("vit", {}),
    "google/vit-large-patch16-224-in21k": ("vit", _LARGE),
}
"""Model type of the paper's models, and the fields of their config.json that differ from its defaults."""
SDXL, AUTOENCODER = "stabilityai/stable-diffusion-xl-base-1.0", 83_653_863
"""The paper's model of images, and the parameters of its autoencoder."""
SDXL_UNET: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
QUANTILES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1)
LENGTHS = {
    "cola": (4, 6, 8, 10, 13, 17, 19, 26, 36, 47),
    "sst2": (3, 6, 7, 11, 19, 28, 34, 46, 59, 71),
    "mrpc": (20, 38, 46, 56, 66, 76, 83, 95, 107, 111),
    "stsb": (12, 18, 20, 25, 33, 55, 66, 87, 104, 129),
    "qnli": (16, 33, 40, 51, 64, 80, 93, 124, 176, 512),
    "rte": (16, 36, 46, 60, 91, 144, 166, 208, 268, 302),
    "commonsense": (66, 88, 93, 103, 140, 212, 235, 254, 256, 300),
    "movie-sentiment": (4, 13, 19, 26, 34, 42, 47, 55, 63, 66),
    "movie-rating": (4, 13, 19, 26, 34, 42, 47, 55, 63, 66),
    "siqa": (21, 28, 30, 33, 37, 41, 45, 54, 65, 66),
    "wikihow-goal": (16, 20, 22, 25, 29, 33, 38, 49, 60, 65),
    "strategyqa": (12, 15, 17, 19, 22, 24, 26, 29, 34, 38),
    "winowhy": (28, 37, 41, 46, 53, 62, 66, 77, 96, 111),
}
"""Tokens of a training text, by task, at `QUANTILES`, counted with the tokenizers of SmolLM2 and MiniLM."""
LONGEST_HELD_OUT = {"commonsense": 1000}
"""Tokens of the longest held-out text where it is far longer: a passage of BoolQ."""


@dataclass(frozen=True)
class Machine:
    """What one run has to itself: its memory, its TFLOP/s (of a CPU, of each core in a training), its GB/s."""

    name: str
    memory_gb: float
    fp32: float
    half: float
    bandwidth: float
    cores: int | None = None

    def fits(self, memory_gb: float) -> bool:
        """Whether a training of so much has room: of a GPU, CUDA and its caches take a tenth."""
        return memory_gb <= (self.memory_gb if self.cores else 0.9 * self.memory_gb)

    def speed(self, precision: str, threads: int | None = None) -> float:
        """Floating-point operations a second in a training: 40% of a GPU's greatest speed."""
        each = 1e12 * (self.fp32 if precision == "fp32" else self.half)
        return each * (min(threads or self.cores, self.cores) if self.cores else 0.4)


GPUS = {
    gpu.name: gpu  # what the data sheets say
    for gpu in (
        Machine("T4", 16, 8.1, 65, 320),
        Machine("V100", 32, 15.7, 125, 900),
        Machine("RTX 3090", 24, 35.6, 71, 936),
        Machine("RTX 4090", 24, 82.6, 165.2, 1008),
        Machine("A10", 24, 31.2, 125, 600),
        Machine("L4", 24, 30.3, 121, 300),
        Machine("L20", 48, 59.8, 119.5, 864),
        Machine("L40S", 48, 91.6, 362, 864),
        Machine("A100", 80, 19.5, 312, 2039),
        Machine("H100", 80, 66.9, 989, 3350),
        Machine("H200", 141, 66.9, 989, 4800),
    )
}


def machine(name: str | None) -> Machine:
    """A GPU by its name, in any case; the machine that this runs on if None or `here`.

    Raises:
        UserError: the GPU is not known.
    """
    if name is not None and name.lower() != "here":
        if (found := {known.lower(): gpu for known, gpu in GPUS.items()}.get(name.lower())) is None:
            raise ArgumentError(f"`gpu`: '{name}' is an {unknown('GPU', [*GPUS, 'here'], name)}")
        return found
    if not torch.cuda.is_available():
        cores = usable_cores()
        return Machine(
            f"CPU of {counted(cores, 'core')}", psutil.virtual_memory().total / 1e9, 0.06, 0.112, 20 * cores, cores
        )
    own = torch.cuda.get_device_properties(0)
    words, memory_gb = own.name.upper().replace("-", " ").split(), own.total_memory / 1e9
    names = [known for known in GPUS if set(known.upper().split()) <= set(words)]
    like = GPUS[names[0]] if names else min(GPUS.values(), key=lambda gpu: abs(gpu.memory_gb - memory_gb))
    return replace(like, name=str(own.name), memory_gb=memory_gb)


def architecture(name: str, revision: str | None = None) -> Any:
    """The configuration of a model, a new one at each call.

    Raises:
        UserError: it is not known here and cannot be loaded.
    """
    if name in CONFIGS and revision is None:
        kind, fields = CONFIGS[name]
        return transformers.AutoConfig.for_model(kind, **fields)
    if isinstance(here := MODELS.get(name), PretrainedHere):
        return transformers.AutoConfig.for_model("vit", **here.vit)
    return load_config(ModelSection(name=name, revision=revision))


# ---------------------------------------------------------------- a run of texts or images

QUANTISED = {"nf4": 0.5 + 4 / 64, "fp4": 0.5 + 4 / 64, "int8": 1.0}
"""Bytes of a quantised weight: 4 bits have a scale in float32 for each 64 of them."""
WHOLE_UPDATES = {"fourierft": 1, "hira": 1, "neat": 1, "sine-lora": 2, "loran": 4}
"""Matrices of a weight's size, in float32, that are kept of each layer by methods that compute the whole update."""
TRAINED_LAYER_S, FORWARD_LAYER_S, IMAGE_S = 2e-3, 0.7e-3, 0.7e-3
"""Seconds that a layer takes at least on a GPU, trained and run; and that a CPU takes to read an image."""


@dataclass(frozen=True)
class Sizes:
    """The examples of each split and the tokens of its texts (None and nothing where not known), and the labels."""

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
        lengths: dict[str, Sequence[float]] = {}
        if (points := LENGTHS.get(section.name)) is not None:
            texts = [float(one) for one in np.interp(np.linspace(0, 1, 1001), QUANTILES, points)]
            held_out = [*texts, float(LONGEST_HELD_OUT.get(section.name, 0))]
            lengths = {name: texts if name == "train" else held_out for name in splits}
        return cls(examples, lengths, task.num_labels)


@dataclass(frozen=True)
class Shapes:
    """A recipe's model without numbers.

    Args:
        params: parameters trained outside and inside the head, and all.
        held: bytes that are there all the time: the weights, and AdamW's moments of those that are trained.
        multiplied: weights that an example is multiplied with; the look-up of an embedding is no work.
        calibration: bytes that calibrating the widest layer takes; 0 where nothing is calibrated.
        layers: of each layer, what `kept` says.
    """

    params: ParameterCounts
    held: float
    multiplied: int
    calibration: float
    layers: tuple[tuple[float, float], ...]


def shapes(recipe: Recipe, labels: int) -> Shapes:
    """The shapes of a recipe's model with so many outputs of its head.

    Raises:
        UserError: the model is not known, or the method does not fit it.
    """
    options = json.dumps(recipe.method.options, sort_keys=True)
    base = (recipe.model, recipe.base.revision, recipe.base.quantization, recipe.task.definition.kind, labels)
    return _shapes(*base, recipe.method.name, options, recipe.training.precision, frozen_dtype(recipe))


@lru_cache(maxsize=256)
def _shapes(
    name: str, revision: str | None, quantization: str | None, kind: str, labels: int,
    method_name: str, options: str, precision: str, dtype: torch.dtype,
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
    params = count_parameters(model)
    if (budget := fields.get("budget")) is not None:  # about what it comes to
        params = replace(params, adapter=budget, total=params.total - params.adapter + budget)
    frozen = {id(one.weight) for one in model.modules() if isinstance(one, nn.Linear) and not one.weight.requires_grad}
    narrow = [one for one in model.parameters() if quantization and id(one) in frozen and one is not output]
    size = sum(one.nbytes for one in model.parameters()) - sum(one.nbytes for one in narrow)
    if quantization and narrow:  # the widest as it is computed with
        size += QUANTISED[quantization] * sum(one.numel() for one in narrow) + max(one.nbytes for one in narrow)
    tables = {id(one.weight): one.weight for one in model.modules() if isinstance(one, nn.Embedding)}
    looked_up = sum(one.numel() for one in tables.values() if one is not output)
    layers: list[tuple[float, float]] = []
    for block in max((list(one) for one in model.modules() if isinstance(one, nn.ModuleList)), key=len, default=[]):
        is_reached = any(map(any, layers)) or any(one.requires_grad for one in block.parameters())
        layers.append(kept(block, config.get_text_config(), precision, method_name) if is_reached else (0.0, 0.0))
    widest = max((_widths(one)[0] for one in model.modules() if hasattr(one, "base_layer")), default=0)
    calibration = 24.0 * widest**2 if CALIBRATED in method.forms else 0.0  # the moment and twice its factor, in float64
    held = size + 8.0 * (params.adapter + params.head)
    return Shapes(params, held, params.total - looked_up, calibration, tuple(layers))


def kept(block: nn.Module, config: Any, precision: str, method: str) -> tuple[float, float]:
    """Bytes that autograd keeps of one layer: a constant, and so much for each token.

    A layer of width h with a feed-forward of width m keeps queries, keys, values and outputs of a fused attention, 4 h;
    the inputs of the norms, h each, in float32; what the activation needs, m, or 3 m where it is gated; the masks of
    dropout. A method keeps the input of each trained weight, which layers of one module share in float32, with the mask
    of its dropout; both parts of a decomposed weight; whole updates.
    """
    width, h = PRECISIONS[precision].itemsize, config.hidden_size
    m, heads = getattr(config, "intermediate_size", 4 * h), getattr(config, "num_attention_heads", 1)
    every: list[Any] = list(block.modules())
    norms = sum(4 * one.weight.numel() for one in every if type(one).__name__.endswith("Norm"))
    into_m = sum(one.out_features == m for one in every if isinstance(one, nn.Linear) and one.in_features == h)
    masks = 2 * h if getattr(config, "hidden_dropout_prob", 0) else 0
    attention = 4 * heads * (getattr(config, "head_dim", None) or h // heads)
    slope = norms + width * (attention + (3 * m if into_m == 2 else m) + masks) + 4 * heads
    constant, shared = 0.0, set()
    adapted = {part for one in every if hasattr(one, "base_layer") for part in one.modules()}
    for parent, one in [(above, one) for above in every if above not in adapted for one in above.children()]:
        trained = [part for part in one.modules() if isinstance(part, nn.Linear) and part.weight.requires_grad]
        if not (any(weight.requires_grad for weight in one.parameters()) if one in adapted else one in trained):
            continue
        d_in, d_out = _widths(one)
        d_in = max((part.in_features for part in trained), default=d_in)
        drops = one in adapted and any(isinstance(part, nn.Dropout) and part.p for part in one.modules())
        if drops or width < 4 or (parent, d_in) not in shared:
            slope += d_in * (width + 4 * drops)
        shared.add((parent, d_in))
        if one in adapted:
            slope += 2 * d_out * width * bool(len(getattr(one, "lora_magnitude_vector", ())))
            constant += 4.0 * d_in * d_out * WHOLE_UPDATES.get(method, 0)
    return constant, float(slope)


def _widths(layer: Any) -> tuple[int, int]:
    """Input and output width of a linear layer, adapted or not; of another one, as a matrix."""
    weight = getattr(layer, "base_layer", layer).weight
    return int(weight[0].numel()), len(weight)


def longest(recipe: Recipe, sizes: Sizes, splits: Sequence[str] = ("train",)) -> int:
    """Tokens of the longest text of some splits, after it is cut; questions that are scored are not cut. What the
    recipe allows where no lengths are known; the patches of an image."""
    config = architecture(recipe.model, recipe.base.revision)
    if hasattr(config, "image_size"):
        return int(config.image_size // config.patch_size) ** 2 + 1
    most = positions(config.get_text_config()) or 2**31
    limit = min(recipe.task.max_length or recipe.task.definition.max_length, most)
    there = [max(sizes.lengths[split]) for split in splits if sizes.lengths.get(split)]
    is_cut = not recipe.task.kind.has_choices or "train" in splits
    return int(min(max(there), limit if is_cut else most)) if there else limit


def padded(recipe: Recipe, sizes: Sizes, batch: int, split: str = "train") -> float:
    """Tokens of a text with the padding of its batch, on average over batches drawn at random."""
    most, lengths = longest(recipe, sizes, (split,)), sizes.lengths.get(split)
    if not lengths or hasattr(architecture(recipe.model, recipe.base.revision), "image_size"):
        return most
    return float(np.minimum(np.quantile(lengths, ((np.arange(512) + 0.5) / 512) ** (1 / batch)), most).mean())


def peaks(recipe: Recipe, sizes: Sizes) -> dict[str, float]:
    """Bytes at the peak of a step of the training, of an evaluation, and of the calibration (0 where there is none).

    A step takes the larger of the gradients, 4 bytes a trained weight, and of what the layers keep and the loss of a
    causal model takes, 12 bytes a logit; with gradient checkpointing the layers keep their inputs, and one all.
    """
    training, task = recipe.training, recipe.task
    config = architecture(recipe.model, recipe.base.revision).get_text_config()
    found, width = shapes(recipe, sizes.labels), PRECISIONS[training.precision].itemsize
    vocabulary, is_causal = getattr(config, "vocab_size", 0), task.kind.task_type == "CAUSAL_LM"
    inner = 3 * width * getattr(config, "intermediate_size", 4 * config.hidden_size)  # three tensors at work at a time
    batch = min(training.batch_size, sizes.examples["train"] or training.batch_size)
    tokens = batch * longest(recipe, sizes)
    learned = tokens if task.loss_on == "all" else min(tokens, batch * (task.kind.learned_tokens or tokens))
    head = 12 * learned * vocabulary if is_causal else 0
    layers = [constant + slope * tokens for constant, slope in found.layers] or [0.0]
    if training.gradient_checkpointing:
        passing = len(layers) * width * config.hidden_size * tokens + max(head, 1.5 * max(layers))
    else:
        passing = max(sum(layers), inner * tokens) + head
    passing += 8 * config.hidden_size * tokens  # outside the layers
    gradients = 4 * (found.params.adapter + found.params.head)
    before = gradients if training.gradient_accumulation_steps > 1 else 0

    held_out = ("validation", *recipe.test_sets)
    length = longest(recipe, sizes, held_out)
    rows = min(training.eval_batch_size, max(sizes.examples[one] or training.eval_batch_size for one in held_out))
    logits = min(LOGITS, rows * length * vocabulary) if is_causal else 0
    cached = 0
    if task.kind.has_choices:
        choices, width_of_token = rows * (task.definition.classes or 5), cached_width(config)
        logits = min(LOGITS, choices * (task.kind.learned_tokens or 1) * vocabulary)
        cached = min(CACHED, choices * length * width_of_token)
        if task.scorer == "generated":
            rows *= BEAMS
            cached = max(cached, rows * (length + NEW_TOKENS) * width_of_token)
    return {
        "training": found.held + max(gradients, before + passing),
        "evaluation": found.held + inner * rows * length + 12 * logits + width * cached,
        "calibration": found.held + found.calibration if found.calibration else 0.0,
    }


def hours(recipe: Recipe, sizes: Sizes, on: Machine) -> dict[str, float] | None:
    """Hours of the parts of a run; None where it is not known how many examples there are.

    Work is 2 operations a weight and token forward, 2 more backward, 2 more where weights are trained, and 2 more where
    activations are computed again; on a GPU each layer takes at least as long as launching its kernels.
    """
    if None in sizes.examples.values():
        return None
    training, method, counts = recipe.training, recipe.method, {one: n or 0 for one, n in sizes.examples.items()}
    found, speed = shapes(recipe, sizes.labels), on.speed(training.precision, training.threads)
    is_image = hasattr(architecture(recipe.model, recipe.base.revision), "image_size")

    def seconds(count: int, tokens: float, batch: int, passes: float = 1, layer: float = FORWARD_LAYER_S) -> float:
        work = 2 * passes * found.multiplied * tokens * count / speed
        launching = 0.0 if on.cores else len(found.layers) * layer * math.ceil(count / batch)
        return max(work, launching) + (IMAGE_S * count if is_image and on.cores else 0.0)

    def scoring(split: str) -> float:
        tokens = padded(recipe, sizes, 1, split) + recipe.task.kind.scored_tokens
        return seconds(counts[split], tokens, training.eval_batch_size)

    def writing(split: str) -> float:  # each token waits for the one before it, and for the weights to be read
        size = training.eval_batch_size
        weights = PRECISIONS[training.precision].itemsize * found.multiplied
        each = max(counts[split] / size * weights / (1e9 * on.bandwidth), seconds(counts[split], 0, size))
        work = seconds(counts[split], padded(recipe, sizes, 1, split) + NEW_TOKENS, size)
        return max(BEAMS * work, NEW_TOKENS * each)

    trains = found.params.adapter > 0
    passes = 1 + trains * (1 + (found.params.adapter > found.params.total / 2) + training.gradient_checkpointing)
    batch, rounds, forms = training.batch_size, float(training.epochs), len(method.forms)
    if isinstance(training.eval_every, int):
        rounds = math.ceil(steps_of_an_epoch(training, counts["train"]) * training.epochs / training.eval_every)
    one = seconds(counts["train"], padded(recipe, sizes, batch), batch, passes, TRAINED_LAYER_S)
    sets = [name for name in recipe.test_sets if name != "validation"]
    evaluation = (rounds + forms) * scoring("validation") + forms * sum(map(scoring, sets))
    wanted = recipe.calibration
    calibrations = rounds * (method.deployed_form == CALIBRATED) + (CALIBRATED in method.forms)
    calibration = 2 * seconds(wanted.examples, padded(recipe, sizes, wanted.batch_size), wanted.batch_size)
    written = forms * sum(map(writing, recipe.test_sets)) if recipe.task.scorer == "generated" else 0.0
    parts = {"training": training.epochs * one, "evaluation": evaluation, "calibration": calibrations * calibration}
    parts |= {"generation": written, "loading": 10 + found.held / 0.5e9}
    return {name: value / 3600 for name, value in parts.items()}


# ---------------------------------------------------------------- subject-driven generation


@lru_cache(maxsize=32)
def _subject_params(model: str, method: str, options: str) -> ParameterCounts:
    with extra("diffusion"):
        from diffusers import UNet2DConditionModel
    try:
        config = SDXL_UNET if model == SDXL else UNet2DConditionModel.load_config(located(model), subfolder="unet")
    except (OSError, ValueError) as error:
        raise cannot_load("model", model, error) from error
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(dict(config))  # type: ignore[no-untyped-call]
        bound = get_method(method).bind(json.loads(options))
        return count_parameters(apply_method(bound, unet.requires_grad_(False), "TEXT_TO_IMAGE"))


def subject_needs(recipe: SubjectRecipe, on: Machine) -> tuple[ParameterCounts, float, dict[str, float]]:
    """Parameters, bytes at the peak, and hours of each part of a run of subject-driven generation.

    The U-Net and the autoencoder are there; a step is two passes more than a forward one where activations are
    computed again, else one; an image is drawn in the recipe's steps, of two passes with guidance. Operations and what
    is kept are SDXL's, in the ratio of the parameters and of the pixels.
    """
    training, forms = recipe.training, len(recipe.method.forms)
    params = _subject_params(recipe.model, recipe.method.name, json.dumps(recipe.method.options))
    size = (params.total - params.adapter) / 2.567e9 * (recipe.task.resolution / 1024) ** 2
    weight, width = (PRECISIONS[one].itemsize for one in (recipe.weights_precision, training.precision))
    passing = width * training.batch_size * size * (3.081e8 if training.gradient_checkpointing else 2.664e9)
    memory = weight * (params.total - params.adapter + AUTOENCODER) + passing + 16 * params.adapter
    looks = 1 + math.ceil(training.steps / recipe.validation.every)
    scored = 0 if recipe.scores is None else len(recipe.scores.prompts) * recipe.scores.images_per_prompt
    images = len(recipe.validation_prompts) * (looks + forms) + scored * forms
    drawing = (2 if recipe.validation.guidance_scale > 1 else 1) * recipe.validation.inference_steps + 1
    steps = examples_of_a_step(training) * training.steps
    passes = {
        "training": (3 if training.gradient_checkpointing else 2) * steps,
        "evaluation": recipe.validation.noise_samples * (looks + forms),
        "calibration": 2 * recipe.calibration.examples if CALIBRATED in recipe.method.forms else 0,
        "generation": images * drawing,
    }
    seconds = 6.761e12 * size / on.speed(training.precision, training.threads)
    parts = {name: count * seconds / 3600 for name, count in passes.items()}
    return params, memory, {**parts, "loading": (10 + weight * params.total / 0.5e9) / 3600}


# ---------------------------------------------------------------- any run


def needs(recipe: RunRecipe, on: Machine, sizes: Sizes | None = None) -> dict[str, Any]:
    """What a run needs on a machine: `params`, `memory_gb` at its peak, `fits`, `hours` (None where it is not known how
    many examples there are), `hours_of` its parts, and the machine. A reference is in memory and time.

    Raises:
        UserError: the model is not known or cannot be counted, or the method does not fit it.
    """
    parts: Mapping[str, float] | None
    if isinstance(recipe, SubjectRecipe):
        params, memory, parts = subject_needs(recipe, on)
    else:
        assert isinstance(recipe, Recipe)
        runs = [one for one in (recipe, recipe.reference_recipe()) if one is not None]
        every = [(one, sizes or Sizes.known(one)) for one in runs]
        params = shapes(recipe, every[0][1].labels).params
        memory = max(max(peaks(*one).values()) for one in every)
        took = [known for one in every if (known := hours(*one, on)) is not None]
        parts = {name: sum(one[name] for one in took) for name in took[0]} if len(took) == len(every) else None
    memory_gb = memory / 1e9 + (0.7 if on.cores else 0.0)  # Python, PyTorch and the data share a CPU's memory
    return {
        "params": asdict(params),
        "memory_gb": _rounded(memory_gb),
        "fits": on.fits(memory_gb),
        "hours": None if parts is None else _rounded(sum(parts.values())),
        "hours_of": {name: _rounded(value) for name, value in (parts or {}).items()},
        "machine": on.name,
        "machine_memory_gb": _rounded(on.memory_gb),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
