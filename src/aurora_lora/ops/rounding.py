"""Rounding a weight to a grid so that a layer's output changes least.

A quantised weight has few values to choose from. Rounding each entry of W to the nearest minimises |W_q - W|^2; what
the rest of a model feels is E|(W_q - W) x|^2 = tr((W_q - W) S (W_q - W)^T), with the second moment S = E[x x^T] of the
layer's inputs. `round_to_moment` rounds one column after the other and lets the columns that are still free make up for
its error (Frantar et al. 2023, "GPTQ", Algorithm 1), and then goes through the columns again, each given all others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NotFiniteError
from .update import full_float32, without_autocast

LAZY = 128
"""Columns whose changes are applied to those behind them in one product."""


@dataclass(frozen=True)
class Grid:
    """The values that a quantised weight can take: `(levels[code] - zero) * scale`, by blocks of the flattened weight.

    Args:
        levels: (K,) ascending: what a code stands for.
        scale: (blocks,): of either sign, as scales that are quantised themselves can come back slightly below 0.
        block: consecutive entries of a block; the last block may have fewer.
        zero: (blocks,), in units of the levels, or None for 0.
    """

    levels: Tensor
    scale: Tensor
    block: int
    zero: Tensor | None = None

    def transposed(self, shape: torch.Size) -> _Columns:
        """The grid of each entry of the transposed weight (d_in, d_out), of a weight of this shape (d_out, d_in)."""

        def by_entry(per_block: Tensor) -> Tensor:
            return per_block.repeat_interleave(self.block)[: shape.numel()].view(shape).T.contiguous()

        tiny = torch.finfo(self.scale.dtype).tiny
        scale = torch.where(self.scale.abs() < tiny, tiny, self.scale)  # so that it can be divided by
        return _Columns(self.levels, by_entry(scale), None if self.zero is None else by_entry(self.zero))

    def blocks(self, values: Tensor) -> Tensor:
        """(blocks, block): the entries of a weight, or of something of its shape, with zeros at the end."""
        flat = values.reshape(-1)
        return torch.nn.functional.pad(flat, (0, -len(flat) % self.block)).view(-1, self.block)

    def round(self, weight: Tensor) -> Tensor:
        """Codes (d_out, d_in) of the values nearest to each entry of the weight."""
        return self.transposed(weight.shape).nearest(weight.T).T.contiguous()

    def dequantised(self, codes: Tensor) -> Tensor:
        """(d_out, d_in): the weight that codes stand for."""
        return self.transposed(codes.shape).values(codes.T).T.contiguous()


@dataclass(frozen=True)
class _Columns:
    """The grid of some columns of a weight, each a row here: scale, nowhere 0, and zero (n, d_out)."""

    levels: Tensor
    scale: Tensor
    zero: Tensor | None

    def __getitem__(self, rows: int | slice | Tensor) -> _Columns:
        return _Columns(self.levels, self.scale[rows], None if self.zero is None else self.zero[rows])

    def nearest(self, values: Tensor) -> Tensor:
        """Codes, int32."""
        units = values / self.scale
        if self.zero is not None:
            units = units + self.zero
        between = (self.levels[1:] + self.levels[:-1]) / 2
        return torch.bucketize(units.contiguous(), between, out_int32=True)

    def values(self, codes: Tensor) -> Tensor:
        units = self.levels[codes]
        return (units if self.zero is None else units - self.zero) * self.scale


def output_error(difference: Tensor, moment: Tensor) -> float:
    """E|D x|^2 = tr(D S D^T) for a difference D (d_out, d_in) of weights and S = E[x x^T] (d_in, d_in)."""
    D = difference.to(moment.dtype)
    with full_float32(), without_autocast(moment):
        return max(float(((D @ moment) * D).sum()), 0.0)


def lost_share(error: float, effect: float) -> float:
    """sqrt(E|error|^2 / E|effect|^2) of two output errors: how much of a change is lost; inf of none at all."""
    return (error / effect) ** 0.5 if effect > 0 else 0.0 if error == 0 else math.inf


def better_grid(weight: Tensor, first: Grid, second: Grid, importance: Tensor) -> Grid:
    """The better of two grids for each block: that on which the nearest values cost less; the first on a tie.

    Args:
        weight: (d_out, d_in).
        first: of the same levels and blocks.
        second: of the same levels and blocks.
        importance: (d_in,): E[x^2] of each input, which weighs the squared error of its column.
    """
    costs = []
    for grid in (first, second):
        error = (grid.dequantised(grid.round(weight)) - weight).square_() * importance
        costs.append(grid.blocks(error).sum(1))
    better = costs[1] < costs[0]
    zero = None
    if first.zero is not None and second.zero is not None:
        zero = torch.where(better, second.zero, first.zero)
    return Grid(first.levels, torch.where(better, second.scale, first.scale), first.block, zero)


@dataclass(frozen=True)
class InputMoment:
    """What rounding needs to know of a layer's inputs; see `input_moment`.

    Args:
        order: (d_in,): the columns by their importance E[x^2], the largest first: they are rounded in this order.
        S: (d_in, d_in) in this order: E[x x^T] + damping * mean(diag) I, float32.
        U: upper triangular, with U^T U the inverse of S: row j says how the columns behind j answer an error in j.
    """

    order: Tensor
    S: Tensor
    U: Tensor


def input_moment(moment: Tensor, damping: float = 1e-3) -> InputMoment:
    """Order and factor the second moment of a layer's inputs.

    The damping is raised tenfold until the factors exist. Of inputs that are all zero, S and U are identities.

    Args:
        moment: E[x x^T], (d_in, d_in).
        damping: relative to the mean of the diagonal; it keeps columns from making up for errors along directions that
            few inputs had.

    Raises:
        NotFiniteError: the moment is not finite; no damping would help.
    """
    if moment.is_mps:  # which has no float64
        found = input_moment(moment.cpu(), damping)
        return InputMoment(*(each.to(moment.device) for each in (found.order, found.S, found.U)))
    importance = moment.diagonal()
    mean = importance.double().mean()
    if not (moment.isfinite().all() and mean.isfinite()):
        raise NotFiniteError("the inputs of a layer: E[x x^T] holds values that are not finite (NaN or infinity)")
    order = torch.argsort(importance, descending=True, stable=True)
    S = moment[order][:, order].double()
    scale = float(mean)
    if scale <= 0:
        eye = torch.eye(len(S), dtype=moment.dtype, device=moment.device)
        return InputMoment(order, eye, eye.clone())
    added = 0.0
    while True:
        more = max(10 * added, 1e-12 * scale, damping * scale)
        S.diagonal().add_(more - added)
        added = more
        factor, failed = torch.linalg.cholesky_ex(S)
        if not failed:
            U, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
            if not failed:
                return InputMoment(order, S.float(), U.float())


def round_to_moment(weight: Tensor, inputs: InputMoment, grid: Grid, sweeps: int = 1) -> Tensor:
    """Codes (d_out, d_in) on the grid for which E|(W_q - W) x|^2 is small: in no row above that of the nearest values.

    Args:
        weight: W, (d_out, d_in), in float32.
        inputs: of the layer.
        grid: the values to choose from.
        sweeps: how often each column is chosen anew, given all others.
    """
    columns = grid.transposed(weight.shape)[inputs.order]
    target = weight.T[inputs.order].contiguous()
    with full_float32(), without_autocast(target):
        nearest, codes = columns.nearest(target), _with_feedback(target, inputs.U, columns)
        errors = [_row_errors(columns.values(each) - target, inputs.S) for each in (codes, nearest)]
        codes = torch.where(errors[0] < errors[1], codes, nearest)
        for _ in range(sweeps):
            _choose_again(target, codes, inputs.S, columns)
    return codes[torch.argsort(inputs.order)].T.contiguous()


def _row_errors(difference: Tensor, S: Tensor) -> Tensor:
    """(d_out,): d^T S d of each column d of the transposed difference (d_in, d_out) of weights."""
    return ((S @ difference) * difference).sum(0)


def _with_feedback(target: Tensor, U: Tensor, columns: _Columns) -> Tensor:
    """Codes (d_in, d_out): each row rounded after those before it have left their errors to it."""
    free = target.clone()
    codes = torch.empty(free.shape, dtype=torch.int32, device=free.device)
    errors = free.new_empty(min(LAZY, len(free)), free.shape[1])
    for start, stop in _pieces(len(free)):
        for j in range(start, stop):
            here = columns[j]
            codes[j] = here.nearest(free[j])
            error = torch.div(free[j] - here.values(codes[j]), U[j, j], out=errors[j - start])
            free[j + 1 : stop].addr_(U[j, j + 1 : stop], error, alpha=-1)
        free[stop:].addmm_(U[start:stop, stop:].T, errors[: stop - start], alpha=-1)
    return codes


def _choose_again(target: Tensor, codes: Tensor, S: Tensor, columns: _Columns) -> None:
    """Each row of the codes (d_in, d_out) as is best given all others: one sweep of coordinate descent, in place."""
    values = columns.values(codes)
    slope = S @ (values - target)  # half the gradient of tr(D S D^T), kept up to date for the rows to come
    changes = values.new_empty(min(LAZY, len(values)), values.shape[1])
    for start, stop in _pieces(len(values)):
        for j in range(start, stop):
            here = columns[j]
            codes[j] = here.nearest(values[j] - slope[j] / S[j, j])
            change = torch.sub(here.values(codes[j]), values[j], out=changes[j - start])
            slope[start:stop].addr_(S[start:stop, j], change)
        slope[stop:].addmm_(S[stop:, start:stop], changes[: stop - start])


def _pieces(n: int) -> list[tuple[int, int]]:
    return [(start, min(start + LAZY, n)) for start in range(0, n, LAZY)]
