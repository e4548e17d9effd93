"""A layer that refuses to be merged says what the layers before it are left in."""

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn

import aurora_lora
from aurora_lora import AuroraConfig, NotCalibratedError

BATCHES = [torch.randn(50, 6, generator=torch.Generator().manual_seed(0))]


def adapted(**fields: Any) -> tuple[Any, list[Any]]:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model = get_peft_model(base, AuroraConfig(target_modules=["0", "1"], init_weights=False, **fields)).eval()
    return model, list(model.base_model.model)


def test_layer_by_layer() -> None:
    model, layers = adapted(eval_form="static")
    layers[1].aurora_B["default"].data[0, 0] = float("nan")
    layers[0].merge(safe_merge=True)
    with pytest.raises(ValueError, match=r"NaNs detected.*layers before this one may be merged by now") as caught:
        layers[1].merge(safe_merge=True)
    assert "lora_scale" not in str(caught.value)
    layers[0].unmerge()
    with pytest.raises(ValueError, match="NaNs detected") as caught:
        model.merge_adapter(safe_merge=True)
    assert "layers before this one" not in str(caught.value)
    assert not layers[0].merged


def test_the_scale_that_a_refused_merge_leaves() -> None:
    """`fuse_lora(lora_scale=0.5)` scales a layer, then merges it; `set_adapters` calls `set_scale`."""
    model, (layer, _) = adapted()
    configured = layer.scaling["default"]
    layer.scale_layer(0.5)
    with pytest.raises(NotCalibratedError, match=r"\(here to 0.5 for 'default'\).*set_adapters\(names, weights\)"):
        layer.merge()
    layer.set_scale("default", 1.0)
    aurora_lora.calibrate(model, BATCHES)
    layer.scale_layer(0.5)
    layer.merge()
    assert layer.scaling["default"] == 0.5 * configured
