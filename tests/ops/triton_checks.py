"""The Triton kernels against the eager twin `ops/anl.py`: a file of tests that `test_anl_triton.py` runs by itself.

With TRITON_INTERPRET=1 the kernels run on the CPU, in Triton's interpreter. That has to be decided before anything
imports Triton, so these tests have a process of their own. Without it they run on the GPU.
"""

import itertools
import os

import pytest
import torch

from aurora_lora.ops import (
    ANL,
    adaptive_nonlinear,
    add_update,
    anl_triton,
    linear_with_update,
    sigma,
    update,
)
from aurora_lora.ops.anl_triton import triton_backward, triton_forward

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
PARTS = [
    ANL(act, spline, skip=skip)
    for act, spline, skip in itertools.product(
        ("tanh", "leaky_relu", "sigmoid", "relu", None), ("channelwise", "summed", None), (False, True)
    )
    if act or spline
]
SPLINES = [
    ANL("tanh", spline, grid_size, order, spline_range, skip=False)
    for spline in ("channelwise", "summed")
    for order in (0, 1, 2, 3, 4)
    for grid_size, spline_range in ((1, (-1.0, 1.0)), (4, (-2.0, 1.5)))
]


def make(anl, r, n, dtype=torch.float64, seed=0):
    """du, z, H, W_s; z in and out of the spline's support."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)

    H = random(r, r) if anl.fixed_activation else None
    W = random(r, anl.n_basis) if anl.spline else None
    return random(r, n), random(r, n) * 1.5, H, W


def twin(du, z, H, W, anl):
    """u, dz, dH, dW_s by the eager formula and autograd, in float64."""
    du, *leaves = (None if t is None else t.detach().double().requires_grad_() for t in (du, z, H, W))
    u = adaptive_nonlinear(leaves[0].T, *leaves[1:], anl).T
    found = iter(torch.autograd.grad(u, [t for t in leaves if t is not None], du))
    return u.detach(), *[None if t is None else next(found) for t in leaves]


def kernels(du, z, H, W, anl):
    """The same by the kernels."""
    u = triton_forward(z, H, W, anl)
    again, dz, weights = triton_backward(du, z, H, W, anl)
    assert torch.equal(again, u)
    assert u.is_contiguous()
    assert dz.is_contiguous()
    assert u.dtype == dz.dtype == z.dtype
    assert weights.dtype == torch.promote_types(z.dtype, torch.float32)
    sizes = anl.weight_sizes(len(z))
    dH, dW = (None if w is None else g.view(w.shape) for g, w in zip(weights.split(sizes), (H, W), strict=True))
    return u, dz, dH, dW


def assert_same(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("anl", PARTS, ids=str)
def test_every_part(anl):
    tensors = make(anl, 3, 33)
    assert_same(kernels(*tensors, anl), twin(*tensors, anl), 1e-12)


@pytest.mark.parametrize("anl", SPLINES, ids=str)
def test_every_spline(anl):
    tensors = make(anl, 2, 40)
    assert_same(kernels(*tensors, anl), twin(*tensors, anl), 1e-11)


@pytest.mark.parametrize("anl", [ANL(skip=False), ANL("sigmoid", "summed", skip=True)], ids=str)
@pytest.mark.parametrize(("n", "dtype", "tolerance"), [(1, torch.float64, 1e-12), (70, torch.float32, 3e-5)])
@pytest.mark.parametrize("r", [1, 2, 3, 5, 8, 16])
def test_shapes(r, n, dtype, tolerance, anl):
    if r > 8 and dtype == torch.float64:  # `tl.dot`, which older Tritons do not have in float64
        dtype, tolerance = torch.float32, 3e-5
    tensors = make(anl, r, n, dtype)
    assert_same(kernels(*tensors, anl), twin(*tensors, anl), tolerance)


@pytest.mark.parametrize("r", [32, 48, 64])
def test_large_ranks(r):
    anl = ANL(skip=True)
    tensors = make(anl, r, 17, torch.float32)
    assert_same(kernels(*tensors, anl), twin(*tensors, anl), 3e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_low_precision_is_computed_in_float32(dtype, tolerance):
    anl = ANL(skip=False)
    tensors = make(anl, 2, 70, dtype)
    found, expected = kernels(*tensors, anl), twin(*tensors, anl)
    assert_same(found, expected, tolerance)  # one rounding of the result
    assert_same(found[2:], expected[2:], 3e-5)  # and none of the sums


def test_programs_that_take_several_blocks(monkeypatch):
    anl = ANL(skip=False)
    tensors = make(anl, 2, 200)
    expected = kernels(*tensors, anl)
    monkeypatch.setattr(anl_triton, "_programs", lambda *_: 2)
    assert_same(kernels(*tensors, anl), expected, 1e-12)
    assert_same(kernels(*tensors, anl), twin(*tensors, anl), 1e-12)


@pytest.mark.parametrize("anl", PARTS[::2], ids=str)
def test_nan_shows_and_infinity_saturates(anl):
    _, _, H, W = make(anl, 1, 1)
    z = torch.tensor([[float("nan")]], dtype=torch.float64, device=DEVICE)
    assert triton_forward(z, H, W, anl).isnan().all()
    assert triton_backward(z, z, H, W, anl)[1].isnan().all()
    for value in (float("inf"), float("-inf"), 1e30):
        z = torch.full((1, 1), value, dtype=torch.float64, device=DEVICE)
        torch.testing.assert_close(triton_forward(z, H, W, anl), adaptive_nonlinear(z, H, W, anl))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_to_the_last_digits(dtype):
    """F(z) = tanh(H tanh(z)) with H = 1, from 1e-30 over the seam of the two formulas to where it is 1."""
    anl = ANL("tanh", None, skip=False)
    z = torch.cat([torch.logspace(-30, 1.5, 300, dtype=torch.float64), torch.linspace(0.39, 0.45, 101)]).to(dtype)
    z = torch.cat([-z, z])[None].to(DEVICE)
    found = triton_forward(z, torch.ones(1, 1, dtype=dtype, device=DEVICE), None, anl)
    torch.testing.assert_close(found.double(), z.double().tanh().tanh(), rtol=8 * torch.finfo(dtype).eps, atol=0)


# ---------------------------------------------------------------- in the whole adapter path


@pytest.fixture
def through_the_kernels(monkeypatch):
    """The fast path takes the operators, and these the kernels, on any device."""
    monkeypatch.setattr(update, "triton_serves", lambda *_: True)
    if DEVICE == "cpu":

        def forward(z, H, W, *flat):
            return triton_forward(z, H, W, anl_triton._anl(*flat))

        def backward(du, z, H, W, *flat):
            return triton_backward(du, z, H, W, anl_triton._anl(*flat))

        monkeypatch.setitem(anl_triton.anl_forward._backend_fns, "cpu", forward)
        monkeypatch.setitem(anl_triton.anl_backward._backend_fns, "cpu", backward)


@pytest.mark.usefixtures("through_the_kernels")
@pytest.mark.parametrize(
    "anl", [ANL(spline_grid_size=3, skip=False), ANL("sigmoid", "summed", 2, 2, skip=True)], ids=str
)
def test_gradcheck_of_the_whole_path(anl):
    generator = torch.Generator().manual_seed(3)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE).requires_grad_()

    tensors = (
        random(3, 4), random(3, 5), random(2, 5), random(4, 2), random(2, 2), random(2, anl.n_basis)
    )  # result, x, A, B, H, W_s  # fmt: skip
    assert torch.autograd.gradcheck(lambda *t: add_update(*t, 1.3, anl), tensors, fast_mode=True)
    weight = random(4, 5).detach()
    assert torch.autograd.gradcheck(
        lambda x, A, B, H, W: linear_with_update(x, weight, None, A, B, H, W, 1.3, anl), tensors[1:], fast_mode=True
    )
    z = random(2, 2, 2)
    assert torch.autograd.gradcheck(lambda *t: sigma(*t, anl), (z, *tensors[4:]), fast_mode=True)


@pytest.mark.usefixtures("through_the_kernels")
def test_opcheck():
    anl = ANL(spline_grid_size=2, skip=False)
    du, z, H, W = make(anl, 2, 5, torch.float32)
    leaves = [t.requires_grad_() for t in (z, H, W)]
    flat = anl_triton._flat(anl)
    torch.library.opcheck(anl_triton.anl_forward, (*leaves, *flat))
    torch.library.opcheck(anl_triton.anl_backward, (du, *(t.detach() for t in leaves), *flat))
