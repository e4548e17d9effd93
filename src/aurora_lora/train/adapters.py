"""A causal language model's adapter of no run, of any method of PEFT: what merges of it lose (`aurora gap ADAPTER`), a
merge into a copy of what is served (`aurora merge ADAPTER`), and a check of such a copy (`aurora gap --merged`)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from ..data.loading import plainly, reason
from ..data.own.source import OwnData, open_given
from ..deploy import InputStatistics, MergeGap, QuantizedMerge, merge_gap
from ..deploy.compressed import PRESETS
from ..deploy.formats import check_quantization
from ..deploy.gap import rounds_by_inputs
from ..deploy.inputs import Passes, Runner, evaluated
from ..deploy.merge_quantized import UNMERGED, WITHOUT
from ..deploy.merges import linear_layers
from ..deploy.predictions import EndToEndGap, compare
from ..deploy.stored import check_linear_only, compress, merge_stored, not_quantised
from ..deploy.texts import even_sample
from ..errors import ArgumentError, UserError, abridged, check_count
from ..files import expanded, new_folder, read_json
from ..methods.singular import START_FILE
from ..tuner.peft_names import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from ..values import check_finite
from .models import (
    check_floats,
    is_gguf,
    load_causal_model,
    load_tokenizer,
    most_tokens,
    on_device,
    stored_quantization,
)

LONGEST, BATCH = 512, 16
"""Tokens of a text, of which what is longer is cut; and texts of one forward pass."""
MERGED = "merged"


@dataclass(frozen=True)
class AdapterOfPeft:
    """An adapter on disk.

    Args:
        folder: that PEFT has saved it in.
        settings: its config.
        base: a packaged model, a local folder or GGUF file, or a hub model.
        like: where the tokenizer and the config of a GGUF file are, if not in the file.
    """

    folder: Path
    settings: Mapping[str, Any]
    base: str
    like: str | None = None

    @classmethod
    def read(cls, folder: Path, model: str | None = None, like: str | None = None) -> AdapterOfPeft:
        """
        Args:
            folder: of the adapter.
            model: its base; the one that the adapter names if None.
            like: see the class.

        Raises:
            UserError: it is none of a causal language model, or names no base.
        """
        try:
            settings = dict(read_json(folder / CONFIG_NAME))
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} is neither the folder of a run nor of an adapter: {reason(error)}") from error
        if (kind := settings.get("task_type") or "CAUSAL_LM") != "CAUSAL_LM":
            python = "call aurora_lora.merge_gap(model, batches) or merge_stored in Python"
            raise UserError(f"{folder / CONFIG_NAME}: task_type '{kind}' is not CAUSAL_LM: {python}")
        if not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
            raise UserError(f"{folder} has no {SAFETENSORS_WEIGHTS_NAME}, and no weights are read from pickles")
        base = str(model or settings.get("base_model_name_or_path") or "")
        if not base:
            raise ArgumentError(f"{folder / CONFIG_NAME} names no base model: `model` says which")
        return cls(folder, settings, base, like)

    @property
    def quantization(self) -> str | None:
        """How its base is stored quantised, if it is."""
        return "gguf" if is_gguf(self.base) else stored_quantization(self.base)

    def load(self) -> Any:
        """The adapter on its base, in eval mode, on the device that training computes on.

        Raises:
            UserError: it does not fit.
        """
        if (self.folder / START_FILE).exists() and self.settings.get("init_lora_weights") is True:
            raise UserError(
                f"{self.folder} belongs to a base weight that its run has changed: give the folder of the run"
            )
        plain = load_causal_model(self.base, self.like)
        with plainly(f"{self.folder} cannot be loaded on {self.base}"), warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*[Mm]issing adapter keys")  # they would be as initialised
            model: Any = PeftModel.from_pretrained(plain, str(self.folder))
        check_finite(model.state_dict().items(), f"{self.folder} cannot be used")
        check_floats(self.folder)
        if not linear_layers(model):
            kind = self.settings.get("peft_type")
            raise UserError(f"{self.folder} is an adapter of {kind}, which changes no layer: no merge")
        return on_device(model)

    def reading(self, model: nn.Module, column: str) -> dict[str, Any]:
        """How its texts are read: arguments of `deploy`'s functions."""
        if (self.folder / "tokenizer_config.json").is_file():
            tokenizer = load_tokenizer(str(self.folder))
        else:
            tokenizer = load_tokenizer(self.like or self.base)
        longest = min(LONGEST, tokenizer.model_max_length, most_tokens(model) or LONGEST)
        return {"tokenizer": tokenizer, "text_columns": column, "batch_size": BATCH, "max_length": longest}


