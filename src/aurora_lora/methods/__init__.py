"""The methods that recipes can name. A new method is one file here and one line in `METHODS`."""

from ..errors import unknown
from .adalora import ADALORA
from .aurora import AURORAS
from .base import Method, Sample
from .bottleneck import ADAPTER_D, ADAPTER_H, ADAPTER_P
from .dylora import DYLORA
from .loda import LODA
from .lora import DORA, LORA
from .lora_drop import LORA_DROP
from .lora_ga import LORA_GA
from .loran import LORAN
from .moslora import MOSLORA
from .parameters import ParameterCounts, count_parameters
from .peft_own import FOURIERFT, HIRA, NEAT, VERA
from .pissa_milora import MILORA, PISSA
from .plain import BITFIT, FULL, LINEAR_PROBE
from .sine_lora import SINE_LORA

_ALL: tuple[Method, ...] = (
    *AURORAS,
    LORA,
    DORA,
    ADALORA,
    DYLORA,
    LORA_DROP,
    PISSA,
    MILORA,
    LORA_GA,
    MOSLORA,
    FOURIERFT,
    VERA,
    HIRA,
    SINE_LORA,
    LORAN,
    LODA,
    NEAT,
    ADAPTER_H,
    ADAPTER_P,
    ADAPTER_D,
    BITFIT,
    LINEAR_PROBE,
    FULL,
)
METHODS: dict[str, Method] = {method.name: method for method in _ALL}


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: there is none; the message suggests the nearest name.
    """
    if name not in METHODS:
        raise ValueError(f"name: '{name}' is an {unknown('method', METHODS, name)}")
    return METHODS[name]


__all__ = [
    "METHODS",
    "Method",
    "ParameterCounts",
    "Sample",
    "count_parameters",
    "get_method",
]
