"""The methods by name; each is one file here, and one line in `DESCRIPTIONS`, which lists them without PyTorch."""

from ..errors import unknown
from . import DESCRIPTIONS
from .adalora import ADALORA
from .aurora import AURORAS
from .base import Method
from .bottleneck import ADAPTER_D, ADAPTER_H, ADAPTER_P
from .lora import DORA, LORA
from .lora_drop import LORA_DROP
from .peft_own import FOURIERFT, HIRA, NEAT, VERA
from .plain import BITFIT, FULL, LINEAR_PROBE
from .singular import LORA_GA, MILORA, PISSA
from .updates import DYLORA, LODA, LORAN, MOSLORA, SINE_LORA

_ADAPTERS = (ADALORA, DYLORA, LORA_DROP, PISSA, MILORA, LORA_GA, MOSLORA, FOURIERFT, VERA, HIRA)
_MORE = (SINE_LORA, LORAN, LODA, NEAT, ADAPTER_H, ADAPTER_P, ADAPTER_D, BITFIT, LINEAR_PROBE, FULL)
METHODS: dict[str, Method] = {method.name: method for method in (*AURORAS, LORA, DORA, *_ADAPTERS, *_MORE)}


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: there is none; the message suggests the nearest name.
    """
    if name not in METHODS:
        raise ValueError(f"name: '{name}' is an {unknown('method', DESCRIPTIONS, name)}")
    return METHODS[name]
