"""Bottleneck adapters: Houlsby et al. (ICML 2019), Pfeiffer et al. (EACL 2021), AdapterDrop (EMNLP 2021)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional

from ..tuner.linear import linear_shape
from .base import BaseUse
from .injection import AdaptedModule, InjectionMethod, trained_dtype
from .options import Natural, Options, Rank, Targets
from .targets import Linear, is_linear, target_paths


class BottleneckFields(Targets):
    r: Rank = 64
    activation: Literal["gelu", "relu", "silu"] = "relu"
    train_norms: bool = False
    drop_layers: Natural = 0


class HoulsbyFields(BottleneckFields):
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    train_norms: bool = True


class AdapterDropFields(BottleneckFields):
    drop_layers: Natural = 3


class Bottleneck(nn.Module):
    """`up(act(down(h)))`: down (r, d) and up (d, r), both with biases.

    The weights start normal with standard deviation 0.01, cut at two of them, the biases at 0: nearly a no-op.
    """

    def __init__(self, d: int, like: Tensor, options: Options) -> None:
        super().__init__()
        on: dict[str, Any] = {"dtype": trained_dtype(like), "device": like.device}
        self.down = nn.Linear(d, options["r"], **on)
        self.up = nn.Linear(options["r"], d, **on)
        self.act = getattr(functional, options["activation"])
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


def known_place(model: nn.Module, places: Places) -> str | None:
    """The first of the places that are all there in the model, as one pattern."""
    paths = [path for path, _ in model.named_modules()]
    for patterns in places:
        if all(any(re.fullmatch(pattern, path) for path in paths) for pattern in patterns):
            return "|".join(patterns)
    return None


@dataclass(frozen=True, kw_only=True)
class BottleneckMethod(InjectionMethod):
    """Adapters of dimension r after linear layers or around LayerNorms, except in the first `drop_layers` layers.

    Args:
        places: the patterns that `target_modules=None` stands for.
    """

    places: Places
    refusal: str | None = "an adapter is a nonlinear network between layers, which no weight of the model computes"

    @property
    def base_use(self) -> BaseUse:
        return "start" if self.options["train_norms"] else "frozen"

    def inject(self, model: nn.Module) -> None:
        options, dropped = self.options, self.options["drop_layers"]
        if options["train_norms"]:  # of the layers, as Houlsby et al. do
            for path, module in model.named_modules():
                if "norm" in type(module).__name__.lower() and re.search(r"(layers?|\.h)\.\d+\.", path):
                    module.requires_grad_(True)
        paths = target_paths(model, options, known_place(model, self.places))
        numbers = {path: re.search(r"\.(\d+)\.", path) for path in paths}
        kept = [path for path, number in numbers.items() if (int(number[1]) if number else 0) >= dropped]
        if not kept:
            raise ValueError(f"drop_layers={dropped} leaves no adapter: all targets are in the first layers.")
        for path in kept:
            module = model.get_submodule(path)
            if is_linear(module):
                model.set_submodule(path, AfterLinear(module, options))
            elif isinstance(module, nn.LayerNorm):
                model.set_submodule(path, AroundNorm(module, options))
            else:
                raise ValueError(
                    f"target_modules: {path} is a {type(module).__name__}; an adapter goes after a torch.nn.Linear or "
                    "a Conv1D of transformers, or around a torch.nn.LayerNorm."
                )


ADAPTER_H = BottleneckMethod(
    name="adapter-h",
    places=HOULSBY_PLACES,
    fields=HoulsbyFields,
)
ADAPTER_P = BottleneckMethod(
    name="adapter-p",
    places=PFEIFFER_PLACES,
    fields=BottleneckFields,
)
ADAPTER_D = BottleneckMethod(
    name="adapter-d",
    places=PFEIFFER_PLACES,
    fields=AdapterDropFields,
)
