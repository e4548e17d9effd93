"""`probe`: where the loss's gradient with respect to the frozen weights is, before the training (docs/ranks.md)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CalibrationError
from ..tuner import aurora_layers
from ..tuner.peft_names import check_target_module_exists
from .calibrate import trained_state
from .float64 import float64_device
from .gradients import See, Weight, frozen, frozen_weights, watched_gradients
from .inputs import Runner, as_batches, watched_inputs
from .passes import Passes, evaluated, memory_bound, unpacked_weights
from .processes import least_of_processes, sum_over_processes

OVERSAMPLING = 8
"""Columns of a sketch beyond the wanted rank."""

ENOUGH = 512
"""Vectors of each layer that its deviations are taken over at least, where the batches have as many."""

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class LayerProbe:
    """What was found in one layer: the k leading directions of its gradient G, (d_out, d_in).

    Args:
        layer: its path in the plain model.
        d_out: rows of its weight.
        d_in: columns of its weight; of a convolution, the length of a patch.
        groups: of a convolution.
        singular_values: (k,), of G, largest first.
        directions: (k, d_in), the right singular vectors of G, one a row.
        deviations: (k,), the standard deviation of `z = v x` over the inputs x, for each direction v.
    """

    layer: str
    d_out: int
    d_in: int
    groups: int
    singular_values: Tensor
    directions: Tensor
    deviations: Tensor


@dataclass(frozen=True)
class Probe:
    """The result of `probe`."""

    layers: tuple[LayerProbe, ...]
    without_gradient: tuple[str, ...]
    """Layers that the loss does not depend on."""
    batches: int
    """Of all processes."""
    passes: int
    """Over the batches, the last, perhaps of some only, without a backward pass."""
    groups: int
    """Of layers that were worked on one after another to stay within `max_memory`."""
    seconds: float


def probe(
    model: nn.Module,
    batches: Any,
    loss: Loss | None = None,
    *,
    rank: int = 16,
    target_modules: Sequence[str] | str | None = None,
    exclude_modules: Sequence[str] | str | None = None,
    power_iterations: int = 1,
    seed: int = 0,
    max_memory: int | str | None = None,
) -> Probe:
    """Find the directions of each frozen weight's gradient along which a low-rank adapter would learn most at first.

    For each linear layer, Conv1D and convolution: the leading singular values and right singular vectors of
    G = dL/dW0, the mean over the batches of the gradient of their loss, by a randomised range finder. `Y = G Omega`,
    with `rank` + 8 random columns, comes from one backward pass over the batches, and with an orthonormal basis Q of it
    `G^T Q` from a second one; a third, forward alone and over some of the batches, gives the deviation of z along each
    direction. No gradient of a weight is ever computed: the passes hold (rank + 8) (d_in + d_out) numbers for each
    layer, and the layers' inputs of one batch. Weights may be quantised or offloaded. The model is in eval mode, as its
    adapters stand; its gradients, modes, hooks and random state are as before when it returns or raises.

    With `torch.distributed` initialised, the gradients are averaged over the batches of all processes: call it on every
    one of them.

    Args:
        model: a plain model, or one with adapters of PEFT.
        batches: some hundred training examples with what the loss needs: an iterable of dicts of tensors, of tensors or
            of tuples.
        loss: `loss(model, batch)`, a scalar; `model(**batch).loss` if None.
        rank: directions to find in each layer, where it has as many.
        target_modules: names or a regular expression of the layers, as in PEFT. None is every linear layer and
            convolution but the output layer of a language model and what `modules_to_save` trains whole.
        exclude_modules: layers to leave out, in the same way.
        power_iterations: further ones sharpen the directions where singular values lie close together, at two backward
            passes each.
        seed: of the random columns.
        max_memory: bound on the memory for sketches and inputs, in bytes or as in "4GiB"; half of what is free if None.
            Layers are worked through in groups that fit, with passes of their own for each.

    Raises:
        CalibrationError: no batches, a model that gives no loss, a loss that depends on none of the layers, a gradient
            that is not finite, or a `max_memory` that not even one layer fits in.
        ValueError: an argument that is not allowed, or `target_modules` that name no layer.
    """
    for name, value in (("rank", rank), ("power_iterations", power_iterations)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} is not allowed: it must be a whole number of at least 1.")
    start = time.perf_counter()
    data = Passes(as_batches(batches))
    data.keep_iterator()
    chosen = _chosen(frozen_weights(model), target_modules, exclude_modules)
    with _at_rest(model), Runner(model) as runner:
        sketches = [_Sketch(name, weight, rank, seed + i, runner) for i, (name, weight) in enumerate(chosen.items())]
        work = _Work(runner, data, loss or _own_loss, seed, *memory_bound(max_memory, runner.device))
        for _ in range(power_iterations):
            work.backward(sketches, _Sketch.sees_inputs, _Sketch.end_of_range, lambda one: one.bytes)
            work.backward(sketches, _Sketch.sees_both, _Sketch.end_of_co_range, lambda one: one.bytes + one.held)
        found = [one for one in sketches if one.singular_values[0] > 0]
        if not found:
            raise CalibrationError("The loss depends on none of the layers: is it computed from the model's output?")
        work.forward(found)
    layers = tuple(one.result() for one in found)
    without = tuple(one.name for one in sketches if one not in found)
    return Probe(layers, without, work.batches, data.passes, work.groups, time.perf_counter() - start)


def _chosen(
    weights: dict[str, Weight], targets: Sequence[str] | str | None, excluded: Sequence[str] | str | None
) -> dict[str, Weight]:
    every = ".*" if targets is None or targets == "all-linear" else targets
    names = every if isinstance(every, str) else list(every)
    config = SimpleNamespace(
        target_modules=names,
        target_parameters=None,
        modules_to_save=None,
        exclude_modules=excluded if excluded is None or isinstance(excluded, str) else list(excluded),
        layers_to_transform=None,
        layers_pattern=None,
    )
    # PEFT's answer for an excluded module is an object that is false
    chosen = {path: weight for path, weight in weights.items() if check_target_module_exists(config, path)}
    if not chosen:
        raise ValueError(f"target_modules={targets!r} names no linear layer of the model, or all are excluded.")
    return chosen


def _own_loss(model: Any, batch: Any) -> Tensor:
    outputs = model(**batch) if isinstance(batch, dict) else None
    found = outputs.get("loss") if isinstance(outputs, dict) else getattr(outputs, "loss", None)
    if not isinstance(found, Tensor):
        raise CalibrationError("The model gives no loss: probe needs batches with labels, or loss(model, batch).")
    return found


@contextmanager
def _at_rest(model: nn.Module) -> Any:
    """The model as it stands, in eval mode, with gradients for activations and none for weights."""
    with ExitStack() as stack:
        stack.enter_context(trained_state(model) if any(True for _ in _aurora(model)) else evaluated(model))
        stack.enter_context(unpacked_weights(model))
        stack.enter_context(frozen(model))
        stack.enter_context(torch.enable_grad())
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = True  # Transformers checkpoints in train mode only; `evaluated` puts it back
        embeddings = _input_embeddings(model)
        if embeddings is not None:  # reentrant checkpointing needs an input with a gradient
            stack.callback(embeddings.register_forward_hook(_tracked).remove)
        yield


def _aurora(model: nn.Module) -> Iterable[Any]:
    try:
        return list(aurora_layers(model))
    except ValueError:
        return ()


def _input_embeddings(model: Any) -> nn.Module | None:
    try:
        found = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Module) else None


def _tracked(_: nn.Module, args: Any, output: Any) -> Any:
    if isinstance(output, Tensor) and output.is_floating_point() and torch.is_grad_enabled():
        return output if output.requires_grad else output.requires_grad_()
    return output


# -------------------------------------------------------------------- one layer


class _Sketch:
    """The running sums of one layer. What is kept between passes is in main memory."""

    def __init__(self, name: str, weight: Weight, rank: int, seed: int, runner: Runner) -> None:
        self.name, self.weight, self.runner = name, weight, runner
        least = min(weight.d_out, weight.d_in)
        self.rank, self.columns = min(rank, least), min(rank + OVERSAMPLING, least)
        held = next(weight.layer.parameters(), None)
        self.device = runner.device if held is None or held.is_meta else held.device
        self.dtype = torch.float64 if held is not None and held.dtype == torch.float64 else torch.float32
        draw = torch.Generator().manual_seed(seed)
        self.rows = torch.randn(self.columns, weight.d_in, generator=draw, dtype=self.dtype)  # Omega^T; then V^T
        self.basis = torch.empty(0)  # Q, (d_out, columns)
        self.total = torch.empty(0)
        self.singular_values = torch.zeros(1)
        self.held = 0
        self.count = torch.zeros(())

    @property
    def bytes(self) -> int:
        """Of the matrices that a pass works with."""
        return (8 if self.dtype == torch.float64 else 4) * 2 * self.columns * (self.weight.d_in + self.weight.d_out)

    def sees_inputs(self) -> Any:
        """For the range: of each input x, x Omega is kept."""
        rows, weight = self.rows.to(self.device), self.weight
        self.total = rows.new_zeros(weight.d_out, self.columns)
        self._of_a_batch = 0

        def keep(x: Tensor) -> tuple[Tensor, See]:
            self._of_a_batch += x.numel() * x.element_size()
            return weight.project(x.to(self.dtype), rows), see

        def see(seen: Tensor, g: Tensor) -> None:
            by_group = weight.outputs(g).to(self.dtype).transpose(1, 2) @ seen
            self.total += by_group.reshape(self.total.shape)

        return keep

    def sees_both(self) -> Any:
        """For the co-range: the inputs themselves are kept until the gradient has come."""
        weight = self.weight
        by_group = self.basis.to(self.device).view(weight.groups, -1, self.columns)
        self.total = by_group.new_zeros(weight.d_in, self.columns)

        def keep(x: Tensor) -> tuple[Tensor, See]:
            return x, see

        def see(x: Tensor, g: Tensor) -> None:
            self.total += weight.gather(x.to(self.dtype), weight.outputs(g).to(self.dtype) @ by_group)

        return keep

    def end_of_batch(self) -> None:
        self.held, self._of_a_batch = max(self.held, self._of_a_batch), 0

    def end_of_range(self, batches: int) -> None:
        """Y -> Q."""
        self.basis = torch.linalg.qr(self._mean(batches).double())[0].to(self.dtype)

    def end_of_co_range(self, batches: int) -> None:
        """G^T Q = V S W^T: singular values and right singular vectors of Q Q^T G, each vector with its largest entry
        positive."""
        V, S, _ = torch.linalg.svd(self._mean(batches).double(), full_matrices=False)
        at_largest = V.gather(0, V.abs().argmax(0, keepdim=True))
        self.rows = (V * torch.where(at_largest < 0, -1.0, 1.0)).T.to(self.dtype).contiguous()
        self.singular_values = S[: self.rank]

    def _mean(self, batches: int) -> Tensor:
        mean = (self.total / batches).cpu()
        self.total = torch.empty(0)
        if not torch.isfinite(mean).all():
            raise CalibrationError(f"The gradient of {self.name} is not finite: is the model or a batch broken?")
        return mean

    def sees_vectors(self) -> Any:
        """For the deviations: sums of 1, z and z^2 over the vectors that are no padding."""
        rows, weight = self.rows[: self.rank].to(self.device), self.weight
        self.total = torch.zeros(2, self.rank, dtype=torch.float64, device=float64_device(self.device))
        self.count = torch.zeros((), dtype=torch.int64, device=self.device)

        def add(x: Tensor) -> None:
            if type(weight) is Weight:
                x = self.runner.vectors(weight.layer, x)
            z = weight.project(x.to(self.dtype), rows).flatten(0, 1).to(self.total)
            self.total += torch.stack((z.sum(0), z.square().sum(0)))
            self.count += len(z)

        return add

    def result(self) -> LayerProbe:
        mean, square = (self.total / self.count.to(self.total)).cpu()
        return LayerProbe(
            self.name,
            self.weight.d_out,
            self.weight.d_in,
            self.weight.groups,
            self.singular_values.float(),
            self.rows[: self.rank].float(),
            (square - mean.square()).clamp(min=0).sqrt().float(),
        )


# -------------------------------------------------------------------- the passes


class _Work:
    """Passes over the batches."""

    def __init__(self, runner: Runner, data: Passes, loss: Loss, seed: int, budget: int, bound: str) -> None:
        self.runner, self.data, self.loss, self.seed = runner, data, loss, seed
        self.budget, self.bound = budget, bound
        self.batches, self.groups = 0, 1

    def backward(
        self,
        sketches: list[_Sketch],
        begin: Callable[[_Sketch], Any],
        end: Callable[[_Sketch, int], None],
        need: Callable[[_Sketch], int],
    ) -> None:
        """A pass with gradients, for each group of layers that fits."""
        groups = self._packed(sketches, need)
        self.groups = max(self.groups, len(groups))
        for group in groups:
            count = torch.zeros((), dtype=torch.int64, device=self.runner.device)
            with watched_gradients([(one.weight.layer, begin(one)) for one in group]):
                for inputs in self._inputs():
                    count += 1
                    value = self.loss(self.runner.model, inputs)
                    if value.requires_grad:
                        torch.autograd.backward(value)
                    for one in group:
                        one.end_of_batch()
            sum_over_processes(count, *(one.total for one in group))
            self.batches = int(count)
            if not self.batches:
                raise CalibrationError("probe needs at least one batch, and `batches` gave none.")
            for one in group:
                end(one, self.batches)

    @torch.no_grad()
    def forward(self, sketches: list[_Sketch]) -> None:
        """A pass for the deviations."""
        with watched_inputs([(one.weight.layer, one.sees_vectors()) for one in sketches]):
            for inputs in self._inputs():
                self.loss(self.runner.model, inputs)
                if all(one.count >= ENOUGH for one in sketches):
                    break
        sum_over_processes(*(total for one in sketches for total in (one.total, one.count)))

    def _inputs(self) -> Any:
        for i, batch in enumerate(self.data.one_pass()):
            torch.manual_seed(self.seed + i)  # what is random in spite of eval mode is the same in each pass
            yield self.runner.read(batch)

    def _packed(self, sketches: list[_Sketch], need: Callable[[_Sketch], int]) -> list[list[_Sketch]]:
        # the most that one process needs: their inputs differ in length
        needs = [-least for least in least_of_processes([-need(one) for one in sketches], self.runner.device)]
        groups: list[list[_Sketch]] = []
        room = 0
        for one, size in zip(sketches, needs, strict=True):
            if size > self.budget:
                raise CalibrationError(
                    f"{one.name} (input width {one.weight.d_in}) needs {math.ceil(size / 2**20):,} MiB for its sketch "
                    f"and input, more than {self.bound} ({self.budget // 2**20:,} MiB)."
                )
            if not groups or size > room:
                groups.append([])
                room = self.budget
            groups[-1].append(one)
            room -= size
        return groups
