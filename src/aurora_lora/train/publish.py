"""A run's folder: its lock, its recipe, checkpoints that are whole or absent, and a result that comes last.

A folder called `adapter`, or a file called `result.json`, is written through `aurora_lora.files`, and so is whole,
whatever moment a run was killed at. A checkpoint is whole when its manifest is there, which is written last.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from .. import files
from ..errors import RunLockedError, UserError, one_line
from ..files import file_digest, held, plain_write_errors
from ..methods.singular import START_FILE
from ..tuner.peft_names import CONFIG_NAME
from .recipe import RunRecipe, check_same_recipe, validate_as
from .recipe_files import dump, read

RECIPE, ADAPTER, LORA, CHECKPOINTS, REFERENCE = "recipe.yaml", "adapter", "lora", "checkpoints", "reference"
RESULT = "result.json"
LOGS = "logs"
"""TensorBoard's files, where `training.report_to` asks for them."""
SPLITS = "splits.json"
"""Which rows of the data each split holds, of tasks whose rows are known."""
DATA = "data.json"
"""What data of the user's own was: the sha256 of its files among other things."""
MISTAKES = "mistakes.json"
"""Some examples of the first test set that got another answer than their label."""
PROBE = "probe.safetensors"
"""The start of A by layer, what was found in all layers, from what, and the ranks; of methods that probe."""
UPDATES, LEFT, RIGHT = "updates", "left", "right"
"""The update of the weights at each epoch, where `training.save_updates` asks for it; and its factors in a file."""
LOG = "log.txt"
"""What a run of many prints."""
MANIFEST = "manifest.json"
_MADE = (ADAPTER, LORA, RESULT)
_OF_A_MODEL = ("config.json", CONFIG_NAME, "model_index.json")
"""Files of a model or an adapter in a folder of its own."""


@contextmanager
def hold(file: Path, taken: str) -> Iterator[None]:
    """Hold a lock, as `held`, and never wait for it.

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


# ---------------------------------------------------------------- from its opening to its end


@contextmanager
def open_run(folder: Path, recipe: RunRecipe, inside: Sequence[Path]) -> Iterator[None]:
    """Hold the folder of a run, and make it ready; see `prepare`. A run that is refused before it has made anything
    leaves no folder that was not there.

    Raises:
        UserError: as `prepare`; or another process writes there.
    """
    check_recipe(folder, recipe)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    files.check_writable(folder)
    with hold(lock := folder / ".lock", f"{folder}: another aurora train is writing there"):
        try:
            prepare(folder, recipe, inside)
            yield
        except UserError:
            with suppress(OSError):
                if made and not is_begun(folder):
                    for path in (folder / RECIPE, folder / DATA, folder / SPLITS, lock):
                        path.unlink(missing_ok=True)
                    for path in (folder / CHECKPOINTS, folder / LOGS, *made):
                        path.rmdir() if path.is_dir() else None  # which holds nothing
            raise


def prepare(folder: Path, recipe: RunRecipe, inside: Sequence[Path]) -> None:
    """Write the recipe down in the folder of its run, and remove what interrupted writes have left.

    Raises:
        UserError: the folder holds another recipe's run, or cannot be written.
    """
    check_recipe(folder, recipe)
    files.check_writable(folder)
    own = () if (folder / RESULT).exists() else (folder,)  # in that of a finished run others write: answers, merges
    for each in (*own, folder / CHECKPOINTS, *inside):
        files.clear_leftovers(each)
    write_recipe(folder, recipe)


def write_lora(folder: Path, write: Callable[[Path], None]) -> str | None:
    """The plain LoRA of a run, unless a layer cannot be part of one: the adapter itself is not lost for that.

    Returns:
        Why there is none; None if there is one.
    """
    try:
        with files.new_folder(folder / LORA) as partial:
            write(partial)
    except ValueError as error:
        return one_line(error).rstrip(".")
    return None


def finish(folder: Path, result: dict[str, Any], save: Callable[[Path], None]) -> None:
    """Write the adapter and the result, then remove the checkpoints: each step leaves the run whole."""
    with files.new_folder(folder / ADAPTER) as adapter:
        save(adapter)
    result["adapter_sha256"] = adapter_digests(folder)
    if (folder / LORA).is_dir():
        result["lora_sha256"] = adapter_digests(folder, LORA)
    files.write_json(folder / RESULT, result)
    remove_checkpoints(folder / CHECKPOINTS)


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a finished run, and the folder that they are in unless it holds something else."""
    files.clear_leftovers(folder)
    keep_only(folder, ())
    files.remove(folder / START_FILE)
    with suppress(OSError):  # not empty, or not there
        folder.rmdir()


def adapter_digests(folder: Path, what: str = ADAPTER) -> dict[str, str]:
    """The sha256 of each file of a run's adapter, or its `lora`, but the card, by its path there, for `result.json`."""
    return {name: digest for name, digest in _digests(folder / what).items() if not name.endswith(".md")}


