"""The PEFT plug-in."""

from .adapters import (
    active_adapters,
    active_configs,
    active_layers,
    aurora_layers,
    check_calibrated,
    set_form,
)
from .calibration import Calibration
from .config import AuroraConfig
from .conv import AuroraConv1d, AuroraConv2d, AuroraConv3d
from .embedding import AuroraEmbedding
from .layer import AuroraLayer, AuroraLinear
from .model import AuroraModel
from .registration import register

register(AuroraConfig, AuroraModel)

__all__ = [
    "AuroraConfig",
    "AuroraConv1d",
    "AuroraConv2d",
    "AuroraConv3d",
    "AuroraEmbedding",
    "AuroraLayer",
    "AuroraLinear",
    "AuroraModel",
    "Calibration",
    "active_adapters",
    "active_configs",
    "active_layers",
    "aurora_layers",
    "check_calibrated",
    "set_form",
]
