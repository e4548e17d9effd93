"""The methods that recipes can name. A new method is one file here and one line in `METHODS`."""

from .aurora import AURORA
from .base import MERGED, Method, ParameterCounts, count_parameters, unknown
from .full import FULL
from .linear_probe import LINEAR_PROBE
from .lora import LORA

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        AURORA,
        LORA,
        LINEAR_PROBE,
        FULL,
    )
}


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: there is none; the message suggests the nearest name.
    """
    if name not in METHODS:
        raise ValueError(f"name: '{name}' is an {unknown('method', METHODS, name)}")
    return METHODS[name]


__all__ = ["MERGED", "METHODS", "Method", "ParameterCounts", "count_parameters", "get_method"]
