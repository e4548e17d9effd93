"""A run's folder: its lock, its recipe, and its checkpoints, which are whole or absent.

A folder called `checkpoint-N` or `adapter`, or a file called `result.json`, is written through `aurora_lora.files`,
and so is whole, whatever moment a run was killed at.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from .. import files, folders
from ..errors import RunLockedError, UserError
from ..files import file_digest, plain_write_errors
from ..locks import held
from ..methods.pissa_milora import START_FILE
from ..tuner.peft_names import CONFIG_NAME
from . import yaml_text
from .reading import validate_as
from .recipe import Recipe, RunRecipe
from .same_recipe import PLACES_OF_DATA, PLACES_OF_MODEL, check_same_recipe
from .weights_digest import SAMPLED

RECIPE, ADAPTER, LORA, CHECKPOINTS, REFERENCE = "recipe.yaml", "adapter", "lora", "checkpoints", "reference"
RESULT = "result.json"
LOGS = "logs"
"""TensorBoard's files, where `training.report_to` asks for them."""
SPLITS = "splits.json"
"""Which rows of the data each split holds, of tasks whose rows are known."""
DATA = "data.json"
"""What data of the user's own was: the sha256 of its files among other things."""
PROBE = "probe.safetensors"
"""The start of A by layer, what was found in all layers, from what, and the ranks; of methods that probe."""
UPDATES = "updates"
"""The update of the weights at each epoch, where `training.save_updates` asks for it."""
_INSIDE = {LOGS: "events.out.tfevents.*", UPDATES: "epoch-*.safetensors"}
"""What a run writes into these folders, which may hold other things."""
LOG = "log.txt"
"""What a run of many prints."""
MANIFEST = "manifest.json"
_MADE = (ADAPTER, LORA, CHECKPOINTS, RESULT)
_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_OF_A_MODEL = ("config.json", CONFIG_NAME, "model_index.json")
"""Files of a model or an adapter in a folder of its own."""
RUN_STATE = "run_state.json"
"""The file in each checkpoint with what Transformers' own state does not keep."""
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def checkpoint_name(step: int) -> str:
    """The folder of a checkpoint, as Transformers' Trainer calls it."""
    return f"checkpoint-{step}"


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a run's folder; see `hold`."""
    with hold(folder / ".lock", f"{folder}: another aurora train is writing there"):
        yield


@contextmanager
def hold(file: Path, taken: str) -> Iterator[None]:
    """Hold a lock, as `held`, and never wait for it.

    Args:
        file: that it is on.
        taken: what is said where another process holds it.

    Raises:
        RunLockedError: another process holds it.
        UserError: its folder cannot be written.
    """

    def refuse() -> None:
        raise RunLockedError(taken)

    with ExitStack() as stack:
        with plain_write_errors(file.parent):
            stack.enter_context(held(file, refuse))
        yield


def is_locked(folder: Path) -> bool:
    """Whether another process holds the folder."""
    if not (folder / ".lock").exists():
        return False
    try:
        with lock(folder):
            return False
    except RunLockedError:
        return True


# ---------------------------------------------------------------- checkpoints


def write_manifest(checkpoint: Path) -> None:
    """List the files of a checkpoint with their sha256, so that damage (a crash, a copy, a flipped bit) is noticed."""
    digests = {str(path.relative_to(checkpoint)): file_digest(path) for path in _files(checkpoint)}
    (checkpoint / MANIFEST).write_text(json.dumps(digests, indent=2), encoding="utf-8")


def is_intact(checkpoint: Path) -> bool:
    """Whether every file that the manifest lists is there as it was written.

    Raises:
        UserError: one is there, and cannot be read, as where another user owns it or a file system fails for a moment:
            that is no damage.
    """
    try:
        digests = files.read_json(checkpoint / MANIFEST)
        return bool(digests) and all(_is_as_written(checkpoint / name, digest) for name, digest in digests.items())
    except (ValueError, AttributeError, *_NOT_THERE):
        return False
    except OSError as error:
        with files.reading(checkpoint / MANIFEST):
            raise error


def _is_as_written(path: Path, digest: str) -> bool:
    """Whether a file is what was written, by its sha256; a UserError where it is there and cannot be read."""
    try:
        with files.reading(path):
            return file_digest(path) == digest
    except UserError as error:
        if isinstance(error.__cause__, (ValueError, *_NOT_THERE)):
            return False
        raise


def checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints by their step, first to last, whole or damaged."""
    found = {}
    if folder.is_dir():
        for path in folder.iterdir():
            if match := _CHECKPOINT.fullmatch(path.name):
                found[int(match[1])] = path
    return dict(sorted(found.items()))


def last_intact(folder: Path, needs: Callable[[Path], Iterable[Path]] = lambda checkpoint: ()) -> Path | None:
    """The last whole checkpoint. Later ones, which are damaged, are deleted: a warning says from where the run goes on.

    Args:
        folder: of the checkpoints.
        needs: other checkpoints that must be whole as well to go on from one; asked of whole ones only.
    """
    there = checkpoints(folder)
    damaged: list[str] = []
    found = None
    for step, checkpoint in reversed(there.items()):
        broken = [checkpoint] if not is_intact(checkpoint) else [one for one in needs(checkpoint) if not is_intact(one)]
        if not broken:
            found = step
            break
        damaged += [path.name for path in broken]
    if damaged:
        names = ", ".join(dict.fromkeys(damaged))
        start = "the run begins anew" if found is None else f"the run goes on from {there[found].name}"
        warnings.warn(f"{folder}: damaged, or not of this version: {names}; {start}", stacklevel=2)
        keep_only(folder, [path for step, path in there.items() if found is not None and step <= found])
    return None if found is None else there[found]


def keep_only(folder: Path, kept: Collection[Path]) -> None:
    """Delete all other checkpoints."""
    for path in checkpoints(folder).values():
        if path not in kept:
            folders.remove(path)


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a finished run, and the folder that they are in unless it holds something else."""
    folders.clear_leftovers(folder)
    keep_only(folder, ())
    folders.remove(folder / START_FILE)
    with suppress(OSError):  # not empty, or not there
        folder.rmdir()


