"""Merges into folders of compressed-tensors, which the library itself writes and reads, and models quantised afresh."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM

from aurora_lora.deploy.compressed import PRESETS, CompressedFolder
from aurora_lora.deploy.stored import compress, merge_stored
from aurora_lora.errors import ArgumentError, MergeError

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


def unmerged(targets: list[str], moved: float, **config: Any) -> Any:
    """A small Llama in float, of which no groups of 128 divide the width, with an adapter."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 192, "intermediate_size": INNER, "vocab_size": WORDS, "num_hidden_layers": 1, **config}
    base = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes))
    for parameter in base.parameters():
        if parameter.dim() == 2:
            parameter.data.normal_(0, 0.05)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=targets))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += torch.randn_like(parameter) * moved
    return model.eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PRESETS)
def test_a_model_in_float_is_quantised_as_it_is_loaded(name: str, tmp_path: Path) -> None:
    model, data = unmerged(["q_proj", "v_proj", "lm_head"], 0.3), inputs()
    with torch.no_grad():
        expected = torch.log_softmax(model(**data[7]).logits.double(), -1)
        head = model.lm_head.base_layer.weight + model.lm_head.get_delta_weight("default")
    plain, report = compress(model, name, torch.bfloat16, data)
    plain.save_pretrained(tmp_path)
    with torch.no_grad():
        found = torch.log_softmax(loaded(tmp_path)(**data[7]).logits.double(), -1)
    kl = float((expected.exp() * (expected - found)).sum(-1).mean())
    assert report is not None
    ends = {end.form: end.kl or 0.0 for end in report.end_to_end}
    assert ends["by inputs"] == pytest.approx(kl, rel=0.1, abs=2e-4)  # the head is rounded to bfloat16
    assert ends["by inputs"] < 0.2 * ends["nearest"] < 0.1 * ends["without adapter"]
    assert [layer.layer.rpartition(".")[2] for layer in report.layers] == ["q_proj", "v_proj"]
    stored = load_file(tmp_path / "model.safetensors")
    torch.testing.assert_close(stored["lm_head.weight"], head.detach().bfloat16())
    floats = {key for key, value in stored.items() if key.endswith(".weight") and value.dtype == torch.bfloat16}
    assert not any("proj" in key for key in floats)
    described = json.loads((tmp_path / "config.json").read_text())
    assert (described["dtype"], described["quantization_config"]["ignore"]) == ("bfloat16", ["lm_head"])
    for block in ("self_attn", "mlp"):  # engines make one layer of some
        wholes = {float(value) for key, value in stored.items() if block in key and key.endswith("global_scale")}
        assert len(wholes) == (name == "nvfp4")


@pytest.mark.filterwarnings("ignore")
def test_what_an_idle_adapter_is_on_changes_nothing(tmp_path: Path) -> None:
    """Layers with and without an adapter are quantised alike, whatever PEFT has wrapped."""
    written = []
    for i, targets in enumerate((["q_proj"], PROJECTIONS)):
        plain, _ = compress(unmerged(targets, 0.0), "w4a16_asym", torch.float32, inputs())
        plain.save_pretrained(tmp_path / str(i))
        written.append(load_file(tmp_path / str(i) / "model.safetensors"))
    assert written[0].keys() == written[1].keys()
    assert all(torch.equal(value, written[1][key]) for key, value in written[0].items())


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("w4a16", {"intermediate_size": 120}, "down_proj are no whole groups of 32"),
        ("w8a8", {"tie_word_embeddings": True}, "is tied"),
    ],
)
def test_models_in_float_that_are_refused(name: str, config: dict[str, Any], said: str) -> None:
    with pytest.raises((ArgumentError, MergeError), match=said):
        compress(unmerged(["q_proj", "lm_head"], 0.3, **config), name, torch.float32, inputs())
