"""`calibrate`: the best linear stand-in for a trained adapter (docs/method.md)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import CalibrationError, FormError
from ..finite import is_finite
from ..forms import DYNAMIC, FormName
from ..tuner import AuroraLayer, active_adapters, active_configs, set_form
from ..tuner.adapters import plain_layers
from ..values import is_number, require
from .batches import as_batches
from .collector import Collector
from .inputs import Runner
from .memory_bound import memory_bound
from .merged_weight import check_in_use
from .moments import Target, by_input
from .passes import Passes, evaluated
from .plan import Group, pack_layers, plan
from .processes import several_processes
from .products import LEAST_RIDGE_OF_SLICES
from .reports import Report, worst_of
from .solve import Solution, solve

if TYPE_CHECKING:
    from rich.table import Table


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
    """Passes over the batches."""
    groups: int
    """Groups of layers that were solved one after another to stay within `max_memory`."""
    seconds: float

    def worst(self, *, n: int = 3) -> tuple[LayerCalibration, ...]:
        """The n layers of which the least is explained.

        Raises:
            ValueError: n is no whole number of at least 1.
        """
        return worst_of(self.layers, lambda layer: 1 - layer.explained, n)

    def tables(self) -> tuple[Table, ...]:
        """Layer by layer, those of which the least is explained first, for a terminal. Needs rich."""
        from .tables import first_table, shown

        several = len({layer.adapter for layer in self.layers}) > 1
        rows = [
            (
                layer.layer,
                [
                    *([layer.adapter] if several else []),
                    f"{layer.vectors:,}",
                    shown(layer.explained, ".2%"),
                    shown(layer.ridge, ".2e"),
                ],
            )
            for layer in self.worst(n=len(self.layers))
        ]
        headings = ["layer", *(["adapter"] if several else []), "inputs", "explained", "ridge"]
        title = "layers{}: explained share of E|sigma(Ax)|^2"
        return (first_table(title, headings, rows, "layers of which more is explained"),)


def calibrate(
    model: nn.Module,
    batches: Any,
    *,
    adapter_name: str | None = None,
    ridge: float = 1e-4,
    max_memory: float | str | None = None,
    share_inputs: bool = True,
    tokenizer: Any = None,
    text_columns: str | Sequence[str] | None = None,
    batch_size: int | None = None,
    examples: int | None = None,
    max_length: int | None = None,
    progress: bool = False,
) -> CalibrationReport:
    """Find and store, for each AuroRA layer, the linear map that stands in for the trained adapter best:

        A_cal = argmin_M E|sigma(Ax) - Mx|^2 + lambda |M - DA|^2,   (r, d_in)

    over the inputs x that reach the layer when the trained (dynamic) model runs on `batches`. DA is the best linear map
    of z = Ax, which few inputs determine; lambda is the best by generalised cross-validation (docs/method.md). As the
    layer's output is s B sigma(Ax), `s B A_cal` is then the best linear map for the whole update, and still of rank r.
    The groups of a convolution share A, and one map is fitted to the patches of all of them; of one group, with its own
    rows of B, another may be better. Moments are taken and solved in float64 (`deploy/products.py` says how on GPUs
    where that is slow); layers that see the same input (q, k and v) share them. The matrices are stored with the
    adapter; `eval_form` is not changed. Training mode, hooks and the random state are as before when it returns or
    raises.

    With `torch.distributed` initialised, the moments are summed over all processes: call it on every one of them.

    Args:
        model: a model with AuroRA adapters trained in the dynamic form.
        batches: a few hundred inputs, no labels: a DataLoader or another iterable of dicts of tensors (passed to the
            model as keyword arguments, or whole where it takes the batch as its one argument), of tensors, or of tuples
            that start with one; or a `datasets.Dataset`, with `tokenizer`. Positions where the `attention_mask` of a
            text is 0 are left out, but for experts of a mixture, which are linear layers of their own and get what is
            routed to them. Where several passes are needed, each has the same batches: those of an iterator,
            and in a single process up to 256 MiB of others, are kept in memory until it returns. More are read anew
            from the same random state of Python, NumPy and PyTorch, by which a loader shuffles unless it has a
            generator or persistent workers of its own.
        adapter_name: which adapter; all active ones if None. It must be active.
        ridge: the least lambda, in units of the mean of the diagonal of E[x x^T].
        max_memory: bound on the memory for moments and their solution, in bytes or as in "4GiB"; half of what is free
            if None, and nine tenths for a layer that needs more. Layers are worked through in groups that fit, with a
            pass over the batches for each.
        share_inputs: sum E[x x^T] once for layers that are called one after another with the same tensor, and with no
            other. Off costs time and memory, and is needed only by models that do so with some batches and not with
            later ones.
        tokenizer: turns the texts of a `datasets.Dataset` into tokens.
        text_columns: the column of the dataset with the texts, "text" if None, or the two of pairs of texts. A dataset
            of conversations (`messages`, or `prompt` and `completion`) or of preferences (`chosen`, with `prompt` or
            without) needs none: the tokenizer's chat template reads them, with `tools` and `chat_template_kwargs`.
        batch_size: examples of the dataset in a batch; 32 if None.
        examples: at most that many: an even sample of a dataset, or the first of the batches.
        max_length: tokens; longer texts of the dataset are cut, as in the training. None: what the tokenizer allows.
        progress: show a progress bar.

    Returns:
        A report with the explained share of each layer.

    Raises:
        CalibrationError: no batches, an input that is not finite, a layer with B != 0 that no input reached, adapters
            that are switched off, a `max_memory` that not even one layer fits in, or a matrix that is not finite. The
            adapter is left as it was.
        AlreadyMergedError: the adapter is merged.
        FormError: the adapter was trained in the static form, or sigma is the identity in all of its layers (plain
            LoRA, embeddings): it merges exactly as it is.
        TypeError: batches of no such kind, or an argument that goes with a dataset where there is none.
        ValueError: no AuroRA adapter, no such active adapter, or an argument that is not allowed.
    """
    check_ridge(ridge)
    start = time.perf_counter()
    source = as_batches(
        batches, tokenizer, text_columns=text_columns, batch_size=batch_size, examples=examples, max_length=max_length
    )
    data = Passes(source, "calibrating" if progress else "")
    targets = _targets(model, adapter_name)
    with trained_state(model), Runner(model, "calibrate") as runner:
        bound = memory_bound(max_memory, *runner.devices)
        groups = plan(runner, targets, data, bound, share_inputs)
        options: dict[str, Any] = {"share_inputs": share_inputs, "sliced": ridge >= LEAST_RIDGE_OF_SLICES}
        with _restored_on_error(targets):
            planned = {target.name for group in groups for target in group}
            idle = [target for target in targets if target.name not in planned]
            unseen = [] if several_processes() else idle  # several have looked at all batches
            solutions, reached = _solutions(runner, groups, data, ridge, options, unseen)
            late = pack_layers([[target] for target in idle if target.name in reached], bound)
            solutions += _solutions(runner, late, data, ridge, options)[0]
            _store(solutions)
            found = {(s.target.name, s.adapter): _report(s) for s in solutions}
            for target in targets:
                for adapter in target.adapters:
                    if (target.name, adapter) not in found:
                        found[target.name, adapter] = _of_idle(target, adapter)
    reports = tuple(found[target.name, adapter] for target in targets for adapter in target.adapters)
    return CalibrationReport(reports, data.passes, len(groups) + len(late), time.perf_counter() - start)


def _solutions(
    runner: Runner,
    groups: list[Group],
    data: Passes,
    ridge: float,
    options: dict[str, Any],
    others: Sequence[Target] = (),
) -> tuple[list[Solution], set[str]]:
    """The matrices of each group, from a pass over the batches, and which of the other layers an input has reached."""
    solutions: list[Solution] = []
    reached: set[str] = set()
    for group in groups:
        collector = Collector(runner, group, others=others, **options)
        for layers in by_input(collector.collect(data.one_pass())):
            solutions += solve(layers, ridge)
        reached |= collector.reached_others
    return solutions, reached


def _store(solutions: list[Solution]) -> None:
    for solution in solutions:
        layer, adapter = solution.target.module, solution.adapter
        dtype = layer.aurora_A[adapter].dtype
        if not is_finite(solution.matrix.to(dtype)):
            raise CalibrationError(
                f"The calibrated matrix of {solution.target.name} is not finite in {dtype}: try a larger ridge."
            )
        layer.calibration[adapter].store(solution.matrix)


def _of_idle(target: Target, adapter: str) -> LayerCalibration:
    """The calibration of a layer that no input reached and whose B is 0."""
    calibration = target.module.calibration[adapter]
    calibration.store(calibration.simplest_matrix())
    return LayerCalibration(target.name, adapter, 0, 1.0, 0.0)


def _report(solution: Solution) -> LayerCalibration:
    return LayerCalibration(
        solution.target.name, solution.adapter, solution.vectors, solution.explained, solution.ridge
    )


# -------------------------------------------------------------------- before and after


def _targets(model: nn.Module, adapter_name: str | None) -> list[Target]:
    active = active_adapters(model)
    names = active if adapter_name is None else [adapter_name]
    for name in names:
        if name not in active:
            raise ValueError(f"adapter_name={name!r} is not an active AuroRA adapter (active: {', '.join(active)}).")
    check_unmerged(model, "calibrate")
    if targets := calibrated_layers(model, names):
        return targets
    layers = [(layer, name) for _, layer in plain_layers(model) for name in names if name in layer.aurora_A]
    static = next((name for layer, name in layers if not layer.forms_coincide(name)), None)
    if static is not None:
        raise FormError(
            f"Adapter {static!r} was trained in the static form, which merges exactly: nothing to calibrate."
        )
    raise FormError(
        f"Nothing of {', '.join(names)} can be calibrated: plain LoRA (sigma is the identity) and embeddings merge "
        "exactly as they are."
    )


def calibrated_layers(model: nn.Module, names: Sequence[str] | None = None) -> list[Target]:
    """The layers of a model whose adapters have a calibrated form: trained in the dynamic one, which is no other map.

    Args:
        model: with AuroRA adapters.
        names: of the adapters; all if None.
    """
    targets = []
    for path, layer in plain_layers(model):
        adapters = tuple(
            name
            for name in (layer.aurora_A if names is None else names)
            if name in layer.aurora_A
            and layer.aurora_config[name].train_form == DYNAMIC
            and not layer.forms_coincide(name)
        )
        if adapters:
            targets.append(Target(path, layer, adapters, partial(_is_idle, layer, adapters)))
    return targets


def _is_idle(layer: AuroraLayer, adapters: Sequence[str]) -> bool:
    """Whether all of the adapters are."""
    return all(layer.calibration[name].is_idle for name in adapters)


def check_unmerged(model: nn.Module, action: str) -> None:
    """See that AuroRA's adapters take part in the model's forward pass; raises as `check_in_use`."""
    for path, layer in plain_layers(model):
        check_in_use(path, layer, action)


@contextmanager
def trained_state(model: nn.Module) -> Iterator[None]:
    """Within this context the model is evaluated in its trained form; see `evaluated`."""
    with evaluated(model), in_form(model, DYNAMIC):
        yield


def dynamic_adapters(model: nn.Module) -> list[str]:
    """The active adapters that were trained in the dynamic form: others have the static one alone."""
    return [name for name, config in active_configs(model).items() if config.train_form == DYNAMIC]


@contextmanager
def in_form(model: nn.Module, form: FormName) -> Iterator[None]:
    """While the block runs, the adapters that have several forms evaluate in this one."""
    with ExitStack() as stack:
        for name in dynamic_adapters(model):
            stack.enter_context(set_form(model, form, adapter_name=name))
        yield


def check_ridge(ridge: float) -> None:
    """Raise a ValueError for a `ridge` that is not allowed."""
    require(is_number(ridge) and ridge >= 0, "ridge", ridge, "a finite number of at least 0")


@contextmanager
def _restored_on_error(targets: list[Target]) -> Iterator[None]:
    """Takes the old calibration away while a new one is made, and gives it back if that fails."""
    calibrations = [target.module.calibration[adapter] for target in targets for adapter in target.adapters]
    earlier = [(calibration, calibration.take()) for calibration in calibrations]
    try:
        yield
    except BaseException:
        for calibration, taken in earlier:
            calibration.give_back(taken)
        raise
