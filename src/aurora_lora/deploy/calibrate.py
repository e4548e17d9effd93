"""`calibrate`: the best linear stand-in for a trained adapter (docs/method.md), from second moments of the inputs of
layers, summed in float64."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import CalibrationError, FormError, NotFiniteInputsError
from ..forms import DYNAMIC
from ..ops.update import full_float32, without_autocast
from ..tuner import AuroraLayer, active_adapters
from ..tuner.adapters import plain_layers
from ..tuner.calibration import computing_device, gathered
from ..values import is_number, require
from .inputs import (
    Passes,
    Reading,
    Runner,
    check_unmerged,
    input_geometry,
    no_batches,
    rows_of_piece,
    trained_state,
    watched_inputs,
)
from .report import Report, first_table, shown, worst_of

if TYPE_CHECKING:
    from rich.table import Table

MAX_MEMORY = 4 * 2**30
"""Bytes of moments that are held at once, where nothing else is asked for."""
ROUNDING = 1e-6
"""A deviation that values have from rounding in float32 alone, by the root mean square of the largest of them."""


@dataclass(frozen=True)
class LayerCalibration:
    """What calibration found for one adapter of one layer."""

    layer: str
    """The layer's path in the plain model."""
    adapter: str
    vectors: int
    """Input vectors that the moments were taken over (padding left out); 0 of a layer that no input reached and whose
    adapter adds nothing (B = 0)."""
    explained: float
    """Share of E|sigma(Ax)|^2 that A_cal x reproduces on the calibration inputs: 1 is exact."""
    ridge: float
    """lambda, as it was added to the diagonal of E[x x^T]."""


@dataclass(frozen=True)
class CalibrationReport(Report):
    """The result of `calibrate`."""

    layers: tuple[LayerCalibration, ...]
    passes: int
    """Passes over the batches: one for each group of layers whose moments fit in `max_memory`."""
    seconds: float

    def worst(self, n: int = 3) -> tuple[LayerCalibration, ...]:
        """The n layers of which the least is explained.

        Raises:
            ValueError: n is no whole number of at least 1.
        """
        return worst_of(self.layers, lambda layer: 1 - layer.explained, n)

    def tables(self) -> tuple[Table, ...]:
        """Layer by layer, those of which the least is explained first, for a terminal. Needs rich."""
        rows = [
            (one.layer, [one.adapter, f"{one.vectors:,}", shown(one.explained, ".2%"), shown(one.ridge, ".2e")])
            for one in self.worst(n=len(self.layers))
        ]
        title = "layers{}: explained share of E|sigma(Ax)|^2"
        headings = ["layer", "adapter", "inputs", "explained", "ridge"]
        return (first_table(title, headings, rows, "layers of which more is explained"),)


