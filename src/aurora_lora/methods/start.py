"""Options of AuroRA and LoRA that a probing pass answers before the training: `budget` and `start` (docs/ranks.md)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .base import PeftMethod
from .options import Count, Fields, Options, added_fields

ALIGNED = "aligned"
EVA = "eva"
"""PEFT's EVA (Paischer et al., 2024): A along the layer's inputs, and ranks by how much of them it explains."""
PATTERNS = ("rank_pattern", "alpha_pattern")


class Probed(Fields):
    """Weights to share out, how A starts, and training examples of the pass."""

    budget: Count | None = None
    start: Literal["default", "aligned", "eva"] = "default"
    probe_examples: Count = 48


PROBED = Probed.defaults()


def wants_probe(options: Options) -> bool:
    """Whether a probing pass comes before the training."""
    return options.get("budget") is not None or options.get("start") in (ALIGNED, EVA)


def ordinary(options: Options) -> dict[str, Any]:
    """The options without those of this file."""
    return {name: value for name, value in options.items() if name not in PROBED}


@dataclass(frozen=True)
class ProbedMethod(PeftMethod):
    """A method of PEFT that has the options of this file; their defaults are recorded where one of them is given."""

    not_pefts: ClassVar[Collection[str]] = tuple(PROBED)

    def checked(self, options: Options) -> dict[str, Any]:
        found = super().checked(options)
        if not options.keys() & PROBED.keys():
            return found
        Probed.check(options)
        for name, default in PROBED.items():
            found.setdefault(name, default)
        budget, start = found["budget"] is not None, found["start"]
        patterns = [name for name in PATTERNS if options.get(name)]
        why = None
        if options.get("layer_replication") and wants_probe(found):
            why = "layer_replication does not go with budget or start: it numbers the probed layers anew."
        elif budget and patterns:
            why = f"{patterns[0]} does not go with budget, which gives each layer its rank."
        elif start == EVA and "init_weights" in added_fields(self.config_class):
            why = "start: eva is for lora: AuroRA's z must fit the spline's range, as in start: aligned."
        elif start == EVA and (budget or patterns):
            why = f"start: eva gives each layer its rank: it does not go with budget or {' and '.join(PATTERNS)}."
        elif start != "default" and options.get("init_lora_weights", True) is not True:
            why = f"init_lora_weights does not go with start: {start}."
        elif start == ALIGNED and options.get("init_weights", True) is False:
            why = "init_weights: false does not go with start: aligned, which changes nothing at first."
        if why is not None:
            raise ValueError(why)
        return found