def adapter_digests(folder: Path) -> dict[str, str]:
    """The sha256 of each file of a run's adapter but its card, by its path below the adapter, for `result.json`."""
    files_there = (path for path in sorted((folder / ADAPTER).rglob("*")) if path.is_file() and path.suffix != ".md")
    return {path.relative_to(folder / ADAPTER).as_posix(): file_digest(path) for path in files_there}


def check_adapter(folder: Path, digests: Any) -> None:
    """Raise a UserError if a file of a run's adapter is not what the run wrote."""
    for name, digest in digests.items() if isinstance(digests, dict) else [(RESULT, "")]:
        path = folder / (name if name == RESULT else Path(ADAPTER, name))
        if not _is_as_written(path, digest):
            raise UserError(f"{path} is damaged: it is not what the run wrote")


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]


def check_links(folder: Path) -> None:
    """Raise a UserError where a link in a run's folder leads out of it: what a run writes and removes is in its folder.

    Such as in a folder that somebody else has made.
    """
    inside = folder.resolve()
    for within, folders_there, files_there in os.walk(folder):
        for name in (*folders_there, *files_there):
            path = Path(within, name)
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise UserError(f"{path} is a link that leads out of {folder}: remove it, or choose another folder")


# ---------------------------------------------------------------- the recipe


def is_begun(folder: Path, but: Collection[str] = ()) -> bool:
    """Whether the run in a folder has made something: Trainer leaves an empty folder for checkpoints.

    Args:
        folder: of the run.
        but: names of what does not count beside the checkpoints.
    """
    return any(
        (folder / name).exists()
        and (name != CHECKPOINTS or any(one.name not in but for one in (folder / name).iterdir()))
        for name in _MADE
    )


def _is_trained(folder: Path) -> bool:
    """Whether the run in a folder has made what another recipe would lose: a start is made again."""
    return is_begun(folder, (START_FILE,))


def check_recipe(folder: Path, recipe: RunRecipe) -> None:
    """Raise a UserError if the folder holds the run of another recipe, or a file of the user's own that a run writes.

    No part of that are `CHANGE_NOTHING`, such as which test sets are scored, and where a local model and data are, of a
    run that goes on from a checkpoint. A run that ended before anything was made, as where an option did not fit the
    model, leaves the folder to the next.
    """
    if not (folder / RECIPE).exists():
        for name in (*_MADE, DATA, SPLITS, *_OF_A_MODEL):
            if (folder / name).exists():
                raise UserError(f"{folder} holds {name} but no {RECIPE}: choose another output folder")
        return
    if not _is_trained(folder):
        if not _is_written(folder / RECIPE, type(recipe)):
            raise UserError(
                f"{folder / RECIPE} was not written by a run, which would replace it: choose another output folder, or "
                "give the recipe another name"
            )
        written = {RECIPE, DATA, SPLITS, CHECKPOINTS, LOG, LOGS, PROBE, UPDATES}
        if {path.name for path in folder.iterdir() if not path.name.startswith(".")} <= written:
            return
    check_same_recipe(
        yaml_text.read(folder / RECIPE),
        recipe,
        folder / RECIPE,
        f"{folder} holds",
        may_have_moved=lambda fields: fields <= _places_known_again(folder, recipe),
    )


def _places_known_again(folder: Path, recipe: RunRecipe) -> set[str]:
    """The fields with paths that may be others where a run goes on: from a checkpoint, what is there is compared with
    what the run began with, by digests."""
    if (folder / RESULT).exists() or not isinstance(recipe, Recipe):
        return set()
    last = next((one for one in reversed(checkpoints(folder / CHECKPOINTS).values()) if is_intact(one)), None)
    if last is None:
        return set()
    commit = str(files.read_json(last / RUN_STATE).get("model_commit"))
    is_folder = commit.startswith(SAMPLED) and files.expanded(recipe.model).is_dir()
    return {*PLACES_OF_DATA, *(PLACES_OF_MODEL if is_folder else ())}


def write_recipe(folder: Path, recipe: RunRecipe) -> None:
    """Write the recipe down in a folder that `check_recipe` leaves to it, unless the run there is finished."""
    text = yaml_text.dump(recipe.resolved())
    path = folder / RECIPE
    # an interrupted run may have had other test sets, and one that made nothing another recipe
    if not (folder / RESULT).exists() and not (path.exists() and path.read_text(encoding="utf-8") == text):
        if path.exists() and not _is_trained(folder):
            for start in (folder / PROBE, folder / CHECKPOINTS / START_FILE):
                folders.remove(start)
            for name, pattern in _INSIDE.items():  # of the recipe before, which made nothing else
                for file in files.below(folder / name, pattern):
                    file.unlink()
                with suppress(OSError):  # not empty, or not there
                    (folder / name).rmdir()
        files.write_text(path, text)


def _is_written(path: Path, kind: type[RunRecipe]) -> bool:
    """Whether a recipe stands there as a run writes it: without comments, every default filled in."""
    try:
        recipe = validate_as(kind, yaml_text.read(path), str(path))
        return yaml_text.dump(recipe.resolved()) == path.read_text(encoding="utf-8")
    except (UserError, OSError, UnicodeDecodeError):
        return False
