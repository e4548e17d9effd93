"""Which vectors of a layer's input count, and where the mask that says so is."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from aurora_lora import AuroraConfig
from aurora_lora.deploy.inputs import Runner
from aurora_lora.deploy.predictions import _positions
from aurora_lora.tuner import aurora_layers


class MaskElsewhere:
    """A mask on another device: it can be used only after it was moved."""

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask, self.shape, self.moved_to = mask, mask.shape, []

    def dim(self) -> int:
        return self.mask.dim()

    def to(self, device: torch.device) -> torch.Tensor:
        self.moved_to.append(device)
        return self.mask


@pytest.mark.parametrize("flat", [False, True])
def test_the_mask_follows_the_input_of_each_layer(flat: bool) -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(3, 2)), AuroraConfig(target_modules=["0"]))
    _, layer = next(aurora_layers(model))
    x = torch.arange(18.0).view(2, 3, 3)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    runner = Runner(model)
    elsewhere = MaskElsewhere(mask)
    runner.masks = {"attention_mask": elsewhere}  # type: ignore[dict-item]
    found = runner.vectors(layer, x.flatten(0, 1) if flat else x)
    assert torch.equal(found, x[mask])
    assert elsewhere.moved_to == [x.device]
    assert _positions(runner, x) is mask
    assert elsewhere.moved_to == [x.device, x.device]
