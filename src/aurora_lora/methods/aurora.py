"""AuroRA as methods of recipes: the options are the fields of `AuroraConfig`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ..forms import CALIBRATED
from ..tuner.config import PAPER, PAPER_DYNAMIC, PAPER_STATIC, AuroraConfig
from .options import ModuleFields, Options, added_fields
from .start import PROBED, ProbedMethod

if TYPE_CHECKING:
    from torch import nn

    from ..forms import FormName

# the fields that recipes give, with their defaults as YAML has them; `calibrated` is set by `calibrate`
_CONFIG = AuroraConfig()
_OWN = {name: getattr(_CONFIG, name) for name in added_fields(AuroraConfig) if name != "calibrated"}
_OWN = {name: list(value) if isinstance(value, tuple) else value for name, value in _OWN.items()}


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


_ABLATIONS: dict[str, Options] = {
    "no-f": {"fixed_activation": None},
    "no-l": {"spline": None},
    "leaky-relu": {"fixed_activation": "leaky_relu"},
    "sigmoid": {"fixed_activation": "sigmoid"},
}
_PRESETS: dict[str, Options] = {
    "aurora": {},
    "aurora-paper": PAPER,
    "aurora-paper-d": PAPER_DYNAMIC,
    "aurora-paper-s": PAPER_STATIC,
    **{f"aurora-{end}": changes for end, changes in _ABLATIONS.items()},
    **{f"aurora-paper-{end}": {**PAPER, **changes} for end, changes in _ABLATIONS.items()},
}

AURORAS = tuple(
    AuroraMethod(
        name=name,
        config_class=AuroraConfig,
        fields=ModuleFields,  # AuroraConfig checks the others
        names=[*_OWN, *PROBED],
        recorded={**_OWN, **preset},
    )
    for name, preset in _PRESETS.items()
)
"""AuroRA, its settings in the paper, and the ablations of each (Tables 4 and 5): presets of the same options."""
