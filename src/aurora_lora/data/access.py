"""Whether the hub would let us have a model: asked before anything is downloaded."""

from __future__ import annotations

from huggingface_hub import HfApi, constants, get_token, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError

from ..errors import UserError
from ..files import expanded
from .models import MODELS

CONFIGS = ("config.json", "model_index.json")
"""What a model, or a pipeline, has first in the cache."""


def why_no_access(model: str) -> str | None:
    """What to do before a gated model can be downloaded, in one line; None if nothing is known to stand in the way.

    Packaged models, folders and models in the cache are not asked about, and a hub that cannot be reached is no answer.
    """
    if model in MODELS or expanded(model).exists():
        return None
    try:
        if any(isinstance(try_to_load_from_cache(model, name), str) for name in CONFIGS):
            return None
        HfApi().auth_check(model)
    except GatedRepoError:
        page = f"{constants.ENDPOINT}/{model}"
        if get_token() is None:
            return f"{model} is gated: accept its licence at {page}, then log in (`hf auth login`, or HF_TOKEN)"
        return f"{model} is gated, and the account that is logged in may not have it: accept its licence at {page}"
    except Exception:  # no network, no such model, a name that none can have: what loads the model says it
        return None
    return None


def check_access(model: str) -> None:
    """Refuse a gated model before it is downloaded; see `why_no_access`.

    Raises:
        UserError: the model is gated, and we may not have it.
    """
    why = why_no_access(model)
    if why is not None:
        raise UserError(why)
