"""A trained adapter as a LoRA file of diffusers: stock diffusers computes the same with it, or it is not written."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn

from aurora_lora.diffusion.finished_run import no_lora, write_lora
from aurora_lora.diffusion.recipe import SubjectRecipe
from aurora_lora.methods import Method
from aurora_lora.train.recipe import validate_as

WEIGHTS = "pytorch_lora_weights.safetensors"
LORA: dict[str, Any] = {"name": "lora", "r": 2, "lora_alpha": 6}


def method_of(tiny: Any, options: dict[str, Any]) -> Method:
    return validate_as(SubjectRecipe, tiny.recipe(Path("model"), Path("images"), method=options), "tiny").method


def unet_of(model: Path) -> Any:
    return UNet2DConditionModel.from_pretrained(model, subfolder="unet")


def trained(method: Method, unet: Any) -> nn.Module:
    """The method on a U-Net, with every trained weight changed."""
    torch.manual_seed(0)
    adapted = method.apply(unet, "TEXT_TO_IMAGE")
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return adapted


def output(unet: Any, tiny: Any) -> Tensor:
    torch.manual_seed(1)
    width = tiny.WIDTH
    inputs = {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([10, 500]),
        "encoder_hidden_states": torch.randn(2, 5, 2 * width),
        "added_cond_kwargs": {"text_embeds": torch.randn(2, width), "time_ids": torch.randn(2, 6)},
    }
    with torch.no_grad():
        predicted: Tensor = unet.eval()(**inputs).sample
    return predicted


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"init_lora_weights": "orthogonal"},
        {"rank_pattern": {"to_q": 4}, "alpha_pattern": {"to_k": 3}},
        {"rank_pattern": {"conv1": 3}, "target_modules": ["conv1", "to_v"]},
    ],
)
def test_stock_diffusers_computes_the_same(tiny: Any, model: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    method = method_of(tiny, {**LORA, **options})
    assert no_lora(method, "merged") is None
    base = output(unet_of(model), tiny)
    unet = unet_of(model)
    write_lora(trained(method, unet), tmp_path, method, "merged")
    expected = output(unet, tiny)
    stock = unet_of(model)
    stock.load_lora_adapter(tmp_path, prefix="unet", weight_name=WEIGHTS)
    assert (expected - base).norm() > 0.1 * base.norm()
    torch.testing.assert_close(output(stock, tiny), expected, atol=1e-4, rtol=1e-4)
    # some releases of diffusers take the scale of all layers from the rank of the first
    ranks = {len(value) for key, value in load_file(tmp_path / WEIGHTS).items() if ".lora_A." in key}
    assert ranks == {max((2, *options.get("rank_pattern", {}).values()))}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"name": "lora", "bias": "all"}, "the biases that bias='all' trains"),
        ({"name": "aurora", "bias": "aurora_only", "eval_form": "static"}, "the biases that bias='aurora_only' trains"),
        ({"name": "lora", "modules_to_save": ["conv_out"]}, "what modules_to_save trains"),
        ({"name": "lora", "init_lora_weights": "pissa"}, "init_lora_weights='pissa' may change it"),
        ({"name": "lora", "kasa_config": {}}, "kasa_config may change it"),
        ({"name": "moslora"}, "diffusers loads LoRA, and moslora is none"),
    ],
)
def test_what_a_lora_file_cannot_hold(tiny: Any, options: dict[str, Any], why: str) -> None:
    method = method_of(tiny, options)
    found = no_lora(method, "static" if options["name"] == "aurora" else "merged")
    assert found is not None
    assert found.endswith(why)


def test_nothing_that_is_trained_is_left_out(tiny: Any, model: Path, tmp_path: Path) -> None:
    method = method_of(tiny, {**LORA, "target_modules": ["to_out.0"], "use_dora": True})
    with pytest.raises(ValueError, match="LoRA file of diffusers"):
        write_lora(trained(method, unet_of(model)), tmp_path / "lora", method, "merged")
    assert not (tmp_path / "lora").exists()
