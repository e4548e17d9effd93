"""`calibrate` against an independent least-squares solution, what it leaves behind, and what it refuses."""

import contextlib
import datetime
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

import aurora_lora
from aurora_lora import AlreadyMergedError, AuroraConfig, CalibrationError, calibrate, merge_gap, set_form
from aurora_lora.deploy import inputs
from aurora_lora.deploy.calibrate import RIDGES, Target, input_moments, leave_processes
from aurora_lora.deploy.hidden import hidden_values
from aurora_lora.deploy.inputs import Passes, Runner
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
def test_every_layer_gets_its_least_squares_solution_without_padding(make_bert, config, batches, spline):
    model = get_peft_model(make_bert(), config(spline=spline))
    inputs = capture_inputs(model, batches)
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

    best = layer.aurora_A_cal["default"].weight.double()
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
    found = explained(layer, layer.aurora_A_cal["default"].weight, others)
    assert found > explained(layer, linear_in_z(layer, x), others) - 0.03
    assert found > explained(layer, linear_in_z(layer, others), others) - 0.3


def curved(n, seed):
    """Inputs of which some are functions of others, as hidden states are: (n, 24)."""
    z = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    return torch.cat([z, z.tanh(), z**3 / 4], 1)


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


def test_a_linear_sigma_is_found_exactly():
    """On positive z, sigma(z) = z + relu(H relu(z)) is the linear map I + H, and A_cal is (I + H) A."""
    fields = {"fixed_activation": "relu", "spline": None, "skip": True}
    model, layer = linear_model(**fields)
    layer.aurora_A["default"].weight.data.abs_()
    layer.aurora_H["default"].weight.data.abs_()
    x = torch.rand(200, 6)
    report = calibrate(model, [x], ridge=1e-12)
    exact = (torch.eye(2) + layer.aurora_H["default"].weight) @ layer.aurora_A["default"].weight
    torch.testing.assert_close(layer.aurora_A_cal["default"].weight, exact.detach(), atol=1e-5, rtol=1e-5)
    assert report.layers[0].explained == pytest.approx(1, abs=1e-8)
    dynamic = model.train()(x)
    torch.testing.assert_close(model.eval()(x), dynamic, atol=1e-5, rtol=1e-5)


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


def test_layers_that_see_one_tensor_share_its_product(make_bert, config, batches, monkeypatch):
    """A block: q, k and v on one input, three dense layers on their own; and the pooler."""
    model = get_peft_model(make_bert(), config(target_modules=["query", "key", "value", "dense"], task_type=None))
    products, add = [], moments.add_gram
    monkeypatch.setattr(moments, "add_gram", lambda *given: (products.append(1), add(*given)))
    targets = [Target(name, layer, ("default",)) for name, layer in aurora_layers(model)]
    with torch.no_grad(), Runner(model, "calibrate") as runner:
        found = [len(together) for together in input_moments(runner, targets, Passes(batches))]
    assert sorted(found) == [1] * 7 + [3] * 2
    assert len(products) == len(batches) * (2 * 4 + 1)


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
    with pytest.raises(ValueError, match=r"ridge=-1"):
        calibrate(model, batches, ridge=-1)
    for ridge in (float("nan"), float("inf"), "1e-4"):
        with pytest.raises(ValueError, match=f"ridge={ridge!r} is not allowed"):
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


def test_zero_inputs_and_rank_deficient_inputs_do_not_fail():
    model, layer = linear_model(fixed_activation="tanh", spline=None)
    report = calibrate(model, [torch.zeros(4, 6)])
    assert torch.equal(layer.aurora_A_cal["default"].weight, torch.zeros(2, 6))
    x = torch.randn(3, 6)  # fewer vectors than dimensions, and no ridge asked for
    report = calibrate(model, [x], ridge=0.0)
    assert report.layers[0].ridge > 0
    assert layer.aurora_A_cal["default"].weight.isfinite().all()
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


def test_a_progress_bar(bert, batches, capfd):
    calibrate(bert, batches)
    assert capfd.readouterr().err == ""
    calibrate(bert, batches, progress=True)
    assert "calibrating, pass 1" in capfd.readouterr().err


# ---------------------------------------------------------------- memory


def test_groups_within_the_bound_give_the_same(bert, batches):
    assert calibrate(bert, batches).passes == 1
    expected = matrices(bert)
    of_layer = 8 * 32 * (32 + 2)
    for source in (batches, iter(batches)):
        assert calibrate(bert, source, max_memory=3 * of_layer).passes > 3
        assert_same(matrices(bert), expected)


def test_what_is_packed_together_fits_and_a_layer_that_needs_more_is_alone():
    assert moments.pack([3, 4, 2, 9, 1, 1], int, 7) == [[3, 4], [2], [9], [1, 1]]
    target = Target("q", SimpleNamespace(d_in=100, r={"default": 2, "other": 3}), ("default", "other"))
    assert moments.moment_bytes(target) == 8 * 100 * 105


