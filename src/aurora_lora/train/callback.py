"""`CalibrationCallback`: evaluations during training score the form that will be deployed, in any Trainer."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl

from ..deploy import calibrate
from ..deploy.calibrate import MAX_MEMORY, check_ridge, several_processes
from ..deploy.inputs import as_batches, no_batches
from ..forms import CALIBRATED
from ..tuner import active_layers


class CalibrationCallback(TrainerCallback):
    """Calibrates just before each evaluation in training, where `eval()` computes the calibrated form, and at the end.

        Trainer(model=model, ..., callbacks=[CalibrationCallback(batches)])

    Without it, an evaluation in the middle of training scores the dynamic form: the calibrated matrix is missing or
    stale. At the end an adapter that is calibrated stays as it is, that of a best checkpoint say. Does nothing where no
    active adapter deploys the calibrated form; otherwise calibrates all active ones. `eval_on_start` comes too early
    for it, and so does an evaluation that a callback behind it asks for: it warns that these score the dynamic form.

    Args:
        batches: training inputs as `aurora_lora.calibrate` takes them, a few hundred: they are kept in memory, and gone
            through at each evaluation. On several processes, each may hold its own share.
        ridge: as of `calibrate`.
        max_memory: as of `calibrate`.
        progress: as of `calibrate`.
        at_end: whether to calibrate at the end of training, too.
        reading: `tokenizer`, `text_columns`, `batch_size`, `examples` (a part of a dataset, or of a loader of the whole
            training set) and `max_length`, as of `calibrate`.

    Raises:
        CalibrationError: no batches.
        TypeError, ValueError: as `calibrate`.
    """

    def __init__(
        self,
        batches: Any,
        *,
        ridge: float = 1e-4,
        max_memory: float = MAX_MEMORY,
        progress: bool = False,
        at_end: bool = True,
        **reading: Any,
    ) -> None:
        check_ridge(ridge)
        self.batches = list(as_batches(batches, **reading))
        if not self.batches and not several_processes():
            raise no_batches("CalibrationCallback")
        self.at_end = at_end
        self._options: dict[str, Any] = {"ridge": ridge, "max_memory": max_memory, "progress": progress}
        self._checked = False

    # Transformers' own flow callback comes first in both events and decides whether to evaluate.

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_evaluate and deploys_calibrated(kwargs["model"]):
            calibrate(kwargs["model"], self.batches, **self._options)

    on_epoch_end = on_step_end

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.at_end and _awaits_calibration(kwargs["model"]):
            calibrate(kwargs["model"], self.batches, **self._options)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._checked and _awaits_calibration(kwargs["model"]):
            warnings.warn(
                "This evaluation scores the dynamic form: the adapter is not calibrated yet (CalibrationCallback comes "
                "before the evaluations of training that are asked for before it, and calibrates at the end).",
                stacklevel=2,
            )
        self._checked = True

    def on_evaluate(self, args: Any, state: Any, control: Any, *others: Any, **kwargs: Any) -> None:
        self._checked = False

    on_train_begin = on_predict = on_evaluate


def _awaits_calibration(model: nn.Module) -> bool:
    """Whether an adapter that is to compute the calibrated form, and is not switched off, has no fresh matrix."""
    return any(
        layer.aurora_config[name].resolved_eval_form == CALIBRATED
        and not layer.disable_adapters
        and not layer.forms_coincide(name)
        and not layer.calibration[name].check()
        for _, layer, name in active_layers(model)
    )


def is_calibrated(model: nn.Module) -> bool:
    """Whether every active adapter has calibrated matrices that belong to its present weights, where it needs them."""
    return all(layer.forms_coincide(name) or layer.calibration[name].check() for _, layer, name in active_layers(model))


def deploys_calibrated(model: nn.Module) -> bool:
    """Whether `model.eval()` computes the calibrated form of an active adapter, where that is a form of its own."""
    return any(
        layer.aurora_config[name].resolved_eval_form == CALIBRATED and not layer.forms_coincide(name)
        for _, layer, name in active_layers(model)
    )
