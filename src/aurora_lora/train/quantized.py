"""A run's adapter merged into its base in 4 or 8 bits, or into what a base in these comes to."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data.loading import reason
from ..deploy import QuantizedMerge, merge_quantized
from ..errors import ArgumentError, UserError
from ..methods.base import BY_INPUTS, NEAREST, PeftMethod, merge_and_unload
from ..methods.linear import untie_adapted
from .build import base_of, load_data
from .data import check_data
from .finished_run import TrainedRun
from .models import Processor, make_model, quantized
from .publish import ADAPTER


def merge_into(
    run: TrainedRun, form: str, quantization: str, round_by_inputs: bool
) -> tuple[PreTrainedModel, Processor, QuantizedMerge | None]:
    """The quantised base of a run with its adapter merged.

    Args:
        run: of a method of PEFT.
        form: of it.
        quantization: see `deploy.formats.QUANTIZATIONS`.
        round_by_inputs: round by the run's calibration inputs, not to the nearest values.

    Returns:
        The model, its tokenizer or image processor, and what rounding lost where it was by the inputs.

    Raises:
        UserError: a run of another method, of one that starts from the base's exact weights, or of one that PEFT
            cannot merge so.
    """
    recipe = run.in_float32.recipe.unquantized
    method = recipe.method
    if not isinstance(method, PeftMethod) or method.base_use == "start":
        raise ArgumentError(
            f"{run.folder} is a run of {recipe.method.name}, whose update is not one of a quantised base: merge it "
            "without `quantization`"
        )
    way = BY_INPUTS if round_by_inputs else NEAREST
    if way not in method.quantised_merges:
        other = "without" if round_by_inputs else "with"
        ways = f"merge it {other} `round_by_inputs`, or" if method.quantised_merges else "merge it"
        raise ArgumentError(
            f"{run.folder} is a run of {method.name}, which PEFT cannot merge so into a quantised base: {ways} without "
            "`quantization`"
        )
    base, processor = base_of(run, recipe)
    base = quantized(base, quantization)
    model = make_model(recipe, base, run.folder / ADAPTER)
    untie_adapted(model)
    with method.using(model, form), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report says what is lost
        if not round_by_inputs:
            return method.merge(model, form), processor, None
        data = load_data(recipe.with_kept_template, processor)
        check_data(run.folder, data)
        report = merge_quantized(model, data.calibration_batches(recipe.calibration))
        return merge_and_unload(model), processor, report


def merge_dequantized(run: TrainedRun, form: str) -> tuple[PreTrainedModel, Processor]:
    """The quantised base that a run was trained on, in float32, with the run's adapter merged: nothing is rounded.

    Args:
        run: of a recipe with `model.quantization`, or of a model that is stored quantised.
        form: of it.

    Returns:
        The model, and its tokenizer or image processor.

    Raises:
        UserError: Transformers cannot dequantise the model.
    """
    recipe = run.recipe
    base: Any
    base, processor = base_of(run, recipe)
    try:  # some formats are dequantised while loading, where there is no GPU for them
        dense = (base if getattr(base, "hf_quantizer", None) is None else base.dequantize(torch.float32)).float()
    except (NotImplementedError, ValueError) as error:
        raise UserError(f"{recipe.model} cannot be dequantised, and so not be merged: {reason(error)}") from error
    _forget_format(dense)
    model = make_model(recipe.in_float32.unquantized, dense, run.folder / ADAPTER)
    return recipe.method.merge(model, form), processor


def _forget_format(dense: Any) -> None:
    """Let a dequantised model be saved as any other: Transformers would write it in the format that it was read in."""
    conversions = getattr(dense, "_weight_conversions", None)
    if conversions is not None:
        dense._weight_conversions = [one for one in conversions if not _is_of_a_format(one)]


def _is_of_a_format(conversion: Any) -> bool:
    """Whether it is one of the conversions of a checkpoint that a quantiser has added, and not the architecture."""
    operations = getattr(conversion, "operations", None) or ()
    return any(type(one).__module__.startswith("transformers.integrations") for one in operations)
