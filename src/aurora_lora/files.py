"""Writing so that nothing is ever half there: under another name first, flushed to disk, renamed as the last step.

What was on its way has a name that starts with a dot and that no one else gives, and is cleared away by the next run.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import UserError

NOT_FINITE = "not finite"
"""What people read for NaN, infinity, and the null that stands for them in JSON."""

PARTIAL, TRASH = ".aurora-lora-partial", ".aurora-lora-trash"
"""How the names of what is being written and of what is being removed end: nothing else is ever cleared away.

These names alone are those of the two within a folder that stays where it is; see `new_folder`.
"""
ENTRIES = ".aurora-lora-entries"
"""Within a folder that stays, what is on its way to there is listed here, from before the first move."""


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file to write that becomes `path` when the block ends without an error. Of several processes, the last wins.

    Its folder is made if need be. A link stays, and the file that it leads to is replaced.
    """
    with plain_write_errors(path):
        path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
        try:
            yield partial
            flush(partial)
            partial.replace(path)
            flush(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file, or leave it as it was."""
    with new_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, or leave it as it was."""
    write_text(path, json_text(value) + "\n")


def json_text(value: Any, *, ascii_only: bool = True) -> str:
    """A value as JSON, as `finite_or_none` has it."""
    return json.dumps(finite_or_none(value), indent=2, allow_nan=False, ensure_ascii=ascii_only)


def finite_or_none(value: Any) -> Any:
    """The same with None for each number that is not finite: JSON has no NaN, and readers show None as such."""
    if isinstance(value, Mapping):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def new_folder(path: Path, last: Sequence[str] = ()) -> Iterator[Path]:
    """A folder to write into that becomes `path` when the block ends without an error; an earlier one is replaced.

    A link stays, and the folder that it leads to is replaced. A folder that itself must stay (a mounted volume, the
    current one) gets the new entries one by one instead. What an interruption leaves, the next write there, or
    `settle`, puts right.

    Args:
        path: where the folder is to be.
        last: the entries without which it does not look finished: they come last, in this order, and go first.
    """
    with plain_write_errors(path):
        path = path.resolve()
        stays = _stays(path)
        partial = path / PARTIAL if stays else _partial_of(path)
        settle(path)
        partial.mkdir(parents=True)
        try:
            yield partial
            if stays:
                _move_up(path, last)
            else:
                _publish_or_move_up(partial, path, last)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _stays(path: Path) -> bool:
    """Whether a folder cannot be renamed, or, as people work in it, should not be."""
    with suppress(OSError):
        return path.is_dir() and (os.path.ismount(path) or path.samefile(".") or not os.access(path.parent, os.W_OK))
    return False


def _publish_or_move_up(partial: Path, path: Path, last: Sequence[str]) -> None:
    """`publish`; to a mount of the same file system, which only renaming finds out, move the entries."""
    try:
        publish(partial, path)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        shutil.copytree(partial, path / PARTIAL)
        _move_up(path, last)
        remove(partial)


def _move_up(path: Path, last: Sequence[str]) -> None:
    """Replace the entries of a folder by those that have been written to `PARTIAL` within it."""
    partial, trash = path / PARTIAL, path / TRASH

    def order(name: str) -> tuple[int, str]:
        return (last.index(name) + 1 if name in last else 0, name)

    earlier = sorted((entry.name for entry in path.iterdir() if entry.name not in (PARTIAL, TRASH)), key=order)
    names = sorted((entry.name for entry in partial.iterdir()), key=order)
    write_json(partial / ENTRIES, names)
    _flush_all(partial)
    try:
        trash.mkdir()
        for name in reversed(earlier):
            (path / name).rename(trash / name)
        for name in names:
            (partial / name).rename(path / name)
        flush(path)
    finally:
        settle(path)


def settle(folder: Path) -> None:
    """Finish what an interrupted write has left beside a folder, or within one that stays, or else undo it."""
    with plain_write_errors(folder):
        folder = Path(os.path.realpath(folder))
        _settle_beside(folder)
        _settle_within(folder)


def _settle_beside(folder: Path) -> None:
    """Give a new folder the place that the earlier one has left, and clear away what is left of either."""
    if not folder.name or not os.access(folder.parent, os.W_OK):
        return
    partial, trash = _partial_of(folder), _trash_of(folder)
    left = _left(partial, trash)
    # where both are there they are whole: the earlier one steps aside for one that is on the disk
    if not os.path.lexists(folder) and _is_real_folder(partial) and _is_real_folder(trash):
        partial.rename(folder)
        flush(folder.parent)
        left.remove(partial)
    for path in left:
        with suppress(FileNotFoundError):
            _delete(path)


def _settle_within(folder: Path) -> None:
    """Finish the move of new entries into a folder that stays, if all have their place, or else undo it."""
    partial, trash = folder / PARTIAL, folder / TRASH
    left = _left(partial, trash)
    if not left:
        return
    listed = partial / ENTRIES
    names = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else []
    waiting = [name for name in names if os.path.lexists(partial / name)]
    if waiting or not names:
        for name in set(names).difference(waiting):
            with suppress(FileNotFoundError):
                _delete(folder / name)
        listed.unlink(missing_ok=True)  # from here on, what has these names is the earlier one
        for entry in list(trash.iterdir()) if _is_real_folder(trash) else []:
            entry.rename(folder / entry.name)
    for path in left:
        _delete(path)


def _left(partial: Path, trash: Path) -> list[Path]:
    """Those of the two that are there, and what is left of a folder that was written to `partial`."""
    return [path for path in (trash, partial, _partial_of(partial), _trash_of(partial)) if os.path.lexists(path)]


def publish(partial: Path, path: Path) -> None:
    """Flush a folder to disk and rename it to `path`.

    What was there steps aside just before, and is deleted only when the new folder has its place. After a kill between
    the two renames nothing is at `path`, and both are beside it; see `settle`.
    """
    _flush_all(partial)
    trash = _trash_of(path)
    with suppress(FileNotFoundError):
        _delete(trash)
    try:
        with suppress(FileNotFoundError):
            path.rename(trash)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            if not path.exists():
                trash.rename(path)
        raise
    flush(path.parent)
    with suppress(FileNotFoundError):
        _delete(trash)


def _flush_all(folder: Path) -> None:
    for within, _, files in os.walk(folder):
        for file in files:
            flush(Path(within, file))
        flush(Path(within))


def _partial_of(path: Path) -> Path:
    return path.with_name(f".{path.name}{PARTIAL}")


def _trash_of(path: Path) -> Path:
    return path.with_name(f".{path.name.lstrip('.')}{TRASH}")


def remove(path: Path) -> None:
    """Delete a folder or a file. A kill on the way leaves nothing that could be taken for the whole."""
    trash = _trash_of(path)
    with suppress(FileNotFoundError):
        _delete(trash)
    with suppress(FileNotFoundError):
        if _is_real_folder(path):
            path.rename(trash)
            path = trash
        _delete(path)


def _delete(path: Path) -> None:
    """Delete a folder, a file or a link; not what a link leads to."""
    if _is_real_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink()


def _is_real_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def clear_leftovers(folder: Path) -> None:
    """Remove what interrupted writes left in a folder."""
    if folder.is_dir():
        settle(folder)
        for path in folder.iterdir():
            if path.name.startswith(".") and path.name.endswith((PARTIAL, TRASH)):
                _delete(path)


def slug(text: str) -> str:
    """A name that people gave, as that of a file or a folder; empty where nothing of it can be."""
    return re.sub(r"[^\w.=+]+|_+", "-", unicodedata.normalize("NFC", text.casefold())).strip("-.")


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def others(folder: Path, ours: Collection[str]) -> list[str]:
    """The files in a folder that are not ours, and empty folders, by their paths relative to it.

    What is just being written there is left out.
    """
    every = [path for path in sorted(folder.rglob("*")) if not _is_real_folder(path) or not any(path.iterdir())]
    names = [path.relative_to(folder) for path in every]
    return [name.as_posix() for name in names if name.as_posix() not in ours and name.parts[0] != PARTIAL]


def check_writable(folder: Path) -> None:
    """Make the folder if need be.

    Raises:
        UserError: nothing can be written there.
    """
    with plain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle, probe = tempfile.mkstemp(dir=folder, prefix=".writable.", suffix=PARTIAL)
        os.close(handle)
        try:
            Path(probe).write_bytes(b"\0" * 4096)
        finally:
            Path(probe).unlink()


def check_new_folder(folder: Path) -> None:
    """As `check_writable`, and no folder that was not there is left there, whether it can be written or not."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        check_writable(folder)
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


@contextmanager
def plain_write_errors(path: Path) -> Iterator[None]:
    """A full disk, a read-only folder or the like becomes one plain line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    except Exception as error:
        if not _is_failed_write(error):
            raise
        reason = re.search(r"(?:I/O error: |^)([^(]+) \(os error", str(error))
        why = reason[1].strip() if reason else "the disk is full, or the folder cannot be written any more"
        raise UserError(f"cannot write {path}: {why}") from error


def _is_failed_write(error: Exception) -> bool:
    """safetensors, torch.save and tokenizers report a failed write in their own ways."""
    words = ("PytorchStreamWriter", "inline_container", "iostream error")
    return (
        type(error).__name__ == "SafetensorError"
        or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))
        or (type(error) is Exception and "(os error " in str(error))
    )


def flush(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk (a full disk may be noticed only here)."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # a file system that cannot flush folders
            raise
    finally:
        os.close(handle)
