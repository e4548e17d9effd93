"""What one does with a finished AuroRA run before it is served: look at the merge gap, export it as LoRA."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import Tensor

from ..data.models import hub_name
from ..deploy import MergeGap, export_lora, merge_gap
from ..deploy.export import check_replaceable
from ..deploy.formats import check_quantization
from ..deploy.gap import rounds_by_inputs
from ..deploy.texts import even_sample
from ..errors import ArgumentError, FormError, UserError, check_count
from ..folders import is_occupied, new_folder, settle
from ..forms import CALIBRATED, FormName
from ..methods.aurora import AuroraMethod
from ..methods.base import PeftMethod
from ..tuner import check_calibrated
from ..tuner.peft_names import CONFIG_NAME
from .build import load_trained_model, make_trainer
from .card import Facts, replaceable_card, write_lora_card
from .data import in_batches
from .finished_run import TrainedRun, as_run
from .kinds import kind_of
from .models import exact_modules, padding_of
from .precision import check_dtype
from .publish import ADAPTER
from .run import name_revision


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

    if not kind.facts.scores_batches:  # merge_gap's own: the next token of language models, nothing of hidden states
        return merge_gap(model, batches, **wanted)
    return merge_gap(model, batches, **wanted, metric=metric)


class Exported(NamedTuple):
    """A plain LoRA on disk."""

    folder: Path
    form: str


def export(
    run: TrainedRun | Path | str,
    output: Path | str,
    *,
    form: str | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
    all_layers: bool = False,
) -> Exported:
    """Write a run's adapter as a plain LoRA, with a card that says what it came of; see `export_lora`.

    Args:
        run: of AuroRA, or its folder.
        output: a new or empty folder.
        form: which form of it; the deployed one if None.
        dtype: "float32", "bfloat16" or "float16".
        overwrite: replace an earlier export there; anything else is never replaced.
        all_layers: zeros for layers that are not adapted, for engines that need them all.

    Raises:
        UserError: no AuroRA run, an unknown dtype, or a folder that holds something else.
        FormError: the run has no such form, or it cannot be exported.
        TypeError: `run` is neither a run nor a path.
    """
    run, output = as_run(run), Path(output)
    need_aurora(run, f"are exported as LoRA; what this one has trained is in its folder {ADAPTER}")
    check_dtype(dtype)
    form = form or run.deployed_form
    run.check_mergeable(form)
    check_export_folder(output, overwrite)
    model, processor = load_trained_model(run)
    base = hub_name(run.recipe.model)
    try:
        with new_folder(output, last=[CONFIG_NAME]) as partial:
            export_lora(
                model,
                partial,
                cast("FormName", form),
                dtype=dtype,
                processor=processor,
                base_name=base,
                all_layers=all_layers,
            )
            name_revision(partial, run.recipe)
            config: Any = model.config
            facts = Facts(run.recipe, run.task, run.result, padding_of(config), exact_modules(config))
            write_lora_card(partial, facts, form)
    except (FormError, ArgumentError):
        raise
    except ValueError as error:
        raise UserError(str(error).rstrip(".")) from error
    return Exported(output, form)


def need_aurora(run: TrainedRun, why: str = "have forms to compare") -> None:
    """Raise a UserError for the run of another method.

    Args:
        run: which.
        why: what only AuroRA runs do.
    """
    if not isinstance(run.recipe.method, AuroraMethod):
        raise UserError(f"{run.folder} is a run of {run.recipe.method.name}: only AuroRA runs {why}")


def check_export_folder(output: Path, overwrite: bool) -> None:
    """Raise a UserError where an export would replace something that it may not: anything but an export and its
    card."""
    settle(output)
    if is_occupied(output) and not overwrite:
        raise ArgumentError(f"{output} is not empty: choose another folder, or `overwrite` replaces an earlier export")
    try:
        check_replaceable(output, replaceable_card(output))
    except ValueError as error:
        raise UserError(str(error).rstrip(".")) from error
