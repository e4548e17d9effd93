"""AuroRA in a U-Net by diffusers' own `add_adapter`: cast as a LoRA is."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from aurora_lora import AuroraConfig, calibrate
from aurora_lora.errors import MergeError

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
STATIC = AuroraConfig(r=4, target_modules=TARGETS, eval_form="static")
CALIBRATED = AuroraConfig(r=4, target_modules=TARGETS)


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
