"""What several files here ask for."""

from __future__ import annotations

import pytest
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
