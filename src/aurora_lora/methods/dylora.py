"""DyLoRA (Valipour et al., "DyLoRA: Parameter-Efficient Tuning ...", EACL 2023)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import TrainerCallback

from .adapted_module import AdaptedLinear, Update
from .base import Options
from .injection import UpdateMethod
from .linear import Linear
from .options import LOW_RANK, fields, integer, optional_integer
from .targets import adapted_modules


class DyLoRA(Update):
    """`dW = (alpha / b) B[:, :b] A[:b]`, with a rank b drawn for each training step and a fixed one in evaluation."""

    def __init__(self, base_layer: Linear, options: Options) -> None:
        super().__init__(base_layer, options)
        self.eval_rank: int = options["eval_rank"] or self.r
        self.frozen: bool = options["frozen"]
        self.training_rank = self.r

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return linear(x, self.delta_weight())
        b = self.training_rank
        A, B = self.A[:b], self.B[:, :b]
        if self.frozen:  # only the last row of A and the last column of B learn
            A = torch.cat([A[:-1].detach(), A[-1:]])
            B = torch.cat([B[:, :-1].detach(), B[:, -1:]], dim=1)
        return (self.alpha / b) * linear(linear(self.dropout(x), A), B)

    def delta_weight(self) -> Tensor:
        left, right = self.factors()
        return left @ right

    def factors(self) -> tuple[Tensor, Tensor]:
        b = self.eval_rank
        return (self.alpha / b) * self.B[:, :b], self.A[:b]


class DrawRank(TrainerCallback):
    """Draws the rank of each step, the same in all layers and processes, from the seed and the step's number alone."""

    def __init__(self, options: Options) -> None:
        self.ranks = range(options["min_rank"], options["r"] + 1)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rank = random.Random(f"{args.seed}:{state.global_step}").choice(self.ranks)
        for _, module in adapted_modules(kwargs["model"]):
            if isinstance(module, AdaptedLinear) and isinstance(module.update, DyLoRA):
                module.update.training_rank = rank


@dataclass(frozen=True)
class DyLoRAMethod(UpdateMethod):
    """The ranks that it is trained at and evaluated in must be among 1 to r."""

    def checked(self, options: Options) -> dict[str, Any]:
        checked = super().checked(options)
        for name in ("min_rank", "eval_rank"):
            if checked[name] is not None and checked[name] > checked["r"]:
                raise ValueError(
                    f"{name}={checked[name]} is not allowed: it must be at most r, which is {checked['r']}."
                )
        return checked

    def callbacks(self) -> Sequence[TrainerCallback]:
        return (DrawRank(self.options),)


DYLORA = DyLoRAMethod(
    name="dylora",
    description="LoRA at a random rank each step, to be cut to any",
    update=DyLoRA,
    fields=fields({**LOW_RANK, "min_rank": integer(1), "eval_rank": optional_integer(), "frozen": (bool, False)}),
)
