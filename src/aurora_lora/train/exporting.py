"""A finished run leaves its folder: as a plain LoRA, `aurora export`, or to the Hugging Face hub, `aurora push`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

from huggingface_hub import HfApi, ModelCard, get_token

from ..data.loading import reason
from ..data.models import MODELS, hub_name
from ..deploy import export_lora
from ..deploy.export import check_replaceable
from ..errors import ArgumentError, AuroraError, FormError, UserError
from ..files import expanded, is_occupied, is_path, new_folder, settle
from ..forms import FormName
from ..methods.base import edit_config
from .card import CARD, Facts, replaceable_card, write_lora_card
from .finished_run import TrainedRun, as_run
from .measuring import need_aurora
from .models import check_dtype, exact_modules, padding_of
from .publish import ADAPTER, LORA
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


# ---------------------------------------------------------------- the hub

What = Literal["export", "adapter"]


class Pushed(NamedTuple):
    """An upload: the address of its commit, and what was uploaded."""

    url: str
    form: What


def push(run: TrainedRun | Path | str, repo: str, *, form: str | None = None, private: bool = False) -> Pushed:
    """Upload a run's adapter with its card and its tokenizer or image processor; the repository is made if need be.

    Args:
        run: which, or its folder.
        repo: `owner/name` on the hub.
        form: `"export"`, an AuroRA adapter as a plain LoRA, or `"adapter"`, as it was trained; the first if None, where
            the run has one.
        private: whether a new repository is seen by its owner alone; one that is there must be so.

    Raises:
        UserError: the run has no such export, nobody is logged in, or the hub refuses or does not answer.
        TypeError: `run` is neither a run nor a path.
    """
    run = as_run(run)
    has_export = (run.folder / LORA).is_dir()
    chosen: What = "export" if form == "export" or (form is None and has_export) else "adapter"
    if form not in (None, *get_args(What)):
        raise ArgumentError(f"`form` {form!r} is not one of {', '.join(get_args(What))}")
    if chosen == "export" and not has_export:
        raise ArgumentError(f"{run.folder} has no plain LoRA ({LORA}/): `form` adapter pushes its adapter as it is")
    if get_token() is None:
        raise UserError("nobody is logged in to the hub: `hf auth login`, or HF_TOKEN, says who pushes")
    api = HfApi(library_name="aurora-lora")
    with tempfile.TemporaryDirectory() as folder:
        _stage(run, Path(folder), chosen)
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
    return Pushed(str(done.commit_url), chosen)


def _stage(run: TrainedRun, folder: Path, what: What) -> None:
    """Copy what is pushed, with a base model that others can find, or none, and without paths of this machine."""
    # the tokenizer goes with an export, too
    ignored = shutil.ignore_patterns() if what == "adapter" else shutil.ignore_patterns("adapter*", f"{CARD}*")
    shutil.copytree(run.folder / ADAPTER, folder, ignore=ignored, dirs_exist_ok=True)
    if what == "export":
        shutil.copytree(run.folder / LORA, folder, dirs_exist_ok=True)
    section, model = run.recipe.task, run.recipe.model
    source, card = MODELS.get(model), ModelCard.load(folder / CARD)
    if source is not None or is_path(model):
        named = {"base_model_name_or_path": source.hub_id if source is not None else None}
        edit_config(folder, lambda config: config.update(named))
    if source is None and is_path(model):  # a path of this machine, which the hub would refuse
        data: Any = card.data
        data.base_model = None
        data.tags = [tag for tag in data.tags or () if not tag.startswith("base_model:")]
    named_there = (section.data, section.validation_data, section.test_data, section.teacher, section.chat_template)
    paths = {path for path in (model, *named_there) if path and path not in MODELS and is_path(path)}
    text = str(card)
    for path in sorted({*paths, *(str(expanded(path)) for path in paths)}, key=len, reverse=True):
        text = text.replace(path, Path(path).name)
    (folder / CARD).write_text(text, encoding="utf-8")
