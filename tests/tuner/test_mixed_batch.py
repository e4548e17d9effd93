"""Mixed batches: each example with the adapter that is named for it."""

import pytest
import torch
from peft import get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import T5Config, T5ForConditionalGeneration

from aurora_lora import AuroraConfig, calibrate
from tiny_llama import ATTENTION, IDS, adapt, logits


def test_each_example_of_a_mixed_batch_has_its_adapter():
    model = adapt(eval_form="dynamic")
    torch.manual_seed(2)
    model.add_adapter("other", AuroraConfig(target_modules=["v_proj", "up_proj"], init_weights=False, r=4))
    model.eval()
    alone = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        alone[name] = logits(model)
    with model.disable_adapter():
        alone["__base__"] = logits(model)
    names = ["other", "__base__", "default"]
    with torch.no_grad():
        mixed = model(input_ids=IDS, adapter_names=names).logits
    expected = torch.stack([alone[name][i] for i, name in enumerate(names)])
    torch.testing.assert_close(mixed, expected)
    assert not any(module._forward_pre_hooks for module in model.modules())


class OutputsAsLargeAs(TorchDispatchMode):
    """How many operators return a tensor of so many numbers, of its own memory."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers, self.count = numbers, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        if isinstance(result, torch.Tensor) and not func.is_view and "_." not in str(func):
            self.count += result.numel() >= self.numbers
        return result


def test_a_mixed_batch_copies_the_output_once_however_many_adapters_it_has():
    layer = torch.nn.Sequential(torch.nn.Linear(3, 50))
    model = get_peft_model(layer, AuroraConfig(target_modules=["0"], init_weights=False, eval_form="dynamic"))
    for name in ("second", "third"):
        model.add_adapter(name, AuroraConfig(target_modules=["0"], init_weights=False, eval_form="dynamic"))
    with torch.no_grad(), OutputsAsLargeAs(6 * 50) as outputs:
        model.eval()(torch.randn(6, 3), adapter_names=["third", "default", "second"] * 2)
    assert outputs.count == 2  # the base layer's output, and its copy


def test_a_mixed_batch_leaves_what_the_base_layer_returns_alone():
    """A base layer may keep its output, as one that caches it does."""
    model = get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(3, 4)),
        AuroraConfig(target_modules=["0"], init_weights=False, eval_form="dynamic"),
    ).eval()
    kept = []
    model.base_model.model[0].base_layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    x = torch.randn(2, 3)
    mixed = model(x, adapter_names=["default", "__base__"])
    with model.disable_adapter():
        base = model(x)
    assert torch.equal(kept[0], base)
    assert torch.equal(mixed[1], base[1])
    assert not torch.equal(mixed[0], base[0])
    mixed.sum().backward()
    assert model.base_model.model[0].aurora_A["default"].grad.abs().sum() > 0


def test_vmap_over_the_adapters_of_a_mixed_batch():
    """As for an ensemble: the base layer's output has no batch of adapters, the updates have."""
    config = AuroraConfig(target_modules=["0"], init_weights=False, eval_form="dynamic")
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 6)), config)
    model.add_adapter("other", config)
    layer = model.eval().base_model.model[0]
    x, names = torch.randn(5, 8), ["default", "__base__", "other", "other", "default"]
    of_one = {f"aurora_B.{name}": layer.aurora_B[name].detach() for name in ("default", "other")}

    def output(weights):
        return torch.func.functional_call(layer, weights, (x,), {"adapter_names": names})

    for varied in (of_one, {"aurora_B.other": of_one["aurora_B.other"]}):
        found = torch.func.vmap(output)({name: torch.stack([B, 2 * B]) for name, B in varied.items()})
        expected = [output(of_one | {name: k * B for name, B in varied.items()}) for k in (1, 2)]
        torch.testing.assert_close(found, torch.stack(expected))


def test_each_adapter_of_a_mixed_batch_has_its_form_and_calibration():
    model = adapt()
    calibrate(model, [IDS])
    torch.manual_seed(2)
    model.add_adapter("static", AuroraConfig(target_modules=ATTENTION, init_weights=False, eval_form="static"))
    model.eval()
    alone = []
    for name in ("default", "static"):
        model.set_adapter(name)
        alone.append(logits(model))
    with torch.no_grad():
        mixed = model(input_ids=IDS, adapter_names=["static", "default", "static"]).logits
    torch.testing.assert_close(mixed, torch.stack([alone[1][0], alone[0][1], alone[1][2]]))


def test_mixed_batches_with_embeddings_and_modules_to_save():
    model = adapt(target_modules=["embed_tokens", "q_proj"], modules_to_save=["lm_head"], eval_form="dynamic")
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(2)
    expected = logits(model)
    with model.disable_adapter():
        base = logits(model)
    with torch.no_grad():
        mixed = model(input_ids=IDS, adapter_names=["__base__", "default", "__base__"]).logits
    torch.testing.assert_close(mixed, torch.stack([base[0], expected[1], base[2]]))


@pytest.mark.parametrize("beams", [1, 3])
def test_mixed_batches_generate(beams):
    model = adapt(eval_form="dynamic", alpha=200)
    options = {"max_new_tokens": 5, "num_beams": beams, "do_sample": False, "min_new_tokens": 5, "pad_token_id": 0}
    alone = model.generate(input_ids=IDS, **options)
    with model.disable_adapter():
        base = model.generate(input_ids=IDS, **options)
    mixed = model.generate(input_ids=IDS, adapter_names=["default", "__base__", "default"], **options)
    assert torch.equal(mixed, torch.stack([alone[0], base[1], alone[2]]))
    assert not torch.equal(alone, base)


@pytest.mark.seq2seq
def test_mixed_batches_generate_with_an_encoder():
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "d_model": 16, "d_ff": 16, "d_kv": 4, "num_layers": 1, "num_heads": 4}
    base = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))
    model = adapt(base, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM", eval_form="dynamic", alpha=200)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": 2, "do_sample": False}
    alone = model.generate(input_ids=IDS, **options)
    with model.disable_adapter():
        plain = model.generate(input_ids=IDS, **options)
    mixed = model.generate(input_ids=IDS, adapter_names=["__base__", "default", "__base__"], **options)
    assert torch.equal(mixed, torch.stack([plain[0], alone[1], plain[2]]))


def test_wrong_names_of_a_mixed_batch():
    model = adapt(eval_form="static")
    with pytest.raises(ValueError, match=r"non-existing adapter.*nobody"):
        model(input_ids=IDS, adapter_names=["nobody", "default", "default"])
    with pytest.raises(ValueError, match="same as the number of inputs, but got 1 and 3"):
        model(input_ids=IDS, adapter_names=["default"])
    with pytest.raises(TypeError, match="expected a list of str"):
        model(input_ids=IDS, adapter_names="default")
    with pytest.raises(ValueError, match="training mode"):
        model.train()(input_ids=IDS, adapter_names=["default"] * 3)
    model.eval().merge_adapter()
    with pytest.raises(ValueError, match="unmerge_adapter"):
        model(input_ids=IDS, adapter_names=["default"] * 3)
    assert not any(module._forward_pre_hooks for module in model.modules())
