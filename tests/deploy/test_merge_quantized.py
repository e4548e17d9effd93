"""Merging into quantised weights by what the layers' inputs are."""

import copy
import importlib
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
)

from aurora_lora import (
    AuroraConfig,
    CalibrationError,
    MergeError,
    NotCalibratedError,
    NotFiniteError,
    calibrate,
    merge_gap,
    merge_quantized,
)
from aurora_lora.deploy.formats import format_of
from aurora_lora.deploy.merges import adapters_of, layers_with_adapters
from aurora_lora.tuner.merging import is_packed
from aurora_lora.tuner.peft_names import BaseTunerLayer, get_quantization_kwargs, resolve_quantization_backend

pytest.importorskip("bitsandbytes")
pytest.importorskip("torchao")
sys.path.insert(0, str(Path(__file__).parent))

import subprocess

import quantised

pytestmark = [
    pytest.mark.filterwarnings("ignore:Merging into quantised weights"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
    pytest.mark.filterwarnings("ignore:.*already merged"),
]

INPUTS = quantised.batches()
TEST = quantised.batches(7)[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return quantised.save_base(tmp_path_factory.mktemp("base"))


def layers(model):
    return {n: m for n, m in model.get_base_model().named_modules() if isinstance(m, BaseTunerLayer) and adapters_of(m)}


def dense(layer, model):
    base = layer.get_base_layer()
    return format_of(base, resolve_quantization_backend(base, **get_quantization_kwargs(model))).dense()


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items() if isinstance(value, torch.Tensor)}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


EVERY = {
    *((kind, "lora") for kind in quantised.FORMATS),
    *(("nf4", method) for method in ("aurora", "dora", "vera", "oft")),
    *(("torchao int4", method) for method in ("dora", "oft")),
}


@pytest.mark.parametrize(("quantisation", "method"), sorted(EVERY))
def test_merge_and_back(quantisation, method, folder):
    model = quantised.adapted(quantised.load(folder, quantisation), method)
    expected = quantised.logits(model, TEST)
    stored = {n: dense(layer, model) for n, layer in layers(model).items()}
    exact = {layer.path: layer.weights()[1] for layer in layers_with_adapters(model, "a test")}
    report = merge_quantized(model, INPUTS)
    assert {layer.layer for layer in report.layers} == set(stored)
    merged = quantised.logits(model, TEST)
    for layer in report.layers:
        assert 0 < layer.by_inputs < 1.02 * layer.nearest
    assert all(layer.merged for layer in layers(model).values())
    inexact = {n: dense(layer, model) for n, layer in layers(model).items()}
    model.unmerge_adapter()
    assert torch.equal(quantised.logits(model, TEST), expected)
    for n, layer in layers(model).items():
        assert not layer.merged
        assert torch.equal(dense(layer, model), stored[n])
    # the share of the adapter's effect on the logits that is lost; LLM.int8() rounds its inputs as well
    with model.disable_adapter():
        effect = (quantised.logits(model, TEST) - expected).norm()
    assert (merged - expected).norm() < (0.4 if "4" in quantisation else 0.08) * effect
    for n, held in inexact.items():
        assert 0 < (held - exact[n]).norm() < (exact[n] - stored[n]).norm()


def test_reported_errors_are_those_of_the_outputs(folder, inputs_of):
    model = quantised.adapted(quantised.load(folder, "nf4"), "lora")
    path, layer = next(iter(layers(model).items()))
    x, stored = inputs_of(model, {path: layer}, INPUTS)[path], dense(layer, model)
    exact = layers_with_adapters(model, "a test")[0].weights()[1]
    report = merge_quantized(model, INPUTS)
    assert report.vectors == len(x)
    assert report.passes == 1
    found = next(each for each in report.layers if each.layer == path)
    off = (x @ (dense(layer, model) - exact).T).square().sum() / (x @ (exact - stored).T).square().sum()
    assert found.by_inputs == pytest.approx(float(off) ** 0.5, rel=1e-3)


SCRIPT = """
import sys
sys.modules["aurora_lora"] = None  # importing it now raises ImportError
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], device_map={"": "cpu"}).eval()
for module in model.modules():
    if hasattr(module, "support_avx512bf16_for_cpu"):
        module.support_avx512bf16_for_cpu = False
batch = load_file(sys.argv[2])
with torch.no_grad():
    save_file({"logits": model(**batch).logits[batch["attention_mask"].bool()]}, sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.parametrize("quantisation", ["nf4, double", "int8"])
def test_the_result_is_an_ordinary_quantised_model(quantisation, folder, tmp_path):
    model = quantised.adapted(quantised.load(folder, quantisation), "aurora")
    merge_quantized(model, INPUTS)
    merged = quantised.logits(model, TEST)
    plain = model.merge_and_unload()
    assert not any(isinstance(module, BaseTunerLayer) for module in plain.modules())
    assert torch.equal(quantised.logits(plain, TEST), merged)
    plain.save_pretrained(tmp_path / "merged")
    save_file(TEST, tmp_path / "inputs")
    files = [str(tmp_path / name) for name in ("merged", "inputs", "outputs")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT, *files], check=True, capture_output=True)
    torch.testing.assert_close(load_file(tmp_path / "outputs")["logits"], merged, atol=1e-5, rtol=1e-5)


def test_aurora_merges_the_form_that_it_evaluates(folder):
    config = AuroraConfig(target_modules=quantised.TARGETS, init_weights=False)
    model = get_peft_model(quantised.load(folder, "nf4"), config).eval()
    before = state(model)
    read = []
    with pytest.raises(NotCalibratedError):
        merge_quantized(model, (read.append(batch) or batch for batch in INPUTS))
    assert not read  # it is known before
    assert same(state(model), before)
    calibrate(model, INPUTS)
    expected = quantised.logits(model, TEST)
    with pytest.warns(
        UserWarning, match=r"costs \d+\.\d+% of the adapter's effect on what the model predicts \(the nearest values: "
    ):
        merge_quantized(model, INPUTS)
    merged = quantised.logits(model, TEST)
    model.unmerge_adapter()
    model.merge_adapter()
    assert (merged - expected).norm() < (quantised.logits(model, TEST) - expected).norm()


def test_unquantised_layers_are_merged_as_ever(folder):
    config = LoraConfig(target_modules=[*quantised.TARGETS, "lm_head"], init_lora_weights=False)
    model = get_peft_model(quantised.load(folder, "nf4"), config).eval()
    head = model.base_model.model.lm_head
    exact = head.get_base_layer().weight.data + head.get_delta_weight("default")
    merge_quantized(model, INPUTS)
    torch.testing.assert_close(head.get_base_layer().weight.data, exact)


QKV = ["q_proj", "v_proj"]
BIASED = {
    "ia3": lambda: IA3Config(target_modules=QKV, feedforward_modules=[], init_ia3_weights=False),
    "lora_bias": lambda: LoraConfig(target_modules=QKV, init_lora_weights=False, lora_bias=True, lora_alpha=24),
}


@pytest.mark.parametrize(("quantisation", "method"), [("torchao int8", "ia3"), ("nf4", "lora_bias")])
def test_a_bias_that_the_adapter_changes_is_merged_too(quantisation, method, tmp_path):
    """With half of the layers' output in the bias, a merge that left it out would be far off."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=200, attention_bias=True, **sizes))
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(quantised.load(tmp_path / "base", quantisation), BIASED[method]()).eval()
    expected = quantised.logits(model, TEST)
    biases = {n: layer.get_base_layer().bias for n, layer in layers(model).items()}
    values = {n: bias.detach().clone() for n, bias in biases.items()}
    with model.disable_adapter():
        effect = (quantised.logits(model, TEST) - expected).norm()
    merge_quantized(model, INPUTS)
    merged = quantised.logits(model, TEST)
    assert (merged - expected).norm() < 0.1 * effect
    copied = copy.deepcopy(model)
    model.unmerge_adapter()
    assert all(layer.get_base_layer().bias is biases[n] for n, layer in layers(model).items())
    assert same(biases, values)
    assert torch.equal(quantised.logits(model, TEST), expected)
    assert torch.equal(quantised.logits(copied.merge_and_unload(), TEST), merged)


def test_an_error_after_the_merge_undoes_it(folder):
    config = AuroraConfig(target_modules=[*quantised.TARGETS, "lm_head"], train_form="static", init_weights=False)
    model = get_peft_model(quantised.load(folder, "nf4"), config).eval()
    expected = quantised.logits(model, TEST)
    with warnings.catch_warnings(action="error"), pytest.raises(UserWarning, match="rounds them again"):
        merge_quantized(model, INPUTS)
    assert not any(layer.merged for layer in layers(model).values())
    assert torch.equal(quantised.logits(model, TEST), expected)


# -------------------------------------------------------------------- mistakes: one clear line, and the model as before


def refused(model, inputs, kind, match, **options):
    before = state(model)
    with pytest.raises(kind, match=match):
        merge_quantized(model, inputs, **options)
    after = state(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key].nan_to_num(), after[key].nan_to_num()) for key in before)


