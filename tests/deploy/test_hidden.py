"""What reaches sigma, against the layer's own formula."""

from collections.abc import Callable
from typing import Any

import torch
from peft import get_peft_model

import aurora_lora
from aurora_lora.deploy.hidden import hidden_values, sigma_along
from aurora_lora.ops.anl import adaptive_nonlinear

PATH = "bert.encoder.layer.1.attention.self.query"


def adapted(make_bert: Callable[..., Any], **options: Any) -> Any:
    torch.manual_seed(1)
    config = aurora_lora.AuroraConfig(target_modules=["query", "value"], init_weights=False, **options)
    return get_peft_model(make_bert(), config)


def test_hidden_values_are_those_of_the_trained_model_without_padding(
    make_bert: Callable[..., Any], batches: list[dict[str, torch.Tensor]], inputs_of: Callable[..., Any]
) -> None:
    model = adapted(make_bert).train()
    found = hidden_values(model, batches)
    assert model.training
    assert len(found) == 4
    z = found[PATH, "default"]
    layer = model.get_base_model().get_submodule(PATH)
    with aurora_lora.set_form(model.eval(), "dynamic"):
        x = inputs_of(model, {PATH: layer}, batches)[PATH]
    torch.testing.assert_close(z, x @ layer.aurora_A["default"].weight.T)


def test_sigma_along_a_channel(make_bert: Callable[..., Any]) -> None:
    layer = adapted(make_bert).get_base_model().get_submodule(PATH)
    z = torch.tensor([-1.5, 0.0, 0.3])
    inputs = torch.stack([torch.zeros(3), z], dim=1)
    H, W = layer.aurora_H["default"].weight, layer.aurora_spline_weight["default"].weight
    expected = adaptive_nonlinear(inputs, H, W, layer.aurora_config["default"].anl)[:, 1]
    torch.testing.assert_close(sigma_along(layer, "default", 1, z), expected.detach())
