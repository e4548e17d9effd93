"""Which commit of the hub a base model is of, or which weights one in a local folder has: it is in the result, so that
another one is noticed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import PreTrainedModel

from .. import files
from ..data.dreambooth import DREAMBOOTH
from ..data.fetch import cache_dir
from ..errors import UserError
from ..files import expanded
from .storage import RESULT
from .weights_digest import SAMPLED, sampled_digest

RESULT_OF_PRETRAINING = f"pretraining-{RESULT}"
"""The file in the folder of a model that `aurora pretrain` has trained."""
_SNAPSHOT = re.compile(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]")
"""In the path of a file of the hub's cache."""


def with_commit(loaded: PreTrainedModel, source: str, revision: str | None) -> PreTrainedModel:
    """A model that was just loaded, with its commit in its config, for `commit_of`: newer Transformers do not say it.

    Args:
        loaded: the model.
        source: the folder or hub id that it was loaded from.
        revision: that was asked for.
    """
    # Transformers saves no such key
    loaded.config._commit_hash = digest_of(source) or cached_commit(source, revision)
    return loaded


def commit_of(model: nn.Module) -> str | None:
    """The commit of the hub that a base model was loaded from, or `digest_of` its folder; None for a packaged model."""
    found = getattr(getattr(model, "config", None), "_commit_hash", None)
    return found if isinstance(found, str) else None


def commit_of_pipeline(source: str, variant: str | None) -> str | None:
    """What `commit_of` says of a model, of a pipeline of diffusers that was just loaded.

    Args:
        source: the folder or hub id that it was loaded from.
        variant: of its weights that was loaded, such as `fp16`.
    """
    return digest_of(source, variant) or cached_commit(source, file="model_index.json")


def digest_of(source: str, variant: str | None = None) -> str | None:
    """Which weights the model in a folder has: `sampled_digest`, or the whole sha256 of one that was pretrained here,
    which another machine, or another number of threads, makes otherwise.

    Args:
        source: its folder; of a model of the hub or a packaged one, which was verified when it was fetched, None.
        variant: of a pipeline of diffusers, see `sampled_digest`.
    """
    folder = expanded(source)
    if (folder / RESULT_OF_PRETRAINING).is_file():
        return f"sha256:{files.file_digest(folder / 'model.safetensors')}"
    if not folder.is_dir() or folder.is_relative_to(cache_dir()):
        return None
    return sampled_digest(folder, variant)


def cached_commit(source: str, revision: str | None = None, file: str = "config.json") -> str | None:
    """The commit that the hub's cache has of what was just loaded; None for a folder.

    Args:
        source, revision: as for `with_commit`.
        file: one that was loaded.
    """
    if expanded(source).exists():
        return None
    found = try_to_load_from_cache(source, file, revision=revision)
    commit = _SNAPSHOT.search(found) if isinstance(found, str) else None
    return commit[1] if commit else None


def warn_of_another_commit(folder: Path, result: Mapping[str, Any], here: str | None) -> None:
    """Warn where a finished run was trained on another commit of its base model, or on other weights, than was loaded
    now.

    Args:
        folder: of the run.
        result: of the run; those of earlier versions do not say.
        here: `commit_of` what was loaded.
    """
    there, name = result.get("model_commit"), result["model"]
    if not _differ(there, here):
        return
    if not _kind(there):
        loads = f"`model: {{name: {name}, revision: {there}}}` in its recipe.yaml loads that one"
        if result["recipe"]["task"]["name"] == DREAMBOOTH.name:  # whose model is a name or a folder alone
            loads = (
                f"`hf download {name} --revision {there} --local-dir FOLDER` fetches that one, and `model: FOLDER` in "
                "its recipe.yaml loads it"
            )
        said = f"{folder} was trained on commit {there} of {name}, and commit {here} was loaded: {loads}"
    elif there.startswith(SAMPLED):
        said = (
            f"{folder} was trained on other weights than {name} has here, and does not fit these: what it makes of "
            "them is of no use; name the folder with the model that it was trained on as `model` in its recipe.yaml"
        )
    else:
        said = (
            f"{folder} was trained on another {name} than this machine has pretrained ({there:.14}, here "
            f"{here:.14}), and does not fit this one: copy its folder from the cache of the machine that trained it"
        )
    warnings.warn(said, stacklevel=2)


def check_same_commit(folder: Path, name: str, there: str | None, here: str | None) -> None:
    """Check what an unfinished run goes on with; a newer commit of the hub is a warning, as it may be of a README.

    Args:
        folder: of the run.
        name: of its base model.
        there: `commit_of` what it was started on; earlier versions did not write it down.
        here: `commit_of` what was loaded now.

    Raises:
        UserError: the model in a folder has other weights than the run was started on.
    """
    if there is None or there == here:
        return
    if _kind(there):
        raise UserError(
            f"{folder} was started on other weights than {name} has here: put those back, or choose another output "
            "folder"
        )
    if _differ(there, here):
        warnings.warn(f"{folder} was started on commit {there} of {name}, and goes on with commit {here}", stacklevel=2)


def _differ(there: str | None, here: str | None) -> TypeGuard[str]:
    """Whether two are known to be of other weights: a model of the hub may have been copied into a folder since."""
    return there is not None and here is not None and there != here and _kind(there) == _kind(here)


def _kind(commit: str) -> str:
    """What comes before a digest's hexadecimal digits; of a commit nothing."""
    return commit.rpartition(":")[0]
