"""Options of AuroRA and LoRA that a probing pass answers before the training: `budget` and `start` (docs/ranks.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .base import Options
from .options import check, fields, integer, one_of, optional_integer

ALIGNED = "aligned"
PROBED = {"budget": optional_integer(), "start": one_of("default", ALIGNED), "probe_examples": integer(256)}
"""Weights to share out, how A starts, and training examples of the pass."""
_FIELDS = fields(PROBED)
PATTERNS = ("rank_pattern", "alpha_pattern")


def wants_probe(options: Options) -> bool:
    """Whether a probing pass comes before the training."""
    return options.get("budget") is not None or options.get("start") == ALIGNED


def ordinary(options: Options) -> dict[str, Any]:
    """The options without those of this file."""
    return {name: value for name, value in options.items() if name not in PROBED}


def filled(options: Options) -> dict[str, Any]:
    """The options, with the defaults of this file if one of them is given.

    Raises:
        ValueError: a value that is not allowed; the message names the option.
    """
    given = {name: value for name, value in options.items() if name in PROBED}
    if not given:
        return dict(options)
    checked = check(given, _FIELDS)
    for name in PATTERNS if checked["budget"] is not None else ():
        if options.get(name):
            raise ValueError(f"{name} does not go with budget, which gives each layer its rank.")
    if checked["start"] == ALIGNED and options.get("init_lora_weights", True) is not True:
        raise ValueError("init_lora_weights does not go with start: aligned.")
    if checked["start"] == ALIGNED and options.get("init_weights", True) is False:
        raise ValueError("init_weights: false does not go with start: aligned, which changes nothing at first.")
    return {**options, **checked}


def probing(make_config: Callable[..., Any]) -> Callable[..., Any]:
    """A maker of configurations that takes the options of this file, too, and leaves them out."""

    def make(**options: Any) -> Any:
        return make_config(**ordinary(options))

    return make


def probing_names(names: Callable[[], Iterable[str]]) -> Callable[[], Iterable[str]]:
    """The names of options, those of this file among them."""
    return lambda: [*names(), *PROBED]
