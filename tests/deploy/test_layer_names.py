"""A layer has one name wherever it is reported: its path in the plain model, whatever is put around that."""

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from aurora_lora import AuroraConfig, calibrate, lora_factors, merge_gap
from aurora_lora.deploy.hidden import hidden_values
from aurora_lora.methods.updates import low_rank_updates

INPUTS = [torch.randn(40, 6, generator=torch.Generator().manual_seed(1))]
NAMES = ["block.a", "block.b"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.block = Block()

    def forward(self, x):
        return self.block(x)


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_inside(model):
    base = model.get_base_model()
    base.block = compiled(base.block)
    return model


WAYS = {
    "its block compiled": compiled_inside,
    "compiled, in DDP": lambda model: DistributedDataParallel(compiled(model)),
}


@pytest.mark.parametrize("way", WAYS)
def test_of_aurora(way, process_group):
    model = get_peft_model(Net(), AuroraConfig(r=2, target_modules=["a", "b"], init_weights=False))
    wrapped = WAYS[way](model)
    gap = merge_gap(wrapped, INPUTS)
    reports = {
        "merge_gap": [entry.layer for entry in gap.layers],
        "calibrate": [entry.layer for entry in calibrate(wrapped, INPUTS).layers],
        "hidden_values": [path for path, _ in hidden_values(wrapped, INPUTS)],
        "lora_factors": list(lora_factors(wrapped)),
        "low_rank_updates": list(low_rank_updates(wrapped, "calibrated")),
        "merges": sorted(entry.layer for entry in merge_gap(wrapped, INPUTS, merges=True).merges[0].layers),
    }
    assert reports == dict.fromkeys(reports, NAMES)
    assert all(isinstance(Net().get_submodule(name), nn.Linear) for name in NAMES)
    other = get_peft_model(Net(), AuroraConfig(target_modules=NAMES, rank_pattern={NAMES[0]: 3}))
    assert [len(layer.aurora_A["default"].weight) for layer in other.get_base_model().block.children()] == [3, 2]
