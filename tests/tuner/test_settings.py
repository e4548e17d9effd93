"""The settings that people use PEFT with: each as it is with `LoraConfig`."""

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
)
from torch import nn

from aurora_lora import AuroraConfig, MergeError, calibrate, export_lora, merge_gap
from aurora_lora.tuner import aurora_layers
from tiny_llama import ATTENTION, IDS, adapt, llama, logits


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---------------------------------------------------------------- which modules


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": "all-linear"},
        {"target_modules": r".*layers\.1\.self_attn\.(q|k)_proj"},
        {"target_modules": "all-linear", "exclude_modules": ["up_proj", "k_proj"]},
        {"target_modules": ATTENTION, "layers_to_transform": 0, "layers_pattern": "layers"},
        {"target_modules": None},
    ],
)
def test_modules_are_chosen_as_by_lora(fields):
    model = get_peft_model(llama(), AuroraConfig(**fields))
    lora = get_peft_model(llama(), LoraConfig(**fields))
    theirs = {name for name, module in lora.named_modules() if hasattr(module, "lora_A")}
    assert {name for name, _ in aurora_layers(model)} == theirs


def test_a_linear_that_is_never_called_is_refused():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2)

    with pytest.raises(
        ValueError, match=r"'attn.out_proj' is incompatible .*torch.nn.MultiheadAttention.*exclude_modules"
    ):
        get_peft_model(Attention(), AuroraConfig(target_modules=["out_proj"]))


def test_a_fused_encoder_layer_calls_its_adapters():
    """In eval mode without gradients, the layer reads the weights of linear1 and linear2 itself."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
    net, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(3, 5, 16)
    with torch.no_grad():
        expected = net(x)
    model = adapt(net, target_modules=["linear1", "linear2"], task_type=None, alpha=8)
    calibrate(model, [x])
    with torch.no_grad():
        fused = model(x)
    assert (fused - expected).abs().max() > 0.1
    torch.testing.assert_close(fused, model(x.requires_grad_()).detach(), rtol=1e-4, atol=1e-5)
    merged = model.merge_and_unload()
    with torch.no_grad():
        torch.testing.assert_close(merged(x), fused, rtol=1e-4, atol=1e-5)


def test_what_a_model_reads_without_calling_is_refused():
    model = nn.ModuleDict({"in_proj": nn.Linear(4, 4), "out_proj": nn.Linear(4, 4)})
    model.config = type("Config", (), {"model_type": "mamba2", "to_dict": lambda self: {"model_type": "mamba2"}})()
    with pytest.raises(ValueError, match=r"'out_proj' is incompatible with Mamba.*Leave it out with exclude_modules"):
        get_peft_model(model, AuroraConfig(target_modules="all-linear"))


# ---------------------------------------------------------------- how it is run


@pytest.mark.parametrize(("train_form", "reentrant"), [("dynamic", False), ("static", True)])
def test_gradient_checkpointing(train_form, reentrant):
    def run(checkpointing):
        model = adapt(train_form=train_form, modules_to_save=["lm_head"]).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(input_ids=IDS, labels=IDS).loss.backward()
        return gradients(model)

    plain, checkpointed = run(False), run(True)
    assert plain.keys() == checkpointed.keys()
    assert len(plain) == 4 * 4 + 1
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)


@pytest.mark.parametrize(
    ("form", "dtype"), [("dynamic", torch.bfloat16), ("static", torch.float16), ("calibrated", torch.bfloat16)]
)
def test_autocast(form, dtype):
    model = adapt(eval_form=form)
    if form == "calibrated":
        calibrate(model, [IDS])
    exact = logits(model)
    with torch.autocast("cpu", dtype=dtype):
        found = logits(model)
        model.train()(input_ids=IDS, labels=IDS).loss.backward()
    torch.testing.assert_close(found.float(), exact, atol=0.05, rtol=0.05)
    grads = {name: p.grad for name, p in model.named_parameters() if "aurora_" in name}
    assert all(g is not None and g.dtype == torch.float32 and torch.isfinite(g).all() for g in grads.values())
    matrices = [matrix for _, layer in aurora_layers(model) for matrix in layer.aurora_A_cal.values()]
    assert all(matrix.weight.dtype == torch.float32 for matrix in matrices)


# ---------------------------------------------------------------- where the weights are


# ---------------------------------------------------------------- Transformers' own adapter interface


def test_add_adapter_and_load_adapter_of_transformers(tmp_path):
    torch.manual_seed(1)
    model = llama()
    model.add_adapter(AuroraConfig(target_modules=ATTENTION, init_weights=False), adapter_name="mine")
    calibrate(model, [IDS])
    expected = logits(model)
    assert not torch.equal(expected, logits(llama()))
    assert merge_gap(model, [IDS]).end_to_end[-1].form == "calibrated"
    model.save_pretrained(tmp_path / "adapter")
    export_lora(model, tmp_path / "lora")

    loaded = llama()
    loaded.load_adapter(tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), expected)
    assert {layer.form("default") for _, layer in aurora_layers(loaded)} == {"calibrated"}
    torch.testing.assert_close(logits(PeftModel.from_pretrained(llama(), tmp_path / "adapter")), expected)
    plain = llama()
    plain.load_adapter(tmp_path / "lora")
    torch.testing.assert_close(logits(plain), expected)

    loaded.disable_adapters()
    assert torch.equal(logits(loaded), logits(llama()))
    loaded.enable_adapters()
    torch.testing.assert_close(logits(loaded), expected)


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize("tied", [False, True])
def test_trainable_tokens(tied, tmp_path):
    model = adapt(llama(tie_word_embeddings=tied), trainable_token_indices=[2, 4], eval_form="static").train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    model.eval()
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    export_lora(model, tmp_path / "lora")
    for folder in ("adapter", "lora"):
        loaded = PeftModel.from_pretrained(llama(tie_word_embeddings=tied), tmp_path / folder)
        torch.testing.assert_close(logits(loaded), expected)
    torch.testing.assert_close(logits(model.merge_and_unload()), expected)


@pytest.mark.parametrize("targets", [["lm_head"], ["lm_head", "q_proj"]])
def test_a_head_tied_to_embeddings_with_trained_tokens_is_not_merged(targets, tmp_path):
    """PEFT computes its weight at each access, so that a merge would be lost; the export is exact."""
    base = llama(tie_word_embeddings=True)
    model = adapt(base, target_modules=targets, trainable_token_indices=[2, 4], eval_form="static")
    expected = logits(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(MergeError, match=r"trainable_token_indices.*export_lora"):
            merge()
    assert torch.equal(logits(model), expected)
    export_lora(model, tmp_path)
    loaded = PeftModel.from_pretrained(llama(tie_word_embeddings=True), tmp_path)
    torch.testing.assert_close(logits(loaded), expected)


# ---------------------------------------------------------------- many adapters


def test_the_reference_policy_that_trl_copies_by_names():
    model = adapt(llama().bfloat16(), modules_to_save=["lm_head"])
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:  # as training leaves it: it began with values that bfloat16 has
                weight.add_(1e-3 * torch.randn_like(weight))
    expected = logits(model.eval())
    calibrate(model, [{"input_ids": IDS}])
    policy = logits(model)
    model.add_adapter("ref", model.peft_config["default"])  # the following lines are those of TRL's trainers
    for name, parameter in model.named_parameters():
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)
    assert torch.equal(logits(model), policy)
    model.set_adapter("ref")
    assert torch.equal(logits(model.eval()), expected)  # the policy before its calibration
