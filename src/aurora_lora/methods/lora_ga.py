"""LoRA-GA (Wang et al., NeurIPS 2024): a LoRA that starts along the gradient of the loss.

PEFT's own multiplies B by the singular values of the gradient, and scales B alone; here it is as in the authors' code,
where the sizes of A and B do not depend on how large the gradient is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..deploy.gradients import LOSS_SCALES, activation_gradients
from ..errors import CheckpointError
from ..finite import is_finite
from ..tuner.linear import upright
from .base import Options, Sample
from .lora import LORA_DEFAULTS, lora_config, lora_names
from .options import check, fields, integer, positive
from .pissa_milora import ADAPTER, START_FILE, SingularMethod, check_layer, singular_vectors
from .targets import lora_targets, target_paths

OWN = {"probe_examples": integer(64), "stable_gamma": positive(16.0)}
"""Training examples of the gradient, and gamma of the scale."""
_FIELDS = fields(OWN)


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

    def checked(self, options: Options) -> dict[str, Any]:
        own = {name: value for name, value in options.items() if name in OWN}
        return {**super().checked(options), **check(own, _FIELDS)}

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

    def load(self, model: PreTrainedModel, directory: Path) -> nn.Module:
        """A trained model from a pretrained one and what `save` wrote, the start among it.

        Raises:
            CheckpointError: the start, which cannot be made again, is missing or damaged; or the weights do not fit.
        """
        if not (directory / START_FILE).exists():
            raise CheckpointError(f"{directory} has no {START_FILE}, without which the adapter is another.")
        return super().load(model, directory)


def _config(**options: Any) -> Any:
    return lora_config()(**{name: value for name, value in options.items() if name not in OWN})


LORA_GA = GradientMethod(
    name="lora-ga",
    description="LoRA that starts along the gradient of the loss",
    make_config=_config,
    names=[*lora_names("init_lora_weights", "use_dora", "layer_replication"), *OWN],
    defaults=LORA_DEFAULTS,
)
