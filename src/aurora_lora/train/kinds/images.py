"""Images with one label each: read, changed at random for the training, and classified."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoImageProcessor, BaseImageProcessor, CLIPImageProcessor, Trainer, TrainerCallback

from ...data.loading import NO_CODE
from ...data.own.kinds import image_file, path_found
from ...data.task import Augment
from ...data.vision import as_files, class_names, read_image
from ...errors import ArgumentError
from ...extras import extra
from ..data import Data, Example
from ..kind_facts import IMAGE_CLASSIFICATION, TrainedWith
from ..models import Processor, loading
from ..recipe import ModelSection, Recipe
from .text import Classification

Transform = Callable[[Any], Tensor]
"""What makes (channels, height, width) in float32 of a Pillow image."""
BILINEAR = 2
"""Pillow's number of the filter that Transformers resizes with where a processor names none."""


class ImageClassification(Classification):
    """Integer labels; cross-entropy. The class names may come with the data."""

    facts = IMAGE_CLASSIFICATION

    def processor(self, model: ModelSection | str) -> Processor:
        return load_image_processor(model)

    def encode(self, recipe: Recipe, processor: Any, splits: Mapping[str, Any]) -> Data:
        task = recipe.task.definition
        assert recipe.task.augment is not None  # filled in by validation
        images = {name: Images(split, plain_transform(processor)) for name, split in splits.items()}
        unchanged = images.get("train")
        if unchanged is not None:
            images["train"] = Images(splits["train"], training_transform(processor, recipe.task.augment), recipe.seed)
        labels = class_names(next(iter(splits.values()))) or task.labels or tuple(map(str, range(task.num_labels)))
        rows = {name: {"of": str(split.split), "rows": list(split["row"])} for name, split in splits.items()}
        return Data(task, processor, images, stack, labels=labels, unchanged=unchanged, rows=rows)

    def trainer(self, recipe: Recipe, data: Data, arguments: dict[str, Any], **given: Any) -> Trainer:
        if isinstance(train := data.splits.get("train"), Images):
            given["callbacks"] = [*given["callbacks"], EpochOfImages(train)]
        return super().trainer(recipe, data, arguments, **given)

    def example(self, data: Data, split: str, place: int) -> str:
        """The image's file, or its row."""
        found: str = cast(Images, data.fixed(split)).data[place]["image"]["path"]
        return found or f"row {data.rows[split]['rows'][place]}" if data.rows else f"image {place}"

    def batch(
        self, processor: Any, texts: Sequence[Any], trained: TrainedWith
    ) -> tuple[dict[str, Tensor], list[int | None]]:
        images = [read_image(one if isinstance(one, bytes) else Path(one)) for one in texts]
        return stack([{"pixel_values": plain_transform(processor)(image)} for image in images]), [None] * len(texts)

    def asked(self, row: Mapping[str, Any], columns: Mapping[str, Sequence[str]], folder: Path | None = None) -> bytes:
        """The image's file."""
        first, *more = columns.get("image", ("image",))
        if more:
            raise ArgumentError(f"`columns`: {', '.join((first, *more))} are too many: a row has one image")
        return image_file(path_found(row[first], folder), first)


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
        self.data, self.transform, self.seed, self.epoch = as_files(data), transform, seed, 0

    def __len__(self) -> int:
        return len(self.data)

    def targets(self) -> list[int]:
        """The class of each example, without its image."""
        return list(self.data["label"])

    def __getitem__(self, index: int) -> Example:
        row = self.data[index]
        with _drawing(self.seed, self.epoch, index):
            pixels = self.transform(read_image(row["image"]))
        return {"pixel_values": pixels, "labels": row["label"]}


class EpochOfImages(TrainerCallback):
    """Tells images which epoch it is, before each: what is drawn for one differs by epoch."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.images.epoch = int(state.epoch or 0)


@contextmanager
def _drawing(*what: int) -> Iterator[None]:
    """Within this context PyTorch's CPU generator, which torchvision draws from, starts at a seed made of `what`."""
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=8).digest()))
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


def stack(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Examples as `pixel_values` (batch, channels, height, width) and `labels` (batch,), if they have them."""
    batch = {"pixel_values": torch.stack([example["pixel_values"] for example in examples])}
    if "labels" in examples[0]:
        batch["labels"] = torch.tensor([example["labels"] for example in examples])
    return batch


# ---------------------------------------------------------------- processors and transforms


def load_image_processor(model: ModelSection | str) -> BaseImageProcessor:
    """The image processor of a local folder or a hub model: it sees the centre of an image, its shorter side resized.

    It is CLIP's, which does what its fields say and no more, with the size, filter and numbers of the model's own:
    others squash images by default, or crop by rules of their own. Where the model's own makes other numbers of a
    colour than CLIP's can, it is taken as it is.

    Raises:
        UserError: it cannot be loaded, makes no images of one size, or torchvision is missing.
    """
    with extra("vision"):
        import torchvision  # noqa: F401 (Transformers' own error does not name our extra)
        from PIL import Image
    with loading(model) as (source, where):
        own: Any = AutoImageProcessor.from_pretrained(source, **where, **NO_CODE)  # type: ignore[no-untyped-call]
        image = Image.new("RGB", (224, 224), (200, 90, 30))  # whose parts differ, so that their order shows
        pixels = plain_transform(own)(image)
        height, width = pixels.shape[-2:]
        if plain_transform(own)(image.resize((160, 160))).shape != pixels.shape:
            raise ValueError("preprocessor_config.json must resize images to one size, that of the model's")
        fields: dict[str, Any] = {
            "size": {"shortest_edge": min(height, width)},
            "crop_size": {"height": height, "width": width},
            "resample": BILINEAR if own.resample is None else own.resample,
        }
        for name in ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"):
            fields[name] = getattr(own, name, None)
        plain = CLIPImageProcessor(**fields)
        same = torch.allclose(plain_transform(plain)(image), pixels, rtol=1e-3, atol=1e-3)
    processor: BaseImageProcessor = plain if same else own
    return processor


def plain_transform(processor: Any) -> Transform:
    """For scoring: what the processor makes of an image."""

    def pixels(image: Any) -> Tensor:
        made: Tensor = processor(image, return_tensors="pt")["pixel_values"][0].float()
        return made

    return pixels


def training_transform(processor: Any, augment: Augment) -> Transform:
    """For training: as for scoring, after what `augment` says.

    `"crop-flip"`, as in the paper's sources: 8 to 100 % of the image. `"shift"`: by up to an eighth of the side.
    """
    if augment == "none":
        return plain_transform(processor)
    with extra("vision"):
        from PIL import Image
        from torchvision.transforms import v2
        from transformers.image_utils import pil_torch_interpolation_mapping
    plain = plain_transform(processor)
    size = tuple(plain(Image.new("RGB", (224, 224))).shape[-2:])
    filter_ = pil_torch_interpolation_mapping[processor.resample]
    if augment == "crop-flip":
        steps: list[Any] = [v2.RandomResizedCrop(size, interpolation=filter_)]
    else:
        steps = [v2.Resize(min(size), interpolation=filter_), v2.CenterCrop(size)]
        steps.append(v2.RandomCrop(size, padding=max(1, min(size) // 8)))
    if augment in ("crop-flip", "shift-flip"):
        steps.append(v2.RandomHorizontalFlip())
    changed = v2.Compose(steps)
    return lambda image: plain(changed(image))
