"""What one does with a finished run: score it again, merge it into a plain model, predict with it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from .. import files, folders
from .._version import __version__
from ..deploy import QuantizedMerge
from ..deploy.export_file import DTYPES
from ..deploy.formats import check_quantization
from ..errors import ArgumentError, AuroraError, FormError, NotFiniteError, UserError
from ..finite import check_finite
from ..tasks.loading import NO_CODE, reason
from ..tasks.own.split import BadRow
from .batches import in_batches
from .build import load_trained_model, make_trainer
from .chat_format import recorded_format
from .contamination_guard import MERGE_NOTE, merge_note, noted_columns, noted_training, trained_on
from .data_record import data_format
from .distributed import state
from .finished_run import TrainedRun, load_run
from .kinds import KINDS, Kind, kind_of, kind_of_model
from .kinds.base import TrainedWith
from .kinds.chat import CHAT
from .kinds.multiple_choice import MULTIPLE_CHOICE
from .models import Processor, from_safetensors, stored_quantization
from .outcome import score
from .precision import FLOAT32, check_dtype, compute_in, precision_of, round_weights
from .quantized import merge_dequantized, merge_into
from .results import Scores, mean_scores
from .storage import ADAPTER, RECIPE, adapter_digests


def evaluate(
    run: TrainedRun, forms: Sequence[str], split: str | None = None, callbacks: Sequence[TrainerCallback] = ()
) -> Scores:
    """Score a finished run again.

    Args:
        run: which.
        forms: which forms of it.
        split: `"train"`, `"validation"` or a test set; None is what the result reports: the mean over its test sets.
        callbacks: further Trainer callbacks, such as a progress bar.

    Raises:
        FormError: the run has no such form.
        UserError: no such split; the data or the adapter cannot be read.
    """
    for form in forms:
        run.check_form(form)
    if split is not None:
        run.check_split(split)
    with tempfile.TemporaryDirectory() as nowhere:  # nothing is written, but Transformers wants a folder
        trainer, data = make_trainer(run.recipe, Path(nowhere), callbacks, run.folder / ADAPTER)
        splits = run.test_sets if split is None else (split,)
        return mean_scores({name: score(run.recipe, trainer, data, name, forms) for name in splits})


# ---------------------------------------------------------------- merging


@dataclass(frozen=True)
class Merged:
    """A stand-alone model on disk."""

    folder: Path
    form: str
    was_there: bool
    """The very same merge was already there: nothing was written."""
    rounding: QuantizedMerge | None = None
    """What rounding by the inputs has lost, in a quantised base."""


def merge(
    run: TrainedRun,
    form: str | None,
    output: Path | str,
    *,
    overwrite: bool = False,
    dtype: str = FLOAT32,
    quantization: str | None = None,
    round_by_inputs: bool = False,
) -> Merged:
    """Write a model without adapters, with its tokenizer: it loads with plain Transformers.

    It is summed in float32 whatever precision the run was trained in, and no weight is rounded, unless another dtype or
    a format is asked for. The base is the one that the run was trained on: of a run on a quantised base, its quantised
    weights, dequantised.

    Args:
        run: which.
        form: which form of it; the deployed one if None.
        output: a new or empty folder. One that already holds this very merge is left as it is.
        overwrite: replace another merged model there; anything else is never replaced, nor what was added to one.
        dtype: that the weights are written in, "float32", "bfloat16" or "float16": each is rounded once.
        quantization: "nf4", "fp4" or "int8": the base is loaded in this format, and the adapter merged into it.
        round_by_inputs: round by the run's calibration inputs (`merge_quantized`), not to the nearest quantised values.

    Raises:
        FormError: the run has no such form, or it cannot be merged.
        NotFiniteError: NaN or infinity among the weights, or a number that is too large for the dtype.
        UserError: the folder holds something else or cannot be written; no such dtype, or one and `quantization`;
            quantisation: no such format, bitsandbytes is missing, or a method that has none.
        MergeError: see `merge_quantized`.
    """
    form, output = form or run.deployed_form, Path(output)
    run.check_mergeable(form)
    source: dict[str, Any] = {"adapter": adapter_digests(run.folder), "form": form, "version": __version__}
    check_dtype(dtype)
    if quantization is not None:
        check_quantization(quantization)
        if dtype != FLOAT32:
            raise ArgumentError(
                f"`dtype` {dtype!r} does not go with `quantization`: what is not quantised stays in {FLOAT32}"
            )
        source |= {"quantization": quantization, "round_by_inputs": round_by_inputs}
    elif round_by_inputs:
        raise ArgumentError("`round_by_inputs` goes with `quantization`: without it, no weight is rounded")
    elif run.recipe.base.quantization is not None:
        source |= {"dequantized": run.recipe.base.quantization}
    if dtype != FLOAT32:
        source["dtype"] = dtype
    folders.settle(output)
    note = merge_note(output)
    if note is not None and note["source"] == source and _complete(output, note["files"]):
        return Merged(output, form, True)
    if folders.is_occupied(output) and not (overwrite and note):
        hint = "`overwrite` replaces it" if note else "choose another folder"
        what = "another merged model" if note else "something that `aurora merge` did not write"
        raise ArgumentError(f"{output} already holds {what}: {hint}")
    _check_only_merge(output)
    folders.check_new_folder(output)
    plain, processor, rounding = _merged(run, form, quantization, round_by_inputs)
    check_finite(plain.named_parameters(), "the merged model cannot be written")
    if dtype != FLOAT32:
        round_weights(plain, dtype)
    kind_of(run.task).finish_merged(plain, processor)
    with folders.new_folder(output, last=("config.json", MERGE_NOTE)) as folder:
        plain.save_pretrained(folder)
        processor.save_pretrained(str(folder))
        written = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        sizes = {name: path.stat().st_size for name, path in written.items()}
        noted = {
            "source": source,
            "kind": run.task.kind,
            "trained_on": trained_on(run.recipe),
            "trained_with": asdict(run.trained_with),
            "format": data_format(run.folder),
            "files": sizes,
        }
        files.write_json(folder / MERGE_NOTE, noted)
        _check_only_merge(output)  # again: a merge takes a while
    return Merged(output, form, False, rounding)


def _merged(
    run: TrainedRun, form: str, quantization: str | None, round_by_inputs: bool
) -> tuple[PreTrainedModel, Processor, QuantizedMerge | None]:
    """The merged model, its tokenizer or image processor, and what rounding by the inputs has lost."""
    stored = stored_quantization(run.recipe.base)
    if quantization is not None:
        if stored is not None:
            raise ArgumentError(
                f"{run.recipe.model} is stored quantised ({stored}): merge without `quantization`, into its "
                "dequantised weights; to choose the format, train on the unquantised model with `model.quantization`"
            )
        return merge_into(run, form, quantization, round_by_inputs)
    if run.recipe.base.quantization is not None or stored is not None:
        return *merge_dequantized(run, form), None
    model, processor = load_trained_model(run.in_float32)
    return run.recipe.method.merge(model, form), processor, None


def _check_only_merge(folder: Path) -> None:
    """Raise a UserError if a merged model's folder, which is about to be replaced, holds more than the model."""
    added = folders.others(folder, {*(merge_note(folder) or {"files": {}})["files"], MERGE_NOTE})
    if added:
        raise UserError(
            f"{folder} holds {added[0]}, which `aurora merge` did not write: move it away, or choose another folder"
        )


