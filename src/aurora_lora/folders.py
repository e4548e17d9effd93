"""Folders that are replaced whole, and what an interrupted write has left of them.

See `files`: what is on its way is beside its place under another name, or within a folder that itself must stay.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .files import PARTIAL, TRASH, allow, check_writable, flush, plain_write_errors, read_json, write_json

ENTRIES = ".aurora-lora-entries"
"""Within a folder that stays, what is on its way to there is listed here, from before the first move."""


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
    _allow_all(partial)

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


def is_occupied(path: Path) -> bool:
    """Whether a folder that holds something, or what is no folder, is there."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def settle(folder: Path) -> None:
    """Finish what an interrupted write has left beside a folder, or within one that stays, or else undo it."""
    with plain_write_errors(folder):
        folder = Path(os.path.realpath(folder))
        _settle_beside(folder)
        _settle_within(folder)


def _settle_beside(folder: Path) -> None:
    """Give a new folder the place that the earlier one has left, and clear away what is left of either.

    By `remove`, whose first step is a rename: a process that still writes there fails, and its earlier folder stays.
    """
    if not folder.name or not os.access(folder.parent, os.W_OK):
        return
    partial, trash = _partial_of(folder), _trash_of(folder)
    # where both are there they are whole: the earlier one steps aside for one that is on the disk
    if _is_real_folder(partial) and _is_real_folder(trash):
        with suppress(OSError):  # a folder that is not there, or that holds something
            folder.rmdir()
        if not os.path.lexists(folder):
            partial.rename(folder)
            flush(folder.parent)
    remove(partial)
    with suppress(FileNotFoundError):
        _delete(trash)


def _settle_within(folder: Path) -> None:
    """Finish the move of new entries into a folder that stays, if all have their place, or else undo it."""
    partial, trash = folder / PARTIAL, folder / TRASH
    left = _left(partial, trash)
    if not left:
        return
    listed = partial / ENTRIES
    names = read_json(listed) if listed.is_file() else []
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
    """Which of the two are still there, and what is left of a folder that was written to `partial`."""
    return [path for path in (trash, partial, _partial_of(partial), _trash_of(partial)) if os.path.lexists(path)]


def publish(partial: Path, path: Path) -> None:
    """Flush a folder to disk and rename it to `path`.

    What was there steps aside just before, and is deleted only when the new folder has its place. After a kill between
    the two renames nothing is at `path`, and both are beside it; see `settle`.
    """
    _allow_all(partial)
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


def _allow_all(folder: Path) -> None:
    """Let others read and write the files in a folder as they may the folder itself."""
    mode = folder.stat().st_mode
    for within, _, files in os.walk(folder):
        for file in files:
            allow(Path(within, file), mode)


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


def others(folder: Path, ours: Collection[str]) -> list[str]:
    """The files in a folder that are not ours, and empty folders, by their paths relative to it.

    What is just being written there is left out.
    """
    every = [path for path in sorted(folder.rglob("*")) if not _is_real_folder(path) or not any(path.iterdir())]
    names = [path.relative_to(folder) for path in every]
    return [name.as_posix() for name in names if name.as_posix() not in ours and name.parts[0] != PARTIAL]


def check_new_folder(folder: Path) -> None:
    """Do `check_writable`, and leave no folder that was not there, whether it can be written or not."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        check_writable(folder)
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()
