"""Folders that are written whole or not at all, and what an interrupted write has left of them; see `files`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .files import PARTIAL, TRASH, allow, check_writable, flush, plain_write_errors


@contextmanager
def new_folder(path: Path, last: Sequence[str] = ()) -> Iterator[Path]:
    """A folder to write into that becomes `path` when the block ends without an error; an earlier one is replaced.

    A link stays, and the folder that it leads to is replaced. A mounted volume, or the current folder, cannot be
    renamed: its entries are replaced one by one.

    Args:
        path: where the folder is to be.
        last: the entries without which it does not look finished: there they come last, and go first.
    """
    with plain_write_errors(path):
        path = path.resolve()
        stays = path.is_dir() and (path.is_mount() or path.samefile(".") or not os.access(path.parent, os.W_OK))
        partial = path / PARTIAL if stays else _partial_of(path)
        settle(path)
        partial.mkdir(parents=True)
        try:
            yield partial
            if stays:
                _replace_entries(partial, path, last)
            else:
                publish(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _replace_entries(partial: Path, path: Path, last: Sequence[str]) -> None:
    """Put the entries of a folder in place of those of the folder that it is in."""
    _make_durable(partial)
    names = [*sorted(entry.name for entry in partial.iterdir() if entry.name not in last), *last]
    for name in [*last, *(entry.name for entry in path.iterdir() if entry.name not in (PARTIAL, *last))]:
        _delete(path / name)
    for name in names:
        with suppress(FileNotFoundError):
            (partial / name).rename(path / name)
    flush(path)
    partial.rmdir()


def is_occupied(path: Path) -> bool:
    """Whether a folder that holds something, or what is no folder, is there."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def settle(folder: Path) -> None:
    """Finish what an interrupted write has left of a folder, or else undo it."""
    with plain_write_errors(folder):
        folder = folder.resolve()
        _delete(folder / PARTIAL)
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
    _make_durable(partial)
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
            if path.name.startswith(".") and path.name.endswith((PARTIAL, TRASH)):
                _delete(path)


def others(folder: Path, ours: Collection[str]) -> list[str]:
    """The files in a folder that are not ours, and empty folders, by their paths relative to it."""
    every = [path for path in sorted(folder.rglob("*")) if not path.is_dir() or not any(path.iterdir())]
    names = [path.relative_to(folder).as_posix() for path in every]
    return [name for name in names if name not in ours and not name.startswith(PARTIAL)]


def check_new_folder(folder: Path) -> None:
    """Do `check_writable`, and leave no folder that was not there, whether it can be written or not."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        check_writable(folder)
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


def _make_durable(folder: Path) -> None:
    """Flush all that is in a folder; let others read and write its files as they may the folder itself."""
    mode = folder.stat().st_mode
    for within, _, files in os.walk(folder):
        for file in files:
            allow(Path(within, file), mode)
            flush(Path(within, file))
        flush(Path(within))


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
