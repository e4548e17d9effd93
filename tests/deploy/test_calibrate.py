"""`calibrate` against an independent least-squares solution, what it leaves behind, and what it refuses."""

import contextlib
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch import nn

from aurora_lora import AuroraConfig, CalibrationError, calibrate, merge_gap, set_form
from aurora_lora.deploy.calibrate import RIDGES
from aurora_lora.tuner import aurora_layers

sys.path.insert(0, str(Path(__file__).parent))

from calibrated import assert_same, matrices

moments = sys.modules["aurora_lora.deploy.calibrate"]  # the package's own name for it is the function


def linear_model(d_in: int = 6, d_out: int = 4, **fields):
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.Linear(d_in, d_out)), AuroraConfig(target_modules=["0"], init_weights=False, **fields)
    )
    return model, model.base_model.model[0]


def sigma_and_z(layer, x, adapter="default"):
    """sigma(z) and z = A x, (n, r) each, in float64."""
    z = x.float() @ layer.aurora_A[adapter].weight.T
    return layer.sigma(adapter, z).detach().double(), z.detach().double()


def linear_in_z(layer, x, adapter="default"):
    """D A (r, d_in), of the linear map of z that is nearest to sigma, by QR."""
    sigma, z = sigma_and_z(layer, x, adapter)
    return torch.linalg.lstsq(z, sigma).solution.T @ layer.aurora_A[adapter].weight.detach().double()


def least_squares(layer, x, ridge, adapter="default"):
    """The ridge solution from one stacked system, in float64: no moments, no Cholesky. `ridge` is lambda itself."""
    sigma, _ = sigma_and_z(layer, x, adapter)
    x, linear = x.double(), linear_in_z(layer, x, adapter)
    n, d = x.shape
    stacked = torch.cat([x, (ridge * n) ** 0.5 * torch.eye(d, dtype=torch.float64)])
    rest = torch.cat([sigma - x @ linear.T, torch.zeros(d, len(linear), dtype=torch.float64)])
    return linear + torch.linalg.lstsq(stacked, rest, driver="gelsd").solution.T


@pytest.mark.parametrize("spline", ["channelwise", "summed"])
def test_every_layer_gets_its_least_squares_solution_without_padding(make_bert, config, batches, spline, inputs_of):
    model = get_peft_model(make_bert(), config(spline=spline))
    with set_form(model.eval(), "dynamic"):
        inputs = inputs_of(model, dict(aurora_layers(model)), batches)
    report = calibrate(model, batches)
    assert [entry.layer for entry in report.layers] == [name for name, _ in aurora_layers(model.get_base_model())]
    n = sum(int(batch["attention_mask"].sum()) for batch in batches)
    for entry, (name, layer) in zip(report.layers, aurora_layers(model), strict=True):
        expected = least_squares(layer, inputs[name], entry.ridge)
        torch.testing.assert_close(layer.aurora_A_cal["default"].weight.double(), expected, atol=1e-5, rtol=1e-4)
        assert entry.vectors == n
        sigma = layer.sigma("default", inputs[name] @ layer.aurora_A["default"].weight.T)
        error = (sigma - inputs[name] @ layer.aurora_A_cal["default"].weight.T).square().sum() / sigma.square().sum()
        assert entry.explained == pytest.approx(1 - float(error.detach()), abs=1e-4)
        assert 0 < entry.explained <= 1


def curved(n, seed):
    """Inputs of which some are functions of others, as hidden states are: (n, 24)."""
    z = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    return torch.cat([z, z.tanh(), z**3 / 4], 1)


@pytest.mark.parametrize(("n", "ridge"), [(20, 1e-4), (60, 0.05), (300, 1e-4), (3000, 3.0)])
def test_the_ridge_is_chosen_by_generalised_cross_validation(n, ridge):
    """Against the formula, from the hat matrix itself."""
    model, layer = linear_model(d_in=24, skip=False)
    x = curved(n, 2)
    report = calibrate(model, [x], ridge=ridge)
    sigma, z = sigma_and_z(layer, x)
    x = x.double()
    scale = float(x.square().mean())

    def score(tried):
        hat = x @ torch.linalg.solve(x.T @ x / n + tried * scale * torch.eye(24).double(), x.T) / n
        free = n - float(hat.trace()) - z.shape[1]
        left = sigma - x @ least_squares(layer, x, tried * scale).T
        return float(left.square().sum() / free**2) if free > 0 else float("inf")

    tried = [ridge, *(one for one in RIDGES if one > ridge)]
    chosen = report.layers[0].ridge / scale
    assert min(abs(chosen / one - 1) for one in tried) < 1e-5
    assert score(chosen) <= 1.05 * min(map(score, tried))  # the trace is estimated


class CalledTwice(nn.Module):
    """q sees two inputs in each pass, and k one of them."""

    def __init__(self, order):
        super().__init__()
        self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)
        self.order = order

    def forward(self, x):
        seen = {"x": x, "other": 3 * x[:, :2].repeat(1, 2) - 1}
        return sum((self.q if name == "q" else self.k)(seen[which]) for name, which in self.order)


