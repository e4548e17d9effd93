"""Images with one label each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoImageProcessor, BaseImageProcessor, Trainer, TrainerCallback

from ...data.loading import NO_CODE
from ...data.own.image_column import image_file, path_found
from ...data.vision import class_names, read_image
from ...errors import ArgumentError, UserError
from ...extras import extra
from ..data import Data
from ..images import Images, StackCollator, as_scored, plain_transform, training_transform
from ..kind_facts import IMAGE_CLASSIFICATION, TrainedWith
from ..models import Processor, loading
from ..recipe import ModelSection, Recipe
from .text import Classification


class ImageClassification(Classification):
    """Integer labels; cross-entropy. The class names may come with the data."""

    facts = IMAGE_CLASSIFICATION

    def processor(self, model: ModelSection | str) -> Processor:
        return load_image_processor(model)

    def encode(self, recipe: Recipe, processor: Any, splits: Mapping[str, Any]) -> Data:
        task = recipe.task.definition

        assert recipe.task.augment is not None  # filled in by validation
        plain = plain_transform(processor)
        images = {name: Images(split, plain) for name, split in splits.items()}
        unchanged = images.get("train")
        if unchanged is not None:
            images["train"] = Images(splits["train"], training_transform(processor, recipe.task.augment), recipe.seed)
        labels = class_names(next(iter(splits.values()))) or task.labels or tuple(map(str, range(task.num_labels)))
        rows = {name: {"of": str(split.split), "rows": list(split["row"])} for name, split in splits.items()}
        return Data(task, processor, images, StackCollator(), labels=labels, unchanged=unchanged, rows=rows)

    def trainer(
        self,
        recipe: Recipe,
        model: nn.Module,
        data: Data,
        arguments: dict[str, Any],
        callbacks: Sequence[TrainerCallback],
    ) -> Trainer:
        train = data.splits.get("train")
        more = [EpochOfImages(train)] if isinstance(train, Images) else []
        return super().trainer(recipe, model, data, arguments, [*callbacks, *more])

    def batch(
        self, processor: Any, texts: Sequence[Any], trained: TrainedWith
    ) -> tuple[dict[str, Tensor], list[int | None]]:
        transform = plain_transform(processor)
        files = [one if isinstance(one, bytes) else Path(one) for one in texts]
        return StackCollator()([{"pixel_values": transform(read_image(file))} for file in files]), [None] * len(texts)

    def check_text(self, given: str, name: str, columns: Mapping[str, Sequence[str]]) -> None:
        """A path may be of any bytes."""

    def located(
        self, row: Mapping[str, Any], columns: Mapping[str, Sequence[str]], folder: Path | None
    ) -> Mapping[str, Any]:
        return {**row, **{name: path_found(row[name], folder) for name in columns.get("image", ("image",))}}

    def asked(self, row: Mapping[str, Any], columns: Mapping[str, Sequence[str]]) -> bytes:
        """The image's file."""
        first, *more = columns.get("image", ("image",))
        if more:
            raise ArgumentError(f"`columns`: {', '.join((first, *more))} are too many: a row has one image")
        return image_file(row[first], first)


class EpochOfImages(TrainerCallback):
    """Tells images which epoch it is, before each: what is drawn for one differs by epoch."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.images.set_epoch(int(state.epoch or 0))


def load_image_processor(model: ModelSection | str) -> BaseImageProcessor:
    """The image processor of a local folder or a hub model, as one that sees images as they are scored here.

    Raises:
        UserError: it cannot be loaded, has a field that cannot be honoured, or torchvision is missing.
    """
    with extra("vision"):
        import torchvision  # noqa: F401 (Transformers' own error does not name our extra)
    with loading(model) as (source, where):
        processor: BaseImageProcessor = AutoImageProcessor.from_pretrained(source, **where, **NO_CODE)  # type: ignore[no-untyped-call]
    try:
        return as_scored(processor)
    except UserError as error:
        name = model if isinstance(model, str) else model.name
        raise UserError(f"model: '{name}': {error}") from error
