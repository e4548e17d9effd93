"""What a plan knows without asking: the shapes of the paper's models, the lengths of the tasks' texts, the machines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from ...data.models import MODELS, PretrainedHere
from ...errors import ArgumentError, counted, unknown
from ...machine import usable_cores
from ...train.models import load_config
from ...train.recipe import ModelSection

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
    from transformers import AutoConfig

    if name in CONFIGS and revision is None:
        kind, fields = CONFIGS[name]
        return AutoConfig.for_model(kind, **fields)
    if isinstance(here := MODELS.get(name), PretrainedHere):
        return AutoConfig.for_model("vit", **here.vit)
    return load_config(ModelSection(name=name, revision=revision))
