"""LoRAs that start as a part of W0: PiSSA (Meng et al., NeurIPS 2024), MiLoRA (Wang et al., NAACL 2025), LoRA-GA (Wang
et al., NeurIPS 2024).

PiSSA and MiLoRA start from singular vectors of W0, which PEFT's own PiSSA finds each time that a model is made. Here it
is done once, on the GPU where there is one, and the factors are kept: in the run until it is finished, and beside the
adapter. LoRA-GA starts along the gradient of the loss. PEFT's own multiplies B by the singular values of the gradient,
and scales B alone; here it is as in the authors' code, where the sizes of A and B do not depend on how large the
gradient is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from peft import LoraConfig, PeftConfig, load_peft_weights, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..deploy.gradients import LOSS_SCALES, activation_gradients
from ..errors import CheckpointError
from ..files import new_file
from ..machine import launched_as_main
from ..tuner.adapters import plain_path
from ..tuner.linear import upright
from ..values import is_finite
from .base import BaseUse, Sample, TaskType
from .lora import LORA_RECORDED, LoraMethod, lora_names
from .options import Count, Fields, LoraBasics, LoraFields, Options, Positive
from .parameters import check_loaded, misfit
from .targets import is_plain_linear, lora_targets, matrix, target_paths, untie_adapted

ADAPTER = "default"
START_FILE = "start.safetensors"
"""A and B of each layer before the first step: W0 - s B A is the base weight that was trained beside."""


def start_layers(model: nn.Module) -> dict[str, Any]:
    """The LoRA layers of a model, by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LoraLayer)}


