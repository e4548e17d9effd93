"""sigma(z) against a plain loop over Eqs. 5 to 7, its gradients, and sigma(A) column by column."""

import math

import pytest
import torch
from torch import Tensor

from aurora_lora import AuroraConfig
from aurora_lora.ops import (
    ANL,
    adaptive_nonlinear,
    bspline_basis,
    sigma,
)

ACTS = {
    "tanh": math.tanh,
    "leaky_relu": lambda v: v if v > 0 else 0.01 * v,
    "sigmoid": lambda v: 1 / (1 + math.exp(-v)),
    "relu": lambda v: max(v, 0.0),
}
PARTS = [
    ANL(activation, spline, grid_size, order, skip=skip)
    for activation in (*ACTS, None)
    for spline in ("channelwise", "summed", None)
    for skip in (False, True)
    for grid_size, order in ((5, 3),)
    if activation or spline or skip
] + [ANL("tanh", "summed", 4, 2, skip=False), ANL("tanh", "channelwise", 7, 1, (-2.0, 3.0), skip=False)]


def weights(anl: ANL, r: int) -> tuple[Tensor | None, Tensor | None]:
    torch.manual_seed(r)
    H = torch.randn(r, r, dtype=torch.float64) if anl.fixed_activation else None
    W = torch.randn(r, anl.n_basis, dtype=torch.float64) if anl.spline else None
    return H, W


def sigma_by_loop(z: Tensor, H: Tensor | None, W: Tensor | None, anl: ANL) -> Tensor:
    """One r-vector, scalar by scalar."""
    r = len(z)
    out = [float(z[i]) if anl.skip else 0.0 for i in range(r)]
    if anl.fixed_activation:
        act = ACTS[anl.fixed_activation]
        inner = [act(float(z[j])) for j in range(r)]
        for i in range(r):
            out[i] += act(sum(float(H[i, j]) * inner[j] for j in range(r)))
    if anl.spline:
        basis = [bspline_basis(z[i], anl.spline_grid_size, anl.spline_order, anl.spline_range) for i in range(r)]
        for i in range(r):
            for k in range(anl.n_basis):
                b = basis[i][k] if anl.spline == "channelwise" else sum(basis[j][k] for j in range(r))
                out[i] += float(W[i, k] * b)
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("anl", PARTS, ids=str)
@pytest.mark.parametrize("r", [1, 2, 5])
def test_sigma_equals_a_plain_loop(anl, r):
    H, W = weights(anl, r)
    z = torch.randn(4, 3, r, dtype=torch.float64)
    got = adaptive_nonlinear(z, H, W, anl)
    for i in range(4):
        for j in range(3):
            torch.testing.assert_close(got[i, j], sigma_by_loop(z[i, j], H, W, anl), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("anl", PARTS, ids=str)
def test_the_static_matrix_is_taken_column_by_column(anl):
    H, W = weights(anl, 3)
    A = torch.randn(3, 7, dtype=torch.float64)
    got = adaptive_nonlinear(A.T, H, W, anl).T
    assert got.shape == (3, 7)
    for column in range(7):
        expected = sigma_by_loop(A[:, column], H, W, anl)
        torch.testing.assert_close(got[:, column], expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("spline", ["channelwise", "summed"])
def test_a_spline_of_order_0_at_its_knots(spline: str) -> None:
    """Intervals are half-open, [knot, next): z = 0, which masked features have, is on a knot of every even grid."""
    anl = ANL(None, spline, 4, 0, skip=False)  # the knots -1, -0.5, 0, 0.5, 1 are exact
    z = torch.tensor([[-1.0], [-0.5], [0.0], [0.5], [1.0]], dtype=torch.float64)
    W = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    for function in (sigma, adaptive_nonlinear):
        found = function(z, None, W, anl)
        assert found.flatten().tolist() == [1, 2, 3, 4, 0]
        assert torch.autograd.grad(found.sum(), W)[0].tolist() == [[1, 1, 1, 1]]


BAD = [
    ({"fixed_activation": "gelu"}, r"fixed_activation='gelu' .*'leaky_relu'"),
    ({"spline": "foo"}, r"spline='foo' .*'channelwise', 'summed', None"),
    ({"spline": True}, r"spline=True"),
    ({"spline_grid_size": 0}, r"spline_grid_size=0 .*1 to 1024"),
    ({"spline_grid_size": 2.0}, r"spline_grid_size=2\.0"),
    ({"spline_order": 17}, r"spline_order=17 .*0 to 16"),
    ({"spline_range": (1, -1)}, r"spline_range=\(1, -1\) .*low < high"),
    ({"skip": 1}, r"skip=1 .*True, False"),
    ({"fixed_activation": None, "spline": None}, r"sigma = 0: .*skip=True"),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=[str(fields) for fields, _ in BAD])
def test_parts_that_there_are_not(fields, message):
    """As `AuroraConfig` says it: the fields have its names."""
    for make in (ANL, AuroraConfig):
        with pytest.raises(ValueError, match=message):
            make(**{"skip": False, **fields})