@dataclass(frozen=True)
class Texts:
    """The texts of a file that is read as training data is, or of the lines of a .txt.

    Args:
        file: which.
        column: that they are in; rows without one are left out.
        encoding: of a text file; None is UTF-8.
        examples: an even sample of so many texts; all if None.
    """

    file: Path
    column: str = "text"
    encoding: str | None = None
    examples: int | None = None

    def read(self, at_least: int = 1, why: str = "") -> tuple[Any, list[int]]:
        """The rows, and which of them have a text.

        Raises:
            UserError: there is no such column, or too few texts.
        """
        check_count("examples", self.examples)
        rows = open_given(str(self.file), OwnData(str(self.file), encoding=self.encoding))["train"].data
        if self.column not in rows.column_names:
            raise ArgumentError(
                f"{self.file} has no column '{self.column}' (it has {', '.join(rows.column_names)}): `column` names it"
            )
        kept = [row for row, text in enumerate(rows[self.column]) if isinstance(text, str) and text.strip()]
        kept = [kept[place] for place in even_sample(len(kept), self.examples)]
        if len(kept) < at_least:
            raise UserError(
                f"{len(kept)} texts in column '{self.column}' of {self.file} are too few to measure on{why}"
            )
        return rows, kept


# ---------------------------------------------------------------- what merges lose


@dataclass(frozen=True)
class AdapterGap:
    """What was measured of an adapter, on how many texts."""

    gap: MergeGap
    model: str
    texts: int
    calibration_texts: int
    """How many texts merges rounded by, if any did: every other one of the file."""


def adapter_gap(adapter: Path, texts: Texts, model: str | None = None, quantizations: Sequence[str] = ()) -> AdapterGap:
    """What merges of an adapter lose on some texts; see `merge_gap`. The model is in float32.

    Args:
        adapter: its folder.
        texts: to measure on. With any quantisation, or on a quantised base, every other one is for rounding, and none
            of those is measured on.
        model: see `AdapterOfPeft.read`.
        quantizations: see `merge_gap`.

    Raises:
        UserError: what is named cannot be loaded or does not fit, or there are too few texts.
    """
    for name in quantizations:
        check_quantization(name)
    found = AdapterOfPeft.read(adapter, model)
    rounds = bool(quantizations) or found.quantization not in (None, "gguf", "compressed-tensors")
    rows, kept = texts.read(1 + rounds, " to measure on: it takes one to round by, too" if rounds else "")
    measured, rounding = (kept[::2], kept[1::2]) if rounds else (kept, [])
    adapted = found.load()
    merges: dict[str, Any] = {"merges": True, "quantizations": quantizations}
    if rounding and rounds_by_inputs(adapted, **merges):
        merges["rounding_batches"] = rows.select(rounding)
    with plainly(f"{adapter} cannot be used"):  # PEFT's Poly asks for more than texts
        gap = merge_gap(adapted, rows.select(measured), **found.reading(adapted, texts.column), **merges)
    return AdapterGap(gap, found.base, len(measured), len(rounding))


# ---------------------------------------------------------------- merges into what is served


