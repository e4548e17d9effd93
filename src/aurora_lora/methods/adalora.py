"""AdaLoRA (Zhang et al., ICLR 2023), PEFT's own, with what PEFT leaves to the training loop: sharing out the ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from peft import AdaLoraConfig
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from ..errors import UserError
from .base import PeftMethod, TaskType
from .options import Count, Dropout, Natural, NotNegative, Options, Positive, Rank, Targets

STATE_FILE = "adalora.safetensors"
UNKNOWN_STEPS = 10**9
"""PEFT wants the number of training steps in the configuration; the callback sets it when the training starts."""


class ShareOutRanks(TrainerCallback):
    """Adds the orthogonality penalty's gradient before each optimizer step, and masks ranks after it.

    PEFT's own `update_and_allocate` is not called: it writes the ranks into the configuration, and a checkpoint is then
    saved with fewer of them than a resumed run starts from. Here the masked ranks are zeros in E, so that the saved
    adapter has all `init_r` of them and computes the same.
    """

    def __init__(self) -> None:
        self.pattern: dict[str, list[bool]] | None = None
        self._loaded: dict[str, Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        tuner = _tuner(kwargs["model"])
        config = tuner.peft_config[tuner.trainable_adapter_name]
        if max(config.tinit, 1) + config.tfinal >= state.max_steps:  # one step to see what is important
            raise UserError(
                f"method.tinit={config.tinit} and method.tfinal={config.tfinal} leave no step of the {state.max_steps} "
                "in which ranks are shared out: lower them"
            )
        if getattr(args, "fp16", False):  # gradients that overflow would stay in the running importances
            raise UserError("adalora does not go with training.precision=fp16: use bf16 or fp32")
        tuner.rankallocator.set_total_step(state.max_steps)
        device = next(tuner.parameters()).device
        for key, value in self._loaded.items():
            kind, _, name = key.partition(":")
            if kind == "pattern":
                self.pattern = {**(self.pattern or {}), name: value.tolist()}
            else:
                getattr(tuner.rankallocator, kind)[name] = value.to(device)
                tuner.rankallocator.ipt.setdefault(name, torch.zeros_like(value, device=device))
        self._allocator = tuner.rankallocator

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        tuner = _tuner(kwargs["model"])
        weight = tuner.peft_config[tuner.trainable_adapter_name].orth_reg_weight
        trained = [
            (name, parameter)
            for name, parameter in tuner.named_parameters()
            if (".lora_A." in name or ".lora_B." in name) and parameter.requires_grad
        ]
        if weight == 0 or not trained:
            return
        parameters = [parameter for _, parameter in trained]
        # not backward(): that would call the hooks by which distributed training sums gradients
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(weight * orthogonality(trained), parameters), strict=True
        ):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        tuner, step = _tuner(kwargs["model"]), state.global_step + 1
        allocator, config = tuner.rankallocator, tuner.peft_config[tuner.trainable_adapter_name]
        for name, parameter in tuner.model.named_parameters():
            if "lora_" in name and parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)  # the loss does not reach the layer; PEFT reads it of all
        last = config.total_step - config.tfinal
        if step > last:
            if self.pattern is not None:
                allocator.mask_using_rank_pattern(tuner.model, self.pattern)
        else:
            _, pattern = allocator.update_and_allocate(tuner.model, step, force_mask=step == last)
            self.pattern = pattern or self.pattern

    def save_state(self, folder: Path) -> None:
        """Write the running importances and the present ranks."""
        state = {f"pattern:{name}": torch.tensor(kept) for name, kept in (self.pattern or {}).items()}
        for kind in ("exp_avg_ipt", "exp_avg_unc"):
            state |= {f"{kind}:{name}": value for name, value in getattr(self._allocator, kind).items()}
        save_file({name: value.contiguous().cpu() for name, value in state.items()}, str(folder / STATE_FILE))

    def load_state(self, folder: Path) -> None:
        """Read what `save_state` wrote; it is used when the training begins."""
        self._loaded = load_file(str(folder / STATE_FILE))


def orthogonality(named: Iterable[tuple[str, Tensor]]) -> Tensor:
    """The mean over the matrices of `|Q Q^T - I|` and `|P^T P - I|` (Frobenius), as PEFT adds it to a loss."""
    norms = []
    for name, matrix in named:
        gram = matrix @ matrix.T if ".lora_A." in name else matrix.T @ matrix
        norms.append(torch.linalg.norm(gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)))
    return torch.stack(norms).mean()


def _tuner(model: nn.Module) -> Any:
    """PEFT's AdaLoraModel, inside the wrappers of PEFT and of distributed training."""
    while not hasattr(model, "rankallocator"):
        model = model.module if hasattr(model, "module") else model.base_model  # type: ignore[assignment]
    return model


def _without_penalty(model: nn.Module) -> nn.Module:
    """Keep PEFT from adding the penalty, which the callback takes care of, to the loss of every batch with labels: a
    model that is loaded for inference does not even have what that needs."""
    tuner: Any = model.base_model
    tuner.forward = tuner.model.forward
    return model


@dataclass(frozen=True)
class AdaLoRAMethod(PeftMethod):
    """The ranks are shared out by a callback."""

    def checked(self, options: Options) -> dict[str, Any]:
        checked = super().checked(options)
        if checked["target_r"] >= checked["init_r"]:
            raise ValueError(
                f"target_r={checked['target_r']} is not allowed: it must be below init_r = {checked['init_r']}, "
                "which the ranks start from."
            )
        return checked

    def apply(self, model: PreTrainedModel, task_type: TaskType, kept: Path | None = None) -> nn.Module:
        return _without_penalty(super().apply(model, task_type, kept))

    def load(self, model: PreTrainedModel, directory: Path) -> nn.Module:
        return _without_penalty(super().load(model, directory))

    def callbacks(self) -> Sequence[TrainerCallback]:
        return (ShareOutRanks(),)


class AdaLoRAFields(Targets):
    target_r: Rank = 8
    init_r: Rank = 12
    tinit: Natural = 0
    tfinal: Natural = 0
    deltaT: Count = 1  # noqa: N815  (PEFT's name)
    beta1: Annotated[float, Field(gt=0, lt=1)] = 0.85
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.85
    orth_reg_weight: NotNegative = 0.5
    lora_alpha: Positive = 8
    lora_dropout: Dropout = 0.0


ADALORA = AdaLoRAMethod(
    name="adalora",
    config_class=AdaLoraConfig,
    fields=AdaLoRAFields,
    fixed={"total_step": UNKNOWN_STEPS},
    quantised_merges=(),  # PEFT's quantised layers have neither a merge nor an update to tell
)
