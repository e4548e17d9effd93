"""What reaches sigma: the hidden values z of the rank space, and sigma along each of its channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import CalibrationError
from ..finite import is_finite
from ..tuner import AuroraLayer, active_adapters, aurora_layers
from .calibrate import check_unmerged, trained_state
from .inputs import NO_BATCHES, Runner, as_batches

Layers = dict[tuple[str, str], Tensor]


def hidden_values(model: nn.Module, batches: Any) -> Layers:
    """z = A x for each input x that reaches an adapter, padding left out, as the trained model computes it.

    Where sigma is trained on the columns of A (the static form), these are its z, and no input is needed. Adapters
    whose sigma is the identity are left out. Changes nothing: forms, training mode and random state are as before.

    Args:
        model: with active AuroRA adapters, not merged.
        batches: as in `calibrate`.

    Returns:
        By layer and adapter: (n, r), float32, in main memory: 4 r bytes for each token and layer.

    Raises:
        CalibrationError: no batches, values that are not finite, a merged adapter, or adapters that are switched off.
        ValueError: no AuroRA adapter.
    """
    check_unmerged(model, "hidden_values")
    names = active_adapters(model)
    static: Layers = {}
    found: dict[tuple[str, str], list[Tensor]] = {}
    with trained_state(model), Runner(model) as runner:
        hooks = []
        for path, layer in aurora_layers(model):
            for name in names:
                if name not in layer.aurora_A or layer.forms_coincide(name):
                    continue
                if layer.aurora_config[name].train_form == "static":
                    static[path, name] = layer.aurora_A[name].detach().float().cpu().T
                    continue
                hook = _keep(runner, layer, name, found.setdefault((path, name), []))
                hooks.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        try:
            n = 0
            for batch in as_batches(batches) if hooks else ():
                runner.run(batch)
                n += 1
            if hooks and n == 0:
                raise CalibrationError(NO_BATCHES.replace("calibrate", "hidden_values"))
        finally:
            for handle in hooks:
                handle.remove()
    values = {**static, **{key: torch.cat(pieces) for key, pieces in found.items() if pieces}}
    for (path, _), z in values.items():
        if not is_finite(z):
            raise CalibrationError(f"What reaches sigma in {path} is not finite: is the model or a batch broken?")
    return values


def _keep(runner: Runner, layer: AuroraLayer, name: str, kept: list[Tensor]) -> Any:
    def hook(module: AuroraLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = runner.vectors(module, args[0] if args else kwargs["x"])
        A = layer.aurora_A[name]
        kept.append(functional.linear(layer._cast_input_dtype(x, A.dtype), A).float().cpu())

    return hook


def sigma_along(layer: AuroraLayer, adapter: str, channel: int, z: Tensor) -> Tensor:
    """sigma_i(z e_i), (n,): a channel's output along its own input z (n,), the others at 0."""
    inputs = torch.zeros(len(z), layer.r[adapter], device=layer.aurora_A[adapter].device)
    inputs[:, channel] = z.to(inputs)
    with torch.no_grad():
        return layer.sigma(adapter, inputs)[:, channel].float().cpu()
