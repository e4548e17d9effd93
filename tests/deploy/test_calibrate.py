"""`calibrate` against an independent least-squares solution, what it leaves behind, and what it refuses."""

import contextlib
import copy
import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from aurora_lora.deploy.collector import Collector
from aurora_lora.deploy.float64 import CHUNK_BYTES
from aurora_lora.deploy.products import mirror
from aurora_lora.deploy.solve import RIDGES, solve
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

import aurora_lora
from aurora_lora import AlreadyMergedError, AuroraConfig, CalibrationError, calibrate, merge_gap, set_form
from aurora_lora.deploy.inputs import Runner
from aurora_lora.deploy.moments import LayerMoments, SharedInput, Target, means_by_input
from aurora_lora.tuner import aurora_layers

sys.path.insert(0, str(Path(__file__).parent))

from calibrated import assert_same, matrices

calibrate_module = sys.modules["aurora_lora.deploy.calibrate"]  # the package's own name for it is the function


def linear_model(d_in: int = 6, d_out: int = 4, **fields):
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.Linear(d_in, d_out)), AuroraConfig(target_modules=["0"], init_weights=False, **fields)
    )
    return model, model.base_model.model[0]


def capture_inputs(model, batches, mask_out_padding=True):
    """The inputs of each layer on the trained (dynamic) model, padding left out: layer name -> (n, d_in)."""
    seen = {}
    hooks = []
    for name, layer in aurora_layers(model):
        hook = lambda module, args, name=name: seen.setdefault(name, []).append(args[0].detach())  # noqa: E731
        hooks.append(layer.register_forward_pre_hook(hook))
    with torch.no_grad(), set_form(model, "dynamic"):
        for batch in batches:
            model.eval()(**batch)
    for hook in hooks:
        hook.remove()
    masks = [batch["attention_mask"].bool() for batch in batches]
    return {
        name: torch.cat([x[m] if mask_out_padding else x.flatten(0, 1) for x, m in zip(xs, masks, strict=True)])
        for name, xs in seen.items()
    }


def sigma_and_z(layer, x, adapter="default"):
    """sigma(z) and z = A x, (n, r) each, in float64."""
    z = x.float() @ layer.aurora_A[adapter].T
    return layer.sigma(adapter, z).detach().double(), z.detach().double()


def linear_in_z(layer, x, adapter="default"):
    """D A (r, d_in), of the linear map of z that is nearest to sigma, by QR."""
    sigma, z = sigma_and_z(layer, x, adapter)
    return torch.linalg.lstsq(z, sigma).solution.T @ layer.aurora_A[adapter].detach().double()


def least_squares(layer, x, ridge, adapter="default"):
    """The ridge solution from one stacked system, in float64: no moments, no Cholesky. `ridge` is lambda itself."""
    sigma, _ = sigma_and_z(layer, x, adapter)
    x, linear = x.double(), linear_in_z(layer, x, adapter)
    n, d = x.shape
    stacked = torch.cat([x, (ridge * n) ** 0.5 * torch.eye(d, dtype=torch.float64)])
    rest = torch.cat([sigma - x @ linear.T, torch.zeros(d, len(linear), dtype=torch.float64)])
    return linear + torch.linalg.lstsq(stacked, rest, driver="gelsd").solution.T


@pytest.mark.parametrize("spline", ["channelwise", "summed"])
def test_every_layer_gets_its_least_squares_solution_without_padding(make_bert, config, batches, spline):
    model = get_peft_model(make_bert(), config(spline=spline))
    inputs = capture_inputs(model, batches)
    report = calibrate(model, batches)
    assert [entry.layer for entry in report.layers] == [name for name, _ in aurora_layers(model.get_base_model())]
    n = sum(int(batch["attention_mask"].sum()) for batch in batches)
    for entry, (name, layer) in zip(report.layers, aurora_layers(model), strict=True):
        expected = least_squares(layer, inputs[name], entry.ridge)
        torch.testing.assert_close(layer.aurora_A_cal["default"].double(), expected, atol=1e-5, rtol=1e-4)
        assert entry.vectors == n
        sigma = layer.sigma("default", inputs[name] @ layer.aurora_A["default"].T)
        error = (sigma - inputs[name] @ layer.aurora_A_cal["default"].T).square().sum() / sigma.square().sum()
        assert entry.explained == pytest.approx(1 - float(error.detach()), abs=1e-4)
        assert 0 < entry.explained <= 1


