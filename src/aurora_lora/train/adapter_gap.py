"""What merges of an adapter lose that is no run's: a folder of any adapter of PEFT, its base, and a file of texts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.loading import reason
from ..data.models import packaged_name
from ..data.own.broken import UTF8, check_text
from ..data.own.columns import text
from ..data.own.labels import number
from ..data.own.source import open_file
from ..data.own.split import BadRow
from ..deploy import MergeGap, merge_gap
from ..deploy.adapted import adapted_layers
from ..deploy.formats import check_quantization
from ..deploy.gap import rounds_by_inputs
from ..deploy.texts import even_sample
from ..errors import ArgumentError, UserError, check_count
from ..files import read_json
from ..finite import check_finite
from ..methods.newer_fields import warn_of_newer_fields
from ..methods.parameters import left_random
from ..methods.pissa_milora import START_FILE
from ..tuner.peft_names import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from .data import encode, in_batches
from .models import (
    fill_padding,
    load_causal_model,
    load_classifier,
    load_tokenizer,
    most_tokens,
    reads_last_token,
    stored_quantization,
)
from .precision import on_device

HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
"""The last layer of a text classifier, as Transformers calls it."""

LONGEST = 512
"""Tokens of a text; what is longer is cut."""
BATCH = 16
"""Texts of one forward pass."""


@dataclass(frozen=True)
class LabelledText:
    """A row of the file: its number, its text, and what stands in its column `label`, where there is one."""

    row: int
    text: str
    label: Any = None


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
    settings = _settings(adapter)
    base = model or packaged_name(str(settings.get("base_model_name_or_path") or ""))
    if not base:
        raise ArgumentError(f"{adapter / CONFIG_NAME} names no base model: `model` says which")
    check_count("examples", examples)
    rows = _sample(file, column, encoding, examples)
    has_rounding = bool(quantizations) or stored_quantization(str(base)) is not None
    if has_rounding and examples == 1:
        raise ArgumentError(
            "`examples`: 1 is not allowed where a merge rounds: it takes one to round by and one to measure on"
        )
    if len(rows) < (2 if has_rounding else 1):
        raise UserError(f"{file} has {len(rows)} texts in column '{column}': too few to measure on")
    measured, rounding = (rows[::2], rows[1::2]) if has_rounding else (rows, [])
    adapted = _load(adapter, str(base), settings)
    tokenizer = load_tokenizer(str(adapter) if (adapter / "tokenizer_config.json").is_file() else str(base))
    fill_padding(adapted.config, tokenizer, replace=reads_last_token(adapted.get_base_model()))

    labels, unlabelled = None, None
    if settings["task_type"] == "SEQ_CLS" and any(example.label is not None for example in rows):
        try:
            labels = {example.row: _label(example, adapted.config.num_labels, file) for example in measured}
        except BadRow as error:
            unlabelled = f"the column 'label' of {file.name} is not used, and there is no metric: {error}"

    limits = (LONGEST, tokenizer.model_max_length, most_tokens(adapted))
    longest = min(limit for limit in limits if limit is not None)

    def batches(chosen: list[LabelledText], labels: dict[int, float] | None = None) -> list[dict[str, Tensor]]:
        return [_batch(tokenizer, part, longest, labels) for part in in_batches(chosen, BATCH)]

    merges: dict[str, Any] = {"merges": True, "quantizations": quantizations}
    if rounding and rounds_by_inputs(adapted, **merges):
        merges["rounding_batches"] = batches(rounding)
    found = merge_gap(adapted, batches(measured, labels), **merges)
    return AdapterGap(found, str(base), len(measured), len(rounding), unlabelled)


def _settings(adapter: Path) -> dict[str, Any]:
    """PEFT's config of an adapter, with the kind of task; a classifier's if it does not say and a head was saved."""
    try:
        settings = read_json(adapter / CONFIG_NAME)
    except (OSError, ValueError) as error:
        raise UserError(f"{adapter} is neither the folder of a run nor of an adapter: {reason(error)}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{adapter / CONFIG_NAME} holds no settings")
    if settings.get("task_type") not in (None, "CAUSAL_LM", "SEQ_CLS"):
        raise UserError(
            f"{adapter / CONFIG_NAME}: task_type '{settings['task_type']}' is not one of CAUSAL_LM, SEQ_CLS: call "
            "aurora_lora.merge_gap(model, batches) in Python"
        )
    inferred = "CAUSAL_LM" if _labels(adapter) is None else "SEQ_CLS"
    return {**settings, "task_type": settings.get("task_type") or inferred}


def _sample(file: Path, column: str, encoding: str | None, examples: int | None) -> list[LabelledText]:
    if examples is None:
        return list(_read(file, column, encoding))
    chosen = set(even_sample(sum(1 for _ in _read(file, column, encoding)), examples))
    return [row for place, row in enumerate(_read(file, column, encoding)) if place in chosen]


def _read(file: Path, column: str, encoding: str | None) -> Iterator[LabelledText]:
    """The rows that have a text."""
    if file.suffix.lower() == ".txt" and file.is_file():
        check_text(file, encoding)
        lines = file.read_text(encoding or UTF8).split("\n")
        names = ["text"]
        rows: Iterator[dict[str, Any]] = ({"text": line} for line in lines)
    else:
        try:
            piece = open_file(str(file), encoding)
        except ArgumentError as error:
            raise ArgumentError(str(error).removeprefix("`split`: ")) from error  # there is no such argument here
        names = piece.data.column_names
        needed = list(dict.fromkeys((column, *(["label"] if "label" in names else []))))
        rows = piece.rows(needed) if column in names else iter(())
    if column not in names:
        raise ArgumentError(f"{file} has no column '{column}' (it has {', '.join(names)}): `column` names it")
    for row, values in enumerate(rows, start=1):
        said = values[column]
        if said is None or (isinstance(said, str) and not said.strip()):
            continue
        try:
            yield LabelledText(row, text(said, column), values.get("label"))
        except BadRow as error:
            raise UserError(f"{file}, row {row}: {error}") from error


def _label(example: LabelledText, outputs: int, file: Path) -> float:
    """The number that a head of so many outputs is scored by.

    Raises:
        BadRow: there is none.
        UserError: the head has no such class.
    """
    try:
        label = number(example.label)
        if outputs > 1 and not label.is_integer():
            raise BadRow(f"the label {example.label!r:.40} is not the number of a class")
    except BadRow as error:
        raise BadRow(f"row {example.row}: {error}") from None
    if outputs > 1 and not 0 <= label < outputs:
        raise UserError(
            f"{file}, row {example.row}: the label {label:.0f} is not one of 0 to {outputs - 1}, the classes of the "
            "adapter's head"
        )
    return label if outputs == 1 else int(label)


def _batch(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[LabelledText], longest: int, labels: dict[int, float] | None
) -> dict[str, Tensor]:
    encoded, _ = encode(tokenizer, [[each.text for each in examples]], longest)
    batch = dict(tokenizer.pad(encoded, return_tensors="pt"))
    if labels is not None:
        batch["labels"] = torch.tensor([labels[each.row] for each in examples])
    return batch


def _load(adapter: Path, base: str, settings: dict[str, Any]) -> Any:
    """The adapter on its base, in eval mode, on the device that training computes on."""
    if (adapter / START_FILE).exists() and settings.get("init_lora_weights") is True:
        raise UserError(f"{adapter} belongs to a base weight that its run has changed: give the folder of the run")
    warn_of_newer_fields(adapter)
    classifier = settings["task_type"] == "SEQ_CLS"
    plain: PreTrainedModel = load_classifier(base, _labels(adapter)) if classifier else load_causal_model(base)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*[Mm]issing adapter keys")  # they would be as initialised
            model: Any = PeftModel.from_pretrained(plain, str(adapter)).eval()
    except Exception as error:  # PEFT and safetensors raise of many kinds on what does not fit
        raise UserError(f"{adapter} cannot be loaded on {base}: {reason(error)}") from error
    check_finite(model.state_dict().items(), f"{adapter} cannot be used")
    if random := left_random(model):
        raise UserError(f"{adapter} cannot be used: neither it nor {base} has weights for {random[0]}")
    if not adapted_layers(model):
        raise UserError(f"{adapter} is an adapter of {settings.get('peft_type')}, which changes no layer: no merge")
    return on_device(model)


def _labels(adapter: Path) -> int | None:
    """How many classes the head in the adapter's file has; None where it holds none."""
    path = adapter / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            names = [key for key in file.keys() if key.endswith(HEADS)]  # noqa: SIM118 - no mapping
            sizes = [file.get_slice(name).get_shape()[0] for name in names]
    except Exception as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    return min(sizes) if sizes else None