def test_mistakes(folder):
    lora = quantised.adapted(quantised.load(folder, "nf4"), "lora")
    refused(lora, [], CalibrationError, "at least one batch")
    refused(lora, INPUTS, ValueError, "damping=0 is not allowed: it must be a finite number above 0", damping=0)
    with lora.disable_adapter():
        refused(lora, INPUTS, CalibrationError, "switched off")
    with torch.no_grad():
        next(iter(layers(lora).values())).lora_B["default"].weight[0, 0] = float("nan")
    refused(lora, INPUTS, (NotFiniteError, CalibrationError), "not finite")


def test_calibrating_leaves_every_weight_as_it_is_saved(folder, tmp_path):
    """At a call in eval mode on some CPUs bitsandbytes packs all 4-bit weights, and saves them wrong afterwards."""
    config = AuroraConfig(target_modules=["q_proj"], init_weights=False)
    model = get_peft_model(quantised.load(folder, "nf4", packing=True), config).eval()
    if not model.base_model.model.model.layers[0].mlp.down_proj.support_avx512bf16_for_cpu:
        pytest.skip("bitsandbytes packs no weights for this CPU")
    calibrate(model, INPUTS)
    merge_gap(model, INPUTS[:1], quantizations=["int8"])
    merge_quantized(model, INPUTS)
    model.merge_and_unload().save_pretrained(tmp_path)
    saved, original = quantised.load(str(tmp_path), "nf4"), quantised.load(folder, "nf4")
    for name in ("gate_proj", "down_proj"):
        one, other = (each.model.layers[0].mlp.get_submodule(name).weight for each in (saved, original))
        assert torch.equal(one.data, other.data)
        assert torch.equal(one.quant_state.absmax, other.quant_state.absmax)


