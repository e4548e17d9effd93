"""Which commit of the hub a base model is of: it is in the result, so that it is noticed where the hub has another."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import PreTrainedModel

_SNAPSHOT = re.compile(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]")
"""In the path of a file of the hub's cache."""


def with_commit(loaded: PreTrainedModel, source: str, revision: str | None) -> PreTrainedModel:
    """A model that was just loaded, with its commit in its config, for `commit_of`: newer Transformers do not say it.

    Args:
        loaded: the model.
        source: the folder or hub id that it was loaded from.
        revision: that was asked for.
    """
    loaded.config._commit_hash = cached_commit(source, revision)  # Transformers saves no such key
    return loaded


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
    """The commit of the hub that a base model was loaded from; None for a folder or a packaged model."""
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
    if there is not None and here is not None and there != here:
        name = result["model"]
        warnings.warn(
            f"{folder} was trained on commit {there} of {name}, and commit {here} was loaded: "
            f"`model: {{name: {name}, revision: {there}}}` in its recipe.yaml loads that one",
            stacklevel=2,
        )
