"""The tags of a model with AuroRA adapters, by which the card of an adapter names the method and this package.

PEFT's cards have a tag for LoRA alone, and those of the base model (`model_tags`), as Transformers' and TRL's have.
"""

from __future__ import annotations

from typing import Any

from .registration import METHOD

TAG = "aurora-lora"
"""The tag on every card of an adapter: the package to install."""
TAGS = (METHOD, TAG)


def add_tags(model: Any) -> None:
    """Tag a model that gets its first adapter; a list of its own, as the class's may be shared."""
    own = getattr(model, "model_tags", None) or []
    model.model_tags = [*own, *(tag for tag in TAGS if tag not in own)]


def take_tags(model: Any) -> None:
    """Undo `add_tags`, for a model that loses its adapters."""
    others = [tag for tag in getattr(model, "model_tags", None) or [] if tag not in TAGS]
    if others:
        model.model_tags = others
    else:
        vars(model).pop("model_tags", None)
