"""Files and folders that are never half there: written under another name, flushed to disk, renamed as the last step.

What was on its way has a name that starts with a dot and that no one else gives, and is cleared away by the next run.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import hashlib
import json
import math
import os
import platform
import re
import shutil
import stat
import tempfile
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from .errors import UserError

NOT_FINITE = "not finite"
"""What people read for NaN, infinity, and the null that stands for them in JSON."""

PARTIAL, TRASH = ".aurora-lora-partial", ".aurora-lora-trash"
"""How the names of what is being written and of what is being removed end: nothing else is ever cleared away."""


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file to write that becomes `path` when the block ends without an error. Of several processes, the last wins.

    Its folder is made if need be. A link stays, and the file that it leads to is replaced.
    """
    with plain_write_errors(path):
        path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        stem = f".{path.name}.{platform.node()}."
        partial = path.with_name(f"{stem}{os.getpid()}{PARTIAL}")
        for earlier in path.parent.glob(f"{glob.escape(stem)}*{PARTIAL}"):  # of a process that was killed
            number = earlier.name.removeprefix(stem).removesuffix(PARTIAL)
            if number.isdecimal() and not psutil.pid_exists(int(number)):
                earlier.unlink(missing_ok=True)
        partial.touch()
        mode = partial.stat().st_mode
        partial.unlink()
        try:
            yield partial
            allow(partial, mode)
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


def allow(file: Path, mode: int) -> None:
    """Let others read and write a file as they may what has this mode: libraries make some files for their owner alone.

    Args:
        file: or a link, which is left as it is.
        mode: of a file or a folder that was made as the process makes them (its umask).
    """
    if not file.is_symlink():
        there = file.stat().st_mode
        if (wanted := there | mode & 0o666) != there:
            file.chmod(stat.S_IMODE(wanted))


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: it holds none.
    """
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str, *, finite: bool = False) -> Any:
    """The value of a text in JSON.

    Args:
        text: such as a file's.
        finite: whether NaN and infinity, which are no JSON, are refused.

    Raises:
        ValueError: it is none, or nested deeper than Python reads.
    """
    try:
        return json.loads(text, parse_constant=_refuse if finite else None)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def expanded(path: Path | str) -> Path:
    """The path with the home folder in place of a `~` at its beginning; as it is, where that is nobody's."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def located(name: str) -> str:
    """A folder with the home folder in place of a `~`, which other libraries do not know; anything else as it is."""
    path = expanded(name)
    return str(path) if path.is_dir() else name


