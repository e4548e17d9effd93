"""The PEFT plug-in."""

from .config import AuroraConfig
from .forms import set_form
from .layer import AuroraLayer
from .linear import AuroraLinear
from .model import AuroraModel, active_adapters, active_configs, aurora_layers
from .registration import register

register(AuroraConfig, AuroraModel)

__all__ = [
    "AuroraConfig",
    "AuroraLayer",
    "AuroraLinear",
    "AuroraModel",
    "active_adapters",
    "active_configs",
    "aurora_layers",
    "set_form",
]
