"""LoRA-drop (Zhou et al., "LoRA-drop: Efficient LoRA Parameter Pruning based on Output Evaluation", COLING 2025)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..errors import DIVERGED, UserError
from ..temporary_attributes import kept
from ..tuner.linear import linear_shape
from .base import Sample
from .injection import AdaptedLinear, Update, UpdateMethod, adapted_modules
from .options import Count, LowRank, Share
from .parameters import WEIGHTS_FILE


class LoRADropFields(LowRank):
    threshold: Share = 0.9
    sample_share: Share = 0.1
    sample_epochs: Count = 3


class LoRADrop(Update):
    """`dW = s B A`, in the layer itself or shared by the layers that were found unimportant."""


LayerKind = tuple[str, int, int]


def layers_by_path(model: nn.Module) -> dict[str, AdaptedLinear]:
    """The linear layers that the method has adapted."""
    return {path: module for path, module in adapted_modules(model) if isinstance(module, AdaptedLinear)}


def kind_of(path: str, layer: AdaptedLinear) -> LayerKind:
    """Layers of one name and shape: they are compared with each other, and can share."""
    return path.rsplit(".", 1)[-1], *linear_shape(layer.base_layer)


def update_norms(
    model: nn.Module, layers: Mapping[str, AdaptedLinear], batches: list[Any], sample: Sample
) -> dict[str, float]:
    """`sum_x |dW x|^2` for each layer over the batches, all positions counted.

    Raises:
        UserError: one is not finite.
    """
    sums = dict.fromkeys(layers, 0.0)
    hooks = []
    for path, layer in layers.items():

        def add(module: nn.Module, args: Any, output: Tensor, path: str = path) -> None:
            sums[path] += output.double().square().sum().item()

        hooks.append(layer.in_use.register_forward_hook(add))
    try:
        with torch.no_grad():
            for batch in batches:
                sample.loss(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not all(map(math.isfinite, sums.values())):
        raise UserError(f"{DIVERGED}: that of lora-drop on sample data; lower training.learning_rate")
    return sums


def unimportant(norms: Mapping[str, float], kinds: Mapping[str, LayerKind], threshold: float) -> list[str]:
    """The layers to drop: of each kind, those left when the most important ones make up `threshold` of the total."""
    dropped = []
    for kind in dict.fromkeys(kinds.values()):
        members = sorted((path for path in norms if kinds[path] == kind), key=lambda path: -norms[path])
        total, so_far = sum(norms[path] for path in members), 0.0
        for path in members:
            if total > 0 and so_far >= threshold * total:
                dropped.append(path)
            so_far += norms[path]
    return dropped


def share(layers: Mapping[str, AdaptedLinear], dropped: Collection[str]) -> None:
    """Let the dropped layers of each kind use one adapter: that of the first of them, marked with a buffer."""
    leaders: dict[LayerKind, Update] = {}
    for path, layer in layers.items():
        if path in dropped and layer.update is not None:
            leader = leaders.setdefault(kind_of(path, layer), layer.update)
            if leader is layer.update:
                leader.register_buffer("is_shared", torch.ones((), dtype=torch.bool, device=leader.A.device))
            else:
                layer.share(leader)


@dataclass(frozen=True)
class LoRADropMethod(UpdateMethod):
    """The layers are chosen before the training, and known from the saved weights afterwards."""

    looks: ClassVar[bool] = True

    def prepare(self, model: nn.Module, sample: Sample) -> None:
        """Train on a share of the data, see which layers matter, and let the others share one adapter; start anew.

        The importance of a layer is `sum_x |dW x|^2` over the sample, as a share of its kind's total.
        """
        options, layers = self.options, layers_by_path(model)
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        start = {name: parameter.detach().clone() for name, parameter in trained.items()}
        devices = sorted({p.device.index or 0 for p in trained.values() if p.is_cuda})
        with torch.random.fork_rng(devices=devices), kept(model.modules(), "training"):
            torch.manual_seed(sample.seed)
            batches = sample.batches(options["sample_share"])
            optimizer = torch.optim.AdamW(trained.values(), lr=sample.learning_rate, weight_decay=0.0)
            device = next(iter(trained.values())).device.type
            scaler = torch.amp.GradScaler(device, enabled=sample.in_float16)
            model.train()
            for _ in range(options["sample_epochs"]):
                for batch in batches:
                    torch.autograd.backward(scaler.scale(sample.loss(model, batch)))
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad()
            model.eval()
            norms = update_norms(model, layers, batches, sample)
        kinds = {path: kind_of(path, layer) for path, layer in layers.items()}
        dropped = sample.agree(unimportant(norms, kinds, options["threshold"]))
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(start[name])
        share(layers, dropped)

    def restore(self, model: nn.Module, directory: Path) -> None:
        with safe_open(str(directory / WEIGHTS_FILE), "pt") as saved:
            names = set(saved.keys())
        layers = layers_by_path(model)
        # those without an adapter of their own, and those that share theirs
        share(layers, [p for p in layers if f"{p}.update.A" not in names or f"{p}.update.is_shared" in names])


LORA_DROP = LoRADropMethod(
    name="lora-drop",
    update=LoRADrop,
    fields=LoRADropFields,
)
