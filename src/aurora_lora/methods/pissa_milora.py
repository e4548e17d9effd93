"""PiSSA (Meng et al., NeurIPS 2024) and MiLoRA (Wang et al., NAACL 2025): LoRAs that start as a part of W0.

Through PEFT's LoRA, whose own PiSSA decomposes each weight, where it is, each time that a model is made. Here it is
done once, on the GPU where there is one, and the factors are kept: in the run until it is finished, and beside the
adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, load_peft_weights, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import CheckpointError
from ..files import new_file
from ..machine import launched_as_main
from ..tuner.adapters import plain_path
from .base import BaseUse, PeftMethod, TaskType
from .linear import is_plain_linear, matrix, untie_adapted
from .lora import LORA_DEFAULTS, LORA_TABLE, lora_config, lora_names
from .options import TARGETS, peft_method
from .parameters import check_loaded, misfit

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
class SingularMethod(PeftMethod):
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
        """Apply the method, see `Method.apply`; `START_FILE` in `kept` has the start, or gets it.

        Raises:
            ValueError: an adapted module is not a linear layer in floating point, or r is larger than its rank.
        """
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
        task_type: Any = PeftConfig.from_pretrained(str(directory)).task_type
        peft_model = self.apply(model, task_type, directory if (directory / START_FILE).exists() else None)
        load_weights(peft_model, directory)
        peft_model.train(False)
        return peft_model


def _read(kept: Path | None, layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """The kept factors; none where there is no file.

    Raises:
        CheckpointError: they are those of another model, or damaged.
    """
    if kept is None or not kept.exists():
        return {}
    try:
        known = load_file(str(kept))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{kept} cannot be read: {error}.") from error
    for path, layer in layers.items():
        for side, like in (("A", layer.lora_A[ADAPTER].weight), ("B", layer.lora_B[ADAPTER].weight)):
            found = known.get(f"{path}.{side}")
            if found is None or found.shape != like.shape:
                raise misfit(kept, [f"{path}.{side}"])
    return known


def _write(model: nn.Module, path: Path) -> None:
    """Write A and B of the start of each layer."""
    starts = {name: layer.start for name, layer in start_layers(model).items()}
    sides = {f"{name}.{side}": start[side] for name, start in starts.items() for side in "AB"}
    with new_file(path) as partial:
        save_file(sides, str(partial))


def load_weights(model: nn.Module, directory: Path) -> None:
    """Load a saved adapter into a model that has one.

    Raises:
        CheckpointError: the file does not fit the model.
    """
    weights = load_peft_weights(str(directory), device="cpu")
    check_loaded(model, set_peft_model_state_dict(model, weights), directory)


PISSA = SingularMethod(
    name="pissa",
    description="LoRA from the largest singular vectors of W0",
    make_config=lora_config(),
    names=lora_names("init_lora_weights", "use_dora", "lora_bias"),  # PEFT loads no bias with this start
    defaults=LORA_DEFAULTS,
    largest=True,
    saved_as="pissa",
)
MILORA = peft_method(
    name="milora",
    description="LoRA from the smallest singular vectors of W0",
    config="LoraConfig",
    table={**LORA_TABLE, **TARGETS},
    kind=SingularMethod,
)
