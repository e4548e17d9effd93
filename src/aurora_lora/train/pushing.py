"""A run's adapter on the Hugging Face hub, or on what `HF_ENDPOINT` names in its place."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from huggingface_hub import HfApi, ModelCard, get_token

from ..data.loading import reason
from ..data.models import MODELS
from ..errors import ArgumentError, AuroraError, UserError
from ..files import expanded, is_path
from ..methods.base import edit_config
from .card import CARD
from .finished_run import TrainedRun, as_run
from .publish import ADAPTER, LORA

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
