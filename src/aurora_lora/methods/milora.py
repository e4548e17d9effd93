"""MiLoRA (Wang et al., "MiLoRA: Harnessing Minor Singular Components ...", NAACL 2025), through PEFT's LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, load_peft_weights, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from ..errors import CheckpointError
from .base import BaseUse, Options, PeftMethod, TaskType
from .linear import is_plain_linear, matrix
from .lora import LORA_TABLE
from .options import TARGETS, peft_method


def start_from_minor_components(model: nn.Module, adapter: str = "default") -> None:
    """For `W0 = U S V^T`, let `B = U_m sqrt(S_m / s)`, `A = sqrt(S_m / s) V_m^T` with the r smallest singular values.

    The base weight becomes `W0 - s B A`, so that the model computes what it did.

    Raises:
        ValueError: an adapted module is not a linear layer in floating point, or r is larger than its rank.
    """
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            layer: Any = module
            base = layer.get_base_layer()
            r, s = layer.r[adapter], layer.scaling[adapter]
            if not is_plain_linear(base):
                raise ValueError(
                    f"target_modules: {path} is a {type(base).__name__}; milora adapts torch.nn.Linear and "
                    "transformers' Conv1D, in floating point."
                )
            if r > min(base.weight.shape):
                raise ValueError(f"r={r} is not allowed: {path} has no more than {min(base.weight.shape)} components.")
            with torch.no_grad():
                weight = matrix(base).to(torch.promote_types(base.weight.dtype, torch.float32))
                U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
                root = (S[-r:] / s).sqrt()
                B, A = U[:, -r:] * root, root[:, None] * Vh[-r:]
                layer.lora_A[adapter].weight.copy_(A)
                layer.lora_B[adapter].weight.copy_(B)
                matrix(base).copy_(weight - s * (B @ A))


def load_weights(model: nn.Module, directory: Path) -> None:
    """Load a saved adapter into a model that has one.

    Raises:
        CheckpointError: the file does not fit the model.
    """
    result: Any = set_peft_model_state_dict(model, load_peft_weights(str(directory), device="cpu"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    odd = sorted({*result.unexpected_keys, *(trained & set(result.missing_keys))})
    if odd:
        raise CheckpointError(f"{directory} does not fit the model: {', '.join(odd[:3])}.")


class MiLoRAMethod(PeftMethod):
    """LoRA whose start is taken out of the base weight.

    The adapter belongs to the changed base weight, which is made again from the pretrained one when it is loaded.
    """

    def base_use(self, options: Options) -> BaseUse:
        return "start"

    def apply(self, model: PreTrainedModel, options: Options, task_type: TaskType) -> nn.Module:
        peft_model = super().apply(model, options, task_type)
        start_from_minor_components(peft_model)
        return peft_model

    def load(self, model: PreTrainedModel, directory: Path, options: Options) -> nn.Module:
        task_type: Any = PeftConfig.from_pretrained(str(directory)).task_type
        peft_model = self.apply(model, options, task_type)
        load_weights(peft_model, directory)
        peft_model.train(False)
        return peft_model


MILORA = peft_method(
    name="milora",
    description="LoRA from the smallest singular vectors of W0",
    config="LoraConfig",
    table={**LORA_TABLE, **TARGETS},
    kind=MiLoRAMethod,
)
