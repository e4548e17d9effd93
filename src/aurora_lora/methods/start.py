"""Options of AuroRA and LoRA that a probing pass answers before the training: `budget` and `start` (docs/ranks.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..values import is_int
from .base import Options, PeftMethod
from .options import check, choice, fields, integer, or_none

ALIGNED = "aligned"
EVA = "eva"
"""PEFT's EVA (Paischer et al., 2024): A along the layer's inputs, and ranks by how much of them it explains."""
PROBED = {
    "budget": or_none("a whole number of at least 1", lambda value: is_int(value, 1)),
    "start": choice("default", ALIGNED, EVA),
    "probe_examples": integer(48),
}
"""Weights to share out, how A starts, and training examples of the pass."""
_FIELDS = fields(PROBED)
PATTERNS = ("rank_pattern", "alpha_pattern")


def wants_probe(options: Options) -> bool:
    """Whether a probing pass comes before the training."""
    return options.get("budget") is not None or options.get("start") in (ALIGNED, EVA)


def ordinary(options: Options) -> dict[str, Any]:
    """The options without those of this file."""
    return {name: value for name, value in options.items() if name not in PROBED}


def probing(make_config: Callable[..., Any]) -> Callable[..., Any]:
    """A maker of configurations that takes the options of this file, too, and leaves them out."""

    def make(**options: Any) -> Any:
        return make_config(**ordinary(options))

    return make


@dataclass(frozen=True)
class ProbedMethod(PeftMethod):
    """A method of PEFT that has the options of this file; their defaults are recorded where one of them is given."""

    def checked(self, options: Options) -> dict[str, Any]:
        found = super().checked(options)
        given = {name: value for name, value in options.items() if name in PROBED}
        if not given:
            return found
        probed = check(given, _FIELDS)
        if options.get("layer_replication") and (probed["budget"] is not None or probed["start"] != "default"):
            raise ValueError("layer_replication does not go with budget or start: it numbers the probed layers anew.")
        for name in PATTERNS if probed["budget"] is not None else ():
            if options.get(name):
                raise ValueError(f"{name} does not go with budget, which gives each layer its rank.")
        if probed["start"] == EVA and "init_weights" in self.names:
            raise ValueError("start: eva is for lora: AuroRA's z must fit the spline's range, as in start: aligned.")
        if probed["start"] == EVA and any(options.get(name) for name in ("budget", *PATTERNS)):
            raise ValueError(
                f"start: eva gives each layer its rank: it does not go with budget or {' and '.join(PATTERNS)}."
            )
        if probed["start"] != "default" and options.get("init_lora_weights", True) is not True:
            raise ValueError(f"init_lora_weights does not go with start: {probed['start']}.")
        if probed["start"] == ALIGNED and options.get("init_weights", True) is False:
            raise ValueError("init_weights: false does not go with start: aligned, which changes nothing at first.")
        return {**found, **probed}
