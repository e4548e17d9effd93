"""Subject-driven generation (the paper's Figures 4 and 6): a few images of one subject, and prompts that name it.

DreamBooth (Ruiz et al. 2023) has 30 subjects with four to six images each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..files import expanded, is_path
from .hub import HubData
from .own.source import folder_digest
from .vision import IMAGE_FILES, UNREAD, as_files, read_image

if TYPE_CHECKING:
    from PIL.Image import Image

PLACEHOLDER = "[V]"
"""Stands in prompts for the word that comes to mean the subject."""


@dataclass(frozen=True)
class GenerationTask:
    """A task of image generation, for lists: its recipes are of a kind of their own (`aurora_lora.diffusion`)."""

    name: str
    description: str
    source: str
    license: str
    metric: str
    metric_names: tuple[str, ...]
    group: str = "image generation"
    kind: str = "subject-driven generation"
    labels: tuple[str, ...] = ()
    test_sets: tuple[str, ...] = ("generated",)


DREAMBOOTH = GenerationTask(
    name="dreambooth",
    description="Images of one subject, as a prompt says",
    source="hub google/dreambooth (30 subjects, four to six images each), or a folder of images",
    license="CC BY 4.0",
    metric="clip_i",
    metric_names=("clip_i", "clip_t", "dino", "explained", "noise_error"),
)


def subject_images(source: str, subject: str | None = None) -> list[Image]:
    """The images of a subject, in RGB, turned upright; of a folder, in the order of the files' names.

    Args:
        source: a folder of images, or a data set of the hub with the column `image` and the split `train`.
        subject: the data set's configuration.

    Raises:
        UserError: there are none, or one of them cannot be read.
    """
    folder = expanded(source)
    if not folder.is_dir():
        if "/" not in source or is_path(source):
            raise UserError(f"task.images: {source!r} is neither a folder nor the hub's owner/name of a data set")
        rows = as_files(HubData(source, subject).load("train", ("image",)))
        return [read_image(row["image"], "diffusion") for row in rows]
    if subject is not None:
        raise UserError(f"task.subject: {subject!r} names a configuration of a data set; {source} is a folder")
    kinds = ", ".join(IMAGE_FILES)
    if unread := _files(folder, UNREAD):
        raise UserError(f"task.images: {unread[0]} is of a kind that is not read: convert it to one of {kinds}")
    paths = _files(folder, IMAGE_FILES)
    if not paths:
        raise UserError(f"task.images: {folder} has no images (files that end in {kinds})")
    try:
        return [read_image(path, "diffusion") for path in paths]
    except UserError as error:
        raise UserError(f"task.images: {error}") from error


def images_digest(source: str) -> str | None:
    """sha256 over the names and contents of the images that are read of a folder; None for a data set of the hub."""
    folder = expanded(source)
    if not folder.is_dir():
        return None
    return folder_digest(folder, _files(folder, IMAGE_FILES))


def _files(folder: Path, kinds: tuple[str, ...]) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name[0] != "." and path.suffix.lower() in kinds)
