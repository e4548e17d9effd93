"""`set_form`: what eval() computes, and what merge and export produce."""

from __future__ import annotations

from collections.abc import Collection
from types import TracebackType
from typing import get_args

from torch import nn

from ..errors import FormError
from ..forms import CALIBRATED, STATIC, FormName
from ..values import one_of, short
from .adapters import (
    active_adapters,
    active_layers,
    adapter_names,
    check_adapted,
    check_not_merged,
    no_adapter,
    plain_layers,
)
from .config import AuroraConfig


def check_calibrated(model: nn.Module, names: Collection[str] | None = None) -> None:
    """See that each active adapter has a calibrated matrix that belongs to its present weights, or B = 0.

    Args:
        model: a model with AuroRA adapters.
        names: of the adapters that are asked for; all active ones if None.

    Raises:
        NotCalibratedError, StaleCalibrationError: one has none, or an outdated one.
        FormError: one was trained in the static form.
        ValueError: no AuroRA adapter.
    """
    check_adapted(model)
    for _, layer, name in active_layers(model):
        if names is None or name in names:
            layer.get_factors(name, CALIBRATED)


class set_form:  # noqa: N801 - used as a function and as a context manager, like torch.no_grad
    """Set the form that `model.eval()` computes and that merge and export produce.

    The form is kept in the adapter's config; as in PEFT, a config object given to two models is shared by them.

    Takes effect at once; used in a `with` statement, the earlier form comes back at its end.

        set_form(model, "static")
        with set_form(model, "dynamic"):
            ...

    Args:
        model: a model with AuroRA adapters.
        form: `"calibrated"`, `"static"` or `"dynamic"`. The calibrated form computes the dynamic one until `calibrate`
            has run, and refuses to merge.
        adapter_name: which adapter; all active ones if None.

    Raises:
        ValueError: no such form or adapter, or no AuroRA adapter in the model.
        TypeError: `adapter_name` is no string, as a list of names is.
        FormError: the adapter was trained in the static form, which is its only one.
        AlreadyMergedError: it is merged at present.
    """

    def __init__(self, model: nn.Module, form: FormName, *, adapter_name: str | None = None) -> None:
        one_of("form", form, get_args(FormName))
        if not isinstance(adapter_name, str | None):
            raise TypeError(f"adapter_name={short(adapter_name)} is not allowed: it must be one name, or None.")
        names = active_adapters(model) if adapter_name is None else [adapter_name]
        configs: dict[int, AuroraConfig] = {}
        for path, layer in plain_layers(model):
            for name in names:
                if name in layer.aurora_config:
                    if name in layer.merged_adapters:
                        check_not_merged(path, layer, "another form is set")
                    if form == CALIBRATED and (calibration := layer.calibration.get(name)) is not None:
                        calibration.check()
                    config = layer.aurora_config[name]
                    configs[id(config)] = config
                    if config.train_form == STATIC and form != STATIC:
                        raise FormError(
                            f"Adapter {name!r} was trained in the static form, which is its only one: "
                            f"form={form!r} is not allowed."
                        )
        if adapter_name is not None and not configs:
            raise no_adapter(adapter_name, adapter_names(model))
        self._form, self._names = form, names
        self._earlier = [(config, config.eval_form) for config in configs.values()]
        for config in configs.values():
            config.eval_form = form

    def __repr__(self) -> str:
        return f"set_form(form={self._form!r}, adapters={self._names!r})"

    def __enter__(self) -> set_form:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for config, eval_form in self._earlier:
            config.eval_form = eval_form
