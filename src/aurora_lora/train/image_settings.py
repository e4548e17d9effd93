"""What a model's image processor says of its images: read for our transforms, and written for stock Transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..values import is_int, is_number

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

FILE = "preprocessor_config.json"
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's filters by its numbers, those that Transformers resizes with."""
BYTE = 1 / 255


@dataclass(frozen=True)
class ImageSettings:
    """How an image becomes numbers: its shorter side is resized to that of the model's images, the centre is cut out.

    Args:
        height: of the model's images.
        width: theirs.
        resample: Pillow's number of the filter that resizes.
        factor: of the bytes, 0 to 255.
        mean: of each channel, subtracted after that; None where nothing is.
        std: of each channel, divided by; None where `mean` is.
        bgr: whether the channels are in the order blue, green, red.
    """

    height: int
    width: int
    resample: int = 2
    factor: float = BYTE
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    bgr: bool = False

    @classmethod
    def of(cls, processor: BaseImageProcessor) -> ImageSettings:
        """The settings of an image processor.

        Raises:
            UserError: a field of it that cannot be honoured; names the field, its value and what is allowed.
        """
        settings: Any = processor
        if getattr(settings, "do_resize", True) is False:
            raise not_allowed("do_resize", False, "true: images are resized to those of the model")
        height, width = _size(settings)
        bgr = bool(getattr(settings, "do_flip_channel_order", False))
        if bgr and getattr(settings, "do_normalize", False):
            raise not_allowed("do_normalize", True, "false where do_flip_channel_order is true, as in MobileViT")
        factor = 1.0
        if getattr(settings, "do_rescale", False):
            factor = settings.rescale_factor
            if not is_number(factor) or not factor > 0:
                raise not_allowed("rescale_factor", factor, "a number above 0, such as 1/255, or do_rescale: false")
        mean, std = _mean_and_std(settings)
        return cls(height, width, _resample(settings), factor, mean, std, bgr)

    def processor(self) -> BaseImageProcessor:
        """An image processor of stock Transformers that does the same, whatever class the model's own is of.

        CLIP's does what its fields say and nothing else. ViT's squashes images by default; those of ConvNeXt, Segformer
        and others crop by rules of their own.
        """
        from transformers import CLIPImageProcessor, MobileViTImageProcessor

        fields: dict[str, Any] = {
            "do_resize": True,
            "size": {"shortest_edge": min(self.height, self.width)},
            "resample": self.resample,
            "do_center_crop": True,
            "crop_size": {"height": self.height, "width": self.width},
            "do_rescale": self.factor != 1,
            "rescale_factor": self.factor,
        }
        if self.bgr:
            return MobileViTImageProcessor(**fields, do_flip_channel_order=True)
        if self.mean is None or self.std is None:
            return CLIPImageProcessor(**fields, do_normalize=False)
        return CLIPImageProcessor(**fields, do_normalize=True, image_mean=list(self.mean), image_std=list(self.std))


def not_allowed(field: str, value: Any, allowed: str) -> UserError:
    """What is said of a field that cannot be honoured."""
    return UserError(f"{FILE}: {field}: {value!r} is not allowed: {allowed}")


def _size(settings: Any) -> tuple[int, int]:
    """Height and width of the images that a model takes."""
    field, given = "size", getattr(settings, "size", None)
    if getattr(settings, "do_center_crop", False) and getattr(settings, "crop_size", None):
        field, given = "crop_size", settings.crop_size
    size = {name: value for name, value in dict(given or {}).items() if value is not None}
    names = ("height", "width") if {"height", "width"} <= size.keys() else ("shortest_edge",) * 2
    found = [size.get(name) for name in names]
    if not all(is_int(side, 1) for side in found):
        allowed = "height and width, or shortest_edge, each a whole number above 0; or do_center_crop with a crop_size"
        raise not_allowed(field, size or None, allowed)
    height, width = found
    return height, width  # type: ignore[return-value]


def _resample(settings: Any) -> int:
    number = getattr(settings, "resample", None)
    if number is None:
        return 2  # so Transformers reads it
    if isinstance(number, bool) or not isinstance(number, int) or int(number) not in RESAMPLE:
        allowed = ", ".join(f"{one} ({name})" for one, name in RESAMPLE.items())
        shown = int(number) if isinstance(number, int) and not isinstance(number, bool) else number
        raise not_allowed("resample", shown, f"one of {allowed}")
    return int(number)


def _mean_and_std(settings: Any) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """The mean and deviation that numbers are normalised by, None where they are not.

    EfficientNet's processor may subtract one before that (`rescale_offset`), and divide once more (`include_top`).
    """
    normalised = bool(getattr(settings, "do_normalize", False))
    again = bool(getattr(settings, "include_top", False))
    mean = _channels(settings, "image_mean") if normalised else (0.0,) * 3
    std = _channels(settings, "image_std") if normalised else (1.0,) * 3
    if getattr(settings, "rescale_offset", False) and getattr(settings, "do_rescale", False):
        mean, normalised = tuple(one + 1 for one in mean), True
    if again:
        std, normalised = tuple(a * b for a, b in zip(std, _channels(settings, "image_std"), strict=True)), True
    return (mean, std) if normalised else (None, None)


def _channels(settings: Any, field: str) -> tuple[float, ...]:
    """A number for each of three channels."""
    given = getattr(settings, field, None)
    found = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    found = found * 3 if len(found) == 1 else found
    numbers = all(map(is_number, found))
    if len(found) != 3 or not numbers or (field == "image_std" and not all(found)):
        several = "three numbers, one for each channel, or one for all" + (", none of them 0" if "std" in field else "")
        raise not_allowed(field, given, f"{several}; or do_normalize: false")
    return found
