"""Adapters in diffusers' own pipelines, hooks and averages, by the snippets of docs/deploy.md and docs/diffusion.md."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from peft import get_peft_model, get_peft_model_state_dict
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from aurora_lora import AuroraConfig, calibrate, export_lora

DOCS = Path(__file__).parents[2] / "docs"
TARGETS = {
    "unet": ["to_q", "to_k", "to_v", "to_out.0"],
    "text_encoder": ["q_proj", "v_proj"],
    "text_encoder_2": ["k_proj", "fc1"],
}
RANKS = {"unet": 2, "text_encoder": 3, "text_encoder_2": 4}
WEIGHTS = "pytorch_lora_weights.safetensors"


def snippet(page: str, word: str) -> str:
    """The Python of a page that has this word in it."""
    blocks: list[str] = re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    (found,) = (block for block in blocks if word in block)
    return found


def pipeline(model: Path) -> Any:
    made = StableDiffusionXLPipeline.from_pretrained(model)
    made.set_progress_bar_config(disable=True)
    return made


def inputs(tiny: Any, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    added = {"text_embeds": draw(2, tiny.WIDTH), "time_ids": draw(2, 6)}
    return {
        "sample": draw(2, 4, 8, 8),
        "timestep": torch.tensor([10, 500]),
        "encoder_hidden_states": draw(2, 5, 2 * tiny.WIDTH),
        "added_cond_kwargs": added,
    }


@torch.no_grad()
def output(unet: Any, tiny: Any) -> Tensor:
    predicted: Tensor = unet(**inputs(tiny, 0)).sample
    return predicted


@torch.no_grad()
def shake(module: nn.Module, seed: int = 0, scale: float = 0.15, kind: str = "aurora_") -> None:
    torch.manual_seed(seed)
    for name, parameter in module.named_parameters():
        if kind in name:
            parameter.add_(scale * torch.randn_like(parameter))


def adapted(model: Path, tiny: Any, **fields: Any) -> Any:
    """A U-Net with a calibrated adapter."""
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    unet.add_adapter(AuroraConfig(r=2, target_modules=TARGETS["unet"], **fields))
    shake(unet)
    calibrate(unet, [inputs(tiny, seed) for seed in range(1, 5)])
    return unet.eval()


def image(pipe: Any) -> Tensor:
    made = pipe(
        "a photo of a dog",
        num_inference_steps=2,
        height=16,
        width=16,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    )
    pixels: Tensor = made.images[0]
    return pixels


def test_components_are_exported_into_one_file(tiny: Any, model: Path, tmp_path: Path) -> None:
    """Each keeps what the others have written, and replaces its own."""
    pipe = pipeline(model)
    plain = image(pipe)
    for component, targets in TARGETS.items():
        config = AuroraConfig(r=RANKS[component], target_modules=targets, eval_form="static")
        part = get_peft_model(getattr(pipe, component), config)
        export_lora(part, tmp_path / "lora", format="diffusers", prefix=component)  # of what is replaced later
        shake(part, scale=0.3)
        setattr(pipe, component, part.eval())
    expected = image(pipe)
    for component in ("text_encoder_2", "unet", "text_encoder"):
        export_lora(getattr(pipe, component), tmp_path / "lora", format="diffusers", prefix=component)
    weights = load_file(tmp_path / "lora" / WEIGHTS)
    assert {key.split(".")[0] for key in weights} == set(TARGETS)
    assert {key.split(".")[0]: len(value) for key, value in weights.items() if ".lora_A." in key} == RANKS
    loaded = pipeline(model)
    loaded.load_lora_weights(tmp_path / "lora")
    assert (expected - plain).abs().max() > 0.01
    torch.testing.assert_close(image(loaded), expected, atol=2e-5, rtol=1e-4)


def test_the_names_that_comfyui_knows(tiny: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    unet = adapted(model, tiny)
    export_lora(unet, "lora", format="diffusers")
    exec(snippet("deploy.md", "convert_state_dict_to_kohya"), {})
    paths = {key.removeprefix("unet.").split(".lora_")[0] for key in load_file(f"lora/{WEIGHTS}")}
    # comfy/lora.py, model_lora_keys_unet
    known = {f"lora_unet_{path.replace('.', '_')}" for path in paths}
    written = load_file("kohya.safetensors")
    assert {key.split(".")[0] for key in written} == known
    assert {key.split(".", 1)[1] for key in written} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert all(value == 2 for key, value in written.items() if key.endswith("alpha"))
    pipe = pipeline(model)
    pipe.load_lora_weights(".", weight_name="kohya.safetensors")
    torch.testing.assert_close(output(pipe.unet, tiny), output(unet, tiny), atol=1e-4, rtol=1e-4)


def test_the_hooks_save_and_resume(tiny: Any, model: Path, tmp_path: Path) -> None:
    names: dict[str, Any] = {
        "StableDiffusionXLPipeline": StableDiffusionXLPipeline,
        "get_peft_model_state_dict": get_peft_model_state_dict,
        "set_peft_model_state_dict": set_peft_model_state_dict,
    }
    hooks = snippet("diffusion.md", "save_model_hook")
    accelerator = names["accelerator"] = Accelerator(cpu=True)
    exec(hooks, names)
    unet = accelerator.prepare(adapted(model, tiny))
    expected = output(unet, tiny)
    accelerator.save_state(str(tmp_path))
    assert not list(tmp_path.glob("model*"))
    accelerator = names["accelerator"] = Accelerator(cpu=True)
    accelerator.free_memory()
    exec(hooks, names)
    other = adapted(model, tiny, init_weights=False)
    shake(other, seed=7)
    other = accelerator.prepare(other)
    assert not torch.allclose(output(other, tiny), expected, atol=1e-3)
    accelerator.load_state(str(tmp_path))
    torch.testing.assert_close(output(other.eval(), tiny), expected)
