"""Folders of images by class: which files are images, which of them a split has, and how `datasets` is to read them."""

from __future__ import annotations

import contextlib
import glob
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...extras import extra
from ...temporary_attributes import temporary_attributes
from .broken import marked, no_split

IMAGES = {
    ".arw",
    ".avif",
    ".avifs",
    ".cr2",
    ".cr3",
    ".dcm",
    ".djvu",
    ".dng",
    ".heic",
    ".heics",
    ".heif",
    ".heifs",
    ".hif",
    ".jxl",
    ".jxr",
    ".nef",
    ".orf",
    ".pef",
    ".qoi",
    ".raf",
    ".rw2",
    ".svg",
    ".svgz",
}
"""Suffixes of images that not every Pillow reads."""


def more_suffixes() -> tuple[str, ...]:
    """Suffixes of images that Pillow reads, here and now, and `datasets` does not list: which depends on Pillow's build
    and on its plugins."""
    try:
        from PIL import Image
    except ImportError:
        return ()
    known = Image.registered_extensions()  # which fills OPEN
    readers = {*Image.OPEN, "MPO"}  # which the reader of JPEG opens
    return tuple(suffix for suffix, reader in known.items() if reader in readers)


@contextlib.contextmanager
def read_as_images(known: Collection[str], encoding: str | None) -> Iterator[None]:
    """Within this context `datasets` takes files of these suffixes for images, too, when it reads a folder of them, and
    the cells of a metadata.csv, of this encoding, as the texts that stand there, as those of any other table."""
    from datasets.packaged_modules.folder_based_builder.folder_based_builder import pd
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    read = pd.read_csv

    def as_texts(*args: Any, **given: Any) -> Any:
        return read(*args, **{**given, "dtype": str, "keep_default_na": False, "encoding": marked(encoding)})

    suffixes = [*ImageFolder.EXTENSIONS, *sorted(set(known).difference(ImageFolder.EXTENSIONS))]
    with temporary_attributes([ImageFolder], EXTENSIONS=suffixes), temporary_attributes([pd], read_csv=as_texts):
        yield


def splits_of_images(folder: Path, images: Sequence[Path], described: Sequence[Path]) -> dict[str, list[str]]:
    """Patterns of the images of each split, or of all of them: no image is left out.

    A split is a folder at the top that is called so and has the classes as folders in it, or a table of the images:
    what an image or the folder of a class is called tells none.

    Raises:
        UserError: some of the images are in no such folder, though others are.
    """
    with extra("train"):
        from datasets.data_files import NON_WORDS_CHARS, SPLIT_KEYWORDS
    special = (one for one in images if any(part.startswith("__") for part in one.relative_to(folder).parent.parts))
    if left_out := next(special, None):
        raise UserError(f"{left_out}: a folder that is called __... is left out by `datasets`: rename it")
    of = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}
    top = folder
    while len(inside := {file.relative_to(top).parts[0] for file in images}) == 1:
        (only,) = inside
        if only.casefold() in of or not (top / only).is_dir():
            break
        top /= only
    are_splits = bool(described) or all(name.casefold() in of for name in inside)

    def split(file: Path) -> str | None:
        name, *more = file.relative_to(top).parts if file.is_relative_to(top) else (file.name,)
        words = re.split(f"[{NON_WORDS_CHARS}]", name.casefold())
        return next((of[word] for word in words if word in of), None) if len(more) > (not are_splits) else None

    found = {file: split(file) for file in (*images, *described)}
    names = [name for name in of.values() if name in found.values()]
    if not names:
        return {"train": [_all_below(folder)]}
    if left := next((file for file, name in found.items() if name is None), None):
        raise no_split(folder, left, "FOLDER")
    return {
        name: sorted({_all_below(top / file.relative_to(top).parts[0]) for file, its in found.items() if its == name})
        for name in dict.fromkeys(names)
    }


def _all_below(folder: Path) -> str:
    """The pattern of all files below a folder: absolute, as `datasets` takes what it puts in front for a pattern."""
    return glob.escape(folder.absolute().as_posix()) + "/**"