@given(seed=st.integers(0, 2**16), scale=st.floats(0.2, 4), ridge=st.sampled_from([0.0, 1e-4, 1e-2]))
@settings(max_examples=25, deadline=None)
def test_no_perturbation_lowers_the_objective(seed, scale, ridge):
    model, layer = linear_model(eval_form="calibrated")
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(64, 6, generator=generator)
    report = calibrate(model, [x], ridge=ridge)
    sigma, _ = sigma_and_z(layer, x)
    linear = linear_in_z(layer, x)
    x = x.double()

    def objective(M):
        return (sigma - x @ M.T).square().sum(-1).mean() + report.layers[0].ridge * (M - linear).square().sum()

    best = layer.aurora_A_cal["default"].double()
    lowest = objective(best)
    for size in (1e-3, 1e-1, 1.0):
        direction = torch.randn(best.shape, generator=generator, dtype=torch.float64)
        assert objective(best + size * direction) > lowest
    M = best.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(M), M)
    rounded = 1e-7 * report.layers[0].ridge  # the matrix is stored in float32
    assert gradient.abs().max() < 1e-5 * (1 + scale) + rounded


def explained(layer, matrix, x):
    """Which share of E|sigma|^2 a linear map of x explains."""
    sigma, _ = sigma_and_z(layer, x)
    return 1 - float((sigma - x.double() @ matrix.double().T).square().sum() / sigma.square().sum())


@pytest.mark.parametrize("n", [8, 32, 64, 96, 200])
@pytest.mark.parametrize("skip", [True, False])
def test_few_vectors_do_not_spoil_it(n, skip):
    """As many numbers a row as vectors could fit sigma exactly, and say nothing of other inputs."""
    model, layer = linear_model(d_in=64, skip=skip)
    x, others = torch.randn(n + 2000, 64, generator=torch.Generator().manual_seed(n)).split([n, 2000])
    calibrate(model, [x])
    found = explained(layer, layer.aurora_A_cal["default"], others)
    assert found > explained(layer, linear_in_z(layer, x), others) - 0.03
    assert found > explained(layer, linear_in_z(layer, others), others) - 0.3


def curved(n, seed):
    """Inputs of which some are functions of others, as hidden states are: (n, 24)."""
    z = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    return torch.cat([z, z.tanh(), z**3 / 4], 1)


def test_many_vectors_give_more_than_a_linear_map_of_z():
    model, layer = linear_model(d_in=24, skip=False)
    x, others = curved(4000, 0), curved(2000, 1)
    report = calibrate(model, [x])
    linear, best = (
        explained(layer, matrix, others) for matrix in (linear_in_z(layer, x), least_squares(layer, x, 0.0))
    )
    found = explained(layer, layer.aurora_A_cal["default"], others)
    assert linear + 0.02 < found
    assert found == pytest.approx(best, abs=0.002)
    assert report.layers[0].explained == pytest.approx(explained(layer, layer.aurora_A_cal["default"], x), abs=1e-5)


@pytest.mark.parametrize("n", [20, 60, 300, 3000])
@pytest.mark.parametrize("ridge", [1e-4, 0.05, 3.0, 200.0])
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


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_more_vectors_than_a_linear_map_of_z_fits_leave_no_freedom_for_more(n):
    """Every ridge takes more degrees of freedom than there are vectors: the matrix stays as near to D A as it can."""
    model, _ = linear_model(d_in=24, skip=False)
    x = curved(n, 2)
    report = calibrate(model, [x])
    assert report.layers[0].ridge == pytest.approx(max(RIDGES) * float(x.double().square().mean()))


