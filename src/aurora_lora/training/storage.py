"""Writing so that nothing is ever half there: under another name first, flushed to disk, renamed as the last step.

A folder called `checkpoint-N`, `adapter` or a file called `result.json` is therefore whole, whatever moment a run was
killed at. What was on its way has a name that starts with a dot, and is cleared away by the next run.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import UserError

MANIFEST = "manifest.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def write_text(path: Path, text: str) -> None:
    """Write a file, or leave it as it was."""
    with plain_write_errors(path):
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text, encoding="utf-8")
        _flush(partial)
        partial.replace(path)
        _flush(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, or leave it as it was."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into that becomes `path` when the block ends without an error; an earlier one is replaced."""
    partial = path.with_name(f".{path.name}.partial")
    with plain_write_errors(path):
        remove(partial)
        partial.mkdir(parents=True)
        try:
            yield partial
            publish(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def publish(partial: Path, path: Path) -> None:
    """Flush a folder to disk and rename it to `path`."""
    for folder, _, files in os.walk(partial):
        for file in files:
            _flush(Path(folder, file))
        _flush(Path(folder))
    remove(path)
    partial.replace(path)
    _flush(path.parent)


def remove(path: Path) -> None:
    """Delete a folder or a file. A kill on the way leaves nothing that could be taken for the whole."""
    trash = path.with_name(f".{path.name.lstrip('.')}.trash")
    shutil.rmtree(trash, ignore_errors=True)
    with suppress(FileNotFoundError):
        if path.is_dir():
            path.rename(trash)
            shutil.rmtree(trash)
        else:
            path.unlink()


def clear_leftovers(folder: Path) -> None:
    """Remove what interrupted writes left in a folder."""
    if folder.is_dir():
        for path in folder.iterdir():
            if re.fullmatch(r"\..+\.(partial|trash)", path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_writable(folder: Path) -> None:
    """Make the folder if need be.

    Raises:
        UserError: nothing can be written there.
    """
    with plain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable.", suffix=".partial") as probe:
            probe.write(b"\0" * 4096)
            probe.flush()


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
        reason = re.search(r"I/O error: ([^(]+)", str(error))
        why = reason[1].strip() if reason else "the disk is full, or the folder cannot be written any more"
        raise UserError(f"cannot write {path}: {why}") from error


def _is_failed_write(error: Exception) -> bool:
    """safetensors and torch.save report a failed write in their own ways."""
    words = ("PytorchStreamWriter", "inline_container", "iostream error")
    return type(error).__name__ == "SafetensorError" or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a run's folder; the system lets go of it when the process ends, however it ends.

    Raises:
        UserError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: no lock
        yield
        return
    with plain_write_errors(folder):
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(f"{folder}: another aurora train is writing there") from error
            # some network file systems have no locks: go on without
        yield
    finally:
        os.close(handle)


# ---------------------------------------------------------------- checkpoints


def write_manifest(checkpoint: Path) -> None:
    """List the files of a checkpoint with their sizes, so that a file lost later (a crash, a copy) is noticed."""
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in _files(checkpoint)}
    (checkpoint / MANIFEST).write_text(json.dumps(sizes, indent=2), encoding="utf-8")


def is_whole(checkpoint: Path) -> bool:
    """Whether every file that the manifest lists is there, in its size."""
    try:
        sizes = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def whole_checkpoints(folder: Path) -> dict[int, Path]:
    """The whole checkpoints by their step, first to last."""
    found = {}
    if folder.is_dir():
        for path in folder.iterdir():
            if (match := _CHECKPOINT.fullmatch(path.name)) and is_whole(path):
                found[int(match[1])] = path
    return dict(sorted(found.items()))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]


def _flush(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk (a full disk may be noticed only here)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # a file system that cannot flush folders
            raise
    finally:
        os.close(handle)
