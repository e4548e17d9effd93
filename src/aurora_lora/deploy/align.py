"""The aligned start: A along the leading directions of the gradient, B = 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..errors import CalibrationError
from ..tuner import AuroraLayer
from ..tuner.adapters import by_plain_path
from ..values import is_number, require
from .inputs import plain_model
from .probe import LayerProbe, Probe

DEVIATION = 0.5
"""Standard deviation that each z of an aligned start has on the probed inputs."""


def aligned_rows(layer: LayerProbe, rank: int, deviation: float = DEVIATION) -> Tensor:
    """A (rank, d_in) of an aligned start: the leading directions, each scaled so that its z has the deviation.

    A direction along which no input varies keeps length 1.

    Raises:
        CalibrationError: the probe found fewer directions.
    """
    k = len(layer.singular_values)
    if rank > k and k < min(layer.d_in, layer.d_out):
        raise CalibrationError(f"{layer.layer} has r={rank}, and was probed for {k} directions: use rank={rank}.")
    spread = layer.deviations[:rank]
    scales = torch.where(spread > 0, deviation / spread, 1.0)
    return layer.directions[:rank] * scales[:, None]


def layers_of_adapter(model: Any, adapter_name: str) -> dict[str, Any]:
    """The linear layers and convolutions with this adapter, AuroRA's or LoRA's, by their path in the plain model."""
    plain, held = plain_model(model), []
    for path, module in plain.named_modules():
        if isinstance(module, LoraLayer) or (isinstance(module, AuroraLayer) and module.has_forms):
            A: Any = module.lora_A if isinstance(module, LoraLayer) else module.aurora_A
            held += [(path, module)] if adapter_name in A else []
    return dict(by_plain_path(plain, held))


def align(
    model: nn.Module, found: Probe, *, adapter_name: str = "default", deviation: float = DEVIATION
) -> tuple[str, ...]:
    """Let an untrained adapter start along the gradient: A is the leading directions of each layer.

    B stays 0 and W0 as it is, so that the adapter changes nothing yet. Layers that the probe has no gradient of, and
    convolutions, keep the start they have.

    Args:
        model: a PEFT model with an adapter of AuroRA or LoRA.
        found: of `probe` on the same model, with or without the adapter.
        adapter_name: which adapter.
        deviation: standard deviation of each z on the probed inputs.

    Returns:
        The layers whose A was set.

    Raises:
        CalibrationError: the adapter is not at its start (B is not 0), a layer has a larger rank than was probed, or
            none of the adapter's layers was probed.
        ValueError: a deviation that is not above 0.
    """
    require(is_number(deviation) and deviation > 0, "deviation", deviation, "a finite number above 0")
    layers = layers_of_adapter(model, adapter_name)
    known = {layer.layer: layer for layer in found.layers if layer.layer in layers}
    if not known:
        raise CalibrationError(f"No layer with the adapter {adapter_name!r} was probed: probe the same model.")
    rows = {
        path: aligned_rows(layer, len(_factors(layers[path], adapter_name)[0]), deviation)
        for path, layer in known.items()
    }
    set_rows(layers, rows, adapter_name)
    return tuple(rows)


def set_rows(layers: Mapping[str, Any], rows: Mapping[str, Tensor], adapter_name: str) -> None:
    """Put the first rows of A in their place, by layer.

    Raises:
        CalibrationError: the adapter is not at its start (B is not 0).
    """
    for path in rows:
        if torch.count_nonzero(_factors(layers[path], adapter_name)[1]):
            raise CalibrationError(f"{path}: B is not 0. An adapter is aligned before it is trained.")
    with torch.no_grad():
        for path, start in rows.items():
            A = _factors(layers[path], adapter_name)[0]
            A[: len(start)] = start[: len(A)].to(A)


def _factors(module: Any, adapter_name: str) -> tuple[Tensor, Tensor]:
    lead = "aurora" if isinstance(module, AuroraLayer) else "lora"
    A, B = (getattr(module, f"{lead}_{letter}")[adapter_name] for letter in "AB")
    return getattr(A, "weight", A), getattr(B, "weight", B)
