"""AuroRA in a U-Net by diffusers' own `add_adapter`: fused, scaled, offloaded and cast as a LoRA is."""

import copy
import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from aurora_lora import AuroraConfig, NotCalibratedError, calibrate
from aurora_lora.errors import MergeError
from aurora_lora.tuner import aurora_layers

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
STATIC = AuroraConfig(r=4, target_modules=TARGETS, eval_form="static")
CALIBRATED = AuroraConfig(r=4, target_modules=TARGETS)
LORA = LoraConfig(r=4, target_modules=TARGETS)


def inputs(tiny: Any, seed: int = 1) -> dict[str, Any]:
    torch.manual_seed(seed)
    return {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([10, 500]),
        "encoder_hidden_states": torch.randn(2, 5, 2 * tiny.WIDTH),
        "added_cond_kwargs": {"text_embeds": torch.randn(2, tiny.WIDTH), "time_ids": torch.randn(2, 6)},
    }


def unet_with(tiny: Any, *configs: Any) -> Any:
    """Adapters "0", "1" and so on, all active, none without effect."""
    torch.manual_seed(0)
    unet = tiny.make_unet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are several
        for number, config in enumerate(configs):
            unet.add_adapter(copy.deepcopy(config), str(number))
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "aurora_" in name or "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    unet.set_adapters([str(number) for number in range(len(configs))])
    return unet.eval()


@torch.no_grad()
def output(unet: Any, tiny: Any) -> Tensor:
    result: Tensor = unet(**inputs(tiny)).sample
    return result


@pytest.mark.parametrize("configs", [(LORA, STATIC), (STATIC, LORA)], ids=["LoRA under", "LoRA over"])
@pytest.mark.filterwarnings("ignore:Already ")
def test_fused_with_a_lora_and_back(tiny: Any, configs: tuple[Any, ...]) -> None:
    unet = unet_with(tiny, *configs)
    before = output(unet, tiny)
    for names in (["0", "1"], ["1", "0"]):
        for name in names:
            unet.fuse_lora(adapter_names=[name])
        torch.testing.assert_close(output(unet, tiny), before, atol=1e-4, rtol=1e-4)
        unet.unfuse_lora()
        torch.testing.assert_close(output(unet, tiny), before, atol=1e-4, rtol=1e-4)
    unet.unload_lora()
    torch.testing.assert_close(output(unet, tiny), output(unet_with(tiny), tiny), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Already ")
def test_what_a_refused_fuse_leaves_is_taken_back_as_it_says(tiny: Any) -> None:
    unet = unet_with(tiny, CALIBRATED)
    with pytest.raises(NotCalibratedError, match=r"call unfuse_lora\(\).*call set_adapters\(names, weights\) before"):
        unet.fuse_lora(lora_scale=0.5)
    unet.unfuse_lora()
    unet.set_adapters(["0"], [1.0])
    calibrate(unet, [inputs(tiny, seed) for seed in range(4)])
    before = [layer.get_delta_weight("0") for _, layer in aurora_layers(unet)]
    unet.fuse_lora(lora_scale=0.5)
    after = [layer.get_delta_weight("0") for _, layer in aurora_layers(unet)]
    assert all(torch.allclose(2 * b, a) for a, b in zip(before, after, strict=True))


def test_leaves_are_offloaded_to_disk(tiny: Any, tmp_path: Any) -> None:
    unet = unet_with(tiny, STATIC)
    before = output(unet, tiny)
    cpu = torch.device("cpu")
    unet.enable_group_offload(cpu, cpu, offload_type="leaf_level", offload_to_disk_path=str(tmp_path))
    assert torch.equal(output(unet, tiny), before)


@pytest.mark.filterwarnings("ignore:Already found")
def test_an_adapter_over_a_base_that_is_stored_in_float8(tiny: Any) -> None:
    unet = unet_with(tiny)
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    before = output(unet, tiny)
    unet.add_adapter(copy.deepcopy(STATIC), "0")
    assert {p.dtype for name, p in unet.named_parameters() if "aurora_" in name} == {torch.float32}
    assert torch.equal(output(unet, tiny), before)
    unet.add_adapter(copy.deepcopy(CALIBRATED), "1")
    unet.set_adapter("1")
    assert calibrate(unet, [inputs(tiny)]).layers
    with pytest.raises(MergeError, match="stored in float8"):
        unet.eval().fuse_lora()
