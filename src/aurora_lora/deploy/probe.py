"""`probe`: where the loss's gradient with respect to the frozen weights is, before the training (docs/ranks.md)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CalibrationError
from ..finite import is_finite
from ..forms import DYNAMIC
from ..tuner import active_layers
from ..tuner.adapters import check_not_merged
from ..tuner.fields import MODULE_FIELDS
from ..tuner.fused_experts import fused_experts
from ..tuner.naming import ALL_LINEAR, named
from ..tuner.stacked import plain_path
from ..tuner.tensors import outside_inference_mode
from ..values import is_int, require
from .at_rest import at_rest, check_not_of_inference, checkpointed, is_reentrant
from .batches import as_batches, no_batches
from .gradients import LOSS_SCALES, Weight, backward, frozen_weights, watched_gradients
from .inputs import Runner, watched_inputs
from .loss import Loss, chosen_loss, scalar
from .memory_bound import MemoryBound, Need, memory_bound, pack
from .passes import Passes, seed_torch
from .probe_result import Probe
from .processes import least_of_processes, several_processes, sum_over_processes
from .sketch import Sketch
from .wrappers import plain_model

ENOUGH = 512
"""Vectors of each layer that its deviations are taken over at least, where the batches have as many. Several processes
take all batches."""


@outside_inference_mode()
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
    max_memory: float | str | None = None,
    tokenizer: Any = None,
    text_columns: str | Sequence[str] | None = None,
    batch_size: int | None = None,
    examples: int | None = None,
    max_length: int | None = None,
    progress: bool = False,
) -> Probe:
    """Find the directions of each frozen weight's gradient along which a low-rank adapter would learn most at first.

    For each linear layer, Conv1D and convolution: the leading singular values and right singular vectors of
    G = dL/dW0, the mean over the batches of the gradient of their loss, by a randomised range finder. `Y = G Omega`,
    with `rank` + 8 random columns, comes from one backward pass over the batches, and with an orthonormal basis Q of it
    `G^T Q` from a second one; a third, forward alone and over some of the batches, gives the deviation of z along each
    direction. No gradient of a weight is ever computed: the passes hold up to 2 (rank + 8) (d_in + d_out) numbers for
    each layer, and the layers' inputs of one batch. Weights may be quantised or offloaded. The model is in eval mode,
    as its adapters stand; its gradients, modes, hooks and random state are as before when it returns or raises.

    With `torch.distributed` initialised, the gradients are averaged over the batches of all processes: call it on every
    one of them.

    Args:
        model: a plain model, or one with adapters of PEFT.
        batches: some hundred training examples with what the loss needs: an iterable of dicts of tensors, of tensors or
            of tuples. Each pass has the same ones, as in `calibrate`. A `datasets.Dataset`, with `tokenizer`, has no
            labels: it needs a `loss`, or a causal language model, which is then probed by the loss of each next token.
        loss: `loss(model, batch)`, a scalar; `model(**batch).loss` if None.
        rank: directions to find in each layer, where it has as many.
        target_modules: names or a regular expression of the layers, as in PEFT. None is every linear layer and
            convolution but the output layer of a language model and what `modules_to_save` trains whole.
        exclude_modules: layers to leave out, in the same way.
        power_iterations: further ones sharpen the directions where singular values lie close together, at two backward
            passes each.
        seed: of the random columns.
        max_memory: bound on the memory for sketches and inputs, in bytes or as in "4GiB"; half of what is free if None,
            and nine tenths for a layer that needs more. Layers are worked through in groups that fit, with passes of
            their own for each. Not counted is what a first pass keeps of the inputs of one batch, at most as much as
            they are, and what is kept of all layers: from one pass to the next up to
            (rank + 8) max(d_in, d_out) numbers each in main memory, and in the last pass their directions, rank d_in
            numbers each, where their weights are.
        tokenizer: as in `calibrate`.
        text_columns: as in `calibrate`.
        batch_size: as in `calibrate`.
        examples: as in `calibrate`.
        max_length: as in `calibrate`.
        progress: as in `calibrate`.

    Returns:
        A `LayerProbe` of each layer, in main memory: singular values (k,), directions (k, d_in), deviations (k,), with
        k = `rank` where the layer has as many.

    Raises:
        CalibrationError: no batches, a model that gives no loss, a loss that depends on none of the layers, a gradient
            that is not finite, weights that were made in `torch.inference_mode()`, or a `max_memory` that not even one
            layer fits in.
        AlreadyMergedError: an adapter is merged that was trained in the dynamic form.
        TypeError: batches of no such kind; a `loss` that is no function, or a dataset without one; as `calibrate`.
        ValueError: an argument that is not allowed, or `target_modules` that name no layer.
    """
    for name, value in (("rank", rank), ("power_iterations", power_iterations)):
        require(is_int(value, 1), name, value, "a whole number of at least 1")
    require(is_int(seed, 0), "seed", seed, "a whole number of at least 0")
    for name, modules in (("target_modules", target_modules), ("exclude_modules", exclude_modules)):
        accepts, words = MODULE_FIELDS[name]
        require(modules is None or accepts(modules), name, modules, words)
    start = time.perf_counter()
    source = as_batches(
        batches, tokenizer, text_columns=text_columns, batch_size=batch_size, examples=examples, max_length=max_length
    )
    loss = chosen_loss(loss, model, tokenizer is not None)
    data = Passes(source, "probing" if progress else "")
    data.hold()
    _check_not_merged(model)
    check_not_of_inference(model, "probe")
    chosen = _chosen(frozen_weights(model), target_modules, exclude_modules)
    reentrant = is_reentrant(model)
    with at_rest(model), Runner(model, "probe") as runner:
        sketches = [
            Sketch(name, weight, int(rank), seed + i, runner) for i, (name, weight) in enumerate(chosen.items())
        ]
        work = _Work(runner, data, loss, seed, memory_bound(max_memory, *runner.devices))
        for _ in range(power_iterations):
            work.backward(sketches, Sketch.sees_inputs, Sketch.end_of_range, lambda one: one.bytes)
            work.backward(sketches, Sketch.sees_both, Sketch.end_of_co_range, lambda one: one.bytes + one.held)
        found = [one for one in sketches if one.singular_values[0] > 0]
        if not found:
            raise _no_gradient("the layers", reentrant)
        if reentrant:
            inside = {part for layer in checkpointed(model) for part in layer.modules()}
            within = [one for one in sketches if one.weight.layer in inside]
            if within and not set(within) & set(found):
                raise _no_gradient("the checkpointed layers", reentrant)
        work.forward(found)
    layers = tuple(one.result() for one in found)
    without = {one.name: one.weight.d_in + one.weight.d_out for one in sketches if one not in found}
    plain = plain_model(model)
    paths = (plain_path(plain, path) for path, _ in plain.named_modules())
    modules = tuple(dict.fromkeys(path for path in paths if path))
    experts = _taken_for_experts([one.layer for one in layers], plain)
    seconds = time.perf_counter() - start
    counts = work.batches, data.passes, work.groups
    return Probe(layers, tuple(without), *counts, seconds, modules, experts, tuple(without.values()))


def _check_not_merged(model: nn.Module) -> None:
    """Merged, a model cannot be probed in the form that it is trained in, unless that is the static one."""
    for path, layer, name in active_layers(model):
        if layer.aurora_config[name].train_form == DYNAMIC:
            check_not_merged(path, layer, "probe")


def _chosen(
    weights: dict[str, Weight], targets: Sequence[str] | str | None, excluded: Sequence[str] | str | None
) -> dict[str, Weight]:
    every = ".*" if targets is None or targets == ALL_LINEAR else targets
    names = every if isinstance(every, str) else list(every)
    excluded = excluded if excluded is None or isinstance(excluded, str) else list(excluded)
    chosen = {path: weights[path] for path in named(weights, names, exclude_modules=excluded)}
    if not chosen:
        raise ValueError(
            f"target_modules={targets!r} names no linear layer of the model, or all are excluded. Its linear layers "
            f"are named {', '.join(sorted({path.rpartition('.')[2] for path in weights}))}."
        )
    return chosen


def _read_once() -> CalibrationError:
    return CalibrationError("probe reads the batches several times, and these can be read only once: give a list.")


def _no_gradient(layers: str, reentrant: bool) -> CalibrationError:
    cause = "is it computed from the model's output?"
    if reentrant:
        cause = (
            "reentrant gradient checkpointing gives no gradient where no input of a layer has one, as with "
            "inputs_embeds. Enable it with use_reentrant=False."
        )
    return CalibrationError(f"The loss depends on none of {layers}: {cause}")


def _taken_for_experts(paths: Sequence[str], model: nn.Module) -> tuple[str, ...]:
    """PEFT decides that by the last name of each path."""

    def is_taken(name: str) -> bool:
        try:
            return bool(fused_experts([name], model))
        except ValueError:  # not without those that are fused with it
            return True

    taken = {name for name in {path.rpartition(".")[2] for path in paths} if is_taken(name)}
    return tuple(path for path in paths if path.rpartition(".")[2] in taken)


# -------------------------------------------------------------------- the passes


class _Work:
    """Passes over the batches."""

    def __init__(self, runner: Runner, data: Passes, loss: Loss, seed: int, bound: MemoryBound) -> None:
        self.runner, self.data, self.loss, self.seed = runner, data, loss, seed
        self.bound = bound
        self.batches, self.groups = 0, 1

    def backward(
        self,
        sketches: list[Sketch],
        begin: Callable[[Sketch], Any],
        end: Callable[[Sketch, int], None],
        need: Callable[[Sketch], int],
    ) -> None:
        """A pass with gradients, for each group of layers that fits."""
        groups = self._packed(sketches, need)
        self.groups = max(self.groups, len(groups))
        for group in groups:
            for scale in LOSS_SCALES:
                count = self._pass(group, begin, scale)
                if all(is_finite(one.total) for one in group):
                    break
            earlier, self.batches = self.batches, int(count)
            if not self.batches:
                raise _read_once() if earlier else no_batches("probe")
            for one in group:
                one.total /= scale
                end(one, self.batches)

    def _pass(self, group: list[Sketch], begin: Callable[[Sketch], Any], scale: float) -> Tensor:
        """The sums of a group over all batches, of the loss times `scale`; gives the number of batches."""
        count = torch.zeros((), dtype=torch.int64, device=self.runner.device)
        with watched_gradients([(one.weight.layer, begin(one)) for one in group]):
            for inputs in self._inputs():
                count += 1
                value = scalar(self.loss(self.runner.model, inputs))
                if value.requires_grad:
                    backward(value * scale)
                for one in group:
                    one.end_of_batch()
        sum_over_processes(count, *(one.total for one in group))
        return count

    @torch.no_grad()
    def forward(self, sketches: list[Sketch]) -> None:
        """A pass for the deviations."""
        with watched_inputs([(one.weight.layer, one.sees_vectors()) for one in sketches]):
            for inputs in self._inputs():
                self.loss(self.runner.model, inputs)
                if not several_processes() and all(one.count >= ENOUGH for one in sketches):
                    break  # several end at the same batch, as a forward pass may wait for theirs
        sum_over_processes(*(total for one in sketches for total in (one.total, one.count)))

    def _inputs(self) -> Any:
        """The batches; what a model draws in spite of eval mode is the same in each pass."""
        for i, batch in enumerate(self.data.one_pass()):
            seed_torch(self.runner.model, self.seed + i)
            yield self.runner.read(batch)

    def _packed(self, sketches: list[Sketch], need: Callable[[Sketch], int]) -> list[list[Sketch]]:
        # the most that one process needs: their inputs differ in length
        needs = [-least for least in least_of_processes([-need(one) for one in sketches], self.runner.device)]
        by_name = {one.name: Need(size) for one, size in zip(sketches, needs, strict=True)}

        def name(one: Sketch) -> str:
            return f"{one.name} (input width {one.weight.d_in})"

        return pack(sketches, self.bound, lambda one: by_name[one.name], name, "its sketch and input")