def calibrate(
    model: nn.Module,
    batches: Any,
    *,
    adapter_name: str | None = None,
    ridge: float = 1e-4,
    max_memory: float = MAX_MEMORY,
    progress: bool = False,
    **reading: Unpack[Reading],
) -> CalibrationReport:
    """Find and store, for each AuroRA layer, the linear map that stands in for the trained adapter best:

        A_cal = argmin_M E|sigma(Ax) - Mx|^2 + lambda |M - DA|^2,   (r, d_in)

    over the inputs x that reach the layer when the trained (dynamic) model runs on `batches`. DA is the best linear map
    of z = Ax, which few inputs determine; lambda is the best by generalised cross-validation (docs/method.md). As the
    layer's output is s B sigma(Ax), `s B A_cal` is then the best linear map for the whole update, and still of rank r.
    The groups of a convolution share A, and one map is fitted to the patches of all of them; of one group, with its own
    rows of B, another may be better. Moments are taken and solved in float64 (`add_gram` says how on GPUs
    where that is slow). The matrices are stored with the adapter; `eval_form` is not changed. Training mode, hooks and
    the random state are as before when it returns or raises.

    With `torch.distributed` initialised, the moments are summed over all processes: call it on every one of them.

    Args:
        model: a model with AuroRA adapters trained in the dynamic form.
        batches: a few hundred inputs, no labels: a DataLoader or another iterable of dicts of tensors (passed to the
            model as keyword arguments, or whole where it takes the batch as its one argument), of tensors, or of tuples
            that start with one; or a `datasets.Dataset`, with `tokenizer`. Positions where the `attention_mask` of a
            text is 0 are left out, but for experts of a mixture, which are linear layers of their own and get what is
            routed to them. Where several passes are needed, each has the same batches: those of an iterator are kept
            in memory, others are read anew from the same random state of Python, NumPy and PyTorch, by which a loader
            shuffles unless it has a generator or persistent workers of its own.
        adapter_name: which adapter; all active ones if None. It must be active.
        ridge: the least lambda, in units of the mean of the diagonal of E[x x^T].
        max_memory: bytes of the moments, 8 d_in (d_in + r) for a layer, that are held at once; a layer that needs more
            is worked on alone. Layers are worked through in groups that fit, with a pass over the batches for each.
            Beside them are up to four times the largest layer's.
        progress: show a progress bar.
        reading: `examples`, the number of examples to run at most; and for a dataset `tokenizer`, `text_columns`,
            `batch_size` and `max_length`. See `Reading`.

    Returns:
        A report with the explained share of each layer.

    Raises:
        CalibrationError: no batches, an input that is not finite, a layer with B != 0 that no input reached, adapters
            that are switched off, or a matrix that is not finite. The adapter is left as it was.
        AlreadyMergedError: the adapter is merged.
        FormError: the adapter was trained in the static form, or sigma is the identity in all of its layers (plain
            LoRA, embeddings): it merges exactly as it is.
        TypeError: batches of no such kind, or an argument that goes with a dataset where there is none.
        ValueError: no AuroRA adapter, no such active adapter, or an argument that is not allowed.
    """
    check_ridge(ridge)
    start = time.perf_counter()
    data = Passes(batches, "calibrating" if progress else "", **reading)
    targets = _targets(model, adapter_name)
    sliced = ridge >= LEAST_RIDGE_OF_SLICES
    with trained_state(model), Runner(model, "calibrate") as runner:
        moments = input_moments(runner, targets, data, max_memory, sliced=sliced)
        solved = (pair for together in moments for pair in solve(together, ridge))
        found = {(one.layer, one.adapter): (matrix, one) for matrix, one in solved}
    pairs = []
    for target, name in [(one, name) for one in targets for name in one.adapters]:
        held = target.module.calibration[name]
        A = held.simplest_matrix()  # where no input reached the layer B is 0, and any matrix stands in exactly
        matrix, one = found.get((target.name, name), (A, LayerCalibration(target.name, name, 0, 1.0, 0.0)))
        if not matrix.to(A.dtype).isfinite().all():
            raise CalibrationError(
                f"The calibrated matrix of {target.name} is not finite in {A.dtype}: try a larger ridge."
            )
        pairs.append((held, matrix, one))
    for held, matrix, _ in pairs:  # when all are there
        held.store(matrix)
    return CalibrationReport(tuple(one for *_, one in pairs), data.passes, time.perf_counter() - start)


def check_ridge(ridge: float) -> None:
    """Raise a ValueError for a `ridge` that is not allowed."""
    require(is_number(ridge) and ridge >= 0, "ridge", ridge, "a finite number of at least 0")


def _targets(model: nn.Module, adapter_name: str | None) -> list[Target]:
    """The layers whose active adapters have a calibrated form: trained in the dynamic one, which is no other map."""
    active = active_adapters(model)
    names = active if adapter_name is None else [adapter_name]
    for name in names:
        if name not in active:
            raise ValueError(f"adapter_name={name!r} is not an active AuroRA adapter (active: {', '.join(active)}).")
    check_unmerged(model, "calibrate")
    targets, differ = [], False
    for path, layer in plain_layers(model):
        held = [name for name in names if name in layer.aurora_A and not layer.forms_coincide(name)]
        differ = differ or bool(held)
        adapters = tuple(name for name in held if layer.aurora_config[name].train_form == DYNAMIC)
        if adapters:
            targets.append(Target(path, layer, adapters, partial(_is_idle, layer, adapters)))
    if not targets:
        why = "plain LoRA (sigma is the identity) and embeddings merge exactly as they are"
        why = "what was trained in the static form merges exactly" if differ else why
        raise FormError(f"Nothing of {', '.join(names)} can be calibrated: {why}.")
    return targets