def merge_adapter(
    adapter: AdapterOfPeft, texts: Texts | None, output: Path, quantization: str | None = None, progress: bool = False
) -> QuantizedMerge:
    """Write a copy of a served base with an adapter merged, rounded by some texts; see `deploy.merge_stored`.

    Args:
        adapter: on a GGUF file, or a folder of compressed-tensors; or with `quantization` on a base in float.
        texts: to round by, some of which are held out; None: by the input statistics in the folder of the adapter.
        output: a file or a folder that is not there yet.
        quantization: one of `deploy.compressed.PRESETS`, that the base is put into; see `deploy.stored.compress`.
        progress: whether bars on stderr show how far it is.

    Raises:
        UserError: what is named cannot be loaded, does not fit or cannot be written.
        MergeError, CalibrationError, FormError, NotFiniteError: see `merge_stored`.
    """
    if quantization is not None:
        check_quantization(quantization, tuple(PRESETS))
        if adapter.quantization is not None:
            raise ArgumentError(f"{adapter.base} is stored quantised: `model` names one in float, for `quantization`")
    elif adapter.quantization not in ("gguf", "compressed-tensors"):
        what = "neither a GGUF file nor a folder of compressed-tensors"
        raise ArgumentError(f"{adapter.base} is {what}: `model` names one, or `quantization` what it is to be")
    if output.exists():
        raise ArgumentError(f"{output} exists already: choose another name")
    reading: dict[str, Any] = {}
    batches: Any
    if texts is None:
        batches, adapted = InputStatistics.load(adapter.folder), adapter.load()
    else:
        rows, kept = texts.read()
        adapted, batches = adapter.load(), rows.select(kept)
        reading = adapter.reading(adapted, texts.column)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report says what is lost
        if quantization is None:
            return merge_stored(adapted, expanded(adapter.base), output, batches, progress=progress, **reading)
        check_linear_only(adapted)
        dtype = adapted.get_base_model().stored_dtype
        plain, report = compress(adapted, quantization, dtype, batches, progress, **reading)
    with new_folder(output) as folder:
        plain.save_pretrained(folder)
        reading["tokenizer"].save_pretrained(folder)
    assert report is not None
    return report


# ---------------------------------------------------------------- a check of what was written


@dataclass(frozen=True)
class MergedCheck:
    """What a merged model predicts beside the unmerged adapter.

    Args:
        without: the base without the adapter.
        merged: what was written.
        predictions: how many were compared.
        accidents: what is wrong with it, a line each.
    """

    without: EndToEndGap
    merged: EndToEndGap
    predictions: int
    accidents: tuple[str, ...]


def check_merged(
    adapter: Path, merged: Path, texts: Texts, model: str | None = None, like: str | None = None
) -> MergedCheck:
    """Compare a merged model, as it was written, with the adapter on its base.

    Args:
        adapter: its folder.
        merged: a GGUF file, or a folder that Transformers loads.
        texts: held-out ones, to compare on.
        model: see `AdapterOfPeft.read`.
        like: see `AdapterOfPeft`.

    Raises:
        UserError: what is named cannot be loaded or does not fit.
    """
    found = AdapterOfPeft.read(adapter, model, like)
    rows, kept = texts.read()
    adapted = found.load()
    written: Any = on_device(load_causal_model(str(merged), like))
    if written.config.vocab_size != adapted.config.vocab_size:
        sizes = f"{written.config.vocab_size:,} and {adapted.config.vocab_size:,} tokens"
        raise UserError(f"{merged} is no merge of {found.base}: they have {sizes}")
    data = Passes(rows.select(kept), **found.reading(adapted, texts.column))
    with (
        plainly(f"{adapter} cannot be used"),
        evaluated(adapted),
        evaluated(written),
        Runner(adapted, "check_merged") as runner,
    ):

        @contextmanager
        def instead() -> Iterator[None]:
            earlier, runner.model = runner.model, written
            try:
                yield
            finally:
                runner.model = earlier

        variants = {UNMERGED: nullcontext, WITHOUT: adapted.disable_adapter, MERGED: instead}
        (_, without, found_merged), n = compare(runner, data.one_pass(), variants, perplexity=True)
    accidents = []
    if without.kl and replace(without, form=MERGED) == found_merged:
        accidents.append(f"{merged} is the base: it predicts what the model without the adapter does")
    base = expanded(found.base)
    if floats := not_quantised(merged, base if base.exists() else None):
        accidents.append(f"{merged} is not quantised as it says: {abridged(floats)} in floating point")
    return MergedCheck(without, found_merged, n, tuple(accidents))
