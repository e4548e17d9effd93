"""What is done inside `torch.inference_mode()` leaves a model that trains and loads afterwards, as PEFT's LoRA does."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from aurora_lora import AuroraConfig, calibrate, export_lora, set_form

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


def make():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    return get_peft_model(layers, AuroraConfig(target_modules=["0", "2"], init_weights=False))


def merge(model, _):
    set_form(model, "static")
    model.merge_adapter()


def export(model, folder):
    calibrate(model, [X])
    model.merge_adapter()
    model.unmerge_adapter()
    export_lora(model, folder / "lora")


ACTIONS = {
    "merge": merge,
    "calibrate, merge, unmerge, export": export,
}


@pytest.mark.parametrize("name", ACTIONS)
def test_training_and_loading_afterwards(name, tmp_path):
    model = make()
    with torch.inference_mode():
        ACTIONS[name](model, tmp_path)
    tensors = [*model.parameters(), *model.buffers()]
    assert not any(tensor.is_inference() for tensor in tensors)
    if name == "merge":
        model.unmerge_adapter()
    model.train()
    model(X).square().sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()
    model.load_state_dict(model.state_dict())