def _is_idle(layer: AuroraLayer, adapters: Sequence[str]) -> bool:
    return all(layer.calibration[name].is_idle for name in adapters)


# -------------------------------------------------------------------- the sums


@dataclass(frozen=True)
class Target:
    """A layer whose inputs are wanted, and the AuroRA adapters whose sigma(Ax) is wanted with them."""

    name: str
    """The layer's path in the plain model."""
    module: Any
    """An AuroRA layer, a layer of PEFT on a linear one, or a linear one."""
    adapters: tuple[str, ...] = ()
    is_idle: Callable[[], bool] = lambda: False
    """Whether its adapters add nothing to any input, so that none has to reach it."""

    @property
    def d_in(self) -> int:
        """Length of the vectors that the weight acts on."""
        layer = self.module
        if hasattr(layer, "d_in"):
            return int(layer.d_in)
        base = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
        return int(base.in_features if hasattr(base, "in_features") else base.nx)


@dataclass
class Moments:
    """The sums of one layer over its input vectors x."""

    target: Target
    vectors: int = 0
    total: Tensor = field(default_factory=lambda: torch.empty(0))  # x x^T, (d_in, d_in), in float64
    cross: dict[str, Tensor] = field(default_factory=dict)  # adapter -> sigma(Ax) x^T, (r, d_in)
    power: dict[str, Tensor] = field(default_factory=dict)  # adapter -> |sigma(Ax)|^2, ()

    def make_room(self, device: torch.device) -> None:
        """Sums that start as zeros, where float64 can be computed."""
        if not self.total.numel():
            d, device = self.target.d_in, float64_device(device)
            self.total = torch.zeros(d, d, dtype=torch.float64, device=device)
            for adapter in self.target.adapters:
                self.cross[adapter] = self.total.new_zeros(int(self.target.module.r[adapter]), d)
                self.power[adapter] = self.total.new_zeros(())

    def mean(self) -> Tensor:
        """E[x x^T] (d_in, d_in) in float32, on the device that the layer computes on; the sum is gone then."""
        S, self.total = self.total.div_(self.vectors).float(), torch.empty(0)
        device = computing_device(next(self.target.module.parameters()))
        return S if float64_device(device) == device else S.to(device)  # elsewhere they are where they belong


def input_moments(
    runner: Runner, targets: Sequence[Target], data: Passes, max_memory: float = MAX_MEMORY, *, sliced: bool = False
) -> Iterator[list[Moments]]:
    """The sums of all layers over all batches and processes; those with the same inputs come together.

    Layers are worked through in groups, with a pass over the batches for each. A layer that no input reached, and whose
    adapters add nothing, does not come. What has come is not held any more.

    Args:
        runner: runs the model.
        targets: the layers.
        data: the batches.
        max_memory: bytes of the sums of a group; a layer that takes more is a group alone.
        sliced: take x x^T in exact float32 products on devices where float64 is slow; see `add_gram`.

    Raises:
        CalibrationError: no batches, or no input reached a layer whose adapters add something.
        NotFiniteInputsError: an input, or a sigma, that is not finite.
    """
    groups = _groups(targets, max_memory)
    if len(groups) > 1:
        data.hold()
    for group in groups:
        found = _collect(runner, group, data.one_pass(), sliced)
        while found:
            together = [found.pop(0)]
            while found and torch.equal(together[0].total, found[0].total):
                together.append(found.pop(0))
                together[-1].total = torch.empty(0)  # the first has it
            mirror(together[0].total)
            yield together


def _groups(targets: Sequence[Target], max_memory: float) -> list[list[Target]]:
    """Layers in their order, as many together as there is memory for their sums; one that needs more is alone."""
    groups: list[list[Target]] = []
    taken = math.inf
    for target in targets:
        need = 8 * target.d_in * (target.d_in + sum(int(target.module.r[a]) for a in target.adapters))
        taken += need
        if taken > max_memory:
            groups.append([])
            taken = need
        groups[-1].append(target)
    return groups


