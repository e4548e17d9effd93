"""AuroRA as methods of recipes: the options are the fields of `AuroraConfig`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ..forms import CALIBRATED
from ..tuner.config import PAPER, PAPER_DYNAMIC, PAPER_STATIC, AuroraConfig
from .base import Options, added_fields
from .start import PROBED, ProbedMethod, probing

if TYPE_CHECKING:
    from torch import nn

    from ..forms import FormName


def _config_maker(preset: Options) -> Callable[..., Any]:
    def make(**options: Any) -> Any:
        return AuroraConfig(**{**preset, **options})

    return make


def _own_fields() -> dict[str, Any]:
    """The fields that recipes give, with their defaults as YAML has them."""
    config = AuroraConfig()
    # `calibrated` is set by `calibrate`, never by a recipe
    found = {name: getattr(config, name) for name in added_fields(AuroraConfig) if name != "calibrated"}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


@dataclass(frozen=True)
class AuroraMethod(ProbedMethod):
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
        context: AbstractContextManager[Any] = set_form(model, cast("FormName", form))
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

_OWN = _own_fields()
AURORAS = tuple(
    AuroraMethod(
        name=name,
        description=description,
        make_config=probing(_config_maker(preset)),
        names=[*_OWN, *PROBED],
        defaults={**_OWN, **preset},
    )
    for name, (description, preset) in _PRESETS.items()
)
"""AuroRA, its settings in the paper, and the ablations of each (Tables 4 and 5): presets of the same options."""