def test_the_patches_of_a_convolution_are_laid_out_in_pieces(monkeypatch):
    torch.manual_seed(0)
    config = AuroraConfig(target_modules=["0"], init_weights=False)
    model = get_peft_model(nn.Sequential(nn.Conv2d(3, 4, 7)), config).eval()
    images, sizes = torch.randn(4, 3, 40, 40), []
    pieces = Runner.grouped_pieces

    def noting(*given):
        for vectors, groups in pieces(*given):
            sizes.append(vectors.nbytes)
            yield vectors, groups

    def measured(chunk):
        """The largest piece, and what was found."""
        monkeypatch.setattr(inputs, "CHUNK_BYTES", chunk)
        sizes.clear()
        vectors = calibrate(model, [images]).layers[0].vectors
        errors = [gap.relative_error for gap in merge_gap(model, [images]).layers]
        return max(sizes), vectors, errors, matrices(model), hidden_values(model, [images])

    monkeypatch.setattr(Runner, "grouped_pieces", noting)
    whole, vectors, errors, expected, z = measured(2**30)
    assert whole == 4 * 3 * 7**2 * 4 * 34**2
    piece, *others = measured(2**16)
    assert piece <= 2**16
    assert others[0] == vectors == 4 * 34**2
    assert others[1] == pytest.approx(errors, rel=1e-5)
    assert_same(others[2], expected)
    for key, values in z.items():
        torch.testing.assert_close(others[3][key], values)


def test_a_failure_half_way_gives_the_earlier_calibration_back(bert, batches, monkeypatch):
    calibrate(bert, batches[:1])
    before = matrices(bert)
    calls = []

    def failing(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return solve(*args)

    solve = moments.solve
    monkeypatch.setattr(moments, "solve", failing)
    with pytest.raises(KeyboardInterrupt):
        calibrate(bert, batches)
    assert_same(matrices(bert), before, atol=0)
    assert {layer.form("default") for _, layer in aurora_layers(bert.eval())} == {"calibrated"}


# ---------------------------------------------------------------- several processes


class Router(nn.Module):
    """Which of two layers has the input is told by the sign of its first entry; 0 is for both."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        first = x[0, 0]
        if first == 0:
            return self.one(x) + self.other(x)
        return self.one(x) if first > 0 else self.other(x)


def router():
    torch.manual_seed(0)
    return get_peft_model(Router(), AuroraConfig(target_modules=["one", "other"], init_weights=False))


POSITIVE, NEGATIVE = torch.rand(2, 12, 4, generator=torch.Generator().manual_seed(1))
NEGATIVE = -NEGATIVE
BOTH = torch.cat([torch.zeros(1, 4), POSITIVE[1:] - 0.5])
OTHER_ORDERS = {
    "opposite orders": ([POSITIVE, NEGATIVE], [NEGATIVE - 1, POSITIVE + 1]),
    "one layer on the first process": ([POSITIVE], [POSITIVE + 1, NEGATIVE]),
    "one tensor for both": ([BOTH], [POSITIVE, NEGATIVE]),
    "no batches on one process": ([POSITIVE, NEGATIVE], []),
}
FAILURES = {
    "no batches": (([], []), "at least one batch"),
    "a layer that none reaches": (([POSITIVE], [POSITIVE]), "No input reached .*other: .* of calibrate must"),
}


def calibrate_shares(rank, world, folder):
    """Every case above on its share. A process that waits for the other in vain fails after a while."""
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=20),
    )
    cases = {**OTHER_ORDERS, **{name: shares for name, (shares, _) in FAILURES.items()}}
    found = {}
    for name, shares in cases.items():
        model = router()
        try:
            calibrate(model, shares[rank])
            found[name] = matrices(model)
        except CalibrationError as error:
            found[name] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    leave_processes()


@pytest.fixture(scope="module")
def on_two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(calibrate_shares, args=(2, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHER_ORDERS)
def test_processes_may_reach_layers_in_other_orders_or_not_at_all(on_two_processes, case):
    expected = router()
    calibrate(expected, OTHER_ORDERS[case][0] + OTHER_ORDERS[case][1])
    for found in on_two_processes:
        assert_same(found[case], matrices(expected))


@pytest.mark.slow
@pytest.mark.parametrize("case", FAILURES)
def test_what_fails_is_said_on_all(on_two_processes, case):
    assert all(re.search(FAILURES[case][1], found[case]) for found in on_two_processes)


# ---------------------------------------------------------------- states that are legitimate


def test_an_adapter_trained_static_may_be_active_beside(make_bert, config, batches):
    model = get_peft_model(make_bert(), config(task_type=None))
    model.add_adapter("static", config(task_type=None, train_form="static"))
    model.base_model.set_adapter(["default", "static"])
    calibrate(model, batches, adapter_name="default")
    assert model.peft_config["default"].calibrated


def test_a_vision_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    base = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **sizes))
    names = sorted(
        {name.rsplit(".", 1)[-1] for name, _ in base.named_modules()} & {"query", "value", "q_proj", "v_proj"}
    )
    model = get_peft_model(base, AuroraConfig(target_modules=names, init_weights=False))
    images = {"pixel_values": torch.randn(6, 3, 8, 8)}
    report = calibrate(model, [images])
    assert [entry.vectors for entry in report.layers] == [6 * 5] * 4  # four patches and the class token
    expected = model.eval()(**images).logits
    torch.testing.assert_close(model.merge_and_unload()(**images).logits, expected, atol=1e-5, rtol=1e-4)
