"""Another method's adapter over AuroRA's, or under it: what is saved is as without it, and can be loaded without it."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from aurora_lora import AuroraConfig, calibrate, export_lora, merge_gap
from aurora_lora.tuner import aurora_layers
from aurora_lora.tuner.peft_names import BaseTunerLayer
from aurora_lora.tuner.stacked import by_plain_path, plain_path

STACKS = ("alone", "over", "under", "over, deleted")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.to_q, self.to_k, self.to_v = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        return self.to_v(torch.tanh(self.to_q(x)) * self.to_k(x))


def stacked(stack, **fields):
    """AuroRA on q and v, with a LoRA on q and k over it, or under it, which changes nothing."""
    model = Block()
    lora = LoraConfig(r=2, target_modules=["to_q", "to_k"])
    if stack == "under":
        inject_adapter_in_model(lora, model, "lcm")
    inject_adapter_in_model(AuroraConfig(r=2, target_modules=["to_q", "to_v"], **fields), model, "mine")
    if stack.startswith("over"):
        inject_adapter_in_model(lora, model, "lcm")
    if stack == "over, deleted":
        for module in model.modules():
            if hasattr(module, "lora_A"):
                module.delete_adapter("lcm")
        del model.peft_config["lcm"]
    for _, layer in aurora_layers(model):
        layer.set_adapter("mine")
    return model.eval()


@pytest.fixture
def x():
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(1))


def trained(stack, x, **fields):
    model = stacked(stack, **fields)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "aurora_" in name or (value.requires_grad and name.endswith("bias")):
                value.add_(0.3 * torch.randn_like(value))
    calibrate(model, [x])
    return model.eval()


@pytest.mark.parametrize("bias", ["none", "aurora_only", "all"])
@pytest.mark.parametrize("saved", STACKS)
def test_a_checkpoint_is_as_without_the_other_adapter(saved, bias, x):
    model = trained(saved, x, bias=bias)
    state = get_peft_model_state_dict(model, adapter_name="mine")
    expected = get_peft_model_state_dict(trained("alone", x, bias=bias), adapter_name="mine")
    # PEFT saves the bias of each adapted layer, of whatever method
    assert state.keys() - {"to_k.bias"} == expected.keys() - {"to_k.bias"}
    for loaded in STACKS:
        for prefix in ("", "base_model.model."):
            other = stacked(loaded, bias=bias)
            given = {prefix + key: value for key, value in state.items()}
            result = set_peft_model_state_dict(other, given, adapter_name="mine")
            assert not result.unexpected_keys
            torch.testing.assert_close(other.eval()(x), model(x))


def test_one_that_was_saved_with_the_names_of_the_stack(x):
    model = trained("over", x)
    state = get_peft_model_state_dict(model, adapter_name="mine")
    earlier = {key.replace("to_q.", "to_q.base_layer."): value for key, value in state.items()}
    for stack in STACKS:
        other = stacked(stack)
        set_peft_model_state_dict(other, earlier, adapter_name="mine")
        torch.testing.assert_close(other.eval()(x), model(x))


def test_a_module_of_the_model_that_is_called_base_layer(x):
    """It is no tuner layer, and keeps its name."""

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_layer = nn.Linear(6, 6)

        def forward(self, x):
            return self.base_layer(x)

    config = AuroraConfig(r=2, target_modules=["base_layer"], init_weights=False)
    plain = nn.Sequential(Outer(), Outer())
    model = inject_adapter_in_model(config, copy.deepcopy(plain)).eval()
    state = get_peft_model_state_dict(model)
    assert {key.rpartition(".")[0] for key in state} == {"0.base_layer", "1.base_layer"}
    other = inject_adapter_in_model(config, plain).eval()
    set_peft_model_state_dict(other, state)
    torch.testing.assert_close(other(x), model(x))


@pytest.mark.parametrize("bias", ["none", "aurora_only", "all"])
@pytest.mark.parametrize("stack", STACKS)
def test_an_export_is_as_without_the_other_adapter(stack, bias, x, tmp_path):
    model = trained(stack, x, bias=bias)
    export_lora(model, tmp_path, adapter_name="mine")
    assert sorted(json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]) == ["to_q", "to_v"]
    loaded = PeftModel.from_pretrained(Block(), tmp_path).eval()
    torch.testing.assert_close(loaded(x), model(x))
    loaded = PeftModel.from_pretrained(Block(), tmp_path)
    assert not get_peft_model_state_dict(loaded).keys() - load_file(tmp_path / "adapter_model.safetensors").keys()


@pytest.mark.parametrize("stack", STACKS)
def test_layers_are_reported_as_without_the_other_adapter(stack, x):
    model = trained(stack, x)
    assert [entry.layer for entry in calibrate(model, [x]).layers] == ["to_q", "to_v"]
    assert list(dict.fromkeys(entry.layer for entry in merge_gap(model, [x]).layers)) == ["to_q", "to_v"]


def test_layers_around_one_module_are_told_apart():
    model = stacked("over")
    layers = [(path, module) for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    assert [plain_path(model, path) for path, _ in layers] == ["to_q", "to_q", "to_k", "to_v"]
    assert list(by_plain_path(model, layers)) == layers
    _, *inner = layers
    assert [path for path, _ in by_plain_path(model, inner)] == ["to_q", "to_k", "to_v"]


def test_names_of_wrappers_that_are_the_model_s_own_stay():
    path = "module.base_model.model.base_layer.token_adapter"
    model: nn.Module = nn.Linear(4, 4)
    for part in reversed(path.split(".")):
        model = nn.ModuleDict({part: model})
    assert plain_path(model, path) == path
    wrapped = nn.DataParallel(torch.compile(checkpoint_wrapper(model)))
    adapted = get_peft_model(wrapped, AuroraConfig(target_modules=["token_adapter"]))
    ((name, _),) = aurora_layers(adapted)
    assert name == f"base_model.model.module._orig_mod._checkpoint_wrapped_module.{path}"
    assert plain_path(adapted, name) == path
    assert plain_path(adapted, f"{name}.aurora_A") == f"{path}.aurora_A"


def test_rows_of_an_embedding_that_are_trained():
    model = get_peft_model(
        nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4)),
        AuroraConfig(target_modules=["1"], trainable_token_indices={"0": [1]}),
    )
    layers = [(path, module) for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    assert [path for path, _ in by_plain_path(model, layers)] == ["0", "1"]
