"""A finished run leaves its folder: merged into its model (`aurora merge`), as a plain LoRA (`aurora export`), or to
the Hugging Face hub (`aurora push`)."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from huggingface_hub import HfApi, ModelCard, get_token
from transformers import PreTrainedModel

from .. import files
from ..data.loading import plainly, reason
from ..data.models import MODELS, hub_name
from ..deploy import QuantizedMerge, export_lora, merge_quantized
from ..deploy.compressed import PRESETS
from ..deploy.export import check_replaceable
from ..deploy.formats import QUANTIZATIONS, check_quantization
from ..deploy.statistics import STATISTICS_FILE
from ..deploy.stored import compress
from ..errors import ArgumentError, AuroraError, FormError, UserError
from ..files import expanded, is_path
from ..forms import FormName
from ..methods.base import BY_INPUTS, NEAREST, PeftMethod, edit_config, merge_and_unload
from ..methods.targets import untie_adapted
from ..tuner.peft_names import CONFIG_NAME
from .card import CARD, Facts, replaceable_card, write_lora_card, write_merged_card
from .data import check_data
from .finished_run import MERGE_NOTE, TrainedRun, as_run, merge_note
from .kinds import kind_of
from .measuring import need_aurora
from .models import (
    FLOAT32,
    Processor,
    check_dtype,
    exact_modules,
    make_model,
    padding_of,
    quantized,
    round_weights,
    stored_quantization,
)
from .publish import ADAPTER, LORA, RESULT, check_adapter
from .run import base_of, load_data, load_trained_model, name_revision, trained_on


class Merged(NamedTuple):
    """A stand-alone model on disk."""

    folder: Path
    form: str
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
        output: a new or empty folder.
        form: which form of it; the deployed one if None.
        overwrite: replace another merged model there; anything else is never replaced, nor what was added to one.
        dtype: that the weights are written in, "float32", "bfloat16" or "float16": each is rounded once.
        quantization: "nf4", "fp4" or "int8": the base is loaded in this format, and the adapter merged into it. Or one
            of `deploy.compressed.PRESETS`: the adapter is merged into the base in float, which is quantised then.
        round_by_inputs: round by the run's calibration inputs, not to the nearest quantised values.

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
    check_dtype(dtype)
    if quantization is not None:
        check_quantization(quantization, (*QUANTIZATIONS, *PRESETS))
        if dtype != FLOAT32:
            raise ArgumentError(
                f"`dtype` {dtype!r} does not go with `quantization`: what is not quantised stays in {FLOAT32}"
            )
    elif round_by_inputs:
        raise ArgumentError("`round_by_inputs` goes with `quantization`: without it, no weight is rounded")
    files.settle(output)
    note = merge_note(output)
    if files.is_occupied(output) and not (overwrite and note):
        hint = "`overwrite` replaces it" if note else "choose another folder"
        what = "a merged model" if note else "something that `aurora merge` did not write"
        raise ArgumentError(f"{output} already holds {what}: {hint}")
    base = expanded(run.recipe.model)
    if run.recipe.model not in MODELS and base.is_dir() and output.is_dir() and base.samefile(output):
        raise ArgumentError(f"{output} is the model that {run.folder} was trained on and needs: choose another folder")
    _check_only_merge(output)
    files.check_new_folder(output)
    stored = stored_quantization(run.recipe.base)
    was_quantized = run.recipe.base.quantization is not None or stored is not None
    rounding: QuantizedMerge | None = None
    if quantization is not None and stored is not None:
        raise ArgumentError(
            f"{run.recipe.model} is stored quantised ({stored}): merge without `quantization`, into its "
            "dequantised weights; to choose the format, train on the unquantised model with `model.quantization`"
        )
    if quantization is not None:
        plain, processor, rounding = _merged_into(run, form, quantization, round_by_inputs)
    elif was_quantized:
        plain, processor = _merged_dequantized(run, form)
    else:
        model, processor = load_trained_model(run.in_precision("fp32"))
        plain = run.recipe.method.merge(model, form)
    if dtype != FLOAT32:
        round_weights(plain, dtype)
    with files.new_folder(output) as folder:
        # dequantised weights would be written in the format that they were read in
        plain.save_pretrained(folder, save_original_format=quantization is not None or not was_quantized)
        processor.save_pretrained(str(folder))
        kind_of(run.task).finish_merged(folder, plain, processor)
        facts = Facts(run.recipe, run.task, run.result, padding_of(plain.config))
        write_merged_card(folder, facts, form, quantization or (None if dtype == FLOAT32 else dtype))
        said = {
            "kind": run.task.kind,
            "trained_on": trained_on(run.recipe),
            "trained_with": asdict(run.trained_with),
            "columns": run.columns,
            "files": [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()],
        }
        files.write_json(folder / MERGE_NOTE, said)
        _check_only_merge(output)  # again: a merge takes a while
    return Merged(output, form, rounding)


def _merged_into(
    run: TrainedRun, form: str, quantization: str, round_by_inputs: bool
) -> tuple[PreTrainedModel, Processor, QuantizedMerge | None]:
    """The base of a run in a format, as in `merge`, with its adapter merged; its tokenizer or
    image processor; and what rounding by the inputs has lost."""
    recipe = run.in_precision("fp32").recipe.unquantized
    method = recipe.method
    is_fresh = quantization in PRESETS
    if not isinstance(method, PeftMethod) or (method.base_use == "start" and not is_fresh):
        raise ArgumentError(
            f"{run.folder} is a run of {method.name}, whose update is not one of a quantised base: merge it "
            "without `quantization`"
        )
    if not is_fresh and (BY_INPUTS if round_by_inputs else NEAREST) not in method.quantised_merges:
        other = "without" if round_by_inputs else "with"
        ways = f"merge it {other} `round_by_inputs`, or" if method.quantised_merges else "merge it"
        raise ArgumentError(
            f"{run.folder} is a run of {method.name}, which PEFT cannot merge so into a quantised base: {ways} without "
            "`quantization`"
        )
    base: Any
    base, processor = base_of(run, recipe)
    model = make_model(recipe, base if is_fresh else quantized(base, quantization), run.folder / ADAPTER)
    untie_adapted(model)
    with method.using(model, form), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report says what is lost
        batches = None
        if round_by_inputs:
            data = load_data(recipe.with_kept_template, processor)
            check_data(run.folder, data)
            batches = data.calibration_batches(recipe.calibration)
        if is_fresh:
            plain, lost = compress(model, quantization, base.stored_dtype, batches)
            return plain, processor, lost
        if batches is None:
            return method.merge(model, form), processor, None
        report = merge_quantized(model, batches)
        return merge_and_unload(model), processor, report


def _merged_dequantized(run: TrainedRun, form: str) -> tuple[PreTrainedModel, Processor]:
    """The quantised base that a run was trained on, in float32, with its adapter merged: nothing is rounded."""
    recipe = run.recipe
    base: Any
    base, processor = base_of(run, recipe)
    try:  # some formats are dequantised while loading, where there is no GPU for them
        dense = (base if getattr(base, "hf_quantizer", None) is None else base.dequantize(torch.float32)).float()
    except (NotImplementedError, ValueError) as error:
        raise UserError(f"{recipe.model} cannot be dequantised, and so not be merged: {reason(error)}") from error
    model = make_model(recipe.in_precision("fp32").unquantized, dense, run.folder / ADAPTER)
    return recipe.method.merge(model, form), processor


def _check_only_merge(folder: Path) -> None:
    """Raise a UserError if a merged model's folder, which is about to be replaced, holds more than the model."""
    added = files.others(folder, {*merge_note(folder).get("files", ()), MERGE_NOTE})
    if added:
        raise UserError(
            f"{folder} holds {added[0]}, which `aurora merge` did not write: move it away, or choose another folder"
        )


