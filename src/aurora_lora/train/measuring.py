"""What is measured of a finished run: its scores (`aurora evaluate`), what merges lose (`gap`), the learned activation
(`sigma`); and of a recipe, where its weights would do most (`rank`)."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, set_seed

from ..data.own.kinds import OWN
from ..data.own.source import open_given
from ..deploy import MergeGap, merge_gap
from ..deploy.formats import check_quantization
from ..deploy.gap import rounds_by_inputs
from ..deploy.gradients import frozen_linears
from ..deploy.hidden import hidden_values, sigma_along
from ..deploy.texts import even_sample
from ..errors import ArgumentError, UserError, check_count
from ..forms import CALIBRATED, DYNAMIC
from ..methods.aurora import AuroraMethod
from ..methods.base import PeftMethod
from ..methods.start import ALIGNED, EVA, PATTERNS, ProbedMethod
from ..methods.targets import blocks_and_kinds
from ..tuner import AuroraLayer, check_calibrated
from ..tuner.adapters import plain_layers
from ..tuner.linear import linear_shape
from ..values import check_finite
from .data import cut_notes, in_batches
from .finished_run import Scores, TrainedRun, as_run, mean_scores
from .kinds import kind_of
from .models import base_for, make_model
from .probing import kept_start
from .recipe import Recipe, own_source
from .run import load_trainer, make_trainer, score

POINTS, BINS = 41, 32
"""Points of a curve of sigma, and bins of a histogram."""
TEST = "test"
"""What new examples are to the task."""


def need_aurora(run: TrainedRun, why: str = "have forms to compare") -> None:
    """Raise a UserError for the run of another method, with what only AuroRA runs do."""
    if not isinstance(run.recipe.method, AuroraMethod):
        raise UserError(f"{run.folder} is a run of {run.recipe.method.name}: only AuroRA runs {why}")


# ---------------------------------------------------------------- scores


def evaluate(
    run: TrainedRun | Path | str,
    *,
    forms: Sequence[str] | str | None = None,
    split: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Scores:
    """The metrics of a finished run, scored again.

    Args:
        run: which, or its folder.
        forms: which forms of it, or which one; all if None.
        split: `"train"`, `"validation"` or a test set; None is what the result reports: the mean over its test sets.
        callbacks: further Trainer callbacks, such as a progress bar.

    Returns:
        The metrics of each form, by name.

    Raises:
        FormError: the run has no such form.
        UserError: no such split, or no form; the run, its data or its adapter cannot be read.
        TypeError: `run` is neither a run nor a path.
    """
    run = as_run(run)
    forms = run.chosen_forms(forms)
    if split is not None:
        run.check_split(split)
    trainer, data = load_trainer(run, callbacks=callbacks)
    splits = run.test_sets if split is None else (split,)
    return mean_scores({name: score(run.recipe, trainer, data, name, forms) for name in splits})


@dataclass(frozen=True)
class FileScores:
    """The scores of a run on a file, and what is to be known of them.

    Args:
        name: of the file or folder, with its split where it has several.
        rows: of it.
        examples: scored; of conversations, those without an answer within `task.max_length` are left out.
        by_form: the metrics of each form.
        notes: for people, a line each.
    """

    name: str
    rows: int
    examples: int
    by_form: Scores
    notes: tuple[str, ...]


def evaluate_file(
    run: TrainedRun | Path | str,
    data: Path | str,
    *,
    forms: Sequence[str] | str | None = None,
    encoding: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> FileScores:
    """The scores of a finished run of the user's own data on new examples.

    They are read with the columns, classes and `max_length` of the run, and scored in the units of its labels. Nothing
    is written, and the run's own data need not be there.

    Args:
        run: which, or its folder.
        data: what `task.test_data` may be: a file, a folder, or a data set of the hub.
        forms: which forms of it, or which one; all if None.
        encoding: of a text file; None is that of the data that the run was trained on.
        callbacks: further Trainer callbacks, such as a progress bar.

    Raises:
        FormError: the run has no such form.
        ArgumentError: the run is of no data of the user's own, or the data cannot be read.
        UserError: a column is missing, a row cannot be used, or its label is none of the run's; or the model or the
            adapter cannot be read.
        TypeError: `run` is neither a run nor a path.
    """
    run, data = as_run(run), str(data)
    forms = run.chosen_forms(forms)
    section = run.recipe.task
    kind = OWN.get(section.name)
    if kind is None:
        raise ArgumentError(
            f"`data`: the run in {run.folder} is of {section.name}, whose examples come with the package or from the "
            f"hub: only runs of your own data ({', '.join(OWN)}) are scored on a file"
        )
    own, columns = own_source(kind, dict(section))
    own = own if encoding is None else replace(own, encoding=encoding)
    columns |= {name: given for name, given in run.columns.items() if name == "format"}
    prompt: dict[str, Any] = {"form": section.prompt} if kind.facts.get("prompt_forms") else {}
    ready = kind.prepare(open_given(data, own, TEST), columns, run.labels, **prompt)
    piece = ready.pieces[TEST]
    rows = len(ready.keys(piece))  # refuses a row that cannot be used, by its number
    task = {"data": data, "validation_data": None, "test_data": None, "test_size": None}
    recipe = run.recipe.model_copy(update={"task": section.model_copy(update=task)})
    trainer, loaded = load_trainer(run, recipe, callbacks, ready.whole(TEST))
    scores = score(recipe, trainer, loaded, TEST, forms)
    return FileScores(piece.name, rows, len(loaded.splits[TEST]), scores, tuple(cut_notes(loaded.record or {})))


# ---------------------------------------------------------------- what merges lose


def gap(
    run: TrainedRun | Path | str,
    *,
    split: str | None = None,
    examples: int | None = None,
    batch_size: int = 64,
    merges: bool | None = None,
    quantizations: Sequence[str] | str = (),
) -> MergeGap:
    """The merge gap of a run on a split, in float32: what it measures is often below the noise of a lower precision.

    Args:
        run: of AuroRA, or of another adapter of PEFT; or its folder.
        split: `"train"`, `"validation"` or a test set; the first test set if None.
        examples: an even sample of so many of the split; all if None.
        batch_size: examples of one forward pass.
        merges: whether merges of AuroRA are measured, too, as `merge_gap` does; without it, where there are
            `quantizations`.
        quantizations: what is merged into, beside the base's own dtype and bfloat16; one of the merges of each rounds
            by the run's calibration inputs.

    Raises:
        UserError: a run without such an adapter, no such split, no examples, or no such quantisation.
        FormError: the run was trained in the static form, which merges exactly.
        StaleCalibrationError: the run's calibrated matrix does not belong to its adapter.
        TypeError: `run` is neither a run nor a path.
    """
    run = as_run(run)
    if not isinstance(run.recipe.method, PeftMethod):
        name = run.recipe.method.name
        raise UserError(f"{run.folder} is a run of {name}: only adapters of PEFT have a merge to measure")
    split = split or run.test_sets[0]
    run.check_split(split)
    check_count("examples", examples)
    check_count("batch_size", batch_size)
    quantizations = [quantizations] if isinstance(quantizations, str) else quantizations
    for name in quantizations:
        check_quantization(name)
    trainer, data = load_trainer(run, run.recipe.in_precision("fp32"))
    model: Any = trainer.model
    if CALIBRATED in run.forms:
        check_calibrated(model)
    rows = data.fixed(split)
    measured: Sequence[int] = range(len(rows))
    wanted: dict[str, Any] = {"merges": merges, "quantizations": quantizations}
    if rounds_by_inputs(model, **wanted):  # on a quantised base without being asked
        wanted["rounding_batches"] = data.calibration_batches(run.recipe.calibration)
        if split == "train":
            used = set(even_sample(len(rows), run.recipe.calibration.examples))
            measured = [row for row in measured if row not in used]
            if not measured:
                raise UserError("split 'train' has no examples beside those that merges round by: choose another split")
    chosen = [measured[i] for i in even_sample(len(measured), examples)]  # of texts, sorted by length, some of each
    kind = kind_of(data.task)
    batches = (kind.gap_batch(data.collate([rows[i] for i in some])) for some in in_batches(chosen, batch_size))

    def metric(predictions: Tensor, labels: Tensor) -> dict[str, float]:
        return kind.metrics(data, predictions.numpy(), labels.numpy())

    if kind.facts.scores_batches:
        wanted["metric"] = metric  # else merge_gap's own: the next token of language models, none of hidden states
    return merge_gap(model, batches, **wanted)


# ---------------------------------------------------------------- the learned activation


def learned_activation(run: TrainedRun | Path | str, *, examples: int | None = None) -> dict[str, Any]:
    """Sigma of each layer of a run, along each channel of the rank space, and a histogram of the z that reach it.

    The inputs are those that the run was calibrated with. The start is made again from the recipe's seed.

    Args:
        run: an AuroRA run, or its folder.
        examples: at most so many; the recipe's number if None.

    Returns:
        `examples`, `train_form` (in the static one sigma sees the columns of A), and for each of `layers` its `layer`
        (the path), `vectors` (how many z there are) and `channels`: for each `z`, `before` and `after`, the curve of
        sigma_i(z e_i), the other channels at 0, over the range of the z; `edges` and `counts`, the histogram of z_i.

    Raises:
        UserError: no AuroRA run, no examples, or one whose sigma is the identity.
        CalibrationError, NotFiniteError: something that reaches sigma, or sigma itself, is not finite.
        TypeError: `run` is neither a run nor a path.
    """
    run = as_run(run)
    need_aurora(run)
    check_count("examples", examples)
    recipe, calibration = run.recipe, run.recipe.calibration
    if examples is not None:
        calibration = calibration.model_copy(update={"examples": min(examples, calibration.examples)})
    trainer, data = load_trainer(run, recipe.in_precision("fp32"))
    set_seed(recipe.seed)
    start = kept_start(run.folder)
    base = base_for(recipe, data.processor, data.labels)
    if start is not None:
        set_seed(recipe.seed)  # as after a probe
    fresh = make_model(recipe if start is None else start.resolved(recipe), base)
    trained: Any = trainer.model
    before, after = dict(plain_layers(fresh)), dict(plain_layers(trained))
    layers = [
        {"layer": path, "vectors": len(z), "channels": _channels(path, before[path], after[path], name, z)}
        for (path, name), z in hidden_values(trained, data.calibration_batches(calibration)).items()
    ]
    if not layers:
        raise UserError(f"{run.folder}: sigma is the identity in every layer")
    train_form = recipe.method.options.get("train_form", DYNAMIC)
    return {"schema": 1, "examples": calibration.examples, "train_form": train_form, "layers": layers}


def _channels(path: str, before: AuroraLayer, after: AuroraLayer, name: str, z: Tensor) -> list[dict[str, Any]]:
    channels = []
    for channel, values in enumerate(z.T):
        low, high = values.min().item(), values.max().item()
        if low == high:
            low, high = low - 0.5, high + 0.5
        grid = torch.linspace(low, high, POINTS)
        counts, edges = torch.histogram(values.contiguous(), BINS, range=(low, high))
        curves = {"z": grid, "edges": edges}
        curves |= {key: sigma_along(one, name, channel, grid) for key, one in (("before", before), ("after", after))}
        check_finite(curves.items(), f"sigma of {path}, channel {channel + 1}")
        rounded = {key: [float(f"{value:.5g}") for value in curve.tolist()] for key, curve in curves.items()}
        channels.append({**rounded, "counts": [int(count) for count in counts]})
    return channels


# ---------------------------------------------------------------- ranks by the gradient, before any training


def ranking(recipe: Recipe, budget: int | None = None) -> dict[str, Any]:
    """Probe a recipe's model and share a budget out, as its run would do.

    Where the recipe has a budget of its own, `target_modules` limits what that is spent on; without one, all linear
    layers are probed, whatever modules the recipe adapts, but those that it excludes.

    Args:
        recipe: of AuroRA or LoRA.
        budget: weights; the recipe's own if None.

    Returns:
        `budget`, `weights` (those that are used), `examples` (that were probed), `energy` (the share of the squared
        gradient, as far as it was found, along the chosen directions), `left_out` (the recipe's options that say which
        modules and ranks, and that the budget decides now), `exhausted` (layers that got every direction that was
        looked for, and have more), `without_gradient` (layers that no gradient came through, which are not among
        `layers`), `method` (the ordinary options, and `start: aligned` if the recipe has it) and `layers`: of each its
        `layer`, `block` (its number in the list of blocks, or None), `kind` (its name in there), `d_out`, `d_in`,
        `direction` (weights of one), `singular_values` and `rank`.

    Raises:
        UserError: no budget, a method without one, or one too small for any direction.
    """
    options, left_out = dict(recipe.method.options), []
    if not isinstance(recipe.method, ProbedMethod):
        raise UserError(f"method.name: {recipe.method.name} takes no budget; aurora, its presets and lora do")
    if budget is None and options.get("budget") is None:
        raise ArgumentError("method.budget: this field must be given, or `budget`")
    if options.get("budget") is None:
        left_out = [name for name in ("target_modules", *PATTERNS) if options.pop(name, None)]
        options |= {"start": "default"} if options.get("start") == EVA else {}
    try:
        method = recipe.method.bind(options if budget is None else {**options, "budget": budget})
    except ValueError as error:
        raise UserError(f"method.{error}") from error
    asked = recipe.model_copy(update={"method": method})
    with tempfile.TemporaryDirectory() as nowhere:
        trainer, _ = make_trainer(asked, Path(nowhere) / "checkpoints")
        start = kept_start(Path(nowhere))
    model: Any = trainer.model
    assert start is not None
    assert start.ranks is not None
    resolved = start.resolved(asked).method
    usual = resolved.bind({}).options
    unusual = {name: value for name, value in resolved.options.items() if name not in usual or value != usual[name]}
    shapes = {path: linear_shape(one) for path, one in frozen_linears(model).items() if path in start.spectra}
    layers: list[dict[str, Any]] = [
        {
            "layer": path,
            "block": block,
            "kind": kind,
            "d_out": shapes[path][0],
            "d_in": shapes[path][1],
            "direction": sum(shapes[path]),
            "singular_values": start.spectra[path].tolist(),
            "rank": start.ranks.get(path, 0),
        }
        for path, (block, kind) in blocks_and_kinds(shapes).items()
    ]
    every = sum(value**2 for one in layers for value in one["singular_values"])
    bought = sum(value**2 for one in layers for value in one["singular_values"][: one["rank"]])
    most = {one["layer"]: min(one["d_out"], one["d_in"]) for one in layers}
    return {
        "schema": 1,
        "budget": method.options["budget"],
        "weights": sum(one["rank"] * one["direction"] for one in layers),
        "examples": method.options["probe_examples"],
        "energy": bought / every,
        "left_out": left_out,
        "exhausted": [
            one["layer"] for one in layers if one["rank"] == len(one["singular_values"]) < most[one["layer"]]
        ],
        "without_gradient": list(start.without_gradient),
        "method": {"name": resolved.name, **unusual, **({"start": ALIGNED} if options.get("start") == ALIGNED else {})},
        "layers": layers,
    }
