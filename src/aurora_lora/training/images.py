"""From a task's images to batches of pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..extras import extra
from ..tasks.task import Augment
from ..tasks.vision import rgb

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

Example = dict[str, Any]
Transform = Callable[[Any], Tensor]
"""From a Pillow image to (channels, height, width), float32."""


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
        self.data = data
        self.transform = transform
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Example:
        row = self.data[index]
        with _drawing(self.seed, self.epoch, index):
            pixels = self.transform(rgb(row["image"]))
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


class EpochOfImages(TrainerCallback):
    """Tells the training images which epoch it is, before each."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.images.epoch = int(state.epoch or 0)


@dataclass(frozen=True)
class Stack:
    """Collates examples into `pixel_values` (batch, channels, height, width) and `labels` (batch,)."""

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        batch = {"pixel_values": torch.stack([example["pixel_values"] for example in examples])}
        if "labels" in examples[0]:
            batch["labels"] = torch.tensor([example["labels"] for example in examples])
        return batch


# ---------------------------------------------------------------- transforms


def plain_transform(processor: BaseImageProcessor) -> Transform:
    """For scoring: the shorter side resized to the model's, the centre cut out, normalised as the model expects."""
    with extra("vision"):
        from torchvision.transforms import v2
    height, width = image_size(processor)
    made: Transform = v2.Compose(
        [v2.ToImage(), v2.Resize(min(height, width)), v2.CenterCrop((height, width)), *_numbers(processor)]
    )
    return made


def training_transform(processor: BaseImageProcessor, augment: Augment) -> Transform:
    """For training: as for scoring, after what `augment` says.

    `"crop-flip"`, as in the paper's sources: 8 to 100 % of the image. `"shift"`: by up to an eighth of the side.
    """
    if augment == "none":
        return plain_transform(processor)
    with extra("vision"):
        from torchvision.transforms import v2
    size = image_size(processor)
    if augment == "crop-flip":
        steps: list[Any] = [v2.RandomResizedCrop(size)]
    else:
        steps = [v2.Resize(min(size)), v2.CenterCrop(size), v2.RandomCrop(size, padding=max(1, min(size) // 8))]
    if augment in ("crop-flip", "shift-flip"):
        steps.append(v2.RandomHorizontalFlip())
    made: Transform = v2.Compose([v2.ToImage(), *steps, *_numbers(processor)])
    return made


def _numbers(processor: BaseImageProcessor) -> list[Any]:
    """From bytes to numbers with the mean and deviation that the model expects."""
    from torchvision.transforms import v2

    settings: Any = processor
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(settings.image_mean), list(settings.image_std))]


def image_size(processor: BaseImageProcessor) -> tuple[int, int]:
    """Height and width of the images that a model takes."""
    settings: Any = processor
    size: dict[str, int] = dict(settings.crop_size or {}) if getattr(settings, "do_center_crop", False) else {}
    size = size or {name: value for name, value in dict(settings.size).items() if value is not None}
    if {"height", "width"} <= size.keys():
        return size["height"], size["width"]
    return size["shortest_edge"], size["shortest_edge"]
