"""What every call that loads a model, a tokenizer or a data set has in common."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from ..errors import AuroraError, UserError
from ..files import expanded

NO_CODE: dict[str, Any] = {"trust_remote_code": False}
"""An argument of each such call. Without it Transformers asks whether to run the code of a folder, and takes a `yes`
from wherever stdin comes from."""
_LONGEST = 200


@contextmanager
def plainly(what: str) -> Iterator[None]:
    """Whatever a library has against what it is given becomes one line, which begins so."""
    try:
        yield
    except AuroraError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {reason(error)}") from error


def only_pickles(model: str, revision: str | None = None) -> str | None:
    """The first file of a model's weights where they are there as pickles alone; None where they are not.

    Args:
        model: a folder or a hub model.
        revision: of a hub model.
    """
    folder = expanded(model)
    try:
        if folder.is_dir():
            names = sorted(path.name for path in folder.iterdir())
        else:
            from huggingface_hub import list_repo_files

            names = sorted(list_repo_files(model, revision=revision))
    except Exception:  # the hub's client raises many kinds; what loads the model says more
        return None
    if any(name.endswith(".safetensors") for name in names):
        return None
    of_trainers = re.compile(r"(?:training_args|optimizer|scheduler|scaler|rng_state\w*)\.\w+")
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    return next((name for name in pickles if not of_trainers.fullmatch(PurePosixPath(name).name)), None)


class OnlyPicklesError(ValueError):
    """A model's weights are there as pickles alone.

    Args:
        file: the first of them.
        model: its folder or id.
        kind: the class of Transformers that can convert them.
        revision: of the model on the hub, if one was asked for.
    """

    def __init__(self, file: str, model: str, kind: str, revision: str | None = None) -> None:
        of = "" if revision is None else f', revision="{revision}"'
        super().__init__(
            f"{file} is a pickle, which can run code: only safetensors are loaded. If you trust it, convert it in "
            f'Python, by Transformers\' {kind}.from_pretrained("{model}"{of}).save_pretrained("FOLDER"); save the '
            "tokenizer or image processor there in the same way, and name FOLDER instead"
        )


def cannot_load(field: str, name: str, error: Exception | str) -> UserError:
    """The error that what a field of a recipe names cannot be loaded, and why."""
    return UserError(f"{field}: {name!r} cannot be loaded: {error if isinstance(error, str) else reason(error)}")


def cause_of(error: BaseException) -> BaseException:
    """The first reason: `datasets` wraps what fails while rows are made in errors that say nothing."""
    before: BaseException | None = error
    while before is not None and type(before).__name__.startswith("DatasetGeneration"):
        error, before = before, before.__cause__ or before.__context__
    return before or error


def reason(error: BaseException) -> str:
    """Why something could not be loaded, in one line."""
    text = str(error)
    if isinstance(error, OnlyPicklesError):
        return text
    if re.search(r"trust_remote_code|custom code|Dataset scripts", text):
        return "it comes with code of its own, to be run when it is loaded, and aurora-lora never runs such code"
    if found := re.search(r"pick one among the available configs: \[(.*)\]", text):  # a later line of `datasets`
        return f"it has several configurations, of which task.config names one: {found[1]}"[:_LONGEST]
    if type(error).__name__ == "CastError":  # of `datasets`, which says in its first line only that it could not cast
        there, asked = (set(getattr(error, f"{which}_column_names")) for which in ("table", "requested"))
        if names := sorted(there ^ asked):
            return f"not all of its rows have the same columns: some lack {', '.join(map(repr, names))}"[:_LONGEST]
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Error(s) in loading state_dict"):  # torch's heading
        lines = lines[1:]
    return lines[0][:_LONGEST] if lines else type(error).__name__
