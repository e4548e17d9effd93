"""What reaches sigma: the hidden values z of the rank space, and sigma along each of its channels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CalibrationError
from ..finite import is_finite
from ..forms import STATIC
from ..tuner import AuroraLayer, active_layers
from .inputs import Runner, as_batches, check_unmerged, no_batches, trained_state, watched_inputs

Layers = dict[tuple[str, str], Tensor]


def hidden_values(model: nn.Module, batches: Any) -> Layers:
    """z = A x for each input x that reaches an adapter, padding left out, as the trained model computes it.

    Where sigma is trained on the columns of A (the static form), these are its z, and no input is needed. Adapters
    whose sigma is the identity are left out. Changes nothing: forms, training mode and random state are as before.

    Args:
        model: with active AuroRA adapters, not merged.
        batches: as in `calibrate`.

    Returns:
        By layer, its path in the plain model, and adapter: (n, r), float32, in main memory: 4 r bytes for each token
        and layer.

    Raises:
        CalibrationError: no batches, values that are not finite, or adapters that are switched off.
        AlreadyMergedError: an adapter is merged.
        ValueError: no AuroRA adapter.
    """
    check_unmerged(model, "hidden_values")
    static: Layers = {}
    found: dict[tuple[str, str], list[Tensor]] = {}
    with trained_state(model), Runner(model, "hidden_values") as runner:
        watchers: list[tuple[AuroraLayer, Callable[[Tensor], None]]] = []
        for path, layer, name in active_layers(model):
            if layer.forms_coincide(name):
                continue
            if layer.aurora_config[name].train_form == STATIC:
                static[path, name] = layer.aurora_A[name].weight.detach().float().cpu().T
                continue
            pieces = found.setdefault((path, name), [])
            watchers.append((layer, partial(_keep, runner, layer, name, pieces)))
        n = 0
        with watched_inputs(watchers):
            for batch in as_batches(batches) if watchers else ():
                runner.run(batch, [layer for layer, _ in watchers])
                n += 1
    if watchers and n == 0:
        raise no_batches("hidden_values")
    values = {**static, **{key: torch.cat(pieces) for key, pieces in found.items() if pieces}}
    for (path, _), z in values.items():
        if not is_finite(z):
            raise CalibrationError(f"What reaches sigma in {path} is not finite: is the model or a batch broken?")
    return values


def _keep(runner: Runner, layer: AuroraLayer, name: str, pieces: list[Tensor], x: Tensor) -> None:
    pieces.extend(layer.hidden_values(name, vectors).float().cpu() for vectors in runner.pieces(layer, x))


def sigma_along(layer: AuroraLayer, adapter: str, channel: int, z: Tensor) -> Tensor:
    """sigma_i(z e_i), (n,): a channel's output along its own input z (n,), the others at 0."""
    inputs = torch.zeros(len(z), layer.r[adapter], device=layer.aurora_A[adapter].weight.device)
    inputs[:, channel] = z.to(inputs)
    with torch.no_grad():
        return layer.sigma(adapter, inputs)[:, channel].float().cpu()
