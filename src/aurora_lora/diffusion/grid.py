"""Images as PNG: one, or several side by side, a row for each prompt and a column for each step or form."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files

if TYPE_CHECKING:
    from PIL.Image import Image

GRID = "grid.png"
"""What the file with all of them is called."""
SIDE = 256
"""Pixels of an image in the grid, at most."""
GAP, HEAD, LABEL = 8, 28, 168
"""Pixels between the images, above them for the columns' titles, and to their left for the prompts."""
TEXT = 13


def write_png(path: Path, image: Image) -> None:
    """Write an image, whole or not at all."""
    with files.new_file(path) as partial:
        image.save(partial, format="PNG")


def write_grid(path: Path, rows: Sequence[str], columns: Mapping[str, Sequence[Path]]) -> None:
    """Write the grid, whole or not at all.

    Args:
        path: of the PNG.
        rows: the prompts.
        columns: title -> the image of each prompt, by its file.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(TEXT)
    side = SIDE
    sheet = Image.new("RGB", size(len(rows), len(columns), side), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (title, images) in enumerate(columns.items()):
        left = LABEL + GAP + column * (side + GAP)
        draw.text((left + side / 2, HEAD / 2), title, fill="black", font=font, anchor="mm")
        for row, image in enumerate(images):
            with Image.open(image) as opened:
                sheet.paste(_fitted(opened.convert("RGB"), side), (left, HEAD + row * (side + GAP)))
    for row, prompt in enumerate(rows):
        middle = HEAD + row * (side + GAP) + side / 2
        lines = textwrap.wrap(prompt, int((LABEL - GAP) / (0.55 * TEXT)), max_lines=12, placeholder=" ...")
        draw.multiline_text((GAP, middle), "\n".join(lines), fill="black", font=font, anchor="lm")
    write_png(path, sheet)


def size(rows: int, columns: int, side: int = SIDE) -> tuple[int, int]:
    """Width and height of a grid."""
    return LABEL + GAP + columns * (side + GAP), HEAD + rows * (side + GAP)


def _fitted(image: Image, side: int) -> Image:
    """A square of that side; small images are enlarged without smoothing, so that their pixels show."""
    from PIL import Image

    smooth = Image.Resampling.LANCZOS if max(image.size) > side else Image.Resampling.NEAREST
    return image.resize((side, side), smooth)