@pytest.mark.parametrize(
    "order",
    [
        [("q", "x"), ("k", "x"), ("q", "other")],
        [("q", "x"), ("q", "other"), ("k", "other"), ("k", "other")],  # as many vectors, and not the same
        [("q", "x"), ("k", "x"), ("k", "other"), ("q", "x")],
    ],
)
def test_each_layer_is_fitted_to_all_that_it_sees(order):
    """Also where a tensor goes to two layers, and others to one of them."""
    torch.manual_seed(0)
    model = get_peft_model(CalledTwice(order), AuroraConfig(target_modules=["q", "k"], init_weights=False))
    batches = [torch.randn(16, 4) for _ in range(3)]
    report = calibrate(model, batches)
    for entry, (_, layer) in zip(report.layers, aurora_layers(model), strict=True):
        seen = [which for name, which in order if name == entry.layer]
        x = torch.cat([{"x": x, "other": 3 * x[:, :2].repeat(1, 2) - 1}[which] for x in batches for which in seen])
        assert entry.vectors == len(x)
        expected = least_squares(layer, x, entry.ridge)
        torch.testing.assert_close(layer.aurora_A_cal["default"].weight.double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.inference_mode])
def test_an_input_that_is_changed_in_place_is_not_shared(mode):
    """The same tensor with other numbers, as an activation in place leaves it between two layers."""

    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = x.clone()
            return self.q(x) + self.k(x.mul_(3).sub_(1))

    torch.manual_seed(0)
    model = get_peft_model(InPlace(), AuroraConfig(target_modules=["q", "k"], init_weights=False))
    x = torch.randn(64, 4)
    with mode():
        report = calibrate(model, [x])
    for entry, (_, layer), seen in zip(report.layers, aurora_layers(model), (x, 3 * x - 1), strict=True):
        expected = least_squares(layer, seen, entry.ridge)
        torch.testing.assert_close(layer.aurora_A_cal["default"].weight.double(), expected, atol=1e-5, rtol=1e-4)


def test_everything_is_as_before_also_after_an_error(make_bert, config, batches):
    model = get_peft_model(make_bert(), config())
    model.train()
    model.base_model.model.bert.pooler.eval()
    modes = {name: module.training for name, module in model.named_modules()}

    def broken():
        yield batches[0]
        torch.rand(3)
        raise KeyboardInterrupt

    torch.manual_seed(5)
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, broken())
    calibrate(model, batches)
    assert torch.equal(torch.get_rng_state(), state)
    assert modes.items() <= {name: module.training for name, module in model.named_modules()}.items()
    assert not any(layer._forward_pre_hooks for _, layer in aurora_layers(model))
    assert model.peft_config["default"].eval_form is None
    assert torch.is_grad_enabled()


def test_an_error_leaves_the_earlier_calibration(make_bert, config, batches):
    model = get_peft_model(make_bert(), config())
    calibrate(model, batches[:1])
    before = {name: layer.aurora_A_cal["default"].weight.clone() for name, layer in aurora_layers(model)}
    with torch.no_grad():
        for _, p in model.base_model.model.bert.encoder.layer[0].output.named_parameters():
            p[...] = float("nan")
    with pytest.raises(CalibrationError, match=r"layer\.1\.attention\.self\.query are not finite"):
        calibrate(model, batches)
    assert all(torch.equal(layer.aurora_A_cal["default"].weight, before[name]) for name, layer in aurora_layers(model))


def test_what_is_refused(make_bert, config, batches):
    model = get_peft_model(make_bert(), config(eval_form="static"))
    with pytest.raises(CalibrationError, match="at least one batch"):
        calibrate(model, [])
    with pytest.raises(ValueError, match="ridge=-1 is not allowed"):
        calibrate(model, batches, ridge=-1)
    with pytest.raises(ValueError, match=r"'other' is not an active AuroRA adapter \(active: default\)"):
        calibrate(model, batches, adapter_name="other")
    with pytest.raises(ValueError, match="no AuroRA adapter"):
        calibrate(make_bert(), batches)
    with pytest.raises(TypeError, match="not list"):
        calibrate(model, [[1, 2]])
    with model.disable_adapter(), pytest.raises(CalibrationError, match="switched off"):
        calibrate(model, batches)
    assert not model.peft_config["default"].calibrated


def test_a_layer_that_no_input_reaches_is_named(with_idle_layer):
    config = AuroraConfig(target_modules=["used", "idle"], init_weights=False)
    model = get_peft_model(with_idle_layer(4), config)
    with pytest.raises(CalibrationError, match=r"No input reached .*idle: .* exclude_modules"):
        calibrate(model, [torch.randn(3, 4)])


@pytest.mark.parametrize("max_memory", [2**32, 1])  # one group of layers, one layer each
def test_a_layer_that_no_input_reaches_in_training_either(max_memory, with_idle_layer):
    """As the image tower of a model that is trained on texts: B is 0 there, and a merge changes nothing."""
    model = get_peft_model(with_idle_layer(4), AuroraConfig(target_modules=["used", "idle"], skip=False))
    used, idle = model.base_model.model.used, model.base_model.model.idle
    nn.init.normal_(used.aurora_B["default"].weight)
    before = idle.get_base_layer().weight.clone()
    x = torch.randn(20, 4)
    report = calibrate(model, [x], max_memory=max_memory)
    assert [(one.vectors, one.explained == 1) for one in report.layers] == [(20, False), (0, True)]
    gap = merge_gap(model, [x])
    assert {entry.layer.rsplit(".")[-1] for entry in gap.layers} == {"used"}
    calibrated = model.eval()(x)
    merged = model.merge_and_unload()
    assert torch.allclose(merged(x), calibrated, atol=1e-6)
    assert torch.equal(merged.idle.weight, before)


# ---------------------------------------------------------------- memory


def test_groups_within_the_bound_give_the_same(bert, batches):
    assert calibrate(bert, batches).passes == 1
    expected = matrices(bert)
    of_layer = 8 * 32 * (32 + 2)
    for source in (batches, iter(batches)):
        assert calibrate(bert, source, max_memory=3 * of_layer).passes > 3
        assert_same(matrices(bert), expected)
