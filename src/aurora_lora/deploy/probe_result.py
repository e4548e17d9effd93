"""What `probe` has found: how it is shown, and kept in a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, counted
from .probe_file import read_probe, write_probe
from .reports import Report
from .sketch import LayerProbe

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, eq=False)
class Probe(Report):
    """The result of `probe`."""

    layers: tuple[LayerProbe, ...]
    without_gradient: tuple[str, ...]
    """Layers that no gradient came through: the loss does not depend on them, or their module is not called, as the
    output projection of `nn.MultiheadAttention`."""
    batches: int
    """How many batches all processes ran together."""
    passes: int
    """How many passes were made over the batches, the last, perhaps of some only, without a backward pass."""
    groups: int
    """How many groups of layers were worked on one after another to stay within `max_memory`."""
    seconds: float
    modules: tuple[str, ...] = field(default=(), repr=False)
    """The paths of all modules of the model, by which names of some can be told from those of others."""
    taken_for_experts: tuple[str, ...] = ()
    """Layers that PEFT's LoRA cannot be put on: it takes their names for those of the model's fused experts."""
    widths_without_gradient: tuple[int, ...] = field(default=(), repr=False)
    """d_in + d_out of each of `without_gradient`: a budget in words counts them, too."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON, without the directions: `save` keeps these, too."""
        found = super().to_dict()
        for layer in found["layers"]:
            del layer["directions"]
        return found

    def tables(self) -> tuple[Table, ...]:
        """Layer by layer, those with the largest singular values first, for a terminal. Needs rich."""
        from .tables import first_table, shown

        squares = {layer.layer: float(layer.singular_values.double().square().sum()) for layer in self.layers}
        total = sum(squares.values())
        largest = {layer.layer: float(layer.singular_values[0]) for layer in self.layers}
        rows = [
            (
                layer.layer,
                [
                    f"{layer.d_out} x {layer.d_in}",
                    str(len(layer.singular_values)),
                    shown(largest[layer.layer], ".2e"),
                    shown(squares[layer.layer] / total, ".1%"),
                ],
            )
            for layer in sorted(self.layers, key=lambda layer: largest[layer.layer], reverse=True)
        ]
        left_out = self.without_gradient and f"no gradient came through {counted(len(self.without_gradient), 'layer')}"
        title = f"layers{{}}: singular values S of the gradient, mean over {self.batches:,} batches"
        headings = ["layer", "weight", "directions", "largest S", "of all S^2"]
        return (first_table(title, headings, rows, "layers with less", left_out or ""),)

    def save(self, path: str | Path) -> None:
        """Keep all of it in a file, such as `probe.safetensors`: a probe takes passes over the model.

        Args:
            path: of the file, whose folder is made if need be, and which is replaced.
        """
        sizes = [[layer.layer, layer.d_out, layer.d_in, layer.conv_groups] for layer in self.layers]
        tensors = {name: {layer.layer: getattr(layer, name) for layer in self.layers} for name in _OF_LAYER}
        facts = {name: getattr(self, name) for name in _OF_PROBE}
        write_probe(Path(path), tensors, {**facts, "layers": sizes})

    @classmethod
    def load(cls, path: str | Path) -> Probe:
        """What `save` has kept.

        Raises:
            CheckpointError: the file cannot be read, is damaged, or is none of `save`.
        """
        tensors, facts = read_probe(Path(path))
        if "layers" not in facts:
            raise CheckpointError(f"{path} keeps what a run began with, not all directions that Probe.save keeps.")
        if missing := [name for name in _OF_PROBE if name not in facts]:
            raise CheckpointError(f"{path} is of an earlier version, without {missing[0]}: probe again.")
        layers = tuple(
            LayerProbe(name, *sizes, *(tensors[what][name] for what in _OF_LAYER)) for name, *sizes in facts["layers"]
        )
        found: dict[str, Any] = {
            name: tuple(facts[name]) if isinstance(facts[name], list) else facts[name] for name in _OF_PROBE
        }
        return cls(layers, **found)


_OF_LAYER = ("singular_values", "directions", "deviations")
_OF_PROBE = (
    "without_gradient",
    "batches",
    "passes",
    "groups",
    "seconds",
    "modules",
    "taken_for_experts",
    "widths_without_gradient",
)


def check_probe(found: Any) -> None:
    """Raise a TypeError for what is no result of `probe`."""
    if not isinstance(found, Probe):
        raise TypeError(f"found must be a Probe, the result of aurora_lora.probe, not {type(found).__name__}.")
