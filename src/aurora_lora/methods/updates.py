"""Methods that add an update of their own to linear layers, a formula each; and the update of any adapted layer."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import torch
from peft.tuners.lora import LoraLayer
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, linear
from transformers import TrainerCallback

from ..errors import FormError
from ..forms import MERGED, FormName
from ..tuner import AuroraLayer
from ..tuner.adapters import by_plain_path
from ..tuner.calibration import gathered
from .injection import AdaptedLinear, Update, UpdateMethod, WeightUpdate, adapted_modules
from .options import Count, LowRank, NotNegative, Options, Positive
from .targets import Linear


class MoSLoRAFields(LowRank):
    mixer_init: Literal["kaiming", "orthogonal"] = "kaiming"


class MoSLoRA(Update):
    """`dW = s B W A` with a mixer W (r, r) between the two matrices.

    The mixer starts Kaiming-uniform (sqrt 5) or orthogonal: the paper reports both, its code uses the first.
    """

    def __init__(self, base_layer: Linear, options: Options) -> None:
        super().__init__(base_layer, options)
        self.mixer = nn.Parameter(torch.empty(self.r, self.r, dtype=self.A.dtype, device=self.A.device))
        if options["mixer_init"] == "orthogonal":
            nn.init.orthogonal_(self.mixer)
        else:
            nn.init.kaiming_uniform_(self.mixer, a=math.sqrt(5))

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.scaling * self.B, self.mixer @ self.A


MOSLORA = UpdateMethod(
    name="moslora",
    update=MoSLoRA,
    fields=MoSLoRAFields,
)
"""Wu et al., "Mixture-of-Subspaces in Low-Rank Adaptation", EMNLP 2024."""


class LoDAFields(LowRank):
    negative_slope: Annotated[float, Field(ge=0, le=1)] = 0.8


class LoDA(Update):
    """`s B f(A x)` with the nonlinear map of the low dimension `f(z) = act(M2 act(M1 z))`, act = LeakyReLU.

    M1 and M2 are (r, r) and start at the identity: f then starts near it, and with slope 1 it is LoRA.
    """

    def __init__(self, base_layer: Linear, options: Options) -> None:
        super().__init__(base_layer, options)
        self.slope: float = options["negative_slope"]
        self.M1 = nn.Parameter(torch.eye(self.r, dtype=self.A.dtype, device=self.A.device))
        self.M2 = nn.Parameter(torch.eye(self.r, dtype=self.A.dtype, device=self.A.device))

    def forward(self, x: Tensor) -> Tensor:
        z = linear(self.dropout(x), self.A)  # (..., r)
        z = leaky_relu(linear(z, self.M1), self.slope)
        z = leaky_relu(linear(z, self.M2), self.slope)
        return self.scaling * linear(z, self.B)

    def factors(self) -> None:
        return None


LODA = UpdateMethod(
    name="loda",
    update=LoDA,
    fields=LoDAFields,
    refusal="its update s B f(A x) is not linear in the layer's input",
)
"""Liu et al., "LoDA: Low-Dimensional Adaptation of Large Language Models", NeurIPS 2023 workshop."""


class LoRANFields(LowRank):
    amplitude: NotNegative = 5e-5
    frequency: Positive = 1e4


class LoRAN(WeightUpdate):
    """`dW = s sinter(B A)` with `sinter(u) = u + a u sin(w u)`, entry by entry."""

    def __init__(self, base_layer: Linear, options: Options) -> None:
        super().__init__(base_layer, options)
        self.amplitude: float = options["amplitude"]
        self.frequency: float = options["frequency"]

    def delta_weight(self) -> Tensor:
        u = self.B @ self.A
        return self.scaling * (u + self.amplitude * u * (self.frequency * u).sin())


LORAN = UpdateMethod(
    name="loran",
    update=LoRAN,
    fields=LoRANFields,
)
"""Li, Song and Hou, "LoRAN: Improved Low-Rank Adaptation by a Non-Linear Transformation", EMNLP 2024."""


class SineLoRAFields(LowRank):
    frequency: Positive = 200.0


class SineLoRA(WeightUpdate):
    """`dW = s sin(w B A) / sqrt(d_in)`: the sine, entry by entry, lifts the rank above r."""

    def __init__(self, base_layer: Linear, options: Options) -> None:
        super().__init__(base_layer, options)
        self.frequency: float = options["frequency"]

    def delta_weight(self) -> Tensor:
        d_in = self.A.shape[1]
        return (self.scaling / math.sqrt(d_in)) * (self.frequency * (self.B @ self.A)).sin()


SINE_LORA = UpdateMethod(
    name="sine-lora",
    update=SineLoRA,
    fields=SineLoRAFields,
)
"""Ji et al., "Efficient Learning with Sine-Activated Low-Rank Matrices", ICLR 2025."""


class DyLoRAFields(LowRank):
    min_rank: Count = 1
    eval_rank: Count | None = None
    frozen: bool = False


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
            if (checked[name] or 1) > checked["r"]:
                why = f"it must be at most r, which is {checked['r']}"
                raise ValueError(f"{name}={checked[name]} is not allowed: {why}.")
        return checked

    def callbacks(self) -> Sequence[TrainerCallback]:
        return (DrawRank(self.options),)


DYLORA = DyLoRAMethod(
    name="dylora",
    update=DyLoRA,
    fields=DyLoRAFields,
)
"""Valipour et al., "DyLoRA: Parameter-Efficient Tuning ...", EACL 2023."""


# ---------------------------------------------------------------- the update of each layer, whatever method made it

Factors = tuple[Tensor, Tensor]


def low_rank_updates(model: nn.Module, form: str = MERGED) -> dict[str, Factors]:
    """Each layer's update by its path in the plain model: left (d_out, r) and right (r, d_in), detached, >= float32.

    Sharded weights are gathered: call it on every process.

    Args:
        model: with the adapters of a method, of which the active ones count.
        form: of AuroRA's adapters, a linear one.

    Raises:
        FormError: the method's update has no low-rank factors, or AuroRA's adapters do not have the form.
        NotCalibratedError, StaleCalibrationError: the form is calibrated and there is no matrix, or an old one.
    """
    factors = ((path, _factors(module, form)) for path, module in model.named_modules())
    found = dict(by_plain_path(model, ((path, one) for path, one in factors if one is not None)))
    if not found:
        raise FormError("it has no low-rank update of a weight (allowed: AuroRA, LoRA, PiSSA, MiLoRA, MoSLoRA, DyLoRA)")
    return found


def _factors(module: nn.Module, form: str) -> Factors | None:
    if isinstance(module, AuroraLayer):
        A, B = module.get_factors(_active(module, module.aurora_A), cast("FormName", form))
        return B.detach(), A.detach()
    if isinstance(module, LoraLayer):
        name, layer = _active(module, module.lora_A), cast("Any", module)
        if not isinstance(layer.lora_A[name], nn.Linear) or layer.use_dora.get(name):
            return None
        B, A = (gathered(one[name].weight.detach()) for one in (layer.lora_B, layer.lora_A))
        return layer.scaling[name] * B, A
    factors = module.in_use.factors() if isinstance(module, AdaptedLinear) else None
    return factors and (factors[0].detach(), factors[1].detach())


def _active(layer: Any, adapters: Any) -> str:
    names = [name for name in layer.active_adapters if name in adapters]
    if len(names) != 1:
        raise FormError(f"one active adapter has a low-rank update, not {len(names)}")
    return str(names[0])
