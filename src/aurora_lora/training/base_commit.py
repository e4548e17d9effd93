"""Which commit of the hub a base model is of, or which weights one that is pretrained here has: it is in the result, so
that another one is noticed."""

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
from .storage import RESULT

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
    """Which weights a model has that was pretrained here: another machine, or another number of threads, makes others.

    Args:
        source: its folder; of any other model, None.
    """
    folder = Path(source).expanduser()
    if not (folder / RESULT_OF_PRETRAINING).is_file():
        return None
    return f"sha256:{files.file_digest(folder / 'model.safetensors')}"


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
    """The commit of the hub that a base model was loaded from, or `digest_of` it; None for a folder or a packaged
    model."""
    found = getattr(getattr(model, "config", None), "_commit_hash", None)
    return found if isinstance(found, str) else None


def warn_of_another_commit(folder: Path, result: Mapping[str, Any], base: nn.Module) -> None:
    """Warn where a finished run was trained on another commit of its base model than was loaded now.

    Args:
        folder: of the run.
        result: of the run; those of earlier versions do not say.
        base: that was loaded.
    """
    there, here = result.get("model_commit"), commit_of(base)
    if there is None or here is None or there == here:
        return
    name = result["model"]
    if there.startswith("sha256:"):
        said = (
            f"{folder} was trained on another {name} than this machine has pretrained ({there[:14]}, here "
            f"{here[:14]}), and does not fit this one: copy its folder from the cache of the machine that trained it"
        )
    else:
        said = (
            f"{folder} was trained on commit {there} of {name}, and commit {here} was loaded: "
            f"`model: {{name: {name}, revision: {there}}}` in its recipe.yaml loads that one"
        )
    warnings.warn(said, stacklevel=2)