def _collect(runner: Runner, targets: Sequence[Target], batches: Iterable[Any], sliced: bool) -> list[Moments]:
    """The sums of each layer that an input reached."""
    every = [Moments(target) for target in targets]
    products = _Products(runner, sliced)
    n = 0
    with watched_inputs([(one.target.module, partial(products.see, one)) for one in every]):
        for batch in batches:
            runner.run(batch, [target.module for target in targets])
            products.last = None
            n += 1
    counts = torch.tensor([n, *(one.vectors for one in every)], device=runner.device)
    sum_over_processes(counts)
    n, *vectors = counts.tolist()
    if not n:
        raise no_batches(runner.action)
    missed = [one.target for one, count in zip(every, vectors, strict=True) if not count]
    if trained := [target.name for target in missed if not target.is_idle()]:
        raise runner.not_reached(trained)
    found = []
    for one, count in zip(every, vectors, strict=True):
        if not count:
            continue
        one.vectors = count
        one.make_room(runner.device)  # of a layer that other processes alone have reached
        sum_over_processes(one.total, *one.cross.values(), *one.power.values())
        if not all(bool(each.isfinite().all()) for each in (one.total.diagonal(), *one.power.values())):
            raise NotFiniteInputsError(
                f"The inputs of {one.target.name} are not finite: is the model or a batch broken?"
            )
        found.append(one)
    return found


class _Products:
    """Adds what layers see to their sums; layers that see one tensor, as q, k and v do, share its product x^T x."""

    def __init__(self, runner: Runner, sliced: bool) -> None:
        self.runner, self.sliced = runner, sliced
        self.last: tuple[Tensor, int, Any] | None = None  # the tensor, its changes in place, and how it is cut
        self.product = torch.empty(0)

    @torch.no_grad()
    def see(self, one: Moments, x: Tensor) -> None:
        layer = one.target.module
        one.make_room(x.device)
        now = None if x.is_inference() else (x, x._version, input_geometry(layer))  # where changes are not counted
        shared = now is not None and self.last is not None and x is self.last[0] and now[1:] == self.last[1:]
        self.last = now
        if not shared:
            fits = self.product.shape == one.total.shape and self.product.device == one.total.device
            self.product = self.product.zero_() if fits else torch.zeros_like(one.total)
        for vectors, _ in self.runner.pieces(layer, x):
            one.vectors += len(vectors)
            device = one.total.device
            sigmas = {
                a: layer.sigma(a, layer.hidden_values(a, vectors)).to(device).double() for a in one.target.adapters
            }  # as the layer itself computes it
            for adapter, sigma in sigmas.items():
                one.power[adapter] += sigma.square().sum()
            sliced = self.sliced and has_slow_float64(device) and vectors.dtype != torch.float64
            for rows in row_pieces(len(vectors), vectors.shape[1]):
                narrow = vectors[rows].to(device)
                wide = narrow.double()
                if not shared:
                    add_gram(self.product, narrow if sliced else wide, sliced)
                for adapter, sigma in sigmas.items():
                    one.cross[adapter].addmm_(sigma[rows].T, wide)
        one.total += self.product


# -------------------------------------------------------------------- the calibrated matrix

RIDGES = (100.0, 1.0, 0.1, 0.01)
"""What is tried, in units of the mean of the diagonal of E[x x^T], from the largest; the least ridge comes last."""
_PROBES = 64
"""Random vectors that the trace of an inverse is estimated with."""
_TOLERANCE = 1e-10
"""The tolerance in the rank of E[z z^T]."""


def solve(layers: list[Moments], ridge: float) -> list[tuple[Tensor, LayerCalibration]]:
    """A_cal of layers with the same inputs: sigma as a linear map of z first, and of x what that leaves.

    D = argmin E|sigma - D z|^2, (r, r), is well determined by few vectors, which d_in numbers a row are not. So the
    ridge is one towards D A, and not towards 0:

        A_cal = argmin_M E|sigma - M x|^2 + lambda |M - D A|^2 = D A + (C - D A S) (S + lambda I)^-1

    with C = E[sigma x^T] and S = E[x x^T]. Of lambda = 100, 1, 0.1 and 0.01 times mean(diag S), and `ridge` times that,
    each layer takes the one with the least error by generalised cross-validation (Golub, Heath and Wahba, 1979), going
    down from the largest while that falls: with many vectors the smallest, with few hardly more than D A.

    One Cholesky factor of each ridge serves all the layers. S is overwritten; beside it there are its factor, and a
    copy of the factor that `cholesky_solve` makes.
    """
    S = layers[0].total.div_(layers[0].vectors)
    scale = float(S.diagonal().mean())
    fits = [_Fit(layer, adapter, S) for layer in layers for adapter in layer.cross]
    improving, added = fits, 0.0
    for each in sorted({ridge, *(one for one in RIDGES if one > ridge)}, reverse=True):
        S.diagonal().add_(each * scale - added)
        added = each * scale
        factor, failed = torch.linalg.cholesky_ex(S)
        if failed:  # inputs that are all zero, or no ridge for fewer vectors than dimensions
            break
        freedom = _freedom(factor, added)
        improving = [fit for fit in improving if fit.improve(S, factor, added, freedom)]
        del factor
        if not improving:
            break
    return [fit.result() for fit in fits]


