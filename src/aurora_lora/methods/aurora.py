"""AuroRA as a method of recipes: its options are the fields of `AuroraConfig`."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from .base import Options, PeftMethod

if TYPE_CHECKING:
    from torch import nn


def _config(**options: Any) -> Any:
    from aurora_lora import AuroraConfig

    return AuroraConfig(**options)


def _own_fields() -> dict[str, Any]:
    """The fields that `AuroraConfig` adds to PEFT's base class, with their defaults."""
    from peft.config import PeftConfig

    from aurora_lora import AuroraConfig

    inherited = {field.name for field in fields(PeftConfig)}
    config = AuroraConfig()
    own = (field.name for field in fields(AuroraConfig) if field.name not in inherited)
    # `calibrated` is set by `calibrate`, never by a recipe
    return {name: getattr(config, name) for name in own if name != "calibrated"}


def _option_names() -> Iterable[str]:
    return _own_fields()


def _defaults() -> Options:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in _own_fields().items()}


@dataclass(frozen=True)
class AuroraMethod(PeftMethod):
    """AuroRA: several forms after dynamic training, and a calibration."""

    def forms(self, options: Options) -> tuple[str, ...]:
        forms: tuple[str, ...] = self.make_config(**options).forms
        return forms

    def deployed_form(self, options: Options) -> str:
        form: str = self.make_config(**options).resolved_eval_form
        return form

    def using(self, model: nn.Module, form: str) -> AbstractContextManager[Any]:
        from aurora_lora import set_form

        context: AbstractContextManager[Any] = set_form(model, form)
        return context


AURORA = AuroraMethod(
    name="aurora",
    description="AuroRA: W0 x + s B sigma(Ax), calibrated to an ordinary rank-r update for merging",
    make_config=_config,
    option_names=_option_names,
    defaults=_defaults,
)
