"""What is measured of an adapter before it is served: what merges lose (`aurora gap`), the learned activation
(`aurora sigma`)."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import set_seed

from ..data.loading import reason
from ..data.models import packaged_name
from ..data.own.columns import number, text
from ..data.own.source import OwnData, open_given
from ..data.own.split import BadRow
from ..deploy import MergeGap, merge_gap
from ..deploy.formats import check_quantization
from ..deploy.gap import rounds_by_inputs
from ..deploy.hidden import hidden_values, sigma_along
from ..deploy.merges import linear_layers
from ..deploy.texts import even_sample
from ..errors import ArgumentError, UserError, check_count
from ..files import read_json
from ..forms import CALIBRATED, DYNAMIC
from ..methods.aurora import AuroraMethod
from ..methods.base import PeftMethod
from ..methods.parameters import left_random
from ..methods.singular import START_FILE
from ..tuner import AuroraLayer, check_calibrated
from ..tuner.adapters import plain_layers
from ..tuner.peft_names import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from ..values import check_finite
from .build import make_trainer
from .data import encode, in_batches
from .finished_run import TrainedRun, as_run
from .kinds import kind_of
from .models import (
    base_for,
    fill_padding,
    load_causal_model,
    load_classifier,
    load_tokenizer,
    make_model,
    most_tokens,
    on_device,
    reads_last_token,
    stored_quantization,
)
from .probing import kept_start
from .publish import ADAPTER

HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
"""The last layer of a text classifier, as Transformers calls it."""
LONGEST, BATCH = 512, 16
"""For the adapter of no run: tokens of a text, of which what is longer is cut; and texts of one forward pass."""
POINTS, BINS = 41, 32
"""Points of a curve of sigma, and bins of a histogram."""


def need_aurora(run: TrainedRun, why: str = "have forms to compare") -> None:
    """Raise a UserError for the run of another method, with what only AuroRA runs do."""
    if not isinstance(run.recipe.method, AuroraMethod):
        raise UserError(f"{run.folder} is a run of {run.recipe.method.name}: only AuroRA runs {why}")


# ---------------------------------------------------------------- a run


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
        raise UserError(
            f"{run.folder} is a run of {run.recipe.method.name}: only adapters of PEFT have a merge to measure"
        )
    split = split or run.test_sets[0]
    run.check_split(split)
    check_count("examples", examples)
    check_count("batch_size", batch_size)
    quantizations = [quantizations] if isinstance(quantizations, str) else quantizations
    for name in quantizations:
        check_quantization(name)
    with tempfile.TemporaryDirectory() as nowhere:
        trainer, data = make_trainer(run.recipe.in_float32, Path(nowhere), (), run.folder / ADAPTER)
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
    with tempfile.TemporaryDirectory() as nowhere:
        trainer, data = make_trainer(recipe.in_float32, Path(nowhere), (), run.folder / ADAPTER)
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


# ---------------------------------------------------------------- an adapter that is no run's


@dataclass(frozen=True)
class AdapterGap:
    """What was measured of an adapter, on how many texts."""

    gap: MergeGap
    model: str
    texts: int
    calibration_texts: int
    """How many texts merges rounded by, if any did: every other one of the file."""
    unlabelled: str | None = None
    """Why a column `label` is not used, and there is no metric."""


def adapter_gap(
    adapter: Path,
    model: str | None,
    file: Path,
    *,
    column: str,
    encoding: str | None,
    quantizations: Sequence[str],
    examples: int | None,
) -> AdapterGap:
    """What merges of an adapter lose on the texts of a file; see `merge_gap`. The model is in float32.

    Args:
        adapter: a folder that PEFT has saved a causal language model's or a text classifier's adapter in.
        model: a packaged model, a local folder or a hub model; the one that the adapter names if None.
        file: what `aurora train` and `aurora predict` read, or .txt, with a text in each line. Of a classifier, numbers
            in a column `label` are its labels.
        column: which one has the texts; rows without one are left out.
        encoding: of a text file; None is UTF-8.
        quantizations: see `merge_gap`. With any, or on a quantised base, every other text is for rounding, and none of
            those is measured on.
        examples: an even sample of so many texts; all if None.

    Raises:
        UserError: what is named cannot be loaded or does not fit, or there are too few texts.
    """
    for name in quantizations:
        check_quantization(name)
    check_count("examples", examples)
    settings, outputs = _settings(adapter)
    base = str(model or packaged_name(str(settings.get("base_model_name_or_path") or "")) or "")
    if not base:
        raise ArgumentError(f"{adapter / CONFIG_NAME} names no base model: `model` says which")
    rows = _rows(file, column, encoding)
    rows = [rows[place] for place in even_sample(len(rows), examples)]
    rounds = bool(quantizations) or stored_quantization(base) is not None
    if len(rows) < (2 if rounds else 1):
        why = ": it takes one to round by and one to measure on" if rounds else ""
        raise UserError(f"{len(rows)} texts in column '{column}' of {file} are too few to measure on{why}")
    measured, rounding = (rows[::2], rows[1::2]) if rounds else (rows, [])
    adapted = _load(adapter, base, settings, outputs)
    tokenizer = load_tokenizer(str(adapter) if (adapter / "tokenizer_config.json").is_file() else base)
    fill_padding(adapted.config, tokenizer, replace=reads_last_token(adapted.get_base_model()))
    labels, unlabelled = None, None
    if settings["task_type"] == "SEQ_CLS" and any(label is not None for *_, label in rows):
        try:
            labels = [_label(row, label, adapted.config.num_labels) for row, _, label in measured]
        except BadRow as error:
            unlabelled = f"the column 'label' of {file.name} is not used, and there is no metric: {error}"
    limits = (LONGEST, tokenizer.model_max_length, most_tokens(adapted))
    longest = min(limit for limit in limits if limit is not None)

    def batches(chosen: Sequence[tuple[int, str, Any]], labels: Sequence[float] | None = None) -> list[Any]:
        made = []
        for places in in_batches(range(len(chosen)), BATCH):
            encoded, _ = encode(tokenizer, [[chosen[place][1] for place in places]], longest)
            batch = dict(tokenizer.pad(encoded, return_tensors="pt"))
            made.append(batch if labels is None else {**batch, "labels": torch.tensor([labels[p] for p in places])})
        return made

    merges: dict[str, Any] = {"merges": True, "quantizations": quantizations}
    if rounding and rounds_by_inputs(adapted, **merges):
        merges["rounding_batches"] = batches(rounding)
    found = merge_gap(adapted, batches(measured, labels), **merges)
    return AdapterGap(found, base, len(measured), len(rounding), unlabelled)


def _settings(adapter: Path) -> tuple[dict[str, Any], int | None]:
    """PEFT's config of an adapter, with the kind of task, and the outputs of the classifier in its file, if it has one.

    Of an adapter that does not say its kind of task, that is a classifier's where there is one.
    """
    weights, outputs = adapter / SAFETENSORS_WEIGHTS_NAME, None
    try:
        settings = dict(read_json(adapter / CONFIG_NAME))
        if weights.is_file():
            with safe_open(weights, "pt") as file:
                sizes = [file.get_slice(key).get_shape()[0] for key in list(file.keys()) if key.endswith(HEADS)]
            outputs = min(sizes, default=None)
    except Exception as error:  # safetensors raises of many kinds
        raise UserError(f"{adapter} is neither the folder of a run nor of an adapter: {reason(error)}") from error
    kind = settings.get("task_type") or ("CAUSAL_LM" if outputs is None else "SEQ_CLS")
    if kind not in ("CAUSAL_LM", "SEQ_CLS"):
        raise UserError(
            f"{adapter / CONFIG_NAME}: task_type '{kind}' is not one of CAUSAL_LM, SEQ_CLS: call "
            "aurora_lora.merge_gap(model, batches) in Python"
        )
    return {**settings, "task_type": kind}, outputs


def _rows(file: Path, column: str, encoding: str | None) -> list[tuple[int, str, Any]]:
    """The rows that have a text: the number from 1, the text, and what stands in a column `label`."""
    try:
        piece = open_given(str(file), OwnData(str(file), encoding=encoding))["train"]
    except ArgumentError as error:
        raise ArgumentError(str(error).removeprefix("`split`: ")) from error  # there is no such argument here
    names = piece.data.column_names
    rows = list(piece.rows([name for name in names if name in (column, "label")])) if column in names else []
    if column not in names:
        raise ArgumentError(f"{file} has no column '{column}' (it has {', '.join(names)}): `column` names it")
    found = []
    for row, values in enumerate(rows, start=1):
        said = values[column]
        if said is None or (isinstance(said, str) and not said.strip()):
            continue
        try:
            found.append((row, text(said, column), values.get("label")))
        except BadRow as error:
            raise UserError(f"{file}, row {row}: {error}") from error
    return found


def _label(row: int, given: Any, outputs: int) -> float:
    """The number that a head of so many outputs is scored by.

    Raises:
        BadRow: there is none.
    """
    try:
        label = number(given)
    except BadRow as error:
        raise BadRow(f"row {row}: {error}") from None
    if outputs == 1:
        return label
    if not (label.is_integer() and 0 <= label < outputs):
        raise BadRow(f"row {row}: the label {given!r:.40} is not the number of a class, 0 to {outputs - 1}")
    return int(label)


def _load(adapter: Path, base: str, settings: dict[str, Any], outputs: int | None) -> Any:
    """The adapter on its base, in eval mode, on the device that training computes on."""
    if (adapter / START_FILE).exists() and settings.get("init_lora_weights") is True:
        raise UserError(f"{adapter} belongs to a base weight that its run has changed: give the folder of the run")
    plain = load_classifier(base, outputs) if settings["task_type"] == "SEQ_CLS" else load_causal_model(base)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*[Mm]issing adapter keys")  # they would be as initialised
            model: Any = PeftModel.from_pretrained(plain, str(adapter)).eval()
    except Exception as error:  # PEFT and safetensors raise of many kinds on what does not fit
        raise UserError(f"{adapter} cannot be loaded on {base}: {reason(error)}") from error
    check_finite(model.state_dict().items(), f"{adapter} cannot be used")
    if random := left_random(model):
        raise UserError(f"{adapter} cannot be used: neither it nor {base} has weights for {random[0]}")
    if not linear_layers(model):
        raise UserError(f"{adapter} is an adapter of {settings.get('peft_type')}, which changes no layer: no merge")
    return on_device(model)
