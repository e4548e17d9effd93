"""The shapes of the paper's models, so that a plan needs no download.

From each model's published config.json. A model that is not here is looked up through Transformers.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from ...data.models import MODELS, PretrainedHere
from ...train.models import load_config, quantization_of
from ...train.recipe import ModelSection

_ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
_VIT = {"image_size": 224, "patch_size": 16}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "FacebookAI/roberta-base": ("roberta", _ROBERTA),
    "FacebookAI/roberta-large": ("roberta", {**_ROBERTA, **_LARGE}),
    "meta-llama/Meta-Llama-3-8B": (
        "llama",
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
        },
    ),
    "google/vit-base-patch16-224-in21k": ("vit", _VIT),
    "google/vit-large-patch16-224-in21k": ("vit", {**_VIT, **_LARGE}),
}
"""Model type and the fields that differ from its defaults, by hub id."""


def architecture(model: ModelSection | str) -> PretrainedConfig:
    """The configuration of a model, the caller's own.

    Args:
        model: as for `load_base_model`.

    Raises:
        UserError: it is not known here and cannot be loaded.
    """
    base = ModelSection(name=model) if isinstance(model, str) else model
    return copy.deepcopy(_architecture(base.name, base.revision))


@lru_cache(maxsize=16)
def _architecture(model: str, revision: str | None) -> PretrainedConfig:
    """Read once: a plan asks for each of its runs."""
    if model in ARCHITECTURES and revision is None:
        kind, fields = ARCHITECTURES[model]
        return AutoConfig.for_model(kind, **fields)
    if isinstance(here := MODELS.get(model), PretrainedHere):
        return AutoConfig.for_model("vit", **here.vit)
    return load_config(ModelSection(name=model, revision=revision))


def image_tokens(config: PretrainedConfig) -> int | None:
    """The patches of an image and the token of its class; None for a model of texts."""
    if not hasattr(config, "image_size"):
        return None
    return int(config.image_size // config.patch_size) ** 2 + 1


def is_stored_quantised(model: ModelSection | str) -> bool:
    """Whether a model's weights are stored in fewer bits.

    Raises:
        UserError: the model is not known.
    """
    return quantization_of(architecture(model)) is not None