def test_a_layer_chooses_its_ridge_alone():
    """One whose score falls again after it has risen stops at the rise, also beside one whose score goes on falling."""
    torch.manual_seed(0)
    n, d = 60, 24
    x = torch.randn(n, d)
    model = get_peft_model(
        nn.ModuleDict({"one": nn.Linear(d, 4), "other": nn.Linear(d, 4)}),
        AuroraConfig(target_modules=["one", "other"], init_weights=False, skip=False),
    )
    (_, one), (_, other) = aurora_layers(model)
    bent = lambda layer: sigma_and_z(layer, x)[0] - x.double() @ linear_in_z(layer, x).T  # noqa: E731
    for layer, scale, columns in ((one, 1e-3, slice(20, 22)), (other, 0.2, slice(22, 24))):
        with torch.no_grad():
            layer.aurora_A["default"][:, 20:] = 0  # what sigma leaves is read there, and z is not
        x[:, columns] = 0
        left = bent(layer)
        x[:, columns] = (scale * left / left.std()).float()

    def ridges(*layers):
        shared = SharedInput("0", vectors=n)  # the first layer's calls are summed
        found = [LayerMoments(Target(str(i), layer, ("default",)), shared) for i, layer in enumerate(layers)]
        for moments in found:
            moments.add(x, False)
        mirror(shared.moment)
        return [solution.ridge for solution in solve(found, 1e-9)]

    with torch.no_grad():
        alone = [*ridges(one), *ridges(other)]
        assert alone[0] > alone[1]
        assert ridges(one, other) == pytest.approx(alone, rel=1e-6)


def test_a_linear_sigma_is_found_exactly():
    """On positive z, sigma(z) = z + relu(H relu(z)) is the linear map I + H, and A_cal is (I + H) A."""
    fields = {"fixed_activation": "relu", "spline": None, "skip": True}
    model, layer = linear_model(**fields)
    layer.aurora_A["default"].data.abs_()
    layer.aurora_H["default"].data.abs_()
    x = torch.rand(200, 6)
    report = calibrate(model, [x], ridge=1e-12)
    exact = (torch.eye(2) + layer.aurora_H["default"]) @ layer.aurora_A["default"]
    torch.testing.assert_close(layer.aurora_A_cal["default"], exact.detach(), atol=1e-5, rtol=1e-5)
    assert report.layers[0].explained == pytest.approx(1, abs=1e-8)
    dynamic = model.train()(x)
    torch.testing.assert_close(model.eval()(x), dynamic, atol=1e-5, rtol=1e-5)


def test_query_key_and_value_share_the_moment_of_their_input(make_bert, config, batches):
    model = get_peft_model(make_bert(), config(target_modules=["query", "key", "value", "dense"], task_type=None))
    shared = {}
    for share in (True, False):
        targets = [Target(name, layer, ("default",)) for name, layer in aurora_layers(model)]
        with torch.no_grad():
            layers = Collector(Runner(model, "calibrate"), targets, share).collect(batches)
        moments = {layer.target.name: id(layer.shared) for layer in layers}
        shared[share] = len(moments), len(set(moments.values()))
    # a block: q, k, v on one input; three dense layers on their own; and the pooler
    assert shared == {True: (13, 2 * 4 + 1), False: (13, 13)}


@pytest.mark.parametrize("share_inputs", [False, True])
def test_sharing_changes_nothing(make_bert, config, batches, share_inputs):
    model = get_peft_model(make_bert(), config())
    report = calibrate(model, batches, share_inputs=share_inputs)
    inputs = capture_inputs(model, batches)
    for entry, (name, layer) in zip(report.layers, aurora_layers(model), strict=True):
        expected = least_squares(layer, inputs[name], entry.ridge)
        torch.testing.assert_close(layer.aurora_A_cal["default"].double(), expected, atol=1e-5, rtol=1e-4)


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
        [("q", "x"), ("q", "other"), ("k", "other")],
        [("q", "x"), ("q", "other"), ("k", "other"), ("k", "other")],  # as many vectors, and not the same
        [("q", "x"), ("k", "x"), ("k", "other"), ("q", "x")],
    ],
)
@pytest.mark.parametrize("max_memory", [None, 70 * 2**20])
def test_a_layer_that_also_sees_other_inputs_shares_none(order, max_memory, monkeypatch):
    if max_memory:  # one layer at a time, after a look at which share their inputs
        monkeypatch.setattr("aurora_lora.deploy.plan.work_bytes", lambda targets: max_memory - 200)

    def found(**options):
        torch.manual_seed(0)
        model = get_peft_model(CalledTwice(order), AuroraConfig(target_modules=["q", "k"], init_weights=False))
        report = calibrate(model, [torch.randn(16, 4) for _ in range(3)], max_memory=max_memory, **options)
        return [layer.vectors for layer in report.layers], matrices(model)

    vectors, shared = found()
    alone = found(share_inputs=False)
    assert vectors == alone[0]
    assert_same(shared, alone[1], atol=0)