def _complete(folder: Path, files: dict[str, int]) -> bool:
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files.items())


# ---------------------------------------------------------------- predicting


@dataclass(frozen=True)
class Predictor:
    """A model that answers, of the kind of task that it was made for: a run in its deployed form, or a plain model."""

    folder: Path
    kind: Kind
    model: nn.Module
    processor: Processor
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Of a file to predict, by the field of a recipe's task that names them."""
    encoding: str | None = None
    """Of the data that it was trained on."""
    trained: TrainedWith = field(default_factory=TrainedWith)
    form: Any = None
    """The context in which the model computes its form."""
    form_name: str | None = None
    """Of a run."""
    dtype: str | None = None
    """That it was asked to be loaded in."""

    def answers(self, texts: Sequence[Any], batch_size: int = 32) -> list[dict[str, Any]]:
        """As `predict`."""
        found: list[dict[str, Any]] = []
        for number, given in enumerate(texts, start=1):
            if isinstance(given, str):
                try:
                    self.kind.check_text(given, f"text {number}", self.columns)
                except BadRow as error:
                    raise UserError(str(error)) from error
        for batch in in_batches(texts, batch_size):
            try:
                found += self.kind.answers(self.model, self.processor, batch, str(self.folder), self.trained)
            except AuroraError:
                raise
            except Exception as error:  # settings of a model or tokenizer that do not fit each other
                raise UserError(f"{self.folder} cannot be used: {reason(error)}") from error
        return found


def predict(
    folder: Path | str, texts: Sequence[str], batch_size: int = 32, *, dtype: str | None = None
) -> list[dict[str, Any]]:
    """What a model says about texts, or about images.

    Args:
        folder: a finished run (its deployed form is used), or any sequence or image classifier or causal language model
            that plain Transformers can load, such as the output of `merge`.
        texts: the texts; the paths of the files for an image classifier.
        batch_size: texts of one forward pass.
        dtype: see `load_predictor`.

    Returns:
        For each text: `text`, `label` and `probability`; `text` and `value` for a regression; `text`, `labels` (those
        above a half) and `probabilities` (of every label) where a text has several; `text` and `answer` for a language
        model, which is given the text in the format that it was trained in: as an instruction, as what a user says, or
        as it stands; and `cut_at`, a number of tokens, for a text that was cut, as in training, or of which a language
        model reads the end alone, as it has no positions for more.

    Raises:
        UserError: the folder holds neither; no such dtype; an image cannot be read; a text is empty or no UTF-8, or
            one where the run was trained on pairs.
        NotFiniteError: NaN or infinity among the weights, also as rounded, or in the logits of a classifier.
        StaleCalibrationError: the run's calibrated matrix does not belong to its adapter.
    """
    return load_predictor(folder, dtype=dtype).answers(texts, batch_size)


