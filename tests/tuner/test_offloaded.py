"""Models that Accelerate offloads: the adapter's weights are on meta until they are asked for."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from peft import get_peft_model
from safetensors.torch import load_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))


from aurora_lora import AuroraConfig, calibrate, export_lora

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
BATCHES = [torch.randn(100, 6, generator=torch.Generator().manual_seed(1))]


def adapted(form: str, init_weights: bool = False) -> Any:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    config = AuroraConfig(target_modules=["0", "2"], init_weights=init_weights, eval_form=form)
    model = get_peft_model(base, config).eval()
    if form == "calibrated" and not init_weights:
        calibrate(model, BATCHES)
    return model


def offload(model: nn.Module, folder: Path, buffers: bool) -> nn.Module:
    # with the CPU in the place of a GPU
    places: dict[str, Any] = dict.fromkeys(("base_model.model.0", "base_model.model.2"), "disk")
    places["base_model.model.1"] = "cpu"
    model = dispatch_model(
        model, places, main_device="cpu", offload_dir=folder, offload_buffers=buffers, force_hooks=True
    )
    assert all(parameter.is_meta for parameter in model.parameters())
    return model


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("form", ["static", "dynamic", "calibrated"])
@torch.no_grad()
def test_every_form(form: str, buffers: bool, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    model = adapted(form)
    wanted = model(X)
    model = offload(model, tmp_path, buffers).eval()
    for _ in range(2):
        assert torch.equal(model(X), wanted)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not [warning for warning in recwarn if "does not belong to its present weights" in str(warning.message)]


@pytest.mark.parametrize("form", ["static", "calibrated"])
@torch.no_grad()
def test_merge_and_export(form: str, tmp_path: Path) -> None:
    model: Any = adapted(form)
    wanted = model(X)
    with model.disable_adapter():
        base = model(X)
    export_lora(model, tmp_path / "whole")
    model = offload(model, tmp_path / "offloaded", False)
    export_lora(model, tmp_path / "lora")
    whole, exported = (load_file(tmp_path / each / "adapter_model.safetensors") for each in ("whole", "lora"))
    assert whole.keys() == exported.keys()
    assert all(torch.equal(whole[key], exported[key]) for key in whole)
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(model(X), wanted)
    with model.disable_adapter():
        assert torch.equal(model(X), base)
    assert torch.equal(model(X), wanted)
    model.merge_adapter()
    model.unmerge_adapter()
    assert torch.equal(model(X), wanted)
    torch.testing.assert_close(model.merge_and_unload(safe_merge=True)(X), wanted)
