"""`probe`: where the loss's gradient with respect to the frozen weights is, before the training (docs/ranks.md)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor, nn

from ..errors import CalibrationError
from ..forms import DYNAMIC
from ..tuner import active_layers
from ..tuner.adapters import check_not_merged, plain_path
from ..tuner.linear import linear_shape
from ..tuner.targets import ALL_LINEAR, named
from .calibrate import ROUNDING, float64_device, several_processes, sum_over_processes
from .gradients import LOSS_SCALES, See, activation_gradients, frozen_linears, watched_gradients
from .inputs import Passes, Reading, Runner, gpus_of, no_batches, plain_model, watched_inputs
from .predictions import next_tokens, predicts_next_token, tensor_of

if TYPE_CHECKING:
    pass

Loss = Callable[[Any, Any], Tensor]
"""`loss(model, batch)`, a scalar."""
OVERSAMPLING = 8
"""Columns of a sketch beyond the wanted rank."""
ENOUGH = 512
"""Vectors of each layer that its deviations are taken over at least, where the batches have as many. Several processes
take all batches."""


@dataclass(frozen=True, eq=False)
class LayerProbe:
    """What was found in one layer: the k leading directions of its gradient G, (d_out, d_in).

    Args:
        layer: its path in the plain model.
        d_out: rows of its weight.
        d_in: columns of its weight.
        singular_values: (k,), of G, largest first.
        directions: (k, d_in), the right singular vectors of G, one a row.
        deviations: (k,), the standard deviation of `z = v x` over the inputs x, for each direction v.
    """

    layer: str
    d_out: int
    d_in: int
    singular_values: Tensor = field(repr=False)
    directions: Tensor = field(repr=False)
    deviations: Tensor = field(repr=False)


@dataclass(frozen=True, eq=False)
class Probe:
    """The result of `probe`."""

    layers: tuple[LayerProbe, ...]
    without_gradient: tuple[str, ...]
    """Layers that no gradient came through: the loss does not depend on them, or their module is not called, as the
    output projection of `nn.MultiheadAttention`."""
    batches: int
    """How many batches all processes ran together."""
    passes: int
    """How many passes were made over the batches, the last, perhaps of some only, without a backward pass."""
    seconds: float
    modules: tuple[str, ...] = field(default=(), repr=False)
    """The paths of all modules of the model, by which names of some can be told from those of others."""


# -------------------------------------------------------------------- the loss


def _loss_of_texts(model: Any, batch: Any) -> Tensor:
    if not predicts_next_token(model):
        raise TypeError(
            "The texts of a datasets.Dataset have no labels, which only a causal language model can do without: give "
            "loss=, or a DataLoader of batches with labels."
        )
    return _own_loss(model, {**batch, "labels": next_tokens(batch, batch["input_ids"].device)})


def _own_loss(model: Any, batch: Any) -> Tensor:
    outputs = model(**batch) if isinstance(batch, dict) else None
    if (found := tensor_of(outputs, "loss")) is None:
        raise CalibrationError("The model gives no loss: labels are needed in the batches, or loss(model, batch).")
    return found


# -------------------------------------------------------------------- the passes


def probe(
    model: nn.Module,
    batches: Any,
    *,
    loss: Loss | None = None,
    rank: int = 16,
    target_modules: Sequence[str] | str | None = None,
    exclude_modules: Sequence[str] | str | None = None,
    power_iterations: int = 1,
    seed: int = 0,
    progress: bool = False,
    **reading: Unpack[Reading],
) -> Probe:
    """Find the directions of each frozen weight's gradient along which a low-rank adapter would learn most at first.

    For each linear layer and Conv1D: the leading singular values and right singular vectors of
    G = dL/dW0, the mean over the batches of the gradient of their loss, by a randomised range finder. `Y = G Omega`,
    with `rank` + 8 random columns, comes from one backward pass over the batches, and with an orthonormal basis Q of it
    `G^T Q` from a second one; a third, forward alone and over some of the batches, gives the deviation of z along each
    direction. No gradient of a weight is ever computed: the passes hold up to 2 (rank + 8) (d_in + d_out) numbers for
    each layer, and the layers' inputs of one batch, with gradient checkpointing those of one block. Weights may be
    quantised or offloaded. The model is in eval mode, as its adapters stand; its gradients, modes, hooks and random
    state are as before when it returns or raises.

    With `torch.distributed` initialised, the gradients are averaged over the batches of all processes: call it on every
    one of them.

    Args:
        model: a plain model, or one with adapters of PEFT.
        batches: some hundred training examples with what the loss needs: an iterable of dicts of tensors, of tensors or
            of tuples. Each pass has the same ones, as in `calibrate`. A `datasets.Dataset`, with `tokenizer`, has no
            labels: it needs a `loss`, or a causal language model, which is then probed by the loss of each next token.
        loss: `loss(model, batch)`, a scalar; `model(**batch).loss` if None.
        rank: directions to find in each layer, where it has as many.
        target_modules: names or a regular expression of the layers, as in PEFT. None is every linear layer but
            the output layer of a language model and what `modules_to_save` trains whole.
        exclude_modules: layers to leave out, in the same way.
        power_iterations: further ones sharpen the directions where singular values lie close together, at two backward
            passes each.
        seed: of the random columns.
        reading: as in `calibrate`: `tokenizer`, `text_columns`, `batch_size`, `examples`, `max_length`.
        progress: as in `calibrate`.

    Returns:
        A `LayerProbe` of each layer, in main memory: singular values (k,), directions (k, d_in), deviations (k,), with
        k = `rank` where the layer has as many.

    Raises:
        CalibrationError: no batches, a model that gives no loss, a loss that depends on none of the layers, or a
            gradient that is not finite.
        AlreadyMergedError: an adapter is merged that was trained in the dynamic form.
        TypeError: batches of no such kind; a dataset without a `loss`; as `calibrate`.
        ValueError: an argument that is not allowed, or `target_modules` that name no layer.
    """
    for name, value in (("rank", rank), ("power_iterations", power_iterations)):
        if value < 1:
            raise ValueError(f"{name}={value!r} is not allowed: it must be a whole number of at least 1.")
    start = time.perf_counter()
    data = Passes(batches, "probing" if progress else "", **reading)
    if loss is None:
        loss = _own_loss if reading.get("tokenizer") is None else _loss_of_texts
    data.hold()
    for path, layer, name in active_layers(model):
        if layer.aurora_config[name].train_form == DYNAMIC:  # merged, the static one is what it is trained in
            check_not_merged(path, layer, "probe")
    chosen = _chosen(frozen_linears(model), target_modules, exclude_modules)
    with activation_gradients(model), Runner(model, "probe") as runner:
        sketches = [Sketch(name, layer, rank, seed + i, runner) for i, (name, layer) in enumerate(chosen.items())]
        for _ in range(power_iterations):
            n = _backward(runner, data, loss, seed, sketches, Sketch.sees_inputs)
            for one in sketches:
                one.end_of_range(n)
            n = _backward(runner, data, loss, seed, sketches, Sketch.sees_both)
            for one in sketches:
                one.end_of_co_range(n)
        found = [one for one in sketches if one.singular_values[0] > 0]
        if not found:
            raise CalibrationError("The loss depends on none of the layers: is it computed from the model's output?")
        _forward(runner, data, loss, seed, found)
        layers = tuple(one.result() for one in found)  # tensors to compute with, also in inference mode
    without = tuple(one.name for one in sketches if one not in found)
    plain = plain_model(model)
    modules = dict.fromkeys(path for name, _ in plain.named_modules() if (path := plain_path(plain, name)))
    return Probe(layers, without, n, data.passes, time.perf_counter() - start, tuple(modules))


def _chosen(
    layers: dict[str, nn.Module], targets: Sequence[str] | str | None, excluded: Sequence[str] | str | None
) -> dict[str, nn.Module]:
    every = ".*" if targets is None or targets == ALL_LINEAR else targets
    names = every if isinstance(every, str) else list(every)
    excluded = excluded if excluded is None or isinstance(excluded, str) else list(excluded)
    chosen = {path: layers[path] for path in named(layers, names, exclude_modules=excluded)}
    if not chosen:
        raise ValueError(
            f"target_modules={targets!r} names no linear layer of the model, or all are excluded. Its linear layers "
            f"are named {', '.join(sorted({path.rpartition('.')[2] for path in layers}))}."
        )
    return chosen


def _inputs(runner: Runner, data: Passes, seed: int) -> Iterable[Any]:
    """The batches; what a model draws in spite of eval mode is the same in each pass."""
    for i, batch in enumerate(data.one_pass()):
        torch.default_generator.manual_seed(seed + i)  # not of all GPUs: what is not of the model is not put back
        for gpu in gpus_of(runner.model):
            torch.cuda.default_generators[gpu].manual_seed(seed + i)
        yield runner.read(batch)


def _backward(
    runner: Runner, data: Passes, loss: Loss, seed: int, sketches: list[Sketch], begin: Callable[[Sketch], See]
) -> int:
    """A pass with gradients over the batches, whose number it gives; the sums are over all of them, and processes."""
    for scale in LOSS_SCALES:
        count = torch.zeros((), dtype=torch.int64, device=runner.device)
        with watched_gradients([(one.layer, begin(one)) for one in sketches]) as backward:
            for inputs in _inputs(runner, data, seed):
                count += 1
                value = loss(runner.model, inputs)
                if value.requires_grad:
                    backward(value * scale)
        sum_over_processes(count, *(one.total for one in sketches))
        if all(bool(one.total.isfinite().all()) for one in sketches):
            break
    for one in sketches:
        one.total /= scale
    if not count:
        raise no_batches("probe")
    return int(count)


@torch.no_grad()
def _forward(runner: Runner, data: Passes, loss: Loss, seed: int, sketches: list[Sketch]) -> None:
    """A pass for the deviations."""
    with watched_inputs([(one.layer, one.sees_vectors()) for one in sketches]):
        for inputs in _inputs(runner, data, seed):
            loss(runner.model, inputs)
            if not several_processes() and all(one.count >= ENOUGH for one in sketches):
                break  # several end at the same batch, as a forward pass may wait for theirs
    sum_over_processes(*(total for one in sketches for total in (one.total, one.count)))


class Sketch:
    """The running sums of one layer. What is kept between passes is in main memory: Q, or what was found so far."""

    def __init__(self, name: str, layer: nn.Module, rank: int, seed: int, runner: Runner) -> None:
        self.name, self.layer, self.runner, self.seed = name, layer, runner, seed
        self.d_out, self.d_in = linear_shape(layer)
        least = min(self.d_out, self.d_in)
        self.rank, self.columns = min(rank, least), min(rank + OVERSAMPLING, least)
        held = next((p for p in (*layer.parameters(), *layer.buffers()) if not p.is_meta), None)
        self.device = runner.device if held is None or hasattr(held, "device_mesh") else held.device
        self.dtype = torch.float64 if held is not None and held.dtype == torch.float64 else torch.float32
        self.rows: Any = None  # V^T, (columns, d_in), once it is found
        self.basis = torch.empty(0)  # Q, (d_out, columns), until then
        self.total = torch.empty(0)
        self.singular_values = torch.zeros(1)
        self.count = torch.zeros(())

    def sees_inputs(self) -> See:
        """For the range: sums of g (x Omega)^T, with V in place of Omega where it is there."""
        draw = torch.Generator().manual_seed(self.seed)
        omega = torch.randn(self.columns, self.d_in, generator=draw, dtype=self.dtype, device="cpu")
        rows = (omega if self.rows is None else self.rows).to(self.device)
        self.total = rows.new_zeros(self.d_out, self.columns)

        def see(x: Tensor, g: Tensor) -> None:
            self.total += self._flat(g, self.d_out).T @ (self._flat(x, self.d_in) @ rows.T)

        return see

    def sees_both(self) -> See:
        """For the co-range: sums of x (g Q)^T."""
        basis = self.basis.to(self.device)
        self.total = basis.new_zeros(self.d_in, self.columns)

        def see(x: Tensor, g: Tensor) -> None:
            self.total += self._flat(x, self.d_in).T @ (self._flat(g, self.d_out) @ basis)

        return see

    def _flat(self, values: Tensor, width: int) -> Tensor:
        return values.reshape(-1, width).to(self.device, self.dtype)

    def end_of_range(self, batches: int) -> None:
        """Y -> Q."""
        self.basis = torch.linalg.qr(self._mean(batches).double())[0].to(self.dtype)
        self.rows = None

    def end_of_co_range(self, batches: int) -> None:
        """G^T Q = V S W^T: singular values and right singular vectors of Q Q^T G, each vector with its largest entry
        positive."""
        V, S, _ = torch.linalg.svd(self._mean(batches).double(), full_matrices=False)
        at_largest = V.gather(0, V.abs().argmax(0, keepdim=True))
        self.rows = (V * torch.where(at_largest < 0, -1.0, 1.0)).T.to(self.dtype).contiguous()
        self.singular_values = S[: self.rank]
        self.basis = torch.empty(0)

    def _mean(self, batches: int) -> Tensor:
        mean = (self.total / batches).cpu()
        self.total = torch.empty(0)
        if not mean.isfinite().all():
            raise CalibrationError(f"The gradient of {self.name} is not finite: is the model or a batch broken?")
        return mean

    def sees_vectors(self) -> Callable[[Tensor], None]:
        """For the deviations: sums of 1, z and z^2 over the vectors that are no padding."""
        rows = self.rows[: self.rank].to(self.device)
        self.total = torch.zeros(2, self.rank, dtype=torch.float64, device=float64_device(self.device))
        self.count = torch.zeros((), dtype=torch.int64, device=self.device)

        def add(x: Tensor) -> None:
            x = self.runner.vectors(self.layer, x)
            with torch.autocast(rows.device.type, enabled=False):
                z = (self._flat(x, self.d_in) @ rows.T).to(self.total)
            self.total += torch.stack((z.sum(0), z.square().sum(0)))
            self.count += len(z)

        return add

    def result(self) -> LayerProbe:
        """What was found."""
        mean, square = (self.total / self.count.to(self.total)).cpu()
        variance = square - mean.square()
        # the same z for all inputs, but for rounding, which is as large where the parts of z cancel out
        variance[variance <= ROUNDING**2 * square.max()] = 0
        found = (self.singular_values, self.rows[: self.rank], variance.sqrt())
        return LayerProbe(self.name, self.d_out, self.d_in, *(one.float() for one in found))