class Later(nn.Module):
    """k joins q at the second batch only."""

    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.q(x) + self.k(x) if x[0, 0] > 0 else self.q(x)


def test_a_layer_that_comes_later_shares_nothing_that_it_has_missed():
    torch.manual_seed(0)
    model = get_peft_model(Later(), AuroraConfig(target_modules=["q", "k"], init_weights=False))
    report = calibrate(model, [-torch.rand(8, 4), torch.rand(8, 4)])
    assert [layer.vectors for layer in report.layers] == [16, 8]


def test_projections_of_relative_positions_too(make_deberta, batches):
    def found(**options):
        names = ["query_proj", "key_proj", "value_proj", "dense"]
        model = get_peft_model(make_deberta(), AuroraConfig(target_modules=names, init_weights=False))
        return calibrate(model, batches, **options).layers, matrices(model)

    shared, alone = found(), found(share_inputs=False)
    assert [(layer.layer, layer.vectors) for layer in shared[0]] == [(layer.layer, layer.vectors) for layer in alone[0]]
    assert_same(shared[1], alone[1], atol=0)


def test_merges_of_projections_of_relative_positions_too(make_deberta, batches):
    torch.manual_seed(1)
    lora = LoraConfig(target_modules=["query_proj", "key_proj", "value_proj"], init_lora_weights=False)
    found = merge_gap(get_peft_model(make_deberta(), lora), batches, merges=True)
    assert {len(merge.layers) for merge in found.merges} == {6}


class SometimesShared(nn.Module):
    """q and k see one input in the first pass, two in the second."""

    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        return self.q(x) + self.k(x if self.passes == 1 else x + 1)


def test_an_input_that_stops_being_shared_is_noticed():
    make = lambda: get_peft_model(SometimesShared(), AuroraConfig(target_modules=["q", "k"], init_weights=False))  # noqa: E731
    data = [torch.randn(8, 4), torch.randn(8, 4)]
    with pytest.raises(CalibrationError, match="share_inputs=False"):
        calibrate(make(), data)
    calibrate(make(), data, share_inputs=False)


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

    def explained(**options):
        torch.manual_seed(0)
        model = get_peft_model(InPlace(), AuroraConfig(target_modules=["q", "k"], init_weights=False))
        data = [torch.randn(64, 4) for _ in range(2)]
        with mode():
            return [layer.explained for layer in calibrate(model, data, **options).layers]

    assert explained() == explained(share_inputs=False)


def test_moments_of_a_device_without_float64_come_back_to_it(monkeypatch):
    monkeypatch.setattr("aurora_lora.deploy.moments.float64_device", lambda device: torch.device("cpu"))
    for device in ("cpu", "meta"):
        shared = SharedInput("0", moment=2 * torch.eye(3, dtype=torch.float64), vectors=2)
        layer = LayerMoments(Target("0", nn.Linear(3, 3, device=device)), shared)
        ((S, _),) = means_by_input([layer])
        assert (S.device.type, S.dtype) == (device, torch.float32)


def test_the_default_device_does_not_matter(make_gpt2, batches):
    def found(calibrating):
        model = get_peft_model(make_gpt2(), AuroraConfig(target_modules=["c_attn", "c_proj"], init_weights=False))
        with calibrating:
            calibrate(model, batches)
        return matrices(model)

    assert_same(found(torch.device("meta")), found(contextlib.nullcontext()), atol=0)


def test_a_layer_that_is_called_twice_counts_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x):
            return self.lin(self.lin(x))

    torch.manual_seed(0)
    model = get_peft_model(Twice(), AuroraConfig(target_modules=["lin"], init_weights=False))
    report = calibrate(model, [torch.randn(8, 4)])
    assert report.layers[0].vectors == 16


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
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not any(layer._forward_pre_hooks for _, layer in aurora_layers(model))
    assert model.peft_config["default"].eval_form is None
    assert torch.is_grad_enabled()


def test_an_error_leaves_the_earlier_calibration(make_bert, config, batches):
    model = get_peft_model(make_bert(), config())
    calibrate(model, batches[:1])
    before = {name: layer.aurora_A_cal["default"].clone() for name, layer in aurora_layers(model)}
    with torch.no_grad():
        for _, p in model.base_model.model.bert.encoder.layer[0].output.named_parameters():
            p[...] = float("nan")
    with pytest.raises(CalibrationError, match=r"layer\.1\.attention\.self\.query are not finite"):
        calibrate(model, batches)
    assert all(torch.equal(layer.aurora_A_cal["default"], before[name]) for name, layer in aurora_layers(model))