def _freedom(factor: Tensor, added: float) -> float:
    """tr(S (S + lambda I)^-1), the degrees of freedom of a row of the matrix; from the factor of S + lambda I."""
    if not added:
        return float(len(factor))
    signs = torch.randint(2, (len(factor), _PROBES), generator=torch.Generator().manual_seed(0), device="cpu")
    probes = (2 * signs - 1).to(factor)
    trace = (probes * torch.cholesky_solve(probes, factor)).sum() / _PROBES
    return len(factor) - added * float(trace)


class _Fit:
    """The best matrix so far of one adapter of one layer."""

    def __init__(self, layer: Moments, adapter: str, S: Tensor) -> None:
        self.layer, self.adapter, n = layer, adapter, layer.vectors
        C, self.power = layer.cross[adapter] / n, float(layer.power[adapter] / n)
        A: Any = layer.target.module.aurora_A[adapter]()
        A = gathered(getattr(A, "weight", A).detach()).to(C)
        z = A @ S @ A.T  # E[z z^T]
        D = (C @ A.T) @ torch.linalg.pinv(z, rtol=_TOLERANCE, hermitian=True)
        self.rank = int(torch.linalg.matrix_rank(z, rtol=_TOLERANCE, hermitian=True))
        self.linear = D @ A
        self.rest = C - self.linear @ S  # E[(sigma - D z) x^T]
        # E|sigma - M x|^2 = E|sigma|^2 - <M, C> - <M, C - M S>, from the sums: no second pass over the inputs
        self.error = self.power - float((self.linear * (C + self.rest)).sum())
        self.matrix, self.left, self.ridge, self.score = self.linear, self.error, 0.0, math.inf

    def improve(self, S: Tensor, factor: Tensor, added: float, freedom: float) -> bool:
        """Take the matrix of a ridge if it is the better one; S and the factor are those of S + lambda I."""
        M = torch.cholesky_solve(self.rest.T, factor).T
        left = self.error - 2 * float((M * self.rest).sum()) + float(((M @ S) * M).sum() - added * M.square().sum())
        free = 1 - (freedom + self.rank) / self.layer.vectors
        score = left / free**2 if free > 0 else math.inf
        if self.ridge and score >= self.score:
            return False
        self.matrix, self.left, self.ridge, self.score = self.linear + M, left, added, score
        return True

    def result(self) -> tuple[Tensor, LayerCalibration]:
        """The best matrix, and how good it is."""
        explained = 1 - self.left / self.power if self.power > 0 else 1.0
        layer = self.layer
        return self.matrix, LayerCalibration(layer.target.name, self.adapter, layer.vectors, explained, self.ridge)


# -------------------------------------------------------------------- exact products

SLICE_BITS, SLICES, SLICED_ROWS = 7, 4, 1024
"""Integers of up to 2^7 in magnitude: the sum of 1,024 products of two is at most 2^24, and so exact in float32."""
LEAST_RIDGE_OF_SLICES = 1e-4
"""31 bits of each input keep the calibrated matrix within 1e-5 from here on; a smaller ridge needs all of float64."""


