"""`input_statistics`: what an adapter's layers see, kept in a compact form beside it, for a merge without data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import MergeError, UserError, one_line
from ..files import new_file
from ..values import check_finite
from .calibrate import MAX_MEMORY
from .inputs import Passes, Reading, Runner, evaluated
from .merges import AdaptedLayer, input_moments, layers_with_adapters

STATISTICS_FILE = "input_statistics.safetensors"
"""In the folder of an adapter."""
RANK = 32
"""Eigenvectors that are kept: on SmolLM2 a merge loses a fifth more by them than by all."""


class Kept(NamedTuple):
    """E[x x^T] of the inputs that some layers share.

    Args:
        leading: (d_in, k), bfloat16: the leading eigenvectors times the roots of their eigenvalues.
        rest: (d_in,), float32: the diagonal of what they leave.
        layers: the paths of the layers, each with how many inputs it saw.
    """

    leading: Tensor
    rest: Tensor
    layers: Mapping[str, int]

    @classmethod
    def of(cls, S: Tensor, k: int, layers: Mapping[str, int]) -> Kept:
        """By subspace iteration from a fixed start, as all eigenvectors of a wide layer would take minutes."""
        start = torch.randn(
            len(S), min(len(S), k + 16), generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        S, basis = S.double(), torch.linalg.qr(start.to(S.device)).Q
        for _ in range(6):
            basis = torch.linalg.qr(S @ basis).Q
        values, vectors = torch.linalg.eigh(basis.T @ S @ basis)
        leading = (basis @ vectors[:, -k:] * values[-k:].clamp(min=0).sqrt()).bfloat16()
        rest = (S.diagonal() - leading.double().square().sum(1)).clamp(min=0)
        return cls(leading.cpu(), rest.float().cpu(), layers)

    def moment(self, device: torch.device) -> Tensor:
        """(d_in, d_in), in float32."""
        leading = self.leading.to(device).float()
        return leading @ leading.T + self.rest.to(device).diag()


@dataclass(frozen=True)
class InputStatistics:
    """What the layers of an adapter see. `merge_quantized` and `merge_stored` take it in place of batches; what a merge
    loses end to end is not measured then."""

    kept: tuple[Kept, ...]

    def save(self, folder: Path | str) -> Path:
        """Write it into the folder of an adapter: k + 2 numbers of two bytes for each input of a layer, once for layers
        that share their inputs.

        Raises:
            UserError: it cannot be written.
        """
        tensors = {f"{i}.leading": each.leading for i, each in enumerate(self.kept)}
        tensors |= {f"{i}.rest": each.rest for i, each in enumerate(self.kept)}
        said = {"layers": json.dumps([dict(each.layers) for each in self.kept])}
        with new_file(Path(folder) / STATISTICS_FILE) as partial:
            save_file({name: one.contiguous() for name, one in tensors.items()}, partial, metadata=said)
        return Path(folder) / STATISTICS_FILE

    @classmethod
    def load(cls, folder: Path | str) -> InputStatistics:
        """Read what `save` wrote.

        Raises:
            UserError: there is none, or it is damaged.
        """
        path = Path(folder) / STATISTICS_FILE
        try:
            with safe_open(path, "pt") as file:
                layers = json.loads(file.metadata()["layers"])
                kept = [
                    Kept(file.get_tensor(f"{i}.leading"), file.get_tensor(f"{i}.rest"), dict(each))
                    for i, each in enumerate(layers)
                ]
        except Exception as error:  # safetensors raises of many kinds
            raise UserError(f"{path} cannot be read: {one_line(error)}") from error
        for each in kept:
            if each.leading.dim() != 2 or each.rest.shape != each.leading.shape[:1]:
                raise UserError(f"{path} is damaged: shapes {[list(one.shape) for one in each[:2]]}")
            check_finite((("leading", each.leading), ("rest", each.rest)), f"{path} cannot be used")
        return cls(tuple(kept))

    def moments(self, layers: Mapping[str, AdaptedLayer]) -> Iterator[tuple[Tensor, list[tuple[AdaptedLayer, int]]]]:
        """E[x x^T] (d_in, d_in), with the layers that have these inputs, each with how many it saw.

        Raises:
            MergeError: a layer is missing, or has inputs of another width.
        """
        known = {path: each for each in self.kept for path in each.layers}
        for path, layer in layers.items():
            if path not in known:
                if not layer.is_idle():
                    raise MergeError(f"{path}: the input statistics have no such layer: they are another adapter's")
            elif (width := layer.base.in_features) != len(known[path].rest):
                raise MergeError(f"{path} has {width} inputs, and the input statistics {len(known[path].rest)}")
        for each in self.kept:
            together = [(layers[path], seen) for path, seen in each.layers.items() if path in layers]
            if together:
                yield each.moment(together[0][0].base.weight.device), together


def input_statistics(
    model: nn.Module,
    batches: Any,
    *,
    rank: int = RANK,
    max_memory: float = MAX_MEMORY,
    progress: bool = False,
    **reading: Unpack[Reading],
) -> InputStatistics:
    """Keep what the layers with active adapters see, so that a later merge into a quantised model needs no data.

    Args:
        model: a `PeftModel` of any method that changes weights, after training. It is not changed.
        batches: as in `calibrate`: a few hundred training inputs, without labels.
        rank: leading eigenvectors of E[x x^T] that are kept; beside them the diagonal of what they leave.
        max_memory: as in `calibrate`.
        progress: as in `calibrate`.
        reading: as in `calibrate`.

    Returns:
        Statistics to `save` in the folder of the adapter.

    Raises:
        CalibrationError, MergeError, NotFiniteError, TypeError, ValueError: as `merge_quantized`.
    """
    if rank < 1:
        raise ValueError(f"rank={rank!r} is not allowed: it must be at least 1.")
    layers = {layer.path: layer for layer in layers_with_adapters(model, "input_statistics")}
    data = Passes(batches, "reading inputs" if progress else "", **reading)
    data.hold()
    with evaluated(model), Runner(model, "input_statistics") as runner:
        return InputStatistics(
            tuple(
                Kept.of(S, min(rank, len(S)), {layer.path: seen for layer, seen in together})
                for S, together in input_moments(layers, runner, data, max_memory)
            )
        )