def load_predictor(folder: Path | str, form: str | None = None, *, dtype: str | None = None) -> Predictor:
    """What answers with the model in a folder; the errors are those of `predict`.

    Args:
        folder: a finished run, or a plain model.
        form: of the run; the one that it deploys if None.
        dtype: "float32", "bfloat16" or "float16": of the weights, which are read in it one by one, and of the
            computation. Of a run, adapter and head stay in float32, as in a training of that precision. None is float32
            for a run, and for a plain model what its configuration says.

    Raises:
        FormError: the run has no such form, or the folder is no run.
    """
    if dtype is not None:
        check_dtype(dtype)
    return _load_predictor(Path(folder), form, dtype)


def _load_predictor(folder: Path, form: str | None, dtype: str | None) -> Predictor:
    if (folder / RECIPE).is_file():
        run = load_run(folder)
        kind = kind_of(run.task)
        if kind.no_answer:
            raise UserError(f"the run in {folder} {kind.no_answer}")
        form = form or run.deployed_form
        run.check_form(form)
        if dtype in (None, FLOAT32):
            model, processor = load_trained_model(run.in_float32)
            model = _ready(model)
        else:
            assert dtype is not None
            model, processor = load_trained_model(run.in_precision(precision_of(dtype)), rounded=True)
            _check_rounded(model, folder, dtype)  # what was trained is rounded only now
            model = _ready(model)
            compute_in(model, dtype)
            kind.keep_exact(model)
        computes = run.recipe.method.using(model, form)
        computes.__enter__()  # for as long as it answers; refuses a calibration of other weights
        encoding = run.recipe.task.encoding
        return Predictor(
            folder, kind, model, processor, run.columns, encoding, run.trained_with, computes, form, dtype or FLOAT32
        )
    if form is not None:
        raise FormError(f"form={form!r}: {folder} is not the folder of a run, and has no forms")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is neither the folder of a run ({RECIPE}) nor a model (config.json)")
    try:
        note = merge_note(folder)
        noted = KINDS.get((note or {}).get("kind", ""))  # of causal language models, the note alone can tell
        kind = noted or kind_of_model(AutoConfig.from_pretrained(folder, **NO_CODE))
        if kind.no_answer:
            raise UserError(f"the model in {folder} {kind.no_answer}")
        model = _ready(_pretrained(getattr(transformers, kind.auto), folder, dtype))
        processor = kind.processor(str(folder.resolve()))
        talks = recorded_format(processor) or getattr(processor, "chat_template", None)
        if note is None and kind is MULTIPLE_CHOICE and talks:
            kind = CHAT  # a model of someone else's
        config: Any = model.config
        if isinstance(processor, PreTrainedTokenizerBase) and config.pad_token_id is None:
            config.pad_token_id = processor.pad_token_id  # by which a decoder finds a text's last token
        columns, trained = noted_columns(folder), noted_training(folder)
        return Predictor(folder, kind, model, processor, columns, trained=trained, dtype=dtype)
    except AuroraError:
        raise
    except Exception as error:  # Transformers and tokenizers raise of every kind on damaged files
        raise UserError(f"{folder} cannot be loaded: {reason(error)}") from error


def _pretrained(kind: Any, folder: Path, dtype: str | None) -> nn.Module:
    given = {} if dtype is None else {"dtype": DTYPES[dtype]}
    model, info = from_safetensors(kind, str(folder), **given)
    if missing := sorted({*info["missing_keys"], *(str(key[0]) for key in info["mismatched_keys"])}):
        raise UserError(f"{folder} cannot be used: its files lack {', '.join(missing[:3])}, which would be random")
    plain: nn.Module = model
    _check_rounded(plain, folder, dtype)
    return plain


def _check_rounded(model: nn.Module, folder: Path, dtype: str | None) -> None:
    """Raise a NotFiniteError for a weight that is not finite in the dtype that it was loaded in."""
    try:
        check_finite(model.state_dict().items(), f"{folder} cannot be used")
    except NotFiniteError as error:
        if dtype == "float16":
            raise NotFiniteError(f"{error}; as float16, which ends at 65,504: bfloat16 does not") from error
        raise


def _ready(model: nn.Module) -> nn.Module:
    """In eval mode, on the device that training computes on; a quantised model is loaded there."""
    device = state().device
    if next(model.parameters()).device.type != device.type:
        model.to(device)
    return model.eval()
