"""`calibrate`: the best linear stand-in for a trained adapter (docs/method.md)."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import CalibrationError, FormError
from ..forms import DYNAMIC
from ..tuner import active_adapters
from ..tuner.adapters import plain_layers
from ..tuner.calibration import Calibration
from .inputs import Passes, Runner, as_batches, check_unmerged, trained_state
from .moments import LEAST_RIDGE_OF_SLICES, MAX_MEMORY, Solution, Target, input_moments, solve
from .reports import Report, worst_of

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
    """Passes over the batches: one for each group of layers whose moments fit in `max_memory`."""
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
    max_memory: float = MAX_MEMORY,
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
    rows of B, another may be better. Moments are taken and solved in float64 (`moments.add_gram` says how on GPUs
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
            that are switched off, or a matrix that is not finite. The adapter is left as it was.
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
    sliced = ridge >= LEAST_RIDGE_OF_SLICES
    with trained_state(model), Runner(model, "calibrate") as runner:
        moments = input_moments(runner, targets, data, max_memory, sliced=sliced)
        solutions = {(s.target.name, s.adapter): s for together in moments for s in solve(together, ridge)}
    pairs = [(target, name) for target in targets for name in target.adapters]
    matrices = []
    for target, name in pairs:
        calibration, solution = target.module.calibration[name], solutions.get((target.name, name))
        # where no input reached the layer B is 0, and any matrix stands in exactly
        matrix = calibration.simplest_matrix() if solution is None else solution.matrix
        dtype = calibration.simplest_matrix().dtype
        if not matrix.to(dtype).isfinite().all():
            raise CalibrationError(
                f"The calibrated matrix of {target.name} is not finite in {dtype}: try a larger ridge."
            )
        matrices.append((calibration, matrix))
    for calibration, matrix in matrices:  # when all are there
        calibration.store(matrix)
    layers = tuple(_report(target, name, solutions.get((target.name, name))) for target, name in pairs)
    return CalibrationReport(layers, data.passes, time.perf_counter() - start)


def _report(target: Target, name: str, solution: Solution | None) -> LayerCalibration:
    if solution is None:
        return LayerCalibration(target.name, name, 0, 1.0, 0.0)
    return LayerCalibration(target.name, name, solution.vectors, solution.explained, solution.ridge)


def check_ridge(ridge: float) -> None:
    """Raise a ValueError for a `ridge` that is not allowed."""
    if not (isinstance(ridge, (int, float)) and 0 <= ridge < math.inf):
        raise ValueError(f"ridge={ridge!r} is not allowed: it must be a finite number of at least 0.")


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
            held = [layer.calibration[name] for name in adapters]
            targets.append(Target(path, layer, adapters, partial(_are_idle, held)))
    return targets


def _are_idle(calibrations: Sequence[Calibration]) -> bool:
    return all(one.is_idle for one in calibrations)
