"""The low-rank update of each adapted linear layer, whatever method made it: `dW = left @ right`."""

from __future__ import annotations

from typing import Any, cast

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..errors import FormError
from ..forms import MERGED, FormName
from ..tuner import AuroraLayer
from ..tuner.adapters import by_plain_path
from ..tuner.calibration import gathered
from .adapted_module import AdaptedLinear

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
        (name,) = _active(module, module.aurora_A)
        lora_A, lora_B = module.get_factors(name, cast("FormName", form))
        return lora_B.detach(), lora_A.detach()
    if isinstance(module, LoraLayer):
        (name,) = _active(module, module.lora_A)
        layer: Any = module
        if not isinstance(layer.lora_A[name], nn.Linear) or layer.use_dora.get(name):
            return None
        return layer.scaling[name] * gathered(layer.lora_B[name].weight.detach()), gathered(
            layer.lora_A[name].weight.detach()
        )
    if isinstance(module, AdaptedLinear):
        factors = module.in_use.factors()
        return None if factors is None else (factors[0].detach(), factors[1].detach())
    return None


def _active(layer: Any, adapters: Any) -> list[str]:
    names = [name for name in layer.active_adapters if name in adapters]
    if len(names) != 1:
        raise FormError(f"one active adapter has a low-rank update, not {len(names)}")
    return names