def is_path(name: str) -> bool:
    """Whether it is a path of this machine, and no `owner/name` or `name` of the hub: by its form, or because such a
    file or folder exists. A relative path of the hub's form whose file is gone cannot be told from a name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return True
    return os.path.exists(expanded(name))


def json_text(value: Any, *, ascii_only: bool = True) -> str:
    """A value as JSON, as `finite_or_none` has it."""
    return json.dumps(finite_or_none(value), indent=2, allow_nan=False, ensure_ascii=ascii_only)


def finite_or_none(value: Any) -> Any:
    """A value with None for each number that is not finite: JSON has no NaN, and readers show None as such."""
    if isinstance(value, Mapping):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def slug(text: str) -> str:
    """A name that people gave, as that of a file or a folder; empty where nothing of it can be."""
    return re.sub(r"[^\w.=+]+|_+", "-", unicodedata.normalize("NFC", text.casefold())).strip("-.")


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def below(folder: Path, pattern: str) -> list[Path]:
    """The files of such a name in and below a folder, from which other processes may take folders meanwhile."""
    return [Path(at, name) for at, _, names in os.walk(folder) for name in fnmatch.filter(names, pattern)]


def check_links(folder: Path) -> None:
    """Raise a UserError if there is a link in a folder that leads nowhere, or out of the folder: but for the files of
    the hub's cache, whose snapshots are links to its blobs."""
    real = Path(os.path.realpath(folder))
    inside = (real, *(above.parent / "blobs" for above in real.parents if above.name == "snapshots"))
    for path in filter(Path.is_symlink, folder.rglob("*")):
        if not path.exists() or not any(map(Path(os.path.realpath(path)).is_relative_to, inside)):
            raise UserError(f"{path} is a link that leads out of {folder}, or nowhere: put the file itself there")


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


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What keeps a file from being read, or its content from being what the block reads, becomes one plain line."""
    try:
        yield
    except (OSError, ValueError) as error:
        shown = str(path) if str(path).isprintable() else repr(str(path))
        raise UserError(f"{shown} cannot be read: {getattr(error, 'strerror', None) or error}") from error


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
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # a file system that cannot flush folders
            raise
    finally:
        os.close(handle)


# ---------------------------------------------------------------- folders


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into that becomes `path` when the block ends without an error; an earlier one is replaced.

    A link stays, and the folder that it leads to is replaced.

    Raises:
        UserError: it cannot be written, or is a mounted volume or the current folder, which cannot be replaced.
    """
    with plain_write_errors(path):
        path = path.resolve()
        _check_replaceable(path)
        partial = _partial_of(path)
        settle(path)
        partial.mkdir(parents=True)
        try:
            yield partial
            publish(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def is_occupied(path: Path) -> bool:
    """Whether a folder that holds something but leftovers, or what is no folder, is there."""
    return path.exists() and (not path.is_dir() or not all(map(_is_leftover, path.iterdir())))


def settle(folder: Path) -> None:
    """Finish what an interrupted write has left of a folder, or else undo it."""
    with plain_write_errors(folder):
        folder = folder.resolve()
        if not folder.name or not os.access(folder.parent, os.W_OK):
            return
        partial, trash = _partial_of(folder), _trash_of(folder)
        # where both are there they are whole: the earlier one steps aside for one that is on the disk
        if partial.is_dir() and trash.is_dir():
            with suppress(OSError):  # a folder that is not there, or that holds something
                folder.rmdir()
            if not os.path.lexists(folder):
                partial.rename(folder)
                flush(folder.parent)
        remove(partial)
        _delete(trash)


def publish(partial: Path, path: Path) -> None:
    """Flush a folder to disk and rename it to `path`.

    What was there steps aside just before, and is deleted only when the new folder has its place. After a kill between
    the two renames nothing is at `path`, and both are beside it; see `settle`.
    """
    mode = partial.stat().st_mode
    for within, _, names in os.walk(partial):
        for name in names:
            allow(Path(within, name), mode)
            flush(Path(within, name))
        flush(Path(within))
    trash = _trash_of(path)
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
    _delete(trash)


def remove(path: Path) -> None:
    """Delete a folder or a file. A kill on the way leaves nothing that could be taken for the whole."""
    trash = _trash_of(path)
    _delete(trash)
    if path.is_dir() and not path.is_symlink():
        path.rename(trash)
        path = trash
    _delete(path)


def clear_leftovers(folder: Path) -> None:
    """Remove what interrupted writes left in a folder."""
    if folder.is_dir():
        settle(folder)
        for path in folder.iterdir():
            if _is_leftover(path):
                _delete(path)


def _is_leftover(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith((PARTIAL, TRASH))


def others(folder: Path, ours: Collection[str]) -> list[str]:
    """The files in a folder that are neither ours nor leftovers, and empty folders, by their paths relative to it."""
    there = (path for path in sorted(folder.rglob("*")) if not _is_leftover(path))
    every = [path for path in there if not path.is_dir() or not any(path.iterdir())]
    names = [path.relative_to(folder).as_posix() for path in every]
    return [name for name in names if name not in ours]


def _check_replaceable(folder: Path) -> None:
    if folder.is_dir() and (folder.is_mount() or folder.samefile(".")):
        raise UserError(f"{folder} is a mounted volume, or the current folder, and cannot be replaced: name one in it")


def check_new_folder(folder: Path) -> None:
    """Raise a UserError if `new_folder` cannot write it; leaves no folder that was not there."""
    _check_replaceable(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        check_writable(folder)
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


def _partial_of(path: Path) -> Path:
    return path.with_name(f".{path.name}{PARTIAL}")


def _trash_of(path: Path) -> Path:
    return path.with_name(f".{path.name.lstrip('.')}{TRASH}")


def _delete(path: Path) -> None:
    """Delete a folder, a file or a link, not what a link leads to, if it is there."""
    with suppress(FileNotFoundError, NotADirectoryError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


# ---------------------------------------------------------------- locks

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""The errors of a file system without locks, as some of the network are: there one goes on without."""


@contextmanager
def held(file: Path, if_taken: Callable[[], Any] = lambda: None) -> Iterator[None]:
    """Hold the lock on a file, once no other process does. The system lets go of it when the process ends.

    Args:
        file: in a folder that is there.
        if_taken: is called before the wait for another process; what it raises comes instead of that.

    Raises:
        OSError, UserError: the file cannot be written.
    """
    from filelock import FileLock, Timeout

    # a mere file in place of a lock, as filelock offers it, would outlive a killed process
    lock = FileLock(file, fallback_to_soft=False)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not file.exists():  # filelock waits for a folder that cannot be written as for a lock that is held
                check_writable(file.parent)
            if_taken()
            lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release()