def add_gram(total: Tensor, x: Tensor, sliced: bool) -> None:
    """Add x^T x to the lower triangle of `total`; what lies above it is not kept up: see `mirror`.

    One float32 product for each chunk is not enough: on ill-conditioned inputs, as hidden states are, the calibrated
    matrix is then further than 1e-5 from the float64 one (tests/deploy/test_products.py).

    Args:
        total: (d, d), float64.
        x: (n, d), on the device of `total`: float64, or, sliced, a narrower one.
        sliced: take the products in float32, exactly: several times faster where float64 is slow.
    """
    if sliced:
        for start in range(0, len(x), SLICED_ROWS):
            _add_sliced(total, x[start : start + SLICED_ROWS].float())
        return
    for strip in _strips(len(total)):  # little more than half of the whole product
        total[strip.start :, strip].addmm_(x[:, strip.start :].T, x[:, strip])


def _strips(d: int) -> Iterator[slice]:
    """Strips of columns, from the diagonal down."""
    width = max(192, -(-d // 8))
    return (slice(start, start + width) for start in range(0, d, width))


def _add_sliced(total: Tensor, x: Tensor) -> None:
    """x as a sum of slices of few bits, scaled by column; products of slices are sums of integers up to 2^24.

    x[:, i] = 2^e_i (s_0 2^-7 + s_1 2^-15 + s_2 2^-23 + s_3 2^-31), each s an integer of at most 2^7 in magnitude.
    Products of two slices that together lie below the last one are left out.
    """
    _, exponents = torch.frexp(x.abs().amax(0))
    rest = torch.ldexp(torch.ldexp(x, -(exponents // 2)), exponents // 2 - exponents + SLICE_BITS)  # 2^-e may overflow
    slices = []
    for _ in range(SLICES):
        slices.append(rest.round())
        rest = (rest - slices[-1]) * 2.0 ** (SLICE_BITS + 1)
    half = torch.zeros_like(total)  # and half^T are the product
    with full_float32(), without_autocast(total):
        for i, one in enumerate(slices):
            for j, other in enumerate(slices[i : SLICES + 1 - i], i):
                weight = 2.0 ** (-2 * SLICE_BITS - (SLICE_BITS + 1) * (i + j))
                half.add_(one.T @ other, alpha=weight / 2 if i == j else weight)
    scale = torch.exp2(exponents.double())
    half.mul_(scale[:, None]).mul_(scale)
    total.add_(half).add_(half.T)


def mirror(total: Tensor) -> None:
    """Make `total` (d, d) symmetric from its lower triangle."""
    for strip in _strips(len(total)):
        block = total[strip, strip]
        block.copy_(block.tril() + block.tril(-1).T)
        total[strip, strip.stop :] = total[strip.stop :, strip].T


_FAST_FLOAT64 = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}
"""NVIDIA's compute capabilities with float64 at half the rate of float32; elsewhere it is a 32nd or a 64th."""


def has_slow_float64(device: torch.device) -> bool:
    """Whether the device is a GPU that computes float64 at a small part of its float32 rate."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) not in _FAST_FLOAT64


def float64_device(device: torch.device) -> torch.device:
    """Where float64 can be computed: on the CPU for a device that has none (Apple's MPS)."""
    return torch.device("cpu") if device.type == "mps" else device


def to_float64(values: Tensor) -> Tensor:
    """A tensor in float64, where that can be computed."""
    return values.to(float64_device(values.device)).double()


def row_pieces(rows: int, width: int) -> Iterator[slice]:
    """The rows of a (rows, width) matrix in pieces of about `inputs.CHUNK_BYTES` in float64."""
    step = rows_of_piece(width)
    return (slice(start, start + step) for start in range(0, rows, step))


# -------------------------------------------------------------------- sums over processes

_alone = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Within the block this process works for itself: nothing is summed, and the others need not come."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def several_processes() -> bool:
    """Whether this is one of several processes of a distributed run, which work together."""
    return not _alone.get() and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_processes(*totals: Tensor) -> None:
    """Sum each tensor over the processes, in place. Each process is to call this in the same order."""
    if several_processes():
        for each in totals:
            dist.all_reduce(each)


def leave_processes() -> None:
    """Leave the distributed run, if this process is in one: gloo's threads would abort it where they end after Python,
    and so would those of DDP's wrappers, which are freed first."""
    if dist.is_available() and dist.is_initialized():
        gc.collect()
        time.sleep(0.1)  # torch before 2.8 waits for ever for a thread that still frees tensors (pytorch#154976)
        dist.destroy_process_group()
