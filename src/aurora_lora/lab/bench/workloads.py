"""What is run: one linear layer over a grid of sizes, and two real models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...errors import UserError
from .analytic_cost import TARGETS

Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]

BATCHES = 4
"""Different batches, taken in turn."""


@dataclass
class Case:
    """A base model with data, ready to be adapted and run.

    Args:
        sizes: what it is, in numbers: `tokens` in a batch, and more.
        base: the pretrained model; its weights are frozen.
        targets: names of the layers to adapt, as PEFT's `target_modules`.
        batches: the arguments of the model.
        loss: what a training step differentiates.
        heads: modules that every variant trains beside its adapter.
        input_has_gradient: whether the batches ask for gradients, as a layer's input within a network does.
        counted_loss: what calls are counted with; `loss` if None.
    """

    sizes: dict[str, int]
    base: nn.Module
    targets: Sequence[str]
    batches: list[Batch]
    loss: Loss
    heads: Sequence[str] = ()
    input_has_gradient: bool = False
    counted_loss: Loss | None = None
    layers: int = field(init=False)

    def __post_init__(self) -> None:
        self.layers = len(self._adapted_names())

    def batch(self, number: int) -> Batch:
        return self.batches[number % len(self.batches)]

    def run(self, model: nn.Module, batch: Batch) -> Any:
        """Inference."""
        return model(**{name: tensor for name, tensor in batch.items() if name != "labels"})

    def adapted_layers(self) -> Iterator[nn.Module]:
        """The layers of the base that get an adapter."""
        return (self.base.get_submodule(name) for name in self._adapted_names())

    def first_block(self) -> list[str]:
        """The first adapted layer of each kind: where a backward pass through adapters ends."""
        first: dict[str, str] = {}
        for name in self._adapted_names():
            first.setdefault(name.rsplit(".", 1)[-1], name)
        return list(first.values())

    def _adapted_names(self) -> list[str]:
        names = [name for name, _ in self.base.named_modules()]
        return [name for name in names if name.rsplit(".", 1)[-1] in self.targets]


# ---------------------------------------------------------------- linear layers


class Stack(nn.Sequential):
    """Linear layers, one on the other. Its argument has a name, as a model's from Transformers."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x


def linear_case(
    tokens: int, d: int, *, layers: int = 1, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Case:
    """`layers` linear layers d -> d on `tokens` random vectors, all adapted.

    The loss is the product with a fixed random vector, so that the gradient that comes back is an ordinary one. Calls
    are counted with the sum of the output instead, whose own calls are the fewest.
    """
    generator = torch.Generator().manual_seed(0)
    base = Stack(*(nn.Linear(d, d) for _ in range(layers))).to(device, dtype)
    batches = []
    for _ in range(BATCHES):
        x, cotangent = (torch.randn(tokens, d, generator=generator).to(device, dtype) for _ in range(2))
        batches.append({"x": x.requires_grad_(), "labels": cotangent})
    return Case(
        sizes={"tokens": tokens, "d": d, "layers": layers},
        base=base,
        targets=[str(i) for i in range(layers)],
        batches=batches,
        loss=lambda model, batch: torch.vdot(model(batch["x"]).flatten(), batch["labels"].flatten()),
        input_has_gradient=True,
        counted_loss=lambda model, batch: model(batch["x"]).sum(),
    )


# ---------------------------------------------------------------- models


@dataclass(frozen=True)
class Model:
    """A pretrained model as a workload: batches of random tokens, all of the same length, with random labels.

    Args:
        name: of the model, as in recipes.
        architecture: `"encoder"`, trained to classify, or `"causal"`, trained to predict the next token.
        targets: the layers to adapt.
        batch: examples in a batch.
        length: tokens in an example.
    """

    name: str
    architecture: Literal["encoder", "causal"]
    targets: tuple[str, ...]
    batch: int
    length: int

    def load(self, *, quick: bool = False, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Case:
        """The model on the device, with batches; `quick` for few and short examples.

        Raises:
            UserError: the model cannot be loaded.
        """
        batch, length = (2, 8) if quick else (self.batch, self.length)
        return model_case(self._base().to(device, dtype), self.architecture, self.targets, batch, length)

    def _base(self) -> nn.Module:
        from ...data import get_task
        from ...train.models import load_base_model, load_causal_model, load_tokenizer

        if self.architecture == "causal":
            return load_causal_model(self.name)
        return load_base_model(self.name, get_task("movie-sentiment"), load_tokenizer(self.name))


def model_case(base: nn.Module, architecture: str, targets: Sequence[str], batch: int, length: int) -> Case:
    """A case of any model of Transformers. Its head, where it has one, is trained in every variant."""
    from ...methods.parameters import head_modules

    config: Any = base.config
    device = next(base.parameters()).device
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(BATCHES):
        ids = torch.randint(0, config.vocab_size, (batch, length), generator=generator)
        labels = ids if architecture == "causal" else torch.randint(0, config.num_labels, (batch,), generator=generator)
        data = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        batches.append({name: tensor.to(device) for name, tensor in data.items()})
    return Case(
        sizes={"tokens": batch * length, "batch": batch, "length": length},
        base=base,
        targets=targets,
        batches=batches,
        loss=lambda model, batch: model(**batch).loss,
        heads=() if architecture == "causal" else head_modules(base),
    )


MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        Model("minilm-l6", "encoder", ("query", "value"), batch=32, length=64),
        Model("smollm2-135m", "causal", TARGETS, batch=4, length=64),
    )
}


def check_device(device: str) -> torch.device:
    """The device of that name.

    Raises:
        UserError: no such device, or none here.
    """
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"device='{device}' is not allowed: it must be cpu, cuda or cuda:N")
    if device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"device='{device}': there is no GPU that PyTorch can use here")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except RuntimeError as error:
        raise UserError(f"device='{device}' cannot be used: {str(error).splitlines()[0]}") from error
    return found
