"""What merges of any adapter lose, against the same figures computed with PEFT's own merge and plain products."""

import copy
import math
import sys
from pathlib import Path

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    OFTConfig,
    get_peft_model,
)
from torch import nn
from torch.utils.data import DataLoader

import aurora_lora
from aurora_lora import CalibrationError, FormError, MergeError, NotCalibratedError, merge_gap
from aurora_lora.errors import UserError
from aurora_lora.tuner.peft_names import BaseTunerLayer

TARGETS = ["query", "value"]
METHODS = {
    "lora": lambda: LoraConfig(target_modules=TARGETS, init_lora_weights=False),
    "dora": lambda: LoraConfig(target_modules=TARGETS, init_lora_weights=False, use_dora=True),
    "oft": lambda: OFTConfig(target_modules=TARGETS, oft_block_size=8, init_weights=False),
    "ia3": lambda: IA3Config(target_modules=TARGETS, feedforward_modules=[], init_ia3_weights=False),
}


def adapted(base, method="lora"):
    torch.manual_seed(1)
    model = get_peft_model(base, METHODS[method]()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(0.1)
    return model


def layers(model):
    return {
        path: module for path, module in model.get_base_model().named_modules() if isinstance(module, BaseTunerLayer)
    }


def all_logits(model, batches):
    with torch.no_grad():
        return torch.cat([model(**batch).logits for batch in batches]).double()


def kl(reference, other):
    found = nn.functional.kl_div(other.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="sum")
    return float(found) / len(reference)


def by_name(gap):
    return {merge.merge: merge for merge in gap.merges}


@pytest.mark.parametrize("method", METHODS)
def test_merges_in_a_dtype_are_those_of_peft(method, make_bert, batches, inputs_of):
    """float32 loses nothing but the noise of the computation; bfloat16 what PEFT's merge into it loses."""
    model = adapted(make_bert(), method)
    x, reference = inputs_of(model, layers(model), batches), all_logits(model, batches)
    gap = merge_gap(model, batches)
    assert (gap.layers, [end.form for end in gap.end_to_end]) == ((), ["unmerged"])
    own, rounded = by_name(gap)["float32"], by_name(gap)["bfloat16"]
    assert all(loss.relative_error < 1e-6 for loss in own.layers)
    assert own.end_to_end.kl < 1e-10
    assert own.end_to_end.agreement == 1
    half = adapted(make_bert(), method)
    full = adapted(make_bert(), method)
    for layer in layers(half).values():
        layer.get_base_layer().weight.data = layer.get_base_layer().weight.data.bfloat16()
        layer.merge()
        layer.get_base_layer().weight.data = layer.get_base_layer().weight.data.float()
    stored = {path: layer.get_base_layer().weight.data.clone() for path, layer in layers(full).items()}
    full.merge_adapter()
    expected = {}
    for path, layer in layers(full).items():
        exact = layer.get_base_layer().weight.data
        off = layers(half)[path].get_base_layer().weight.data - exact
        effect = x[path].double() @ (exact - stored[path]).double().T
        expected[path] = float((x[path].double() @ off.double().T).norm() / effect.norm())
    assert {loss.layer: loss.relative_error for loss in rounded.layers} == pytest.approx(expected, rel=1e-3)
    lost = [loss.relative_error for loss in rounded.layers]
    assert lost == sorted(lost, reverse=True)
    merged = all_logits(half, batches)
    assert rounded.end_to_end.kl == pytest.approx(kl(reference, merged), rel=1e-3, abs=1e-9)
    difference = float((merged - reference).abs().max())
    assert rounded.end_to_end.largest_logit_difference == pytest.approx(difference, rel=1e-2)


def test_conv1d_and_perplexity(make_gpt2, batches):
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = get_peft_model(make_gpt2(), config).eval()
    left = {**batches[0], "attention_mask": batches[0]["attention_mask"].flip(1)}  # its first tokens follow padding
    batches = [left, *batches[1:]]
    gap = merge_gap(model, batches)
    assert by_name(gap)["float32"].end_to_end.kl < 1e-10
    assert all(0 < loss.relative_error < 0.1 for loss in by_name(gap)["bfloat16"].layers)
    total = n = 0.0
    with torch.no_grad():
        for batch in batches:
            logits, labels = model(**batch).logits[:, :-1], batch["input_ids"][:, 1:]
            mask = batch["attention_mask"].bool()
            mask = mask[:, 1:] & mask[:, :-1]
            total += float(nn.functional.cross_entropy(logits[mask], labels[mask], reduction="sum"))
            n += int(mask.sum())
    assert gap.end_to_end[0].metric["perplexity"] == pytest.approx(math.exp(total / n), rel=1e-5)


def nearest(weight, name):
    """What bitsandbytes itself makes of a weight."""
    functional = pytest.importorskip("bitsandbytes.functional")
    if name == "int8":
        scale = weight.abs().amax(1, keepdim=True) / 127
        return (weight / scale).round() * scale
    return functional.dequantize_4bit(*functional.quantize_4bit(weight, blocksize=64, quant_type=name))


@pytest.mark.parametrize("name", ["nf4", "fp4", "int8"])
def test_quantised_merges_of_an_unquantised_base(name, make_bert, batches, inputs_of):
    pytest.importorskip("bitsandbytes")
    # bitsandbytes 0.50 on a CPU dequantises rows that its blocks do not divide wrongly: 64 is one block
    model = adapted(make_bert(hidden_size=64))
    x, reference = inputs_of(model, layers(model), batches), all_logits(model, batches)
    gap = merge_gap(model, batches, quantizations=name)
    assert list(by_name(gap)) == ["float32", "bfloat16", f"{name} nearest", f"{name} by inputs"]
    naive, by_inputs = by_name(gap)[f"{name} nearest"], by_name(gap)[f"{name} by inputs"]
    other = adapted(make_bert(hidden_size=64))
    expected = {}
    for path, layer in layers(other).items():
        base = layer.get_base_layer().weight.data.clone()
        layer.merge()
        exact = layer.get_base_layer().weight.data
        rounded = nearest(exact, name)
        error, effect = x[path].double() @ (rounded - exact).double().T, x[path].double() @ (exact - base).double().T
        expected[path] = float(error.norm() / effect.norm())
        layer.get_base_layer().weight.data = rounded
    assert {loss.layer: loss.relative_error for loss in naive.layers} == pytest.approx(expected, rel=1e-3)
    assert naive.end_to_end.kl == pytest.approx(kl(reference, all_logits(other, batches)), rel=1e-3)
    for loss in by_inputs.layers:
        assert 0 < loss.relative_error < 0.8 * expected[loss.layer]
    assert by_inputs.end_to_end.kl < naive.end_to_end.kl


def test_nothing_is_changed(make_bert, batches, logits):
    pytest.importorskip("bitsandbytes")
    model = adapted(make_bert(), "dora")
    before, weights, state = logits(model), copy.deepcopy(model.state_dict()), torch.get_rng_state()
    attributes = {path: set(module.__dict__) for path, module in model.named_modules()}
    model.train()
    merge_gap(model, iter(batches), quantizations=["nf4"])
    merge_gap(model, DataLoader(batches, batch_size=None, shuffle=True))  # which draws the seed of its order
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert {path: set(module.__dict__) for path, module in model.named_modules()} == attributes
    assert torch.equal(logits(model.eval()), before)


class Unread:
    def __iter__(self):
        raise AssertionError("the inputs are read before it is known that there is nothing to merge")


def test_aurora_has_its_forms_and_the_merges(make_bert, config, batches, train_step):
    pytest.importorskip("bitsandbytes")
    model = get_peft_model(make_bert(), config())
    train_step(model, n=8)
    with pytest.raises(NotCalibratedError):
        merge_gap(model, Unread(), merges=True)
    aurora_lora.calibrate(model, batches)
    plain = merge_gap(model, batches)
    gap = merge_gap(model, batches, quantizations=["nf4"])
    assert plain.merges == ()
    assert (gap.layers, gap.end_to_end, gap.predictions) == (plain.layers, plain.end_to_end, plain.predictions)
    merges = by_name(gap)
    calibrated = gap.end_to_end[2]
    assert merges["float32"].end_to_end.kl == pytest.approx(calibrated.kl, rel=1e-3)  # the merge of that form
    assert merges["nf4 nearest"].end_to_end.kl > calibrated.kl
    for merge in ("float32", "nf4 nearest"):
        assert len(merges[merge].layers) == 6
    with aurora_lora.set_form(model, "dynamic"), pytest.raises(FormError):
        merge_gap(model, batches, merges=True)
    static = get_peft_model(make_bert(), config(train_form="static"))
    assert [end.form for end in merge_gap(static, batches, merges=True).end_to_end] == ["unmerged"]


def test_mistakes(make_bert, batches, monkeypatch):
    model = adapted(make_bert())
    with pytest.raises(CalibrationError, match="merge_gap needs at least one batch"):
        merge_gap(model, [])
    with pytest.raises(UserError, match="quantization 'nf3' is not one of nf4, fp4, int8"):
        merge_gap(model, batches, quantizations=["nf3"])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "bitsandbytes", None)
        with pytest.raises(UserError, match=r"'bitsandbytes' is missing: pip install 'aurora-lora\[quantized\]'"):
            merge_gap(model, batches, quantizations=["nf4"])
    with model.disable_adapter(), pytest.raises(CalibrationError, match="switched off"):
        merge_gap(model, batches)
    embedding = get_peft_model(make_bert(), LoraConfig(target_modules=["word_embeddings"], init_lora_weights=False))
    with pytest.raises(MergeError, match=r"word_embeddings: merge_gap measures merges of linear layers, not of Embed"):
        merge_gap(embedding, batches)
    broken = adapted(make_bert())
    next(iter(layers(broken).values())).lora_B["default"].weight.data[0, 0] = math.nan
    with pytest.raises((CalibrationError, aurora_lora.NotFiniteError), match="finite"):
        merge_gap(broken, batches)


