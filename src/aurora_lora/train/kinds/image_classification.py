"""Images with one label each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ArgumentError
from .base import TrainedWith
from .classification import Classification

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import TrainerCallback

    from ...data import Task
    from ..data import Data
    from ..model_inputs import Processor
    from ..recipe import Recipe
    from ..sections import ModelSection


class ImageClassification(Classification):
    """Integer labels; cross-entropy. The class names may come with the data."""

    name = "image-classification"
    task_type = "IMAGE_CLS"
    auto = "AutoModelForImageClassification"
    architectures = ("ForImageClassification",)
    pipeline = "image-classification"
    inputs = "image"
    fields = ("augment",)

    def defaults(self, task: Task) -> dict[str, Any]:
        return {"augment": task.augment}

    def processor(self, model: ModelSection | str) -> Processor:
        from ..models import load_image_processor

        return load_image_processor(model)

    def encode(self, recipe: Recipe, task: Task, processor: Any, splits: Mapping[str, Any]) -> Data:
        from ...data.vision import class_names
        from ..data import Data
        from ..images import Images, StackCollator, plain_transform, training_transform

        assert recipe.task.augment is not None  # filled in by validation
        plain = plain_transform(processor)
        images = {name: Images(split, plain) for name, split in splits.items()}
        unchanged = images.get("train")
        if unchanged is not None:
            images["train"] = Images(splits["train"], training_transform(processor, recipe.task.augment), recipe.seed)
        labels = class_names(next(iter(splits.values()))) or task.labels or tuple(map(str, range(task.num_labels)))
        rows = {name: {"of": str(split.split), "rows": list(split["row"])} for name, split in splits.items()}
        return Data(task, processor, images, StackCollator(), labels=labels, unchanged=unchanged, rows=rows)

    def callbacks(self, data: Data) -> list[TrainerCallback]:
        from ..images import Images
        from ..step_callbacks import EachEpoch

        train = data.splits.get("train")
        return [EachEpoch(train.set_epoch)] if isinstance(train, Images) else []

    def batch(
        self, processor: Any, texts: Sequence[Any], trained: TrainedWith
    ) -> tuple[dict[str, Tensor], list[int | None]]:
        from ...data.vision import read_image
        from ..images import StackCollator, plain_transform

        transform = plain_transform(processor)
        files = [one if isinstance(one, bytes) else Path(one) for one in texts]
        return StackCollator()([{"pixel_values": transform(read_image(file))} for file in files]), [None] * len(texts)

    def check_text(self, given: str, name: str, columns: Mapping[str, Sequence[str]]) -> None:
        """A path may be of any bytes."""

    def located(
        self, row: Mapping[str, Any], columns: Mapping[str, Sequence[str]], folder: Path | None
    ) -> Mapping[str, Any]:
        from ...data.own.image_column import path_found

        return {**row, **{name: path_found(row[name], folder) for name in columns.get("image", ("image",))}}

    def asked(self, row: Mapping[str, Any], columns: Mapping[str, Sequence[str]]) -> bytes:
        """The image's file."""
        from ...data.own.image_column import image_file

        first, *more = columns.get("image", ("image",))
        if more:
            raise ArgumentError(f"`columns`: {', '.join((first, *more))} are too many: a row has one image")
        return image_file(row[first], first)


IMAGE_CLASSIFICATION = ImageClassification()
