"""`training.save_updates`: the update of the weights at the start and after each epoch, for the figure of its way."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState

from .. import files
from ..deploy import calibrate
from ..deploy.inputs import Batch
from ..errors import FormError, NotCalibratedError, UserError
from ..forms import MERGED, STATIC, form_named
from ..methods.updates import Factors, low_rank_updates
from .recipe import Recipe

LEFT, RIGHT = "left", "right"
_FILE = re.compile(r"epoch-(\d+)\.safetensors")


class UpdateRecorder(TrainerCallback):
    """Writes `epoch-000.safetensors` before the first step, and one file after each epoch.

    A file holds `FORM/LAYER/left` (d_out, r) and `FORM/LAYER/right` (r, d_in), with `dW = left @ right`. Of AuroRA the
    forms are the static one and the one that is deployed, calibrated for it where need be. A file is whole or absent,
    and comes before the checkpoint of its epoch: a run that goes on has all the earlier ones.

    Args:
        recipe: of the run.
        folder: where the files go.
        batches: to calibrate with; this process's share.
    """

    def __init__(self, recipe: Recipe, folder: Path, batches: Sequence[Batch]) -> None:
        method = recipe.method
        deployed = method.deployed_form
        kept = [form for form in method.forms if form in (STATIC, MERGED, deployed)]
        self.forms = [form for form in kept if form_named(form).mergeable]
        self.name, self.ridge = method.name, recipe.calibration.ridge
        self.folder, self.batches = folder, batches

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._write(kwargs["model"], 0, state)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        epoch = float(state.epoch or 0)
        if epoch.is_integer():  # an epoch's last step; training may stop at another
            self._write(kwargs["model"], int(epoch), state)

    def _write(self, model: nn.Module, epoch: int, state: TrainerState) -> None:
        tensors: dict[str, Tensor] = {}
        for form in self.forms:
            for layer, factors in self._updates(model, form).items():
                for side, value in zip((LEFT, RIGHT), factors, strict=True):
                    tensors[f"{form}/{layer}/{side}"] = value.cpu().contiguous()
        if state.is_world_process_zero:
            with files.new_file(self.folder / f"epoch-{epoch:03d}.safetensors") as partial:
                save_file(tensors, partial, metadata={"step": str(state.global_step)})

    def _updates(self, model: nn.Module, form: str) -> dict[str, Factors]:
        try:
            return low_rank_updates(model, form)
        except NotCalibratedError:
            calibrate(model, self.batches, ridge=self.ridge)
            return low_rank_updates(model, form)
        except FormError as error:
            raise UserError(f"training.save_updates: not with {self.name}: {error}") from error


def saved_updates(folder: Path) -> dict[int, Path]:
    """The files in a folder by their epoch, first to last; none where there is no such folder."""
    if not folder.is_dir():
        return {}
    found = {int(match[1]): path for path in folder.iterdir() if (match := _FILE.fullmatch(path.name))}
    return dict(sorted(found.items()))
