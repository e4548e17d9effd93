"""Which commit of the hub a base model is of, or which weights one in a local folder has: it is in the result, so that
another one is noticed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import PreTrainedModel

from .. import files
from ..tasks.fetch import cache_dir
from .storage import RESULT
from .weights_digest import SAMPLED, sampled_digest

RESULT_OF_PRETRAINING = f"pretraining-{RESULT}"
"""In the folder of a model that `aurora pretrain` has trained."""
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


def digest_of(source: str) -> str | None:
    """Which weights the model in a folder has: `sampled_digest`, or the whole sha256 of one that was pretrained here,
    which another machine, or another number of threads, makes otherwise.

    Args:
        source: its folder; of a model of the hub or a packaged one, which was verified when it was fetched, None.
    """
    folder = Path(source).expanduser()
    if (folder / RESULT_OF_PRETRAINING).is_file():
        return f"sha256:{files.file_digest(folder / 'model.safetensors')}"
    if not folder.is_dir() or folder.is_relative_to(cache_dir()):
        return None
    return sampled_digest(folder)


def cached_commit(source: str, revision: str | None = None, file: str = "config.json") -> str | None:
    """The commit that the hub's cache has of what was just loaded; None for a folder.

    Args:
        source, revision: as for `with_commit`.
        file: one that was loaded.
    """
    if Path(source).expanduser().exists():
        return None
    found = try_to_load_from_cache(source, file, revision=revision)
    commit = _SNAPSHOT.search(found) if isinstance(found, str) else None
    return commit[1] if commit else None


def commit_of(model: nn.Module) -> str | None:
    """The commit of the hub that a base model was loaded from, or `digest_of` its folder; None for a packaged model."""
    found = getattr(getattr(model, "config", None), "_commit_hash", None)
    return found if isinstance(found, str) else None


def warn_of_another_commit(folder: Path, result: Mapping[str, Any], base: nn.Module) -> None:
    """Warn where a finished run was trained on another commit of its base model, or on other weights, than was loaded
    now.

    Args:
        folder: of the run.
        result: of the run; those of earlier versions do not say.
        base: that was loaded.
    """
    there, here = result.get("model_commit"), commit_of(base)
    if there is None or here is None or there == here or _kind(there) != _kind(here):
        return  # a model of the hub may have been copied into a folder: that cannot be compared
    warnings.warn(_said(folder, result["model"], there, here), stacklevel=2)


def _kind(commit: str) -> str:
    """What comes before a digest's hexadecimal digits; of a commit nothing."""
    return commit.rpartition(":")[0]


def _said(folder: Path, name: str, there: str, here: str) -> str:
    if there.startswith(SAMPLED):
        return (
            f"{folder} was trained on other weights than {name} has here, and does not fit these: what it answers, "
            "scores or merges now is of no use; name the folder with the model that it was trained on as `model` in "
            "its recipe.yaml"
        )
    if _kind(there):
        return (
            f"{folder} was trained on another {name} than this machine has pretrained ({there[:14]}, here "
            f"{here[:14]}), and does not fit this one: copy its folder from the cache of the machine that trained it"
        )
    return (
        f"{folder} was trained on commit {there} of {name}, and commit {here} was loaded: "
        f"`model: {{name: {name}, revision: {there}}}` in its recipe.yaml loads that one"
    )
