"""What a layer computes, in each form, and its merge."""

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

import aurora_lora
from aurora_lora import (
    AuroraConfig,
    FormError,
    NotCalibratedError,
    set_form,
)
from aurora_lora.ops import adaptive_nonlinear
from aurora_lora.ops.anl import ACTIVATIONS


class Net(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.lin = nn.Linear(12, 7, dtype=dtype)

    def forward(self, x):
        return self.lin(x)


def adapt(dtype=torch.float32, **fields):
    torch.manual_seed(1)
    model = get_peft_model(Net(dtype), AuroraConfig(**{"target_modules": ["lin"], "init_weights": False, **fields}))
    return model, model.base_model.model.lin


X = torch.randn(5, 3, 12, generator=torch.Generator().manual_seed(2))


def test_static_form_is_eq_9():
    model, layer = adapt(train_form="static")
    A, B = layer.aurora_A["default"].weight, layer.aurora_B["default"].weight
    M = adaptive_nonlinear(
        A.T, layer.aurora_H["default"].weight, layer.aurora_spline_weight["default"].weight, AuroraConfig().anl
    ).T
    expected = X @ (layer.base_layer.weight + 2 * B @ M).T + layer.base_layer.bias
    torch.testing.assert_close(model.train()(X), expected)
    torch.testing.assert_close(model.eval()(X), expected)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plain_lora_is_recovered_exactly(dtype, rslora):
    fields = {"fixed_activation": None, "spline": None, "skip": True, "use_rslora": rslora}
    model, layer = adapt(dtype, r=4, alpha=6, **fields)
    torch.manual_seed(1)
    lora = get_peft_model(Net(dtype), LoraConfig(r=4, lora_alpha=6, use_rslora=rslora, target_modules=["lin"]))
    lora_layer = lora.base_model.model.lin
    assert not layer.aurora_H
    assert not layer.aurora_spline_weight
    assert sum(p.numel() for p in layer.parameters()) == sum(p.numel() for p in lora_layer.parameters())
    lora_layer.lora_A["default"].weight.data = layer.aurora_A["default"].weight.data.clone()
    lora_layer.lora_B["default"].weight.data = layer.aurora_B["default"].weight.data.clone()
    x = X.to(dtype)
    for mode in (True, False):
        torch.testing.assert_close(model.train(mode)(x), lora.train(mode)(x), atol=1e-6, rtol=0)
    model(x).square().sum().backward()
    lora(x).square().sum().backward()
    torch.testing.assert_close(layer.aurora_A["default"].weight.grad, lora_layer.lora_A["default"].weight.grad)
    torch.testing.assert_close(layer.aurora_B["default"].weight.grad, lora_layer.lora_B["default"].weight.grad)
    torch.testing.assert_close(layer.get_delta_weight("default"), lora_layer.get_delta_weight("default").to(dtype))


@pytest.mark.parametrize("init", ["identity", "paper"])
@pytest.mark.parametrize("skip", [False, True])
def test_a_new_adapter_is_a_no_op(init, skip):
    model, layer = adapt(init_weights=init, skip=skip)
    torch.testing.assert_close(model(X), layer.base_layer(X), atol=0, rtol=0)
    H, W = layer.aurora_H["default"].weight, layer.aurora_spline_weight["default"].weight
    if init == "identity":
        assert torch.equal(H, torch.zeros(2, 2) if skip else torch.eye(2))
        assert torch.equal(W, torch.zeros(2, 8))
    else:
        assert W.abs().max() <= 0.1
        assert W.std() > 0.03


def test_random_starts_have_the_spread_of_lora_and_of_the_paper():
    """z = A x has a third of the mean square of x, and H keeps that of what it mixes."""
    torch.manual_seed(0)
    config = AuroraConfig(target_modules=["0"], r=64, init_weights="paper")
    layer = get_peft_model(nn.Sequential(nn.Linear(512, 4)), config).base_model.model[0]
    A, H = layer.aurora_A["default"].weight, layer.aurora_H["default"].weight
    assert A.var().item() * 512 == pytest.approx(1 / 3, rel=0.05)
    assert A.abs().max() <= 512**-0.5
    assert H.std().item() == pytest.approx(1 / 8, rel=0.05)


def test_spline_alone_starts_as_the_identity():
    """On its range, which is where sigma(A) is."""
    _, layer = adapt(fixed_activation=None, init_weights="identity")
    z = torch.linspace(-1, 1, 50).unsqueeze(-1).expand(-1, 2)
    torch.testing.assert_close(layer.sigma("default", z), z, rtol=0, atol=1e-6)
    torch.testing.assert_close(layer.static_matrix("default"), layer.aurora_A["default"].weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("init", ["identity", "paper"])
@pytest.mark.parametrize("skip", [False, True])
def test_every_weight_learns_after_b_has_moved(activation, init, skip):
    """No start of the mixer at which it has no gradient, as H = 0 inside a ReLU."""
    model, layer = adapt(fixed_activation=activation, init_weights=init, skip=skip, r=4)
    nn.init.normal_(layer.aurora_B["default"].weight)
    model.train()(X).square().sum().backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if "aurora_" in name}
    assert len(trained) == 4  # A, B, H and the spline's weights
    for name, parameter in trained.items():
        assert parameter.grad.abs().max() > 0, name


def test_dropout_is_on_x_and_only_in_training():
    model, layer = adapt(dropout=0.5)
    assert not torch.equal(model.train()(X), model(X))
    assert torch.equal(model.eval()(X), model(X))
    torch.manual_seed(3)
    dropped = nn.functional.dropout(X, 0.5)
    torch.manual_seed(3)
    got = model.train()(X)
    A, B = layer.aurora_A["default"].weight, layer.aurora_B["default"].weight
    torch.testing.assert_close(got, layer.base_layer(X) + 2 * layer.sigma("default", dropped @ A.T) @ B.T)


def test_eval_computes_what_merge_produces_in_each_form():
    for form in ("static", "calibrated"):
        model, layer = adapt(eval_form=form)
        aurora_lora.calibrate(model, [X])
        expected = model.eval()(X)
        before = layer.base_layer.weight.detach().clone()
        model.merge_adapter()
        torch.testing.assert_close(model(X), expected, atol=1e-6, rtol=1e-6)
        assert not torch.equal(layer.base_layer.weight, before)
        model.unmerge_adapter()
        assert torch.equal(layer.base_layer.weight, before)
        torch.testing.assert_close(model(X), expected, atol=0, rtol=0)
        torch.testing.assert_close(model.merge_and_unload()(X), expected, atol=1e-6, rtol=1e-6)


def test_merge_before_calibration_names_both_ways_out():
    model, layer = adapt()
    before = layer.base_layer.weight.detach().clone()
    with pytest.raises(NotCalibratedError, match=r"calibrate\(model, batches\).*set_form\(model, 'static'\)") as caught:
        model.merge_adapter()
    assert "\n" not in str(caught.value)
    with set_form(model, "dynamic"), pytest.raises(FormError, match="dynamic"):
        model.merge_adapter()
    assert torch.equal(layer.base_layer.weight, before)
    assert layer.merged_adapters == []


def test_a_new_adapter_merges_uncalibrated_as_its_update_is_zero(tmp_path):
    """With B = 0 any linear map is exact; `calibrate` would change nothing."""
    model, layer = adapt(init_weights="paper")
    before = layer.base_layer.weight.detach().clone()
    expected = model.eval()(X)
    assert torch.equal(layer.get_delta_weight("default"), torch.zeros(7, 12))
    lora_A, lora_B = layer.get_factors("default")
    assert torch.equal(lora_A, layer.aurora_A["default"].weight)
    assert not lora_B.any()
    aurora_lora.export_lora(model, tmp_path)
    assert not layer.aurora_A_cal
    for _ in range(2):
        model.merge_adapter(safe_merge=True)
        assert layer.merged_adapters == ["default"]
        assert torch.equal(model(X), expected)
        model.unmerge_adapter()
    merged = model.merge_and_unload()
    assert torch.equal(merged.lin.weight, before)
    assert torch.equal(merged(X), expected)


def test_set_form_refuses_what_does_not_exist():
    model, _ = adapt()
    with pytest.raises(ValueError, match=r"'merged'.*'calibrated'"):
        set_form(model, "merged")
    with pytest.raises(ValueError, match="no AuroRA adapter named 'other'"):
        set_form(model, "static", adapter_name="other")
    with pytest.raises(ValueError, match="no AuroRA adapter"):
        set_form(Net(), "static")
    model, layer = adapt(train_form="static")
    for refused in (set_form, lambda *_: layer.get_factors("default", "calibrated")):
        with pytest.raises(FormError, match="static"):
            refused(model, "calibrated")


def test_low_precision_merge_is_summed_in_float32_and_rounded_once():
    dtype = torch.bfloat16
    model, layer = adapt(dtype, eval_form="static")
    model.add_adapter("b", AuroraConfig(target_modules=["lin"], init_weights=False, eval_form="static"))
    original = layer.base_layer.weight.detach().clone()
    total = original.float() + layer.get_delta_weight("default").float() + layer.get_delta_weight("b").float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.merge_adapter(["default"])
        model.merge_adapter(["b"])
    assert torch.equal(layer.base_layer.weight, total.to(dtype))
    model.unmerge_adapter()
    assert torch.equal(layer.base_layer.weight, original)
    assert layer.base_layer.weight.dtype == dtype


@pytest.mark.parametrize("make", [lambda: nn.Linear(12, 7), lambda: Conv1D(7, 12), lambda: nn.Embedding(12, 7)])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_a_merge_within_autocast_is_summed_in_float32(make):
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(make()), AuroraConfig(target_modules=["0"], init_weights=False, eval_form="static")
    )
    layer = model.base_model.model[0]
    update = layer.get_delta_weight("default")
    expected = layer.base_layer.weight + update
    with torch.autocast("cpu", torch.bfloat16):
        found = layer.get_delta_weight("default")
        model.merge_adapter()
    assert torch.equal(found, update)
    assert torch.equal(layer.base_layer.weight, expected)


