"""An export with zeros for the layers that the adapter leaves out: all kinds complete, and the same outputs."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from aurora_lora import AuroraConfig, export_lora

LAYERS = 3
QKV, BOTH = {"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}
X = torch.arange(24).reshape(2, 12)


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=LAYERS, **sizes)).eval()


def adapted(**fields):
    config = AuroraConfig(eval_form="static", init_weights=False, **fields)
    return get_peft_model(llama(), config).eval()


def kinds(folder):
    """The layers of each kind of projection that a LoRA has factors for, with their rank."""
    found = {}
    for key, value in load_file(folder / "adapter_model.safetensors").items():
        parts = key.split(".")
        if parts[-2] == "lora_A":
            found.setdefault(parts[-3], {})[int(parts[4])] = len(value)
    return found


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1, 2]}, QKV),
        ({"target_modules": ["q_proj"]}, QKV),
        ({"target_modules": ["o_proj"], "layers_to_transform": [0]}, {"o_proj"}),
        (
            {
                "target_modules": r".*(0.*q_proj|2.*(v_proj|gate_proj))",
                "rank_pattern": {"layers.2.self_attn.v_proj": 5},
            },
            QKV | BOTH,
        ),
    ],
)
def test_every_layer_of_each_kind(fields, expected, tmp_path):
    model = adapted(**fields)
    export_lora(model, tmp_path / "some")
    export_lora(model, tmp_path / "all", all_layers=True)
    some, every = kinds(tmp_path / "some"), kinds(tmp_path / "all")
    (rank,) = {rank for layers in some.values() for rank in layers.values()}
    assert rank < 16
    config = json.loads((tmp_path / "all" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 16  # else TGI pads, and scales by that
    assert every == {kind: dict.fromkeys(range(LAYERS), 16) for kind in expected}
    loaded = {name: PeftModel.from_pretrained(llama(), tmp_path / name).eval() for name in ("some", "all")}
    with torch.no_grad():
        outputs = {name: model(X).logits for name, model in loaded.items()}
        torch.testing.assert_close(outputs["some"], model(X).logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs["all"], outputs["some"], atol=1e-5, rtol=1e-5)
    written = load_file(tmp_path / "all" / "adapter_model.safetensors")
    kept = load_file(tmp_path / "some" / "adapter_model.safetensors")
    for key, value in kept.items():
        part = written[key][tuple(map(slice, value.shape))]
        assert torch.equal(part, value)
        assert written[key].count_nonzero() == value.count_nonzero()
    assert not any(value.any() for key, value in written.items() if key not in kept)
