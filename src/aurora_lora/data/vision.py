"""Image classification: how images are read; eight data sets of the hub (the paper's Tables 3, 4, 5 and 10); and three
that need no hub: Fashion-MNIST, scikit-learn's digits, and the test images of CIFAR-10.

The repositories are those of FourierFT's code, which the paper follows. Where there is no validation split, a tenth of
the training split is held out, rounded up; DTD comes in one piece, of which a fifth is the test split. The sources
split without a seed: here the seed alone decides, and a run writes down which row went where.
"""

from __future__ import annotations

import base64
import functools
import gzip
import io
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..extras import extra
from ..files import file_digest, read_json
from .bigbench import BIGBENCH, CIFAR10_FILE
from .fetch import fetch
from .hub import HubData
from .task import Augment, SplitSizes, Task, check_size, seeded_order

if TYPE_CHECKING:
    import datasets

_FEW = 4096
"""Cameras of 12 bits, and files of 8 bits that are kept in 16, have no greater values."""

# ---------------------------------------------------------------- images


def as_files(data: datasets.Dataset) -> datasets.Dataset:
    """A data set in which each image, sound and the like is its file, `bytes` or `path`, also in lists."""
    for name, feature in data.features.items():
        if (plain := _undecoded(feature)) != feature:
            data = data.cast_column(name, plain)
    return data


def _undecoded(feature: Any) -> Any:
    if (inner := getattr(feature, "feature", None)) is not None:
        return replace(feature, feature=_undecoded(inner))
    is_file = getattr(feature, "decode", None) is True and type(feature).__name__ != "Json"
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
        from PIL import Image, ImageOps
    if isinstance(file, Mapping):
        file = Path(file["path"]) if file.get("bytes") is None else file["bytes"]
    what = "a row's image cannot be read" if isinstance(file, bytes) else f"{file} is no image that can be read"
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            image.load()
            try:
                upright = ImageOps.exif_transpose(image)
            except Exception:  # of an EXIF header that is broken Pillow raises many kinds
                upright = image
            return rgb(upright)
    except Exception as error:  # SyntaxError of a broken PNG, ValueError of very long texts in one, and more
        raise UserError(f"{what}: {error}") from error


