"""A run's folder from its opening to its end, for every kind of run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .. import files, folders
from ..errors import one_line
from . import storage
from .recipe import RunRecipe
from .results import Result, read_result, write_result
from .storage import ADAPTER, CHECKPOINTS, LORA, RESULT


@contextmanager
def open_run(folder: Path, recipe: RunRecipe, inside: Sequence[Path]) -> Iterator[None]:
    """Hold the folder of a run, and make it ready; see `prepare`.

    Raises:
        UserError: as `prepare`; or another process writes there.
    """
    storage.check_recipe(folder, recipe)
    if _is_read_only(folder):
        yield
        return
    files.check_writable(folder)
    with storage.lock(folder):
        prepare(folder, recipe, inside)
        yield


def prepare(folder: Path, recipe: RunRecipe, inside: Sequence[Path]) -> None:
    """Write the recipe down in the folder of its run, and remove what interrupted writes have left.

    Args:
        folder: of the run.
        recipe: of the run.
        inside: folders in it that may hold such leftovers, beside the checkpoints.

    Raises:
        UserError: the folder holds another recipe's run, or cannot be written.
    """
    storage.check_recipe(folder, recipe)
    if _is_read_only(folder):
        return
    storage.check_links(folder)
    files.check_writable(folder)
    own = () if (folder / RESULT).exists() else (folder,)  # in that of a finished run others write: answers, merges
    for each in (*own, folder / CHECKPOINTS, *inside):
        folders.clear_leftovers(each)
    storage.write_recipe(folder, recipe)


def _is_read_only(folder: Path) -> bool:
    """Whether a run is finished and only to be read, as one of a colleague."""
    return (folder / RESULT).exists() and not os.access(folder, os.W_OK)


def finished(folder: Path) -> Result | None:
    """The result of a run that is finished; checkpoints that a kill after its writing has left are removed."""
    result = read_result(folder)
    if result is not None:
        storage.remove_checkpoints(folder / CHECKPOINTS)
    return result


def write_lora(folder: Path, write: Callable[[Path], None]) -> str | None:
    """The plain LoRA of a run, unless a layer cannot be part of one: the adapter itself is not lost for that.

    Args:
        folder: of the run.
        write: writes it into a folder; a ValueError of it says why there can be none.

    Returns:
        Why there is none; None if there is one.
    """
    try:
        with folders.new_folder(folder / LORA) as partial:
            write(partial)
    except ValueError as error:
        return one_line(error).rstrip(".")
    return None


def finish(folder: Path, result: Result, save: Callable[[Path], None]) -> None:
    """Write the adapter and the result, then remove the checkpoints: each step leaves the run whole.

    Args:
        folder: of the run.
        result: gets the digests of the adapter's files.
        save: writes the adapter into a folder.
    """
    with folders.new_folder(folder / ADAPTER) as adapter:
        save(adapter)
    result["adapter_sha256"] = storage.adapter_digests(folder)
    write_result(folder, result)
    storage.remove_checkpoints(folder / CHECKPOINTS)