def test_sigma_that_is_not_finite_is_refused(make_bert, config, batches):
    """The inputs are: only the adapter is broken."""
    model = get_peft_model(make_bert(), config())
    last = list(aurora_layers(model))[-1][1]
    with torch.no_grad():
        last.aurora_H["default"][0, 0] = float("nan")
    with pytest.raises(CalibrationError, match="not finite"):
        calibrate(model, batches)
    assert not last.calibration["default"].exists


def test_a_matrix_that_the_adapters_dtype_cannot_hold_is_refused(make_bert, config, batches, monkeypatch):
    def large(*args):
        return [dataclasses.replace(found, matrix=found.matrix.sign() * 1e39) for found in solve(*args)]

    model = get_peft_model(make_bert(), config())
    monkeypatch.setattr(calibrate_module, "solve", large)
    with pytest.raises(CalibrationError, match=r"is not finite in torch\.float32"):
        calibrate(model, batches)
    assert not any(layer.calibration["default"].exists for _, layer in aurora_layers(model))


def test_what_is_refused(make_bert, config, batches):
    model = get_peft_model(make_bert(), config(eval_form="static"))
    with pytest.raises(CalibrationError, match="at least one batch"):
        calibrate(model, [])
    with pytest.raises(ValueError, match=r"ridge=-1"):
        calibrate(model, batches, ridge=-1)
    for ridge in (float("nan"), True, "1e-4"):
        with pytest.raises(
            ValueError, match=f"ridge={ridge!r} is not allowed: it must be a finite number of at least 0"
        ):
            calibrate(model, batches, ridge=ridge)
    with pytest.raises(ValueError, match=r"'other' is not an active AuroRA adapter \(active: default\)"):
        calibrate(model, batches, adapter_name="other")
    with pytest.raises(ValueError, match="no AuroRA adapter"):
        calibrate(make_bert(), batches)
    with pytest.raises(TypeError, match="not list"):
        calibrate(model, [[1, 2]])
    with model.disable_adapter(), pytest.raises(CalibrationError, match="switched off"):
        calibrate(model, batches)
    model.merge_adapter()
    with pytest.raises(AlreadyMergedError, match="unmerge_adapter"):
        calibrate(model, batches)
    assert not model.peft_config["default"].calibrated


def test_a_layer_that_no_input_reaches_is_named(with_idle_layer):
    config = AuroraConfig(target_modules=["used", "idle"], init_weights=False)
    model = get_peft_model(with_idle_layer(4), config)
    with pytest.raises(CalibrationError, match=r"No input reached .*idle: .* exclude_modules"):
        calibrate(model, [torch.randn(3, 4)])


@pytest.mark.parametrize("max_memory", [None, 2 * CHUNK_BYTES + 600])  # one group of layers, one layer each
def test_a_layer_that_no_input_reaches_in_training_either(max_memory, with_idle_layer):
    """As the image tower of a model that is trained on texts: B is 0 there, and a merge changes nothing."""
    model = get_peft_model(with_idle_layer(4), AuroraConfig(target_modules=["used", "idle"], skip=False))
    used, idle = model.base_model.model.used, model.base_model.model.idle
    nn.init.normal_(used.aurora_B["default"])
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


def test_a_trained_layer_that_no_input_reaches_is_named_beside_an_adapter_that_adds_nothing(with_idle_layer):
    config = AuroraConfig(target_modules=["used", "idle"], init_weights=False)
    model = get_peft_model(with_idle_layer(4), config)
    model.add_adapter("two", AuroraConfig(target_modules=["used", "idle"]))
    model.base_model.set_adapter(["default", "two"])
    with pytest.raises(CalibrationError, match=r"No input reached idle: the inputs of merge_gap"):
        merge_gap(model, [torch.randn(3, 4)])


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7), reason="FSDP2 of torch 2.6 does not run on a CPU"
)
def test_a_layer_that_no_input_reaches_in_a_sharded_model(process_group, with_idle_layer):
    """It can be called later: its calibrated matrix is whole, as the others are."""
    model = get_peft_model(with_idle_layer(4), AuroraConfig(target_modules=["used", "idle"]))
    idle = model.base_model.model.idle
    for module in (idle, model):
        torch.distributed.fsdp.fully_shard(module)
    calibrate(model, [torch.randn(20, 4)])
    x = torch.randn(3, 4)
    with torch.no_grad():
        adapted = model.eval().base_model.model.idle(x)
    with torch.no_grad(), model.disable_adapter():
        assert torch.allclose(adapted, idle(x), atol=1e-6)