def test_what_a_cpu_packed_is_said_to_be_packed(folder):
    model = quantised.adapted(quantised.load(folder, "nf4", packing=True), "dora")
    quantised.logits(model, TEST)
    if not is_packed(model.base_model.model.model.layers[0].mlp.down_proj.get_base_layer()):
        pytest.skip("bitsandbytes packs no weights for this CPU")
    with pytest.raises(MergeError, match=r"bitsandbytes packed its 4-bit weight .* support_avx512bf16_for_cpu = False"):
        merge_quantized(model, INPUTS)


# -------------------------------------------------------------------- formats, and what is lost end to end


@pytest.mark.parametrize("quantisation", [*quantised.FORMATS, "odd"])
def test_codes_and_their_grid_are_the_weight_bit_for_bit(quantisation, folder):
    """What a format reads of a layer, and writes again; in four bits two to a byte, the last one by itself."""
    bnb = importlib.import_module("bitsandbytes")
    if quantisation == "odd":
        layer, kwargs = bnb.nn.Linear4bit(5, 3, quant_type="nf4", compress_statistics=False).to("cpu"), {}
    else:
        model = quantised.load(folder, quantisation)
        layer, kwargs = model.model.layers[0].mlp.down_proj, get_quantization_kwargs(model)
    held = format_of(layer, resolve_quantization_backend(layer, **kwargs))
    before, codes, grid = held.dense(), held.codes(), held.grid()
    torch.testing.assert_close(grid.dequantised(codes), before, atol=1e-6, rtol=1e-6)
    assert torch.equal(grid.round(before), codes)
    held.put(held.pack(codes, grid))
    assert torch.equal(held.dense(), before)
    assert torch.equal(format_of(layer, held.backend).codes(), codes)


def kl(reference, other):
    p, q = reference.double().log_softmax(-1), other.double().log_softmax(-1)
    return float(((p - q) * p.exp()).sum(-1).mean())


@pytest.mark.parametrize(("quantisation", "n"), [("nf4", 6), ("int8", 9)])
def test_what_is_lost_end_to_end_is_measured_on_inputs_that_are_held_out(quantisation, n, folder):
    inputs = quantised.batches(n)
    measured = inputs[7:8] if n > 7 else inputs[:1]
    model = quantised.adapted(quantised.load(folder, quantisation), "lora")
    reference = torch.cat([quantised.logits(model, batch) for batch in measured])
    with model.disable_adapter():
        without = torch.cat([quantised.logits(model, batch) for batch in measured])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        report = merge_quantized(model, inputs)
    merged = torch.cat([quantised.logits(model, batch) for batch in measured])
    assert report.held_out == (n > 7)
    assert report.predictions == len(reference)
    found = {end.form: end for end in report.end_to_end}
    assert list(found) == ["without adapter", "nearest", "by inputs"]
    assert found["without adapter"].kl == pytest.approx(kl(reference, without), rel=1e-3)
    assert found["by inputs"].kl == pytest.approx(kl(reference, merged), rel=1e-3)
    assert report.lost() == pytest.approx(kl(reference, merged) / kl(reference, without), rel=1e-3)
    assert report.lost() < report.lost("nearest") < 1
    line = next(str(one.message) for one in said if "rounds them again" in str(one.message))
    assert f"costs {report.lost():.2%} of the adapter's effect on what the model predicts" in line
    assert ("held-out predictions" in line) == report.held_out
    rounded_by = [batch for i, batch in enumerate(inputs) if i != 7]
    assert report.vectors == sum(int(batch["attention_mask"].sum()) for batch in rounded_by)
    again = quantised.adapted(quantised.load(folder, quantisation), "lora")
    merge_quantized(again, rounded_by[:7])
    assert (n < 7) or not same(state(model), state(again))  # nine have one more to round by