def test_safe_merge_refuses_what_is_not_finite_and_leaves_the_model_as_it_was():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    model = get_peft_model(
        Two(), AuroraConfig(target_modules=["first", "second"], eval_form="static", init_weights=False)
    )
    model.base_model.model.second.aurora_B["default"].weight.data[0, 0] = float("inf")
    before = copy.deepcopy(model.state_dict())
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="NaNs detected"):
            merge(safe_merge=True)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert model.base_model.model.first.merged_adapters == []
        assert model.base_model.model.first.keeps_original


def test_an_unsupported_layer_is_named():
    class Conv(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.ConvTranspose2d(1, 1, 1)

    with pytest.raises(ValueError, match="'conv' is a ConvTranspose2d"):
        get_peft_model(Conv(), AuroraConfig(target_modules=["conv"]))


def test_scale_and_unscale_the_active_adapters():
    model, layer = adapt(eval_form="static")
    model.add_adapter("other", AuroraConfig(target_modules=["lin"], r=4, alpha=12, use_rslora=True))
    layer.scale_layer(3.0)
    assert layer.scaling == {"default": 6.0, "other": 6.0}  # alpha / r = 2 times 3; the other, alpha / sqrt(r), is idle
    layer.scale_layer(0.5)
    layer.unscale_layer(0.5)
    assert layer.scaling["default"] == 6.0
    layer.unscale_layer()
    assert layer.scaling["default"] == 2.0
    model.set_adapter("other")
    layer.scale_layer(2.0)
    layer.unscale_layer()
    assert layer.scaling == {"default": 2.0, "other": 6.0}


@pytest.mark.parametrize("form", ["dynamic", "static", "calibrated"])
@pytest.mark.parametrize("rslora", [False, True])
def test_the_scale_is_that_of_the_layers_own_rank_and_alpha(form, rslora, tmp_path):
    """In the forward pass, the merge and the exported factors: not alpha / r of the config."""
    torch.manual_seed(0)
    patterns = {"rank_pattern": {"2": 5}, "alpha_pattern": {"2": 3}}
    config = AuroraConfig(
        target_modules=["0", "2"], init_weights=False, eval_form=form, use_rslora=rslora, r=2, alpha=8, **patterns
    )
    model = get_peft_model(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4)), config).eval()
    x = torch.randn(50, 6)
    if form == "calibrated":
        aurora_lora.calibrate(model, [x])
    scales = {"0": 8 / (2**0.5 if rslora else 2), "2": 3 / (5**0.5 if rslora else 5)}
    factors = {} if form == "dynamic" else aurora_lora.lora_factors(model)
    for name, scale in scales.items():
        layer, inputs = model.base_model.model.get_submodule(name), torch.randn(7, 6)
        layer.set_scale("default", 1.0)
        weights = [getattr(layer, f"aurora_{part}")["default"].weight for part in ("A", "B", "H", "spline_weight")]
        A, B, H, W = weights
        if form == "dynamic":
            update = adaptive_nonlinear(inputs @ A.T, H, W, config.anl) @ B.T
        else:
            matrix = (
                adaptive_nonlinear(A.T, H, W, config.anl).T
                if form == "static"
                else layer.aurora_A_cal["default"].weight
            )
            update = inputs @ matrix.T @ B.T
            lora_A, lora_B = factors[name]
            torch.testing.assert_close(lora_B @ lora_A, scale * B @ matrix)
            torch.testing.assert_close(layer.get_delta_weight("default"), scale * B @ matrix)
        base = layer.base_layer(inputs)
        torch.testing.assert_close(layer(inputs), base + scale * update)
        torch.testing.assert_close(
            layer.train()(inputs) - base,
            scale * adaptive_nonlinear(inputs @ A.T, H, W, config.anl) @ B.T,
            atol=1e-5,
            rtol=1e-5,
        )
        layer.eval()
        if form != "dynamic":
            layer.merge()
            torch.testing.assert_close(layer(inputs), base + scale * update, atol=1e-5, rtol=1e-5)
