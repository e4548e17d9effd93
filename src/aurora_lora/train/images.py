"""From a task's images to batches of pixels."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.loading import reason
from ..data.task import Augment
from ..data.vision import as_files, read_image
from ..errors import UserError
from ..extras import extra
from .image_settings import BYTE, FILE, RESAMPLE, ImageSettings, not_allowed

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

Example = dict[str, Any]
Transform = Callable[[Any], Tensor]
"""What makes (channels, height, width) in float32 of a Pillow image."""
_COLOUR = (200, 90, 30)
"""Its three parts differ, so that their order shows."""
_PLAIN = "one that only resizes, crops, rescales and normalises, such as 'ViTImageProcessor'"


class Images(Dataset[Example]):
    """A split of images, decoded and transformed when they are asked for.

    What is drawn at random for an image is decided by the seed, the epoch and its place alone: not by the number of
    processes, nor by where a run was interrupted.

    Args:
        data: rows with `image` and `label`.
        transform: of an image.
        seed: of the random transforms.
    """

    def __init__(self, data: Any, transform: Transform, seed: int = 0) -> None:
        self.data = as_files(data)
        self.transform = transform
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.data)

    def set_epoch(self, epoch: int) -> None:
        """What is drawn differs by epoch."""
        self.epoch = epoch

    def targets(self) -> list[int]:
        """The class of each example, without its image."""
        return list(self.data["label"])

    def __getitem__(self, index: int) -> Example:
        row = self.data[index]
        with _drawing(self.seed, self.epoch, index):
            pixels = self.transform(read_image(row["image"]))
        return {"pixel_values": pixels, "labels": row["label"]}


@contextmanager
def _drawing(*what: int) -> Iterator[None]:
    """Within this context PyTorch's CPU generator, which torchvision draws from, starts at a seed made of `what`."""
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=8).digest()))
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


@dataclass(frozen=True)
class StackCollator:
    """Collates examples into `pixel_values` (batch, channels, height, width) and `labels` (batch,)."""

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        batch = {"pixel_values": torch.stack([example["pixel_values"] for example in examples])}
        if "labels" in examples[0]:
            batch["labels"] = torch.tensor([example["labels"] for example in examples])
        return batch


# ---------------------------------------------------------------- transforms


def plain_transform(processor: BaseImageProcessor) -> Transform:
    """For scoring: the shorter side resized to the model's, the centre cut out, in numbers as the model expects."""
    settings = ImageSettings.of(processor)
    return _transform(settings, _centre(settings))


def training_transform(processor: BaseImageProcessor, augment: Augment) -> Transform:
    """For training: as for scoring, after what `augment` says.

    `"crop-flip"`, as in the paper's sources: 8 to 100 % of the image. `"shift"`: by up to an eighth of the side.
    """
    if augment == "none":
        return plain_transform(processor)
    with extra("vision"):
        from torchvision.transforms import v2
    settings = ImageSettings.of(processor)
    size = (settings.height, settings.width)
    if augment == "crop-flip":
        steps: list[Any] = [v2.RandomResizedCrop(size, interpolation=_filter(settings))]
    else:
        steps = [*_centre(settings), v2.RandomCrop(size, padding=max(1, min(size) // 8))]
    if augment in ("crop-flip", "shift-flip"):
        steps.append(v2.RandomHorizontalFlip())
    return _transform(settings, steps)


def _transform(settings: ImageSettings, steps: Sequence[Any]) -> Transform:
    """The steps, and then from bytes to numbers with the mean and deviation that the model expects."""
    with extra("vision"):
        from torchvision.transforms import v2
    as_bytes = math.isclose(settings.factor, BYTE)
    numbers: list[Any] = [v2.ToDtype(torch.float32, scale=as_bytes)]
    factor = 1.0 if as_bytes else settings.factor  # what is left of it
    if settings.mean is not None and settings.std is not None:
        numbers.append(v2.Normalize([m / factor for m in settings.mean], [s / factor for s in settings.std]))
    elif factor != 1:
        numbers.append(v2.Normalize([0.0] * 3, [1 / factor] * 3))
    if settings.bgr:
        numbers.append(_bgr)
    # lanczos is Pillow's alone: of tensors, only newer releases of torchvision have it
    on_pillow = RESAMPLE[settings.resample] == "lanczos"
    made: Transform = v2.Compose([*steps, v2.ToImage(), *numbers] if on_pillow else [v2.ToImage(), *steps, *numbers])
    return made


def _centre(settings: ImageSettings) -> list[Any]:
    with extra("vision"):
        from torchvision.transforms import v2
    side = min(settings.height, settings.width)
    return [v2.Resize(side, interpolation=_filter(settings)), _Centre(settings.height, settings.width)]


def _filter(settings: ImageSettings) -> Any:
    from torchvision.transforms import InterpolationMode

    name = RESAMPLE[settings.resample]
    return InterpolationMode("nearest-exact" if name == "nearest" else name)  # the former is Pillow's


@dataclass(frozen=True)
class _Centre:
    """Cuts out the centre, to the pixel as Transformers does: torchvision's may lie one pixel beside it."""

    height: int
    width: int

    def __call__(self, image: Any) -> Any:
        from torchvision.transforms.v2 import functional

        height, width = functional.get_size(image)
        top, left = int((height - self.height) / 2), int((width - self.width) / 2)
        return functional.crop(image, top, left, self.height, self.width)


def _bgr(pixels: Tensor) -> Tensor:
    return pixels.flip(-3)


# ---------------------------------------------------------------- processors that do the same


def as_scored(processor: BaseImageProcessor) -> BaseImageProcessor:
    """A processor that sees images as `plain_transform` does, to be saved beside the model.

    Raises:
        UserError: what the given one does to colours cannot be done here, or it cannot be used.
    """
    settings = ImageSettings.of(processor)
    _check_colours(processor, settings)
    return settings.processor()


def _check_colours(processor: BaseImageProcessor, settings: ImageSettings) -> None:
    """Raise a UserError where a processor makes other numbers of a colour than its fields say, as some classes do."""
    from PIL import Image

    image = Image.new("RGB", (settings.width, settings.height), _COLOUR)
    kind = type(processor).__name__
    try:
        made = processor(image, return_tensors="pt")
        theirs = torch.as_tensor(made["pixel_values"])[0].float()
        ours = plain_transform(settings.processor())(image)
    except KeyError as error:
        raise not_allowed("image_processor_type", kind, f"{_PLAIN}: this one gives no pixel_values") from error
    except Exception as error:
        raise UserError(f"{FILE} cannot be used: {reason(error)}") from error
    if theirs.shape != ours.shape:
        sizes = "images of {} instead of {} pixels".format(
            *("x".join(map(str, one.shape[-2:])) for one in (theirs, ours))
        )
        raise not_allowed("image_processor_type", kind, f"{_PLAIN}: this one makes {sizes}")
    if not torch.allclose(_middle(theirs), _middle(ours), rtol=1e-3, atol=1e-3):
        raise not_allowed("image_processor_type", kind, f"{_PLAIN}: this one makes other numbers of a colour")


def _middle(pixels: Tensor) -> Tensor:
    """The channels of the pixel in the middle."""
    return pixels[..., pixels.shape[-2] // 2, pixels.shape[-1] // 2]