def rgb(image: Any) -> Any:
    """A Pillow image in RGB, of 8 bits: what is transparent is white; grey values of 16 bits are scaled, which Pillow
    would make white.

    Raises:
        UserError: its values are neither, or of 16 bits that use a sixteenth of them at most.
    """
    with extra("vision"):
        from PIL import Image
    if not image.mode.startswith(("I", "F")):
        if image.has_transparency_data:
            drawn = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn)
        return image.convert("RGB")
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65_535 or 0 < pixels.max() < _FEW:
        raise UserError(
            f"its pixels are numbers from {pixels.min():g} to {pixels.max():g}, neither of 8 nor of 16 bits: scale "
            "them, so that white is 65,535, or save them with 8 bits"
        )
    return Image.fromarray(((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")


def png(image: NDArray[np.uint8]) -> bytes:
    """A PNG file of an image (height, width) or (height, width, 3)."""
    with extra("vision"):
        from PIL import Image
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png", compress_level=1)
    return file.getvalue()


# ---------------------------------------------------------------- rows and splits


def with_rows(data: datasets.Dataset) -> datasets.Dataset:
    """The data with a column `row` that numbers its rows."""
    return data.add_column("row", list(range(len(data))))


def class_names(data: datasets.Dataset, column: str = "label") -> tuple[str, ...]:
    """The class names that come with the data, in label order; none where labels are plain numbers."""
    feature: Any = data.features[column]
    return tuple(getattr(getattr(feature, "feature", None) or feature, "names", None) or ())


def split_images(
    pieces: Mapping[str, datasets.Dataset], sizes: SplitSizes, split_seed: int, task: str
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


def _task(name: str, description: str, load: Any, **more: Any) -> Task:
    return Task(
        name=name,
        description=description,
        kind="image-classification",
        metric="accuracy",
        text_columns=(),
        load=functools.partial(load, name),
        **more,
    )


# ---------------------------------------------------------------- of the hub


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


_CARS, _CIFAR, _FGVC = "Multimodal-Fatima/StanfordCars", "Multimodal-Fatima/CIFAR", "Multimodal-Fatima/FGVC_Aircraft"
_PETS, _DTD = "timm/oxford-iiit-pet", "cansa/Describable-Textures-Dataset-DTD"
_EUROSAT, _RESISC = "timm/eurosat-rgb", "timm/resisc45"
_SOURCES: dict[str, tuple[tuple[str, ...], str, int, tuple[int, int, int], str, str]] = {
    # repositories of train and test, paper, classes, examples, licence, question
    "oxford-pets": (
        *((_PETS, _PETS), "Oxford-IIIT Pet (Parkhi et al., 2012)", 37, (3_312, 368, 3_669), "CC BY-SA 4.0"),
        "Which breed is the cat or dog?",
    ),
    "stanford-cars": (
        *((f"{_CARS}_train", f"{_CARS}_test"), "Stanford Cars (Krause et al., 2013)", 196, (7_329, 815, 8_041)),
        *("research only", "Which make, model and year is the car?"),
    ),
    "cifar10": (
        *((f"{_CIFAR}10_train", f"{_CIFAR}10_test"), "CIFAR-10 (Krizhevsky, 2009)", 10, (45_000, 5_000, 10_000)),
        *("not stated", "What is on a small photograph? (10 classes)"),
    ),
    "dtd": (
        *((_DTD,), "Describable Textures (Cimpoi et al., 2014)", 47, (4_060, 452, 1_128), "research only"),
        "Which word describes the texture?",
    ),
    "eurosat": (
        *((_EUROSAT, _EUROSAT), "EuroSAT (Helber et al., 2019)", 10, (16_200, 5_400, 5_400), "MIT"),
        "What is the land used for, seen by a satellite?",
    ),
    "fgvc": (
        *((f"{_FGVC}_train", f"{_FGVC}_test"), "FGVC-Aircraft (Maji et al., 2013)", 100, (3_000, 334, 3_333)),
        *("research only", "Which variant of aircraft is it?"),
    ),
    "resisc45": (
        *((_RESISC, _RESISC), "RESISC45 (Cheng et al., 2017)", 45, (18_900, 6_300, 6_300), "research only"),
        "What is the scene, seen from above?",
    ),
    "cifar100": (
        *((f"{_CIFAR}100_train", f"{_CIFAR}100_test"), "CIFAR-100 (Krizhevsky, 2009)", 100, (45_000, 5_000, 10_000)),
        *("not stated", "What is on a small photograph? (100 classes)"),
    ),
}


def _load_from_hub(task: str, sizes: SplitSizes, split_seed: int) -> datasets.DatasetDict:
    repos, _, classes, *_ = _SOURCES[task]
    splits = ["train", "validation"] if task in ("eurosat", "resisc45") else ["train"]
    pieces = {name: load_images(HubData(repos[0]), name, classes) for name in splits}
    if len(repos) == 2:
        pieces["test"] = load_images(HubData(repos[1]), "test", classes)
        both = class_names(pieces["train"]), class_names(pieces["test"])
        if both[0] != both[1]:
            raise UserError(f"{' and '.join(repos)}: the classes of train and test differ")
    return split_images(pieces, sizes, split_seed, task)


VISION = tuple(
    _task(
        name,
        question,
        _load_from_hub,
        labels=(),
        source=f"{paper}, hub {' and '.join(dict.fromkeys(repos))}",
        license=license,
        group="images",
        sizes=SplitSizes(None, None, None),
        train_examples=train,
        held_out={"validation": validation, "test": test},
        never_after=("cifar10-10k",) if name == "cifar10" else (),
        classes=classes,
    )
    for name, (repos, paper, classes, (train, validation, test), license, question) in _SOURCES.items()
)

# ---------------------------------------------------------------- packaged

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where the package dataset-fashion-mnist of Debian and Ubuntu puts its files."""
FASHION_FILES = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
"""sha256 of its files."""
FASHION_HUB = HubData("zalando-datasets/fashion_mnist")
FASHION_LABELS = (
    *("T - shirt / top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
DIGIT_LABELS = tuple("0123456789")
CIFAR10_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in a gzipped IDX file of bytes, LeCun's format: zero, zero, type 8, the sizes as big-endian integers.

    Raises:
        UserError: the file cannot be read, or does not have this form.
    """
    try:
        content = gzip.decompress(path.read_bytes())
        zeros, kind, dimensions = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
        if zeros or kind != 8:
            raise ValueError(f"its type is {kind}, expected 8, bytes")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise UserError(f"{path} is no IDX file of bytes: {error}") from error


def _fashion_pieces() -> dict[str, datasets.Dataset]:
    if not FASHION_FOLDER.is_dir():
        try:
            return {split: load_images(FASHION_HUB, split, len(FASHION_LABELS)) for split in ("train", "test")}
        except UserError as error:
            raise UserError(
                f"Fashion-MNIST is neither in {FASHION_FOLDER}, where `apt-get install dataset-fashion-mnist` (Debian, "
                f"Ubuntu) puts it, nor to be had otherwise: {error}"
            ) from error
    for name, expected in FASHION_FILES.items():
        path = FASHION_FOLDER / name
        if not path.is_file() or file_digest(path) != expected:
            raise UserError(f"{path} is missing or altered: install the package dataset-fashion-mnist again")
    pieces = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = read_idx(FASHION_FOLDER / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(FASHION_FOLDER / f"{prefix}-labels-idx1-ubyte.gz")
        pieces[split] = _in_memory(map(png, images), labels.tolist(), FASHION_LABELS, split)
    return pieces


def _digits_pieces() -> dict[str, datasets.Dataset]:
    with extra("train"):
        from sklearn.datasets import load_digits
    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), from 0 to 16
    return {"train": _in_memory(map(png, images), found.target.tolist(), DIGIT_LABELS, "train")}


def read_cifar10(path: Path) -> tuple[list[bytes], list[int]]:
    """The PNG files and the labels in BIG-bench's `task.json` of base64 texts.

    Raises:
        UserError: the file does not have this form.
    """
    try:
        rows = read_json(path)["examples"]
        images = [base64.b64decode(row["input"], validate=True) for row in rows]
        scores = [row["target_scores"] for row in rows]
        labels = [CIFAR10_LABELS.index(next(name for name in score if score[name] == 1)) for score in scores]
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise UserError(f"{path} does not hold the images of CIFAR-10: {error}") from error
    return images, labels


def _cifar10_pieces() -> dict[str, datasets.Dataset]:
    images, labels = read_cifar10(fetch(BIGBENCH) / CIFAR10_FILE)
    return {"train": _in_memory(images, labels, CIFAR10_LABELS, "test")}


def _in_memory(images: Iterable[bytes], labels: Sequence[int], names: Sequence[str], split: str) -> datasets.Dataset:
    """Rows that are not written to the cache of `datasets`."""
    with extra("train"):
        from datasets import ClassLabel, Dataset, Features, Image
    features = Features({"image": Image(), "label": ClassLabel(names=list(names))})
    columns = {"image": [{"bytes": image, "path": None} for image in images], "label": list(labels)}
    return with_rows(Dataset.from_dict(columns, features=features, split=split))


_PIECES = {"fashion-mnist": _fashion_pieces, "digits": _digits_pieces, "cifar10-10k": _cifar10_pieces}


def _load_packaged(name: str, sizes: SplitSizes, split_seed: int) -> datasets.DatasetDict:
    return split_images(_PIECES[name](), sizes, split_seed, name)


def _packaged(name: str, description: str, sizes: SplitSizes, augment: Augment, **more: Any) -> Task:
    held_out = {"test": 10_000} if sizes.test is None else {}
    more |= {"group": "packaged images", "sizes": sizes, "held_out": held_out, "augment": augment}
    return _task(name, description, _load_packaged, **more)


PACKAGED_IMAGES = (
    _packaged(
        *("fashion-mnist", "What piece of clothing is it?", SplitSizes(None, 5000, None), "shift-flip"),
        labels=FASHION_LABELS,
        train_examples=55_000,
        source="Fashion-MNIST (Xiao et al., 2017), from Debian's package dataset-fashion-mnist, else hub "
        + FASHION_HUB.repo,
        license="MIT",
    ),
    _packaged(
        *("digits", "Which digit was written?", SplitSizes(None, 200, 500), "shift"),
        labels=DIGIT_LABELS,
        train_examples=1_097,
        source="digits of 13 people (Alpaydin and Kaynak, 1998), 8 by 8 pixels, in scikit-learn",
        license="CC BY 4.0",
    ),
    _packaged(
        *("cifar10-10k", "What is on a small photograph? (the 10,000 test images of CIFAR-10)"),
        *(SplitSizes(None, 1000, 2000), "shift-flip"),
        labels=CIFAR10_LABELS,
        train_examples=7_000,
        source="CIFAR-10 (Krizhevsky, 2009), from the package bigbench 1.0.0",
        license="Apache-2.0 (the package)",
    ),
)
