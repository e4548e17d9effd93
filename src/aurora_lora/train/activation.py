"""`aurora sigma`: the learned activation of each layer, before and after training, and its inputs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from ..deploy.hidden import hidden_values, sigma_along
from ..errors import UserError, check_count
from ..finite import check_finite
from ..forms import DYNAMIC
from ..tuner import AuroraLayer
from ..tuner.adapters import plain_layers
from .build import make_trainer
from .finished_run import TrainedRun, as_run
from .gap_and_export import need_aurora
from .models import base_for, make_model
from .probing import kept_start
from .publish import ADAPTER

POINTS, BINS = 41, 32


def learned_activation(run: TrainedRun | Path | str, *, examples: int | None = None) -> dict[str, Any]:
    """Sigma of each layer of a run, along each channel of the rank space, and a histogram of the z that reach it.

    The inputs are those that the run was calibrated with. The start is made again from the recipe's seed.

    Args:
        run: an AuroRA run, or its folder.
        examples: at most so many; the recipe's number if None.

    Returns:
        `examples`, `train_form` (in the static one sigma sees the columns of A), and for each of `layers` its `layer`
        (the path), `vectors` (how many z there are) and `channels`: for each `z`, `before` and `after`, the curve of
        sigma_i(z e_i), the other channels at 0, over the range of the z; `edges` and `counts`, the histogram of z_i.

    Raises:
        UserError: no AuroRA run, no examples, or one whose sigma is the identity.
        CalibrationError, NotFiniteError: something that reaches sigma, or sigma itself, is not finite.
        TypeError: `run` is neither a run nor a path.
    """
    run = as_run(run)
    need_aurora(run)
    check_count("examples", examples)
    recipe, calibration = run.recipe, run.recipe.calibration
    if examples is not None:
        calibration = calibration.model_copy(update={"examples": min(examples, calibration.examples)})
    with tempfile.TemporaryDirectory() as nowhere:
        trainer, data = make_trainer(recipe.in_float32, Path(nowhere), (), run.folder / ADAPTER)
    set_seed(recipe.seed)
    start = kept_start(run.folder)
    begun = recipe if start is None else start.resolved(recipe)
    base = base_for(recipe, data.processor, data.labels)
    if start is not None:
        set_seed(recipe.seed)  # as after a probe
    fresh = make_model(begun, base)
    model: Any = trainer.model
    before, after = dict(plain_layers(fresh)), dict(plain_layers(model))
    found = hidden_values(model, data.calibration_batches(calibration))
    layers = [
        {
            "layer": path,
            "vectors": len(z),
            "channels": _channels(path, before[path], after[path], name, z),
        }
        for (path, name), z in found.items()
    ]
    if not layers:
        raise UserError(f"{run.folder}: sigma is the identity in every layer")
    train_form = recipe.method.options.get("train_form", DYNAMIC)
    return {"schema": 1, "examples": calibration.examples, "train_form": train_form, "layers": layers}


def _channels(path: str, before: AuroraLayer, after: AuroraLayer, name: str, z: Tensor) -> list[dict[str, Any]]:
    channels = []
    for channel in range(z.shape[1]):
        low, high = z[:, channel].min().item(), z[:, channel].max().item()
        if low == high:
            low, high = low - 0.5, high + 0.5
        grid = torch.linspace(low, high, POINTS)
        counts, edges = torch.histogram(z[:, channel], BINS, range=(low, high))
        curves = {
            "z": grid,
            "before": sigma_along(before, name, channel, grid),
            "after": sigma_along(after, name, channel, grid),
            "edges": edges,
        }
        check_finite(curves.items(), f"sigma of {path}, channel {channel + 1}")
        rounded = {key: [float(f"{value:.5g}") for value in values.tolist()] for key, values in curves.items()}
        channels.append({**rounded, "counts": [int(count) for count in counts]})
    return channels