def singular_vectors(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V^T of a matrix: exact, and found on the GPU where there is one."""
    device = weight.device
    if device.type == "cpu" and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    precise = weight.to(device, torch.promote_types(weight.dtype, torch.float32))
    U, S, Vh = torch.linalg.svd(precise, full_matrices=False)
    return U, S, Vh


def decompose(layer: Any, largest: bool) -> tuple[Tensor, Tensor]:
    """For `W0 = U S V^T`: `A = sqrt(S_m / s) V_m^T`, `B = U_m sqrt(S_m / s)` of the r largest or smallest S."""
    r, s = layer.r[ADAPTER], layer.scaling[ADAPTER]
    U, S, Vh = singular_vectors(matrix(layer.get_base_layer()))
    part = slice(0, r) if largest else slice(len(S) - r, None)
    root = (S[part] / s).sqrt()
    return root[:, None] * Vh[part], U[:, part] * root


def check_layer(method: str, path: str, base: nn.Module) -> None:
    """Raise a ValueError for a layer whose weight cannot be changed."""
    if not is_plain_linear(base):
        raise ValueError(
            f"target_modules: {path} is a {type(base).__name__}; {method} adapts torch.nn.Linear and "
            "transformers' Conv1D, in floating point."
        )


def start_from(layer: Any, A: Tensor, B: Tensor) -> None:
    """Let the adapter be B A, and the base weight `W0 - s B A`, so that the model computes what it did."""
    weight = matrix(layer.get_base_layer())
    precise = weight.to(torch.promote_types(weight.dtype, torch.float32))
    A, B = A.to(precise), B.to(precise)
    layer.lora_A[ADAPTER].weight.copy_(A)
    layer.lora_B[ADAPTER].weight.copy_(B)
    weight.copy_(precise - layer.scaling[ADAPTER] * (B @ A))
    layer.start = {"A": A.cpu().contiguous(), "B": B.cpu().contiguous()}


@dataclass(frozen=True)
class SingularMethod(LoraMethod):
    """LoRA whose start is taken out of the base weight.

    The adapter belongs to the changed base weight, which is made again from the pretrained one when it is loaded.

    Args:
        largest: whether it starts as the largest components, or the smallest.
        saved_as: `init_lora_weights` in the saved config, for plain PEFT.
    """

    largest: bool = False
    saved_as: str | bool = True

    @property
    def base_use(self) -> BaseUse:
        return "start"

    @property
    def peft_loads(self) -> bool:
        """Whether PEFT makes the same base weight when it loads an adapter."""
        return self.saved_as is not True

    def factors(self, path: str, layer: Any) -> tuple[Tensor, Tensor]:
        """A and B of the start of a layer, whose path in the plain model this is."""
        return decompose(layer, self.largest)

    def apply(self, model: PreTrainedModel, task_type: TaskType, kept: Path | None = None) -> nn.Module:
        """Apply the method, see `Method.apply`; `START_FILE` in `kept` has the start, or gets it."""
        peft_model = super().apply(model, task_type)
        start = None if kept is None else kept / START_FILE
        untie_adapted(peft_model)  # a weight that another module has too stays as it is there
        layers = start_layers(peft_model)
        for path, layer in layers.items():
            base, r, name = layer.get_base_layer(), layer.r[ADAPTER], plain_path(peft_model, path)
            check_layer(self.name, name, base)
            if r > min(base.weight.shape):
                raise ValueError(f"r={r} is not allowed: {name} has no more than {min(base.weight.shape)} components.")
        known = _read(start, layers)
        with torch.no_grad():
            for path, layer in layers.items():
                if layer.get_base_layer().weight.is_meta:
                    continue  # only counted
                if known:
                    A, B = known[f"{path}.A"], known[f"{path}.B"]
                else:
                    A, B = self.factors(plain_path(peft_model, path), layer)
                start_from(layer, A, B)
        if start is not None and not known and launched_as_main():
            _write(peft_model, start)
        peft_model.peft_config[ADAPTER].init_lora_weights = self.saved_as  # type: ignore[index, union-attr]
        return peft_model

    def save(self, model: nn.Module, directory: Path) -> None:
        super().save(model, directory)
        _write(model, directory / START_FILE)

    def load(self, model: PreTrainedModel, directory: Path) -> nn.Module:
        kept = directory if (directory / START_FILE).exists() else None
        if kept is None and self.looks:  # it cannot be made again
            raise CheckpointError(f"{directory} has no {START_FILE}, without which the adapter is another.")
        task_type: Any = PeftConfig.from_pretrained(str(directory)).task_type
        peft_model = self.apply(model, task_type, kept)
        weights = load_peft_weights(str(directory), device="cpu")
        check_loaded(peft_model, set_peft_model_state_dict(peft_model, weights), directory)
        return peft_model.eval()


def _read(kept: Path | None, layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """The kept factors, none where there is no file; a CheckpointError if they do not fit, or are damaged."""
    if kept is None or not kept.exists():
        return {}
    try:
        known = load_file(str(kept))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{kept} cannot be read: {error}.") from error
    sides = {f"{path}.{side}": getattr(layer, f"lora_{side}") for path, layer in layers.items() for side in "AB"}
    shapes = {name: side[ADAPTER].weight.shape for name, side in sides.items()}
    if odd := [name for name, shape in shapes.items() if name not in known or known[name].shape != shape]:
        raise misfit(kept, odd)
    return known


def _write(model: nn.Module, path: Path) -> None:
    """Write A and B of the start of each layer."""
    starts = {name: layer.start for name, layer in start_layers(model).items()}
    sides = {f"{name}.{side}": start[side] for name, start in starts.items() for side in "AB"}
    with new_file(path) as partial:
        save_file(sides, str(partial))


# ---------------------------------------------------------------- LoRA-GA


class GradientFields(Fields):
    """Training examples of the gradient, and gamma of the scale."""

    probe_examples: Count = 64
    stable_gamma: Positive = 16.0


_GRADIENT = GradientFields.defaults()


def gradients(
    model: nn.Module, layers: Mapping[str, nn.Module], sample: Sample, batches: list[Any]
) -> dict[str, Tensor]:
    """The gradient of the mean loss of batches by the weight of each layer, (d_out, d_in), without dropout; of the
    layers that the loss depends on."""
    weights: list[Any] = [layer.weight for layer in layers.values()]
    with activation_gradients(model):
        try:
            for weight in weights:
                weight.requires_grad_(True)
            for scale in LOSS_SCALES:
                sums: list[Any] = [None] * len(weights)
                for batch in batches:
                    found = torch.autograd.grad(sample.loss(model, batch) * scale, weights, allow_unused=True)
                    for i, one in enumerate(found):
                        if one is not None:
                            mean = one.float() / (scale * len(batches))
                            sums[i] = mean if sums[i] is None else sums[i] + mean
                if all(total is None or is_finite(total) for total in sums):
                    break
        finally:
            for weight in weights:
                weight.requires_grad_(False)  # those that were trained are so again afterwards
    return {
        path: upright(layer, total)
        for (path, layer), total in zip(layers.items(), sums, strict=True)
        if total is not None
    }


@dataclass(frozen=True)
class GradientMethod(SingularMethod):
    """LoRA with `A = c V_r^T` and `B = c U_r'` of the gradient's singular vectors, taken out of the base weight.

    V_r are the r leading right ones, U_r' the left ones from r to 2 r ("ArB2r"), and `c = d_out^(1/4) / sqrt(gamma)`.

    Args:
        vectors: U (d_out, 2 r) and V^T (2 r, d_in) of each layer, once `looked` has found them.
    """

    vectors: Mapping[str, tuple[Tensor, Tensor]] | None = field(default=None, compare=False)
    looks: ClassVar[bool] = True

    not_pefts: ClassVar[Collection[str]] = tuple(_GRADIENT)

    def checked(self, options: Options) -> dict[str, Any]:
        checked = super().checked(options)
        GradientFields.check(options)
        return {**checked, **_GRADIENT, **options}

    def looked(self, model: PreTrainedModel, sample: Sample, kept: Path) -> Self:
        if (kept / START_FILE).exists():
            return self
        if any(kept.glob("checkpoint-*")):  # another start would not fit their weights
            raise CheckpointError(f"{kept} has checkpoints, but not their {START_FILE}.")
        paths = target_paths(model, self.options, lora_targets(model))
        layers = {path: model.get_submodule(path) for path in paths}
        for path, layer in layers.items():
            check_layer(self.name, path, layer)
        batches = sample.batches(min(1.0, self.options["probe_examples"] / sample.examples))
        r = max(self.options["r"], *(self.options.get("rank_pattern") or {"": 0}).values())
        found = {}
        for path, gradient in gradients(model, layers, sample, batches).items():
            if not (is_finite(gradient) and gradient.any()):
                what = "0" if is_finite(gradient) else "not finite"
                raise ValueError(f"the gradient of {path} is {what}: is the model or a batch broken?")
            U, _, Vh = singular_vectors(gradient)
            found[path] = U[:, : 2 * r].cpu(), Vh[: 2 * r].cpu()
        return replace(self, vectors=found)

    def factors(self, path: str, layer: Any) -> tuple[Tensor, Tensor]:
        """A and B of the start; LoRA's own, where B is 0, for a layer without a gradient."""
        if self.vectors is None or path not in self.vectors:
            return layer.lora_A[ADAPTER].weight.detach().clone(), layer.lora_B[ADAPTER].weight.detach().clone()
        U, Vh = self.vectors[path]
        r = layer.r[ADAPTER]
        if U.shape[1] < 2 * r:
            raise ValueError(f"r={r} is not allowed: {path} has {U.shape[1]} components, lora-ga takes 2 r of them.")
        c = U.shape[0] ** 0.25 / self.options["stable_gamma"] ** 0.5
        return c * Vh[:r], c * U[:, r : 2 * r]


PISSA = SingularMethod(
    name="pissa",
    config_class=LoraConfig,
    fields=LoraFields,
    names=lora_names("init_lora_weights", "use_dora"),
    recorded=LORA_RECORDED,
    largest=True,
    saved_as="pissa",
)
MILORA = SingularMethod(
    name="milora",
    config_class=LoraConfig,
    fields=LoraBasics,
)
LORA_GA = GradientMethod(
    name="lora-ga",
    config_class=LoraConfig,
    fields=LoraFields,
    names=[*lora_names("init_lora_weights", "use_dora", "layer_replication"), *_GRADIENT],
    recorded=LORA_RECORDED,
)
