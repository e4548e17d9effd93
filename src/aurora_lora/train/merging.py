"""A finished run as a stand-alone model, with the adapter in its weights: `aurora merge`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from .. import folders
from .._version import __version__
from ..data.models import MODELS
from ..deploy import QuantizedMerge
from ..deploy.formats import check_quantization
from ..errors import ArgumentError, UserError
from ..files import expanded
from ..finite import check_finite
from .build import load_trained_model
from .data import data_format
from .finished_run import TrainedRun, as_run
from .kinds import kind_of
from .merge_note import MERGE_NOTE, merge_note, write_merge_note
from .models import Processor, stored_quantization
from .precision import FLOAT32, check_dtype, round_weights
from .publish import adapter_digests
from .quantized import merge_dequantized, merge_into
from .run import trained_on


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
    run: TrainedRun | Path | str,
    output: Path | str,
    *,
    form: str | None = None,
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
        run: which, or its folder.
        output: a new or empty folder. One that already holds this very merge is left as it is.
        form: which form of it; the deployed one if None.
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
        TypeError: `run` is neither a run nor a path.
    """
    run = as_run(run)
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
    if _is_base_of(run, output):
        raise ArgumentError(f"{output} is the model that {run.folder} was trained on and needs: choose another folder")
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
        write_merge_note(
            folder,
            source,
            kind=run.task.kind,
            trained_on=trained_on(run.recipe),
            trained_with=run.trained_with,
            data_format=data_format(run.folder),
        )
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


def _is_base_of(run: TrainedRun, folder: Path) -> bool:
    """Whether a folder holds the base model of the run."""
    base = expanded(run.recipe.model)
    return run.recipe.model not in MODELS and base.is_dir() and folder.is_dir() and base.samefile(folder)


def _check_only_merge(folder: Path) -> None:
    """Raise a UserError if a merged model's folder, which is about to be replaced, holds more than the model."""
    added = folders.others(folder, {*(merge_note(folder) or {"files": {}})["files"], MERGE_NOTE})
    if added:
        raise UserError(
            f"{folder} holds {added[0]}, which `aurora merge` did not write: move it away, or choose another folder"
        )


def _complete(folder: Path, files: dict[str, int]) -> bool:
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files.items())
