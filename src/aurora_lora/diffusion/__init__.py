"""Subject-driven generation: DreamBooth on Stable Diffusion XL, with AuroRA, LoRA and the other methods.

The names below are imported when they are first used: printing help needs no PyTorch.
"""

from importlib import import_module
from typing import Any

_MODULE_OF = {"SubjectRecipe": "recipe", "train_subject": "run"}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