def check_adapter(folder: Path, digests: Mapping[str, str]) -> None:
    """Raise a UserError if a file of an adapter is not what the run wrote."""
    for name, digest in digests.items():
        path = folder / name
        with files.reading(path):
            if file_digest(path) != digest:
                raise UserError(f"{path} is damaged: it is not what the run wrote")


def _digests(folder: Path) -> dict[str, str]:
    """The sha256 of the files in and below a folder, by their paths there."""
    there = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in there}


def numbered(folder: Path, name: str) -> dict[int, Path]:
    """What is in a folder by the number in its name, in their order; none where there is no such folder."""
    there = folder.iterdir() if folder.is_dir() else ()
    return dict(sorted((int(match[1]), path) for path in there if (match := re.fullmatch(name, path.name))))


def saved_updates(folder: Path) -> dict[int, Path]:
    """The updates of the weights that a run has saved in a folder, by their epoch, first to last."""
    return numbered(folder, r"epoch-(\d+)\.safetensors")


# ---------------------------------------------------------------- checkpoints


def checkpoint_name(step: int) -> str:
    """The folder of a checkpoint, as Transformers' Trainer calls it."""
    return f"checkpoint-{step}"


def checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints by their step, first to last, whole or damaged."""
    return numbered(folder, r"checkpoint-(\d+)")


def write_manifest(checkpoint: Path, **facts: Any) -> None:
    """Make a checkpoint whole: list its files with their sha256, so that damage is noticed."""
    files.write_json(checkpoint / MANIFEST, {**facts, "files": _digests(checkpoint)})


def manifest_of(checkpoint: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint; None where it is not whole."""
    try:
        manifest = files.read_json(checkpoint / MANIFEST)
        return manifest if manifest["files"] == _digests(checkpoint) else None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    except OSError as error:  # it is there, and cannot be read: that is no damage
        raise UserError(f"{checkpoint} cannot be read: {error.strerror}") from error


def last_intact(folder: Path) -> Path | None:
    """The last checkpoint that is whole, and the best one that it knows of with it. Later ones are deleted; of those
    that are damaged, and not only half written, a warning says from where the run goes on."""
    there, damaged = checkpoints(folder), []
    for step, checkpoint in reversed(there.items()):
        manifest = manifest_of(checkpoint)
        best = step if manifest is None else manifest.get("best") or step
        if manifest is not None and (best == step or manifest_of(there.get(best, folder / MANIFEST))):
            break
        damaged += [checkpoint.name] if (checkpoint / MANIFEST).exists() else []
        files.remove(checkpoint)
    else:
        checkpoint = None
    if damaged:
        start = "the run begins anew" if checkpoint is None else f"the run goes on from {checkpoint.name}"
        warnings.warn(f"{folder}: damaged: {', '.join(damaged)}; {start}", stacklevel=2)
    return checkpoint


def keep_only(folder: Path, kept: Collection[Path]) -> None:
    """Delete all other checkpoints."""
    for path in checkpoints(folder).values():
        if path not in kept:
            files.remove(path)


# ---------------------------------------------------------------- the recipe


def is_begun(folder: Path) -> bool:
    """Whether the run in a folder has made something that another recipe would lose."""
    return any((folder / name).exists() for name in _MADE) or bool(checkpoints(folder / CHECKPOINTS))


def check_recipe(folder: Path, recipe: RunRecipe) -> None:
    """Raise a UserError if the folder holds the run of another recipe, or a file of the user's own that a run writes.

    No part of that are `CHANGE_NOTHING`, such as which test sets are scored. A run that ended before anything was made,
    as where an option did not fit the model, leaves the folder to the next.
    """
    path = folder / RECIPE
    if not path.exists():
        for name in (*_MADE, CHECKPOINTS, DATA, SPLITS, MISTAKES, *_OF_A_MODEL):
            if (folder / name).exists():
                raise UserError(f"{folder} holds {name} but no {RECIPE}: choose another output folder")
    elif is_begun(folder):
        check_same_recipe(read(path), recipe, path, f"{folder} holds")
    else:  # a run writes it without comments, every default filled in
        with suppress(UserError, OSError):
            there = validate_as(type(recipe), read(path), str(path))
            if dump(there.resolved()) == path.read_text(encoding="utf-8"):
                return
        raise UserError(f"{path} was not written by a run, which would replace it: choose another output folder")


def write_recipe(folder: Path, recipe: RunRecipe) -> None:
    """Write the recipe down in a folder that `check_recipe` leaves to it, unless the run there is finished."""
    text, path = dump(recipe.resolved()), folder / RECIPE
    if (folder / RESULT).exists() or (path.exists() and path.read_text(encoding="utf-8") == text):
        return
    if not is_begun(folder):
        for name in (PROBE, Path(CHECKPOINTS, START_FILE)):  # of the recipe before, which made nothing else
            files.remove(folder / name)
    files.write_text(path, text)
