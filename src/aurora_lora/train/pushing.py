"""A run's adapter on the Hugging Face hub, or on what `HF_ENDPOINT` names in its place."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from huggingface_hub import HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from ..data.loading import reason
from ..data.models import MODELS
from ..errors import ArgumentError, UserError
from ..files import expanded, is_path
from ..methods.base import edit_config
from .card import CARD, recipe_block
from .finished_run import TrainedRun, as_run
from .publish import ADAPTER, LORA
from .recipe import Recipe

What = Literal["export", "adapter"]
_FILES = ("data", "validation_data", "test_data", "teacher", "chat_template")
"""Fields of a recipe's task that may name some."""


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
        staged = Path(folder)
        _stage(run, staged, chosen)
        try:
            name = api.create_repo(repo, private=private, exist_ok=True).repo_id
            if private and not api.repo_info(name).private:  # the hub does not make one private that is there
                raise ArgumentError(f"`private`: {name} is there already, and public: nothing was uploaded")
            message = f"{run.recipe.name}: {run.recipe.method.name}, {chosen}"
            done = api.upload_folder(repo_id=name, folder_path=staged, commit_message=message)
        except OfflineModeIsEnabled as error:
            raise UserError("HF_HUB_OFFLINE is set: nothing can be pushed") from error
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise UserError(f"{repo} at {api.endpoint}: {reason(error)}") from error
        except Exception as error:
            if isinstance(error.__cause__, HfHubHTTPError):  # the client says of a large file only that it failed
                raise UserError(f"{repo} at {api.endpoint}: {reason(error.__cause__)}") from error
            # of the client's own transport, whichever that is
            if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
                raise
            raise UserError(f"{api.endpoint} does not answer: {reason(error)}") from error
    return Pushed(str(done.commit_url), chosen)


def _stage(run: TrainedRun, folder: Path, what: What) -> None:
    """Copy what is pushed, with a base model that others can find, or none, and without paths of this machine."""
    # the tokenizer goes with an export, too
    ignored = shutil.ignore_patterns() if what == "adapter" else shutil.ignore_patterns("adapter*", f"{CARD}*")
    shutil.copytree(run.folder / ADAPTER, folder, ignore=ignored, dirs_exist_ok=True)
    if what == "export":
        shutil.copytree(run.folder / LORA, folder, dirs_exist_ok=True)
    source, is_local = MODELS.get(run.recipe.model), _is_local(run.recipe.model)
    if source is not None or is_local:
        named = {"base_model_name_or_path": source.hub_id if source is not None else None}
        edit_config(folder, lambda config: config.update(named))
    if source is None and is_local:
        card = ModelCard.load(folder / CARD)
        data: Any = card.data
        data.base_model = None  # a path of this machine, which the hub would refuse
        data.tags = [tag for tag in data.tags or () if not tag.startswith("base_model:")]
        card.save(folder / CARD)
    path = folder / CARD
    path.write_text(_without_paths(path.read_text(encoding="utf-8"), run.recipe), encoding="utf-8")


def _without_paths(card: str, recipe: Recipe) -> str:
    """A card that names models, data and other files of this machine without the folders that they are in."""
    given = [recipe.model, *(getattr(recipe.task, field) for field in _FILES)]
    names = {path: Path(path).name for path in given if path is not None and _is_local(path)}

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(one) for key, one in value.items()}
        return names.get(value, value) if isinstance(value, str) else value

    card = card.replace(recipe_block(recipe.resolved()), recipe_block(named(recipe.resolved())))
    shown = {str(expanded(path)): name for path, name in names.items()} | names
    for path in sorted(shown, key=len, reverse=True):
        if "/" in path or "\\" in path:
            card = card.replace(path, shown[path])
    return card


def _is_local(path: str) -> bool:
    return path not in MODELS and is_path(path)
