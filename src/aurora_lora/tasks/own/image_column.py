"""A column of images in the user's own data, each one checked."""

from __future__ import annotations

import io
from typing import Any

from ...errors import UserError
from ...extras import extra
from .. import vision
from .split import BadRow


def image_file(value: Any, column: str) -> bytes:
    """The bytes of an image.

    Args:
        value: its `bytes` or `path`, or one of them alone.
        column: where it stands.

    Raises:
        BadRow: there is none, or it is no image, is cut off or too large, or has other numbers than pixels have.
    """
    with extra("vision"):
        from PIL import Image, UnidentifiedImageError
    if isinstance(value, str | bytes):
        value = {"path" if isinstance(value, str) else "bytes": value}
    if not isinstance(value, dict) or not (value.get("bytes") or value.get("path")):
        raise BadRow(f"'{column}' is empty")
    try:
        if (data := value.get("bytes")) is None:
            with open(value["path"], "rb") as file:
                data = file.read()
        with Image.open(io.BytesIO(data)) as image:
            if not _is_whole(image, data):
                with Image.open(io.BytesIO(data)) as again:
                    vision.rgb(again)
            return bytes(data)
    except (OSError, SyntaxError, UserError, Image.DecompressionBombError) as error:
        why = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
        raise BadRow(f"{value.get('path') or 'the image'} is no image that can be read{why}") from error


def _is_whole(image: Any, data: bytes) -> bool:
    """Whether an image can be told to be whole without its pixels, which would take as long as an epoch."""
    if image.mode in ("I", "F"):
        return False
    if image.format == "JPEG":
        return data.endswith(b"\xff\xd9")  # the end of an image
    try:
        image.verify()
    except (OSError, SyntaxError):
        return False
    return bool(image.format == "PNG")  # which has sums of its parts