@pytest.fixture
def quantised():
    pytest.importorskip("bitsandbytes")
    sys.path.insert(0, str(Path(__file__).parent))
    return pytest.importorskip("quantised")


def test_a_quantised_base_is_measured_in_its_own_format(quantised, tmp_path):
    folder, inputs = quantised.save_base(tmp_path), quantised.batches()
    model = quantised.adapted(quantised.load(folder, "nf4, double"), "lora")
    gap = by_name(merge_gap(model, inputs[:3], rounding_batches=inputs[3:]))
    assert list(gap) == ["bfloat16", "nf4 nearest", "nf4 by inputs"]
    expected = quantised.logits(model, inputs[0])
    with pytest.warns(UserWarning, match="Merging into quantised weights"):
        aurora_lora.merge_quantized(model, inputs[3:])
    merged = torch.cat([quantised.logits(model, batch) for batch in inputs[:3]])
    model.unmerge_adapter()
    assert torch.equal(quantised.logits(model, inputs[0]), expected)
    reference = torch.cat([quantised.logits(model, batch) for batch in inputs[:3]])
    assert gap["nf4 by inputs"].end_to_end.kl == pytest.approx(kl(reference.double(), merged.double()), rel=1e-2)
    assert gap["bfloat16"].end_to_end.kl < gap["nf4 by inputs"].end_to_end.kl < gap["nf4 nearest"].end_to_end.kl


def test_aurora_on_conv1d(make_gpt2, batches, config):
    """Whose weight is held transposed, also a square one."""
    fields = {
        "target_modules": ["c_attn", "attn.c_proj"],
        "fan_in_fan_out": True,
        "task_type": "CAUSAL_LM",
        "train_form": "static",
    }
    model = get_peft_model(make_gpt2(), config(**fields)).eval()
    gap = merge_gap(model, batches, merges=True)
    assert by_name(gap)["float32"].end_to_end.kl < 1e-9
    assert all(loss.relative_error < 1e-4 for loss in by_name(gap)["float32"].layers)
