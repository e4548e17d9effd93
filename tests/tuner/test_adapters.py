"""What is asked of the adapters of a model before something is done with it."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from aurora_lora import (
    AlreadyMergedError,
    AuroraConfig,
    calibrate,
    lora_factors,
    merge_gap,
    merge_quantized,
    probe,
    set_form,
)
from aurora_lora.deploy.hidden import hidden_values

INPUTS = [torch.randn(8, 4)]
REFUSED = {
    "another form is set": lambda model: set_form(model, "dynamic"),
    "calibrate": lambda model: calibrate(model, INPUTS),
    "hidden_values": lambda model: hidden_values(model, INPUTS),
    "merge_gap": lambda model: merge_gap(model, INPUTS),
    "merge_quantized": lambda model: merge_quantized(model, INPUTS),
    "probe": lambda model: probe(model, INPUTS, loss=lambda model, batch: model(batch).sum()),
    "the export": lora_factors,
}


@pytest.mark.parametrize("action", REFUSED)
def test_a_merged_adapter_is_one_error_wherever_it_is_in_the_way(action):
    config = AuroraConfig(target_modules=["0"], eval_form="static", init_weights=False)
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), config)
    model.merge_adapter()
    with pytest.raises(AlreadyMergedError, match=rf"0 is merged: call unmerge_adapter\(\) before {action}\.$"):
        REFUSED[action](model)
    model.unmerge_adapter()
    if action != "merge_quantized":  # nothing is quantised
        REFUSED[action](model)
