"""The LoRA file of a diffusers pipeline, which holds the adapters of all of its components."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..folders import new_folder
from .export_file import DIFFUSERS_WEIGHTS, read_components, write_export
from .wrappers import plain_model


def write_component(folder: Path, component: str, weights: dict[str, Tensor]) -> None:
    """Write the LoRA of one component of a pipeline; those of others that an earlier export there holds stay.

    Args:
        folder: new, empty, or of an earlier export.
        component: such as "unet"; "" is a model alone, whose file holds nothing else.
        weights: by their names in the component.
    """
    every = read_components(folder / DIFFUSERS_WEIGHTS) if component else {}
    every[component] = weights
    lead = {name: f"{name}." if name else "" for name in every}
    merged = {lead[name] + key: value for name, held in every.items() for key, value in held.items()}
    with new_folder(folder) as partial:
        write_export(partial / DIFFUSERS_WEIGHTS, merged, components=sorted(every))


def component_of(model: nn.Module) -> str:
    """How a pipeline of diffusers calls the model, by its class; raises a ValueError where that does not tell."""
    plain = plain_model(model)
    name = type(plain).__name__
    if not isinstance(plain, PreTrainedModel):  # Transformers' are text encoders and the like
        for words, component in (("UNet", "unet"), ("Transformer", "transformer")):
            if words in name:
                return component
    raise ValueError(
        f"{name} does not tell which component of a diffusers pipeline it is: name that with prefix=, such as "
        "prefix='text_encoder'."
    )
