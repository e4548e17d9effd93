"""What merges of an adapter lose that is no run's: a folder of any adapter of PEFT, its base, and a file of texts."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..deploy import MergeGap, merge_gap
from ..deploy.adapted import adapted_layers
from ..deploy.formats import check_quantization
from ..errors import ArgumentError, UserError
from ..finite import check_finite
from ..methods.pissa_milora import START_FILE
from ..tasks._loading import reason
from ..tasks.models import packaged_name
from .data import encode
from .models import load_causal_model, load_classifier, load_tokenizer

CONFIG = "adapter_config.json"
"""In every folder that PEFT has saved an adapter in."""

HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
"""The last layer of a text classifier, as Transformers calls it."""

LONGEST = 512
"""Tokens of a text; what is longer is cut."""


@dataclass(frozen=True)
class AdapterGap:
    """What was measured of an adapter, on how many texts."""

    gap: MergeGap
    model: str
    texts: int
    calibration_texts: int
    """By which the calibrated merges rounded: every other one of the file."""


def adapter_gap(
    adapter: Path,
    model: str | None,
    file: Path,
    *,
    column: str = "text",
    quantizations: Sequence[str] = (),
    examples: int | None = None,
    batch_size: int = 16,
) -> AdapterGap:
    """What merges of an adapter lose on the texts of a file; see `merge_gap`. The model is in float32.

    Args:
        adapter: a folder that PEFT has saved a causal language model's or a text classifier's adapter in.
        model: a packaged model, a local folder or a hub model; the one that the adapter names if None.
        file: .jsonl, .json, .csv or .txt (a text in each line). Of a classifier, numbers in a column `label` are its
            labels.
        column: which one has the texts.
        quantizations: see `merge_gap`. With any, every other text is for rounding, and none of those is measured on.
        examples: the first so many texts; all if None.
        batch_size: texts of one forward pass.

    Raises:
        UserError: what is named cannot be loaded or does not fit, or there are too few texts.
    """
    for name in quantizations:
        check_quantization(name)
    settings = _settings(adapter)
    base = model or packaged_name(str(settings.get("base_model_name_or_path") or ""))
    if not base:
        raise ArgumentError(f"{adapter / CONFIG} names no base model: `model` says which")
    rows = _read(file, column, examples)
    if len(rows) < (2 if quantizations else 1):
        raise UserError(f"{file} has {len(rows)} texts in column '{column}': too few to measure on")
    measured, rounding = (rows[::2], rows[1::2]) if quantizations else (rows, [])
    adapted = _load(adapter, str(base), settings)
    tokenizer = load_tokenizer(str(adapter) if (adapter / "tokenizer_config.json").is_file() else str(base))
    if getattr(adapted.config, "pad_token_id", None) is None:
        adapted.config.pad_token_id = tokenizer.pad_token_id  # by which a classifier finds a text's last token

    def batches(chosen: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        return [
            _batch(tokenizer, chosen[at : at + batch_size], column, settings)
            for at in range(0, len(chosen), batch_size)
        ]

    calibration = batches(rounding) or None
    found = merge_gap(adapted, batches(measured), quantizations=quantizations, calibration=calibration)
    return AdapterGap(found, str(base), len(measured), len(rounding))


def _settings(adapter: Path) -> dict[str, Any]:
    try:
        settings = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{adapter} is neither the folder of a run nor of an adapter: {reason(error)}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{adapter / CONFIG} holds no settings")
    if settings.get("task_type") not in (None, "CAUSAL_LM", "SEQ_CLS"):
        raise UserError(
            f"{adapter / CONFIG}: task_type '{settings['task_type']}' is not one of CAUSAL_LM, SEQ_CLS: call "
            "aurora_lora.merge_gap(model, batches) in Python"
        )
    return settings


def _read(file: Path, column: str, examples: int | None) -> list[dict[str, Any]]:
    """The rows that have a text."""
    readers = {".jsonl": "json", ".json": "json", ".csv": "csv", ".txt": "text"}
    if (reader := readers.get(file.suffix)) is None:
        raise UserError(f"{file}: '{file.suffix}' is not one of {', '.join(readers)}")
    if not file.is_file():
        raise UserError(f"{file}: No such file")
    if examples is not None and examples < 1:
        raise UserError(f"examples must be at least 1, got {examples}")
    with tempfile.TemporaryDirectory() as cache:
        try:
            read = getattr(datasets.Dataset, f"from_{reader}")
            rows = read(str(file), cache_dir=cache, keep_in_memory=True)
        except Exception as error:  # pyarrow raises of many kinds
            raise UserError(f"{file} cannot be read: {reason(error)}") from error
        if column not in rows.column_names:
            raise ArgumentError(
                f"{file} has no column '{column}' (it has {', '.join(rows.column_names)}): `column` names it"
            )
        found = [row for row in rows if isinstance(row[column], str) and row[column].strip()]
    return found[:examples]


def _batch(
    tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], column: str, settings: dict[str, Any]
) -> dict[str, Tensor]:
    texts = [row[column] for row in rows]
    encoded, _ = encode(tokenizer, [texts], min(LONGEST, tokenizer.model_max_length))
    batch = dict(tokenizer.pad(encoded, return_tensors="pt"))
    labels = [row.get("label") for row in rows]
    if settings.get("task_type") == "SEQ_CLS" and all(isinstance(label, int) for label in labels):
        batch["labels"] = torch.tensor(labels)
    return batch


def _load(adapter: Path, base: str, settings: dict[str, Any]) -> Any:
    """The adapter on its base, in eval mode, on the GPU if there is one."""
    if (adapter / START_FILE).exists() and settings.get("init_lora_weights") is True:
        raise UserError(f"{adapter} belongs to a base weight that its run has changed: give the folder of the run")
    classifier = settings.get("task_type") == "SEQ_CLS"
    plain: PreTrainedModel = load_classifier(base, _labels(adapter)) if classifier else load_causal_model(base)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*[Mm]issing adapter keys")  # they would be as initialised
            model: Any = PeftModel.from_pretrained(plain, str(adapter)).eval()
    except Exception as error:  # PEFT and safetensors raise of many kinds on what does not fit
        raise UserError(f"{adapter} cannot be loaded on {base}: {reason(error)}") from error
    check_finite(model.state_dict().items(), f"{adapter} cannot be used")
    if not adapted_layers(model):
        raise UserError(f"{adapter} is an adapter of {settings.get('peft_type')}, which changes no layer: no merge")
    on_gpu = torch.cuda.is_available() and not getattr(plain, "is_quantized", False)
    return model.to("cuda") if on_gpu else model


def _labels(adapter: Path) -> int | None:
    """How many classes the head in the adapter's file has; None where it holds none."""
    path = adapter / "adapter_model.safetensors"
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            names = [key for key in file.keys() if key.endswith(HEADS)]  # noqa: SIM118 - no mapping
            sizes = [file.get_slice(name).get_shape()[0] for name in names]
    except Exception as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    return min(sizes) if sizes else None
