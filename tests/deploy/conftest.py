"""What several files here ask for."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn


@pytest.fixture
def labelled(batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The batches with labels of two classes."""
    return [{**batch, "labels": batch["input_ids"][:, 0] % 2} for batch in batches]


class _Idle(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.used, self.idle = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return self.used(x)


@pytest.fixture
def with_idle_layer():
    """`with_idle_layer(width)`: a model of two layers, of which `idle` is never called."""
    return _Idle


@pytest.fixture
def bert(make_bert, config):
    return get_peft_model(make_bert(), config(target_modules=["query", "key", "value", "dense"], task_type=None))


@pytest.fixture
def inputs_of():
    """`inputs_of(model, layers, batches)`: what reaches each layer as the model is, (n, d_in), padding left out."""

    def record(model, layers, batches):
        seen = {name: [] for name in layers}
        hooks = [
            layer.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0]))
            for name, layer in layers.items()
        ]
        with torch.no_grad():
            for batch in batches:
                model(**batch)
        for hook in hooks:
            hook.remove()
        masks = [batch["attention_mask"].bool() for batch in batches]
        pairs = {name: zip(xs, masks, strict=True) for name, xs in seen.items() if xs}
        return {name: torch.cat([x[m] if x.dim() == 3 else x for x, m in each]) for name, each in pairs.items()}

    return record
