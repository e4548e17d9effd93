"""Bottleneck adapters: Houlsby et al. (ICML 2019), Pfeiffer et al. (EACL 2021), AdapterDrop (EMNLP 2021)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, silu

from ..tuner.linear import linear_shape
from .adapted_module import AdaptedModule
from .base import BaseUse, Options
from .injection import InjectionMethod
from .linear import Linear, is_linear
from .options import TARGETS, Fields, choice, fields, integer, rank
from .targets import replace, target_paths

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": gelu, "relu": relu, "silu": silu}


class Bottleneck(nn.Module):
    """`up(act(down(h)))`: down (r, d) and up (d, r), both with biases.

    The weights start normal with standard deviation 0.01, cut at two of them, the biases at 0: nearly a no-op.
    """

    def __init__(self, d: int, like: Tensor, options: Options) -> None:
        super().__init__()
        dtype = torch.promote_types(like.dtype, torch.float32) if like.is_floating_point() else torch.float32
        self.down = nn.Linear(d, options["r"], dtype=dtype, device=like.device)
        self.up = nn.Linear(options["r"], d, dtype=dtype, device=like.device)
        self.act = ACTIVATIONS[options["activation"]]
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor) -> Tensor:
        """(..., d) to (..., d)."""
        update: Tensor = self.up(self.act(self.down(h.to(self.down.weight.dtype))))
        return update.to(h.dtype)


class AfterLinear(AdaptedModule):
    """`y + up(act(down(y)))` with the output y of a linear layer, before the block's residual is added."""

    base_layer: Linear

    def __init__(self, base_layer: Linear, options: Options) -> None:
        super().__init__(base_layer)
        self.adapter = Bottleneck(linear_shape(base_layer)[0], base_layer.weight, options)
        self.train(base_layer.training)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        return y + self.adapter(y)  # type: ignore[no-any-return]


class AroundNorm(AdaptedModule):
    """`LN(s + up(act(down(LN(s)))))` with the sum s that reaches a block's last LayerNorm: Pfeiffer's place."""

    base_layer: nn.LayerNorm

    def __init__(self, base_layer: nn.LayerNorm, options: Options) -> None:
        super().__init__(base_layer)
        self.adapter = Bottleneck(base_layer.normalized_shape[-1], base_layer.weight, options)
        self.train(base_layer.training)

    def forward(self, s: Tensor) -> Tensor:
        return self.base_layer(s + self.adapter(self.base_layer(s)))  # type: ignore[no-any-return]


Places = tuple[tuple[str, ...], ...]
"""For each family of models, patterns of paths: all of them name something in a model of the family."""
HOULSBY_PLACES: Places = (
    (r".*\.layer\.\d+\.attention\.output\.dense", r".*\.layer\.\d+\.output\.dense"),  # BERT, RoBERTa
    (r".*layers\.\d+\.self_attn\.o_proj", r".*layers\.\d+\.mlp\.down_proj"),  # Llama, Qwen
    (r".*\.h\.\d+\.attn\.c_proj", r".*\.h\.\d+\.mlp\.c_proj"),  # GPT-2
    (r".*layers\.\d+\.attention\.o_proj", r".*layers\.\d+\.mlp\.fc2"),  # ViT
)
PFEIFFER_PLACES: Places = (
    (r".*\.layer\.\d+\.output\.LayerNorm",),
    (r".*layers\.\d+\.mlp\.(down_proj|fc2)",),
    (r".*\.h\.\d+\.mlp\.c_proj",),
    (r".*\.layer\.\d+\.output\.dense",),
)


def insert(model: nn.Module, options: Options, places: Places, drop_layers: int) -> None:
    """Put adapters at the targets, except in the first `drop_layers` layers.

    Raises:
        ValueError: no target is known or found, one is neither a linear layer nor a LayerNorm, or nothing is left.
    """
    paths = target_paths(model, options, known_place(model, places))
    kept = [path for path in paths if _layer_number(path) >= drop_layers]
    if not kept:
        raise ValueError(f"drop_layers={drop_layers} leaves no adapter: all targets are in the first layers.")
    for path in kept:
        module = model.get_submodule(path)
        if not is_linear(module) and not isinstance(module, nn.LayerNorm):
            raise ValueError(
                f"target_modules: {path} is a {type(module).__name__}; an adapter goes after a torch.nn.Linear or a "
                "Conv1D of transformers, or around a torch.nn.LayerNorm."
            )
        replace(model, path, _with_adapter, options)


def _with_adapter(module: nn.Module, options: Options) -> AdaptedModule:
    return AfterLinear(module, options) if is_linear(module) else AroundNorm(module, options)  # type: ignore[arg-type]


def known_place(model: nn.Module, places: Places) -> str | None:
    """The first of the places that are all there in the model, as one pattern."""
    paths = [path for path, _ in model.named_modules()]

    def is_there(pattern: str) -> bool:
        return any(re.fullmatch(pattern, path) for path in paths)

    found = next((patterns for patterns in places if all(map(is_there, patterns))), None)
    return None if found is None else "|".join(found)


def train_norms(model: nn.Module) -> None:
    """Train the normalisations of the layers too, as Houlsby et al. do."""
    for path, module in model.named_modules():
        if "norm" in type(module).__name__.lower() and re.search(r"(layers?|\.h)\.\d+\.", path):
            module.requires_grad_(True)


def _layer_number(path: str) -> int:
    found = re.search(r"\.(\d+)\.", path)
    return int(found[1]) if found else 0


_REFUSAL = "an adapter is a nonlinear network between layers, which no weight of the model computes"


def _fields(activation: str, train_norms: bool, drop_layers: int) -> Fields:
    others = [name for name in ("gelu", "relu", "silu") if name != activation]
    table = {
        "r": rank(64),
        "activation": choice(activation, *others),
        "train_norms": (bool, train_norms),
        "drop_layers": integer(drop_layers, least=0),
        **TARGETS,
    }
    return fields(table)


@dataclass(frozen=True, kw_only=True)
class BottleneckMethod(InjectionMethod):
    """Adapters of dimension r after linear layers or around LayerNorms.

    Args:
        places: the patterns that `target_modules=None` stands for.
    """

    places: Places

    @property
    def base_use(self) -> BaseUse:
        return "start" if self.options["train_norms"] else "frozen"

    def inject(self, model: nn.Module) -> None:
        if self.options["train_norms"]:
            train_norms(model)
        insert(model, self.options, self.places, self.options["drop_layers"])


ADAPTER_H = BottleneckMethod(
    name="adapter-h",
    description="Houlsby's adapters, two a layer; cannot be merged",
    places=HOULSBY_PLACES,
    fields=_fields("gelu", train_norms=True, drop_layers=0),
    refusal=_REFUSAL,
)
ADAPTER_P = BottleneckMethod(
    name="adapter-p",
    description="Pfeiffer's adapters, one a layer; cannot be merged",
    places=PFEIFFER_PLACES,
    fields=_fields("relu", train_norms=False, drop_layers=0),
    refusal=_REFUSAL,
)
ADAPTER_D = BottleneckMethod(
    name="adapter-d",
    description="Pfeiffer's, not in the first layers; not mergeable",
    places=PFEIFFER_PLACES,
    fields=_fields("relu", train_norms=False, drop_layers=3),
    refusal=_REFUSAL,
)
