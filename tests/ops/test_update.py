"""The fast adapter path: equal to the eager one in value and gradient. What it costs is in tests/bench."""

import itertools
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn

from aurora_lora import AuroraConfig
from aurora_lora.ops import (
    ANL,
    IDENTITY,
    adaptive_nonlinear,
    add_update,
    linear_with_update,
    sigma,
)
from aurora_lora.ops.spline import bspline_basis, piecewise_polynomials

ACTIVATIONS = ("tanh", "leaky_relu", "sigmoid", "relu", None)
SPLINES = ("channelwise", "summed", None)
PARTS = [
    ANL(act, spline, skip=skip)
    for act, spline, skip in itertools.product(ACTIVATIONS, SPLINES, (False, True))
    if act or spline or skip
]


def make(anl, r=3, d_in=5, d_out=7, dtype=torch.float64, seed=0):
    """result, x, A, B, H, W_s; z in and out of the spline's support."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    H = random(r, r) if anl.fixed_activation else None
    spline_weight = random(r, anl.n_basis) if anl.spline else None
    return random(2, 4, d_out), random(2, 4, d_in), random(r, d_in), random(d_out, r), H, spline_weight


def formula(result, x, A, B, H, W, scaling, anl):
    """Eq. 4 as it is printed."""
    return result + (scaling * adaptive_nonlinear(x @ A.T, H, W, anl) @ B.T).to(result.dtype)


def value_and_gradients(function, tensors, *rest):
    leaves = [t for t in tensors if t is not None]
    out = function(*tensors, *rest)
    cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    gradients = torch.autograd.grad(out, leaves, cotangent, allow_unused=True)
    return out.detach(), [torch.zeros_like(t) if g is None else g for g, t in zip(gradients, leaves, strict=True)]


def assert_same(found, expected, **tolerance):
    torch.testing.assert_close(found[0], expected[0], **tolerance)
    for a, b in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("anl", PARTS, ids=str)
def test_equals_the_eager_path(anl):
    tensors = make(anl)
    expected = value_and_gradients(formula, tensors, 1.7, anl)
    assert_same(value_and_gradients(add_update, tensors, 1.7, anl), expected, rtol=1e-10, atol=1e-11)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(PARTS),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(0, 5),
    st.floats(-3, 1),
    st.floats(0.3, 4),
    st.integers(0, 10**6),
)
def test_equals_the_eager_path_for_any_spline(parts, r, grid_size, order, low, width, seed):
    anl = ANL(parts.fixed_activation, parts.spline, grid_size, order, (low, low + width), skip=parts.skip)
    tensors = make(anl, r=r, seed=seed)
    expected = value_and_gradients(formula, tensors, 0.5, anl)
    assert_same(value_and_gradients(add_update, tensors, 0.5, anl), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("anl", PARTS, ids=str)
def test_gradcheck(anl):
    tensors = make(anl, r=2, seed=3)
    assert torch.autograd.gradcheck(lambda *t: add_update(*t, 1.3, anl), tensors, eps=1e-7, atol=1e-5)
    z = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4), requires_grad=True)
    weights = [t if t is None else t.detach().requires_grad_() for t in tensors[4:]]
    assert torch.autograd.gradcheck(lambda *t: sigma(*t, anl), (z, *weights), eps=1e-7, atol=1e-5)


def test_second_derivatives_are_those_of_the_formula(monkeypatch):
    anl = ANL(skip=True)
    tensors = make(anl, r=2)
    for out in (add_update(*tensors, 1.7, anl), sigma(tensors[1][..., :2], *tensors[4:], anl)):
        with pytest.raises(RuntimeError, match="AURORA_LORA_EAGER"):
            torch.autograd.grad(out.sum(), tensors[1], create_graph=True)
    monkeypatch.setenv("AURORA_LORA_EAGER", "1")
    assert torch.autograd.gradgradcheck(lambda *t: add_update(*t, 1.3, anl), tensors, eps=1e-6, atol=1e-4)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("anl", [ANL(skip=False), ANL(spline="summed", skip=True), IDENTITY], ids=str)
def test_with_the_base_layer_in_it(anl, with_bias):
    _, x, A, B, H, W = make(anl)
    generator = torch.Generator().manual_seed(9)
    weight = torch.randn(7, 5, dtype=torch.float64, generator=generator)
    bias = torch.randn(7, dtype=torch.float64, generator=generator) if with_bias else None

    def eager(x, A, B, H, W):
        return formula(nn.functional.linear(x, weight, bias), x, A, B, H, W, 1.7, anl)

    def fast(x, A, B, H, W):
        return linear_with_update(x, weight, bias, A, B, H, W, 1.7, anl)

    expected = value_and_gradients(eager, (x, A, B, H, W))
    assert_same(value_and_gradients(fast, (x, A, B, H, W)), expected, rtol=1e-10, atol=1e-11)
    assert (
        linear_with_update(x, weight.requires_grad_(), bias, A, B, H, W, 1.7, anl) is None
    )  # its gradient is left out
    assert linear_with_update(x.float(), weight.detach(), bias, A, B, H, W, 1.7, anl) is None


def test_the_output_can_be_changed_in_place():
    """DeBERTa divides its queries in place, through a view of the output of a linear layer."""
    anl = ANL("tanh", "channelwise", skip=False)
    tensors = make(anl)
    weight, bias = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, dtype=torch.float64)

    def halve(result):
        heads = result.permute(1, 0, 2)
        heads /= 2
        return heads

    def added(path):
        return lambda *tensors: halve(path(*tensors, 1.7, anl))

    def with_base(result, x, *rest):
        return halve(linear_with_update(x, weight, bias, *rest, 1.7, anl))

    def base_and_eager(result, x, *rest):
        return halve(formula(nn.functional.linear(x, weight, bias), x, *rest, 1.7, anl))

    for fast, eager in ((added(add_update), added(formula)), (with_base, base_and_eager)):
        assert_same(value_and_gradients(fast, tensors), value_and_gradients(eager, tensors), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("grid_size", "order"), [(5, 3), (1, 0), (3, 1), (4, 5), (50, 3)])
def test_the_pieces_are_the_basis(grid_size, order):
    lo, hi = -1.0, 1.5
    boundaries, middles, coefficients = piecewise_polynomials(grid_size, order, (lo, hi))
    z = torch.linspace(lo - 3, hi + 3, 997, dtype=torch.float64)
    interval = torch.bucketize(z, boundaries, right=True)
    powers = (z - middles[interval])[:, None] ** torch.arange(order + 1)
    found = (powers[:, :, None] * coefficients[interval]).sum(1)
    torch.testing.assert_close(found, bspline_basis(z, grid_size, order, (lo, hi)), rtol=1e-9, atol=1e-10)


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    anl = ANL(skip=False)
    tensors = [t if t is None else t.detach().requires_grad_() for t in make(anl, dtype=dtype)]
    exact = value_and_gradients(formula, [t.detach().double().requires_grad_() for t in tensors], 1.7, anl)
    found = value_and_gradients(add_update, tensors, 1.7, anl)
    assert found[0].dtype == dtype
    assert all(g.dtype == dtype for g in found[1])
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 6e-2, torch.float16: 1e-2}[dtype]
    for a, b in zip([found[0], *found[1]], [exact[0], *exact[1]], strict=True):
        assert (a.double() - b).norm() < tolerance * b.norm()


def with_base(x, A, B, H, W, anl):
    weight = torch.linspace(-1, 1, B.shape[0] * A.shape[1]).view(B.shape[0], -1)
    return linear_with_update(x, weight, None, A, B, H, W, 1.7, anl)


@pytest.mark.parametrize("call", [lambda *args: add_update(torch.zeros(5, 7), *args[:5], 1.7, args[5]), with_base])
def test_a_backward_pass_under_autocast_is_that_of_its_forward_pass(call):
    """Autocast's region ends before the forward pass, or not: the backward pass may be within another."""
    anl = ANL(skip=False)

    def gradients(context):
        torch.manual_seed(0)
        tensors = [torch.randn(shape, requires_grad=True) for shape in ((5, 6), (2, 6), (7, 2), (2, 2))]
        tensors.append(torch.randn(2, anl.spline_grid_size + anl.spline_order, requires_grad=True))
        with context:
            with torch.autocast("cpu", enabled=False):
                out = call(*tensors, anl)
            out.square().sum().backward()
        return [tensor.grad for tensor in tensors]

    for found, expected in zip(
        gradients(torch.autocast("cpu", dtype=torch.bfloat16)), gradients(nullcontext()), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("spline", ["channelwise", "summed"])
@pytest.mark.parametrize("order", [0, 1, 3])
def test_infinite_arguments_are_outside_the_support(spline, order):
    anl = ANL("tanh", spline, spline_order=order, skip=False)
    z = torch.tensor([[float("inf"), 0.3], [-0.3, -float("inf")]], dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    H, W = (torch.randn(2, n, dtype=torch.float64, generator=generator).requires_grad_() for n in (2, anl.n_basis))
    expected = value_and_gradients(adaptive_nonlinear, (z, H, W), anl)
    assert all(t.isfinite().all() for t in (expected[0], *expected[1]))
    assert_same(value_and_gradients(sigma, (z, H, W), anl), expected, rtol=1e-10, atol=1e-11)


# ---------------------------------------------------------------- when it is used


def test_a_hook_on_the_base_layer_is_called():
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), AuroraConfig(target_modules=["0"], init_weights=False))
    layer = model.base_model.model[0]
    x = torch.randn(2, 4)
    expected = model(x)
    seen = []
    handle = layer.base_layer.register_forward_hook(lambda module, args, output: seen.append(output))
    torch.testing.assert_close(model(x), expected)
    assert len(seen) == 1
    handle.remove()
    layer.base_layer.forward = lambda x: torch.zeros(2, 4)  # as accelerate's offloading does
    torch.testing.assert_close(model(x), layer.adapter_output("default", x))