# ---------------------------------------------------------------- a plain LoRA


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
) -> Exported:
    """Write a run's adapter as a plain LoRA, with a card that says what it came of; see `export_lora`.

    Args:
        run: of AuroRA, or its folder.
        output: a new or empty folder.
        form: which form of it; the deployed one if None.
        dtype: "float32", "bfloat16" or "float16".
        overwrite: replace an earlier export there; anything else is never replaced.

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
    options: dict[str, Any] = {"dtype": dtype, "processor": processor}
    try:
        with files.new_folder(output) as partial:
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
    files.settle(output)
    if files.is_occupied(output) and not overwrite:
        raise ArgumentError(f"{output} is not empty: choose another folder, or `overwrite` replaces an earlier export")
    try:
        check_replaceable(output, replaceable_card(output))
    except ValueError as error:
        raise UserError(str(error).rstrip(".")) from error


# ---------------------------------------------------------------- the hub

What = Literal["export", "adapter"]


class Pushed(NamedTuple):
    """An upload: the address of its commit, None where nothing was uploaded; what it is; and its files."""

    url: str | None
    form: What
    files: tuple[str, ...] = ()


def push(
    run: TrainedRun | Path | str,
    repo: str,
    *,
    form: str | None = None,
    private: bool = False,
    dry_run: bool = False,
) -> Pushed:
    """Upload a run's adapter with its card and its tokenizer or image processor; the repository is made if need be.

    No other files go than those that the run wrote, which `result.json` lists with their sha256, and the card.

    Args:
        run: which, or its folder.
        repo: `owner/name` on the hub.
        form: `"export"`, an AuroRA adapter as a plain LoRA, or `"adapter"`, as it was trained; the first if None, where
            the run has one.
        private: whether a new repository is seen by its owner alone; one that is there must be so.
        dry_run: upload nothing, and say what would be.

    Raises:
        UserError: the run has no such export, a file is not what the run wrote, nobody is logged in, or the hub refuses
            or does not answer.
        TypeError: `run` is neither a run nor a path.
    """
    run = as_run(run)
    has_export = (run.folder / LORA).is_dir()
    chosen: What = "export" if form == "export" or (form is None and has_export) else "adapter"
    if form not in (None, *get_args(What)):
        raise ArgumentError(f"`form` {form!r} is not one of {', '.join(get_args(What))}")
    if chosen == "export" and not has_export:
        raise ArgumentError(f"{run.folder} has no plain LoRA ({LORA}/): `form` adapter pushes its adapter as it is")
    if get_token() is None and not dry_run:
        raise UserError("nobody is logged in to the hub: `hf auth login`, or HF_TOKEN, says who pushes")
    api = HfApi(library_name="aurora-lora")
    with tempfile.TemporaryDirectory() as folder:
        staged = _stage(run, Path(folder), chosen)
        if dry_run:
            return Pushed(None, chosen, staged)
        try:
            name = api.create_repo(repo, private=private, exist_ok=True).repo_id
            if private and not api.repo_info(name).private:  # the hub does not make one private that is there
                raise ArgumentError(f"`private`: {name} is there already, and public: nothing was uploaded")
            message = f"{run.recipe.name}: {run.recipe.method.name}, {chosen}"
            done = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
        except AuroraError:
            raise
        except Exception as error:  # of a large file the client says only that it failed, and its cause why
            raise UserError(f"{repo} at {api.endpoint}: {reason(error.__cause__ or error)}") from error
    return Pushed(str(done.commit_url), chosen, staged)


def _stage(run: TrainedRun, folder: Path, what: What) -> tuple[str, ...]:
    """Copy what is pushed, with a base model that others can find, or none, and without paths of this machine.

    Returns:
        The names of the files.
    """
    listed = {ADAPTER: run.result.get("adapter_sha256", {})}
    if what == "export":  # the tokenizer goes with it, too
        mine = {name: one for name, one in listed[ADAPTER].items() if not name.startswith(("adapter", STATISTICS_FILE))}
        listed = {ADAPTER: mine, LORA: run.result.get("lora_sha256", {})}
    *_, last = listed
    if CONFIG_NAME not in listed[last]:
        raise UserError(f"{run.folder / RESULT} does not list the files of {last}/, and what it lists alone is pushed")
    for part, digests in listed.items():
        check_adapter(run.folder / part, digests)
        for path in (run.folder / part).rglob("*"):
            name = path.relative_to(run.folder / part).as_posix()
            if name in digests or (name == CARD and part == last):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / name)
    with plainly(f"{run.folder / last} cannot be pushed"):  # a card may be no YAML, or of values that no card has
        _make_public(run, folder)
    return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))


def _make_public(run: TrainedRun, folder: Path) -> None:
    """Leave no path of this machine in the config and the card in a folder."""
    section, model = run.recipe.task, run.recipe.model
    source, card = MODELS.get(model), ModelCard.load(folder / CARD)
    if source is not None or is_path(model):
        named = {"base_model_name_or_path": source.hub_id if source is not None else None}
        edit_config(folder, lambda config: config.update(named))
    if source is None and is_path(model):  # a path of this machine, which the hub would refuse
        data: Any = card.data
        data.base_model = None
        data.tags = [tag for tag in data.tags or () if not tag.startswith("base_model:")]
    start = run.recipe.method.start_from
    named_there = (
        start,
        section.data,
        section.validation_data,
        section.test_data,
        section.teacher,
        section.chat_template,
    )
    paths = {path for path in (model, *named_there) if path and path not in MODELS and is_path(path)}
    text = str(card)
    for path in sorted({*paths, *(str(expanded(path)) for path in paths)}, key=len, reverse=True):
        text = text.replace(path, Path(path).name)
    (folder / CARD).write_text(text, encoding="utf-8")
