"""Image classification (the paper's Tables 3, 4, 5 and 10): eight data sets of the Hugging Face hub.

The repositories are those of FourierFT's code, which the paper follows. Where there is no validation split, a tenth of
the training split is held out, rounded up; DTD comes in one piece, of which a fifth is the test split. The sources
split without a seed: here the seed alone decides, and a run writes down which row went where.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import UserError
from ..extras import extra
from .hub import HubData
from .list_types import item_type
from .order import seeded_order
from .task import SplitSizes, Task, check_size

if TYPE_CHECKING:
    import datasets

_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_FEW = 4096
"""Cameras of 12 bits, and files of 8 bits that are kept in 16, have no greater values."""


@dataclass(frozen=True)
class Source:
    """Where the images of a task are.

    Args:
        train: the repository with the split `train`.
        test: the one with the split `test`; None where the data comes in one piece.
        validation: whether `train` has a split `validation`.
    """

    train: HubData
    test: HubData | None
    validation: bool = False

    @property
    def repos(self) -> str:
        """The repositories, for people."""
        both = (self.train, self.test) if self.test is not None else (self.train,)
        return " and ".join(dict.fromkeys(data.repo for data in both))


def load_images(data: HubData, split: str, classes: int) -> datasets.Dataset:
    """A split with the columns `image`, `label` and `row`, its place in the split.

    Raises:
        UserError: it cannot be had, or its labels are not those of so many classes.
    """
    loaded = data.load(split, ("image", "label")).select_columns(["image", "label"])
    what = f"{data.copy() or data.repo}, {split}"
    names = class_names(loaded)
    if names and len(names) != classes:
        raise UserError(f"{what}: there are {len(names)} classes, expected {classes}")
    for row, label in enumerate(loaded["label"][:]):
        if label is None or not 0 <= label < classes:
            raise UserError(f"{what}, row {row}: label {label} is not one of 0 to {classes - 1}")
    return with_rows(loaded)


def as_files(data: datasets.Dataset) -> datasets.Dataset:
    """A data set in which each image is its file, `bytes` or `path`, and each sound and the like, also in lists and in
    objects."""
    for name, feature in data.features.items():
        if (plain := _undecoded(feature)) != feature:
            data = data.cast_column(name, plain)
    return data


def _undecoded(feature: Any) -> Any:
    if isinstance(feature, Mapping):
        return {name: _undecoded(one) for name, one in feature.items()}
    if isinstance(feature, list):  # of an earlier `datasets`
        return [_undecoded(feature[0])]
    if (inner := item_type(feature)) is not None:
        return replace(feature, feature=_undecoded(inner))
    is_file = type(feature).__name__ != "Json" and getattr(feature, "decode", None) is True
    return replace(feature, decode=False) if is_file else feature


def read_image(file: Path | bytes | Mapping[str, Any], needs: Literal["vision", "diffusion"] = "vision") -> Any:
    """A Pillow image in RGB, upright as a camera says that it is: those that are trained on, and all others.

    Args:
        file: its path, what is in it, or either as `as_files` has it.
        needs: the extra that is asked for where Pillow is missing.

    Raises:
        UserError: the file cannot be read as one.
    """
    with extra(needs):
        from PIL import Image
    if isinstance(file, Mapping):
        file = Path(file["path"]) if file.get("bytes") is None else file["bytes"]
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            return rgb(_upright(image))
    except (
        OSError,
        SyntaxError,
        ValueError,
        UserError,
        Image.DecompressionBombError,
    ) as error:  # of a broken PNG Pillow raises SyntaxError, of one with very long texts in it ValueError
        what = "a row's image cannot be read" if isinstance(file, bytes) else f"{file} is no image that can be read"
        raise UserError(f"{what}: {error}") from error


def _upright(image: Any) -> Any:
    """An image as a camera says that it is upright; as it stands, where what it says cannot be read."""
    from PIL import ImageOps

    image.load()  # what is wrong with the pixels is raised here
    try:
        return ImageOps.exif_transpose(image)
    # of an EXIF header that is broken Pillow raises many kinds, SyntaxError and struct.error among them
    except Exception:
        return image


def rgb(image: Any) -> Any:
    """A Pillow image in RGB, of 8 bits: what is transparent is white; grey values of 16 bits are scaled, which Pillow
    would make white.

    Raises:
        UserError: its values are neither, or of 16 bits that use a sixteenth of them at most.
    """
    with extra("vision"):
        from PIL import Image
    if not image.mode.startswith(("I", "F")):
        if image.mode in _WITH_ALPHA or "transparency" in image.info:
            drawn = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn)
        return image.convert("RGB")
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65_535:
        numbers = f"{pixels.min():g} to {pixels.max():g}" + (", with decimals" if image.mode == "F" else "")
        raise UserError(f"its pixels are numbers ({numbers}), neither of 8 nor of 16 bits")
    if 0 < pixels.max() < _FEW:
        raise UserError(
            f"its pixels are numbers of 16 bits and at most {pixels.max():,}, which is black: scale them, so that "
            "white is 65,535, or save them with 8 bits"
        )
    return Image.fromarray(((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")


def with_rows(data: datasets.Dataset) -> datasets.Dataset:
    """The data with a column `row` that numbers its rows."""
    return data.add_column("row", list(range(len(data))))


def class_names(data: datasets.Dataset, column: str = "label") -> tuple[str, ...]:
    """The class names that come with the data, in label order; none where labels are plain numbers."""
    feature: Any = data.features[column]
    each = item_type(feature)  # of a list of labels
    return tuple(getattr(feature if each is None else each, "names", None) or ())


def split_images(
    pieces: dict[str, datasets.Dataset], sizes: SplitSizes, split_seed: int, task: str
) -> datasets.DatasetDict:
    """Train, validation and test from the pieces that the data comes in.

    The seed alone fixes an order of the rows of `train`: the test split, where there is none, is its head, validation
    follows, and training rows are taken from its tail, so that a smaller size gives a part of a larger one.

    Args:
        pieces: `train`, and `validation` and `test` where there are such.
        sizes: None is all of a split of its own; of one that is held out, a tenth (validation) or a fifth (test).
        split_seed: of all three.
        task: name in errors.

    Raises:
        UserError: more images asked for than there are, or nothing left to train on.
    """
    with extra("train"):
        from datasets import DatasetDict
    whole = pieces["train"]
    order, found = seeded_order(len(whole), split_seed), {}
    for name, size, share in (("test", sizes.test, 5), ("validation", sizes.validation, 10)):
        if name in pieces:
            own = pieces[name]
            rows = seeded_order(len(own), split_seed)[:size] if size is not None else range(len(own))
            check_size(name, size, len(own), f"images of {task}")
            found[name] = own.select(rows)
        else:
            size = math.ceil(len(order) / share) if size is None else size
            check_size(name, size, len(order) - 1, f"images of {task} to hold out from")
            found[name], order = whole.select(order[:size]), order[size:]
    check_size("train", sizes.train, len(order), f"images of {task} that are left")
    found["train"] = whole.select(order[::-1][: sizes.train])
    return DatasetDict({name: found[name] for name in ("train", "validation", "test")})


def _load(task: str, source: Source, classes: int, sizes: SplitSizes, split_seed: int) -> datasets.DatasetDict:
    pieces = {"train": load_images(source.train, "train", classes)}
    if source.validation:
        pieces["validation"] = load_images(source.train, "validation", classes)
    if source.test is not None:
        pieces["test"] = load_images(source.test, "test", classes)
        train, test = class_names(pieces["train"]), class_names(pieces["test"])
        if train != test:
            raise UserError(f"{source.repos}: the classes of train and test differ ({_first_difference(train, test)})")
    return split_images(pieces, sizes, split_seed, task)


def _first_difference(one: Sequence[str], other: Sequence[str]) -> str:
    pairs = [(left, right) for left, right in zip(one, other, strict=False) if left != right]
    return f"{pairs[0][0]!r} and {pairs[0][1]!r}" if pairs else f"{len(one)} and {len(other)} names"


def _task(
    name: str,
    description: str,
    classes: int,
    examples: tuple[int, int, int],
    source: Source,
    license: str,
    paper: str,
    never_after: tuple[str, ...] = (),
) -> Task:
    return Task(
        name=name,
        description=description,
        kind="image-classification",
        labels=(),
        metric="accuracy",
        text_columns=(),
        source=f"{paper}, hub {source.repos}",
        license=license,
        load=functools.partial(_load, name, source, classes),
        group="images",
        sizes=SplitSizes(None, None, None),
        train_examples=examples[0],
        held_out={"validation": examples[1], "test": examples[2]},
        never_after=never_after,
        classes=classes,
        augment="crop-flip",
    )


def _one(repo: str, *, validation: bool = False) -> Source:
    return Source(HubData(repo), HubData(repo), validation)


def _pair(prefix: str) -> Source:
    return Source(HubData(f"Multimodal-Fatima/{prefix}_train"), HubData(f"Multimodal-Fatima/{prefix}_test"))


DTD = Source(HubData("cansa/Describable-Textures-Dataset-DTD"), None)

VISION = (
    _task(
        "oxford-pets",
        "Which breed is the cat or dog?",
        37,
        (3_312, 368, 3_669),
        _one("timm/oxford-iiit-pet"),
        "CC BY-SA 4.0",
        "Oxford-IIIT Pet (Parkhi et al., 2012)",
    ),
    _task(
        "stanford-cars",
        "Which make, model and year is the car?",
        196,
        (7_329, 815, 8_041),
        _pair("StanfordCars"),
        "research only",
        "Stanford Cars (Krause et al., 2013)",
    ),
    _task(
        "cifar10",
        "What is on a small photograph? (10 classes)",
        10,
        (45_000, 5_000, 10_000),
        _pair("CIFAR10"),
        "not stated",
        "CIFAR-10 (Krizhevsky, 2009)",
        never_after=("cifar10-10k",),
    ),
    _task(
        "dtd",
        "Which word describes the texture?",
        47,
        (4_060, 452, 1_128),
        DTD,
        "research only",
        "Describable Textures (Cimpoi et al., 2014)",
    ),
    _task(
        "eurosat",
        "What is the land used for, seen by a satellite?",
        10,
        (16_200, 5_400, 5_400),
        _one("timm/eurosat-rgb", validation=True),
        "MIT",
        "EuroSAT (Helber et al., 2019)",
    ),
    _task(
        "fgvc",
        "Which variant of aircraft is it?",
        100,
        (3_000, 334, 3_333),
        _pair("FGVC_Aircraft"),
        "research only",
        "FGVC-Aircraft (Maji et al., 2013)",
    ),
    _task(
        "resisc45",
        "What is the scene, seen from above?",
        45,
        (18_900, 6_300, 6_300),
        _one("timm/resisc45", validation=True),
        "research only",
        "RESISC45 (Cheng et al., 2017)",
    ),
    _task(
        "cifar100",
        "What is on a small photograph? (100 classes)",
        100,
        (45_000, 5_000, 10_000),
        _pair("CIFAR100"),
        "not stated",
        "CIFAR-100 (Krizhevsky, 2009)",
    ),
)
