"""A finished AuroRA run as a plain LoRA: `aurora export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, cast

from ..data.models import hub_name
from ..deploy import export_lora
from ..deploy.export import check_replaceable
from ..errors import ArgumentError, FormError, UserError
from ..files import is_occupied, new_folder, settle
from ..forms import FormName
from .card import Facts, replaceable_card, write_lora_card
from .finished_run import TrainedRun, as_run
from .measuring import need_aurora
from .models import check_dtype, exact_modules, padding_of
from .publish import ADAPTER
from .run import load_trained_model, name_revision


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
    config: Any = model.config
    options: dict[str, Any] = {"dtype": dtype, "processor": processor, "all_layers": all_layers}
    try:
        with new_folder(output) as partial:
            export_lora(model, partial, cast(FormName, form), base_name=hub_name(run.recipe.model), **options)
            name_revision(partial, run.recipe)
            facts = Facts(run.recipe, run.task, run.result, padding_of(config), exact_modules(config))
            write_lora_card(partial, facts, form)
    except (FormError, ArgumentError):
        raise
    except ValueError as error:
        raise UserError(str(error).rstrip(".")) from error
    return Exported(output, form)


def check_export_folder(output: Path, overwrite: bool) -> None:
    """Raise a UserError where an export would replace anything but an export and its card."""
    settle(output)
    if is_occupied(output) and not overwrite:
        raise ArgumentError(f"{output} is not empty: choose another folder, or `overwrite` replaces an earlier export")
    try:
        check_replaceable(output, replaceable_card(output))
    except ValueError as error:
        raise UserError(str(error).rstrip(".")) from error