def test_to_see_which_layers_are_reached_one_batch_is_run(with_idle_layer):
    model = get_peft_model(with_idle_layer(4), AuroraConfig(target_modules=["used", "idle"]))
    used = model.base_model.model.used
    nn.init.normal_(used.aurora_B["default"])
    calls = []
    used.register_forward_hook(lambda *_: calls.append(1))
    calibrate(model, [torch.randn(20, 4) for _ in range(5)], max_memory=2 * CHUNK_BYTES + 600)
    assert len(calls) == 6


@pytest.mark.parametrize("max_memory", [None, 2 * CHUNK_BYTES + 600])  # one group of layers, one layer each
def test_a_layer_that_adds_nothing_yet_and_that_a_later_batch_reaches(max_memory):
    """It has the matrix of its inputs, as when all layers fit at once."""
    torch.manual_seed(0)
    model = get_peft_model(Later(), AuroraConfig(target_modules=["q", "k"], skip=False))
    layers = model.base_model.model.q, model.base_model.model.k
    nn.init.normal_(layers[0].aurora_B["default"])
    batches = [-torch.rand(8, 4), torch.rand(9, 4)]
    report = calibrate(model, batches, max_memory=max_memory)
    assert [layer.vectors for layer in report.layers] == [17, 9]
    assert report.groups == (1 if max_memory is None else 2)
    expected = least_squares(layers[1], batches[1], report.layers[1].ridge)
    torch.testing.assert_close(layers[1].aurora_A_cal["default"].double(), expected, atol=1e-5, rtol=1e-4)


def test_zero_inputs_and_rank_deficient_inputs_do_not_fail():
    model, layer = linear_model(fixed_activation="tanh", spline=None)
    report = calibrate(model, [torch.zeros(4, 6)])
    assert torch.equal(layer.aurora_A_cal["default"], torch.zeros(2, 6))
    x = torch.randn(3, 6)  # fewer vectors than dimensions, and no ridge asked for
    report = calibrate(model, [x], ridge=0.0)
    assert report.layers[0].ridge > 0
    assert layer.aurora_A_cal["default"].isfinite().all()
    assert report.layers[0].explained > 0.9


def test_calibration_closes_the_gap_that_the_static_merge_opens(make_bert, config, batches, train_step, logits):
    model = get_peft_model(make_bert(), config(init_weights="identity", target_modules=["query", "value", "dense"]))
    train_step(model, n=30, lr=5e-2)
    dynamic = logits(model)
    aurora_lora.calibrate(model, batches)
    gap = {}
    for form in ("static", "calibrated"):
        with set_form(model, form):
            gap[form] = float((logits(model) - dynamic).norm())
    assert gap["calibrated"] < 0.2 * gap["static"]


def test_a_state_dict_brings_its_calibration_along(make_bert, config, batches, logits):
    calibrated, fresh = (get_peft_model(make_bert(), config()).eval() for _ in range(2))
    before = copy.deepcopy(fresh.state_dict())
    with torch.no_grad():
        for _, layer in aurora_layers(calibrated):
            layer.aurora_A["default"].mul_(1.1)
    calibrate(calibrated, batches)
    fresh.load_state_dict(calibrated.state_dict())
    assert fresh.peft_config["default"].calibrated
    assert {layer.form("default") for _, layer in aurora_layers(fresh)} == {"calibrated"}
    assert torch.equal(logits(fresh), logits(calibrated))
    parts = {key: value for key, value in calibrated.state_dict().items() if "aurora_A_cal" not in key}
    fresh.load_state_dict(parts)
    assert {layer.form("default") for _, layer in aurora_layers(fresh)} == {"calibrated"}
    fresh.load_state_dict(before)
    assert not fresh.peft_config["default"].calibrated
    assert {layer.form("default") for _, layer in aurora_layers(fresh)} == {"dynamic"}
    assert fresh.state_dict().keys() == before.keys()
