"""Merges into folders of compressed-tensors, which the library itself writes and reads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM

from aurora_lora.deploy.compressed import CompressedFolder
from aurora_lora.deploy.stored import merge_stored

pytest.importorskip("compressed_tensors")
WIDTH, INNER, WORDS = 256, 384, 48
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SCHEMES = ("W4A16", "W4A16_ASYM", "W8A16", "W8A8", "FP8_DYNAMIC", "NVFP4A16", "MXFP4A16")


def write(folder: Path, scheme: str, **changes: Any) -> None:
    """A small Llama in this format."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "vocab_size": WORDS, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).bfloat16()
    preset = preset_name_to_scheme(scheme, ["Linear"])
    preset.weights = preset.weights.model_copy(update=changes)
    apply_quantization_config(model, QuantizationConfig(config_groups={"all": preset}, ignore=["lm_head"]))
    for layer in model.modules():
        if not isinstance(layer, nn.Linear) or not hasattr(layer, "quantization_scheme"):
            continue
        weight, args = layer.weight.data.normal_(0, 0.05), preset.weights
        whole = generate_gparam(weight.min(), weight.max()) if args.strategy == "tensor_group" else None
        blocks = weight.reshape(len(weight), -1, args.group_size or weight.shape[1])
        scale, zero = calculate_qparams(blocks.amin(-1).float(), blocks.amax(-1).float(), args, global_scale=whole)
        layer.weight_scale.data = scale.to(layer.weight_scale.dtype).view_as(layer.weight_scale)
        if whole is not None:
            layer.weight_global_scale.data = whole.view_as(layer.weight_global_scale)
        if hasattr(layer, "weight_zero_point"):
            layer.weight_zero_point.data = zero.to(layer.weight_zero_point.dtype).view_as(layer.weight_zero_point)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))


def loaded(folder: Path) -> Any:
    whole = CompressedTensorsConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=whole, dtype=torch.float32).eval()


def adapted(folder: Path, r: int = 4, moved: float = 0.3) -> Any:
    model = get_peft_model(loaded(folder), LoraConfig(r=r, target_modules=PROJECTIONS))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += torch.randn_like(parameter) * moved
    return model.eval()


def inputs() -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    return [{"input_ids": torch.randint(0, WORDS, (8, 12))} for _ in range(8)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_written_is_loaded_as_the_merged_model(scheme: str, tmp_path: Path) -> None:
    changes = {"group_size": 64} if scheme in ("W4A16", "W4A16_ASYM") else {}
    write(folder := tmp_path / "base", scheme, **changes)
    model, data = adapted(folder), inputs()
    report = merge_stored(model, folder, out := tmp_path / "merged", data)
    old, new = load_file(folder / "model.safetensors"), load_file(out / "model.safetensors")
    assert {name: (value.dtype, value.shape) for name, value in old.items()} == {
        name: (value.dtype, value.shape) for name, value in new.items()
    }
    same = {name for name in old if torch.equal(old[name].view(torch.uint8), new[name].view(torch.uint8))}
    assert not any(name.endswith(("packed", "proj.weight")) for name in same)
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} <= same
    assert json.loads((out / "config.json").read_text()) == json.loads((folder / "config.json").read_text())
    merged, held_out = loaded(out), data[7]
    with torch.no_grad():
        expected, found = (torch.log_softmax(each(**held_out).logits.double(), -1) for each in (model, merged))
    kl = float((expected.exp() * (expected - found)).sum(-1).mean())
    ends = {end.form: end for end in report.end_to_end}
    assert ends["by inputs"].kl == pytest.approx(kl, rel=0.1, abs=2e-4)  # loaded weights are rounded to bfloat16
    assert kl < ends["nearest"].kl < ends["without adapter"].kl
    assert kl < 0.5 * ends["without adapter"].kl


@pytest.mark.parametrize("scheme", SCHEMES)
def test_values_and_bytes_are_those_of_the_library(scheme: str, tmp_path: Path) -> None:
    write(tmp_path / "base", scheme, **({"group_size": 64} if scheme.startswith("W4") else {}))
    model, path = loaded(tmp_path / "base"), "model.layers.0.mlp.up_proj"
    held = CompressedFolder(tmp_path / "base").format_of(model, path, layer := model.get_submodule(path))
    torch.testing.assert_close(held.grid().dequantised(held.codes()), layer.weight.data, rtol=1e-2, atol=1e-5)
    packed, before = held.pack(held.codes(), held.grid()), held.dense()
    scales = {name for name in held.stored if name not in ("weight", "weight_packed")}
    assert packed.keys() == held.stored.keys()
    assert all(torch.equal(packed[name].float(), held.stored[name].float()) for name in scales)
    held.put(packed)  # zeros of 4-bit floats may have another sign
    torch.testing.assert_close(layer.weight.data, before)
