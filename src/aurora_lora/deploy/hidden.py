"""What reaches sigma: the hidden values z of the rank space, and sigma along each of its channels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CalibrationError
from ..forms import STATIC
from ..tuner import AuroraLayer, active_layers
from .inputs import Runner, as_batches, check_unmerged, no_batches, trained_state, watched_inputs


def hidden_values(model: nn.Module, batches: Any) -> dict[tuple[str, str], Tensor]:
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
    found: dict[tuple[str, str], list[Tensor]] = {}
    with trained_state(model), Runner(model, "hidden_values") as runner:

        def keep(layer: AuroraLayer, name: str, pieces: list[Tensor], x: Tensor) -> None:
            pieces.extend(layer.hidden_values(name, vectors).float().cpu() for vectors, _ in runner.pieces(layer, x))

        watched: list[tuple[AuroraLayer, Callable[[Tensor], None]]] = []
        for path, layer, name in active_layers(model):
            if layer.aurora_config[name].train_form == STATIC and not layer.forms_coincide(name):
                found[path, name] = [layer.aurora_A[name].weight.detach().float().cpu().T]
            elif not layer.forms_coincide(name):
                watched.append((layer, partial(keep, layer, name, found.setdefault((path, name), []))))
        with watched_inputs(watched):
            n = sum(
                runner.run(one, [layer for layer, _ in watched]) is not None
                for one in as_batches(batches if watched else [])
            )
    if watched and not n:
        raise no_batches("hidden_values")
    values = {key: torch.cat(pieces) for key, pieces in found.items() if pieces}
    for (path, _), z in values.items():
        if not z.isfinite().all():
            raise CalibrationError(f"What reaches sigma in {path} is not finite: is the model or a batch broken?")
    return values


def sigma_along(layer: AuroraLayer, adapter: str, channel: int, z: Tensor) -> Tensor:
    """sigma_i(z e_i), (n,): a channel's output along its own input z (n,), the others at 0."""
    inputs = torch.zeros(len(z), layer.r[adapter], device=layer.aurora_A[adapter].weight.device)
    inputs[:, channel] = z.to(inputs)
    with torch.no_grad():
        return layer.sigma(adapter, inputs)[:, channel].float().cpu()
