"""AuroRA as methods of recipes: the options are the fields of `AuroraConfig`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ..forms import CALIBRATED
from ..tuner.config import PAPER, PAPER_DYNAMIC, PAPER_STATIC, AuroraConfig
from .base import Options, PeftMethod
from .start import probing, probing_names

if TYPE_CHECKING:
    from torch import nn


def _config_maker(preset: Options) -> Callable[..., Any]:
    def make(**options: Any) -> Any:
        return AuroraConfig(**{**preset, **options})

    return make


def _own_fields() -> dict[str, Any]:
    """The fields that `AuroraConfig` adds to PEFT's base class, with their defaults."""
    from peft.config import PeftConfig

    inherited = {field.name for field in fields(PeftConfig)}
    config = AuroraConfig()
    own = (field.name for field in fields(AuroraConfig) if field.name not in inherited)
    # `calibrated` is set by `calibrate`, never by a recipe
    return {name: getattr(config, name) for name in own if name != "calibrated"}


def _option_names() -> Iterable[str]:
    return _own_fields()


def _defaults_maker(preset: Options) -> Callable[[], Options]:
    def make() -> Options:
        defaults = {name: list(value) if isinstance(value, tuple) else value for name, value in _own_fields().items()}
        return {**defaults, **preset}

    return make


@dataclass(frozen=True)
class AuroraMethod(PeftMethod):
    """AuroRA: several forms after dynamic training, and a calibration."""

    @property
    def forms(self) -> tuple[str, ...]:
        forms: tuple[str, ...] = self.config.forms
        return forms

    @property
    def deployed_form(self) -> str:
        form: str = self.config.resolved_eval_form
        return form

    def using(self, model: nn.Module, form: str) -> AbstractContextManager[Any]:
        from aurora_lora.tuner import check_calibrated, set_form

        if form == CALIBRATED:  # eval() would compute the dynamic form where there is no such matrix
            check_calibrated(model)
        context: AbstractContextManager[Any] = set_form(model, form)
        return context


_ABLATIONS: dict[str, tuple[str, Options]] = {
    "no-f": ("without the fixed part F", {"fixed_activation": None}),
    "no-l": ("without the learnable part L", {"spline": None}),
    "leaky-relu": ("with LeakyReLU for tanh", {"fixed_activation": "leaky_relu"}),
    "sigmoid": ("with the sigmoid for tanh", {"fixed_activation": "sigmoid"}),
}
_PRESETS: dict[str, tuple[str, Options]] = {
    "aurora": ("W0 x + s B sigma(Ax), merged as calibrated (ours)", {}),
    "aurora-paper": ("The paper's AuroRA: trained dynamic, merged static", PAPER),
    "aurora-paper-d": (
        "The paper's AuroRA-D: dynamic; cannot be merged",
        PAPER_DYNAMIC,
    ),
    "aurora-paper-s": ("The paper's AuroRA-S: static throughout", PAPER_STATIC),
    **{f"aurora-{end}": (f"AuroRA {words}", changes) for end, (words, changes) in _ABLATIONS.items()},
    **{
        f"aurora-paper-{end}": (f"The paper's AuroRA {words}", {**PAPER, **changes})
        for end, (words, changes) in _ABLATIONS.items()
    },
}

AURORAS = tuple(
    AuroraMethod(
        name=name,
        description=description,
        make_config=probing(_config_maker(preset)),
        option_names=probing_names(_option_names),
        defaults=_defaults_maker(preset),
    )
    for name, (description, preset) in _PRESETS.items()
)
"""AuroRA, its settings in the paper, and the ablations of each (Tables 4 and 5): presets of the same options."""
