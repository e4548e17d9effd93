"""Image classification: how images are read; eight data sets of the hub (the paper's Tables 3, 4, 5 and 10); and three
that need no hub: Fashion-MNIST, scikit-learn's digits, and the test images of CIFAR-10.

The repositories are those of FourierFT's code, which the paper follows. Where there is no validation split, a tenth of
the training split is held out, rounded up; DTD comes in one piece, of which a fifth is the test split. The sources
split without a seed: here the seed alone decides, and a run writes down which row went where.
"""

from __future__ import annotations

import base64
import gzip
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import UserError
from ..extras import extra
from ..files import file_digest, read_json
from .fetch import ARCHIVES, fetch
from .hub import HubData
from .packaged import CIFAR10_FILE
from .task import CATALOGUE, SplitSizes, check_size, seeded_order, tasks_of

if TYPE_CHECKING:
    import datasets

IMAGE_FILES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
UNREAD = (".avif", ".gif", ".heic", ".heif", ".nef", ".tif", ".tiff")
"""What cameras and phones write too."""

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
        UserError: its values are of neither, or of 16 bits that use a sixteenth of them at most, as cameras of 12 do.
    """
    with extra("vision"):
        from PIL import Image
    if not image.mode.startswith(("I", "F")):
        if image.has_transparency_data:
            drawn = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn)
        return image.convert("RGB")
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65_535 or 0 < pixels.max() < 4096:
        raise UserError(
            f"its pixels are numbers from {pixels.min():g} to {pixels.max():g}, neither of 8 nor of 16 bits: scale "
            "them, so that white is 65,535, or save them with 8 bits"
        )
    return Image.fromarray(((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")


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
        sizes: None is all of a split of its own; of one that is held out, a tenth (validation) or a fifth (test). More
            than there are is a UserError.
        split_seed: of all three.
        task: name in errors.
    """
    with extra("train"):
        from datasets import DatasetDict
    whole = pieces["train"]
    order, found = seeded_order(len(whole), split_seed), {}
    for name, size, share in (("test", sizes.test, 5), ("validation", sizes.validation, 10)):
        if (own := pieces.get(name)) is not None:
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


# ---------------------------------------------------------------- tasks


def load_images(data: HubData, split: str, classes: int) -> datasets.Dataset:
    """A split with the columns `image`, `label` and `row`, its place in the split.

    Raises:
        UserError: it cannot be had, or its labels are not those of so many classes.
    """
    loaded = data.load(split, ("image", "label")).select_columns(["image", "label"])
    names = class_names(loaded)
    if names and len(names) != classes:
        raise UserError(f"{data}, {split}: there are {len(names)} classes, expected {classes}")
    data.check_labels(loaded["label"][:], classes, split)
    return with_rows(loaded)


_SPLITS = {"eurosat": ("train", "validation", "test"), "resisc45": ("train", "validation", "test"), "dtd": ("train",)}
"""Those of data sets that do not come in `train` and `test`."""


def _of_hub(task: str) -> dict[str, datasets.Dataset]:
    row = CATALOGUE["images"]["tasks"][task]
    repos = row["source"].split(", hub ")[1].split(" and ")  # of training, and of testing if that is another
    pieces = {}
    for split in _SPLITS.get(task, ("train", "test")):
        pieces[split] = load_images(HubData(repos[-1] if split == "test" else repos[0]), split, row["classes"])
    if len({class_names(piece) for piece in pieces.values()}) > 1:
        raise UserError(f"{' and '.join(repos)}: the classes of train and test differ")
    return pieces


FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where the package dataset-fashion-mnist of Debian and Ubuntu puts its files."""
FASHION_FILES = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
"""sha256 of its files, gzipped in LeCun's format: a head, which ends with the sizes, and a byte for each value."""
FASHION_HUB = HubData("zalando-datasets/fashion_mnist")


def _fashion() -> dict[str, datasets.Dataset]:
    if not FASHION_FOLDER.is_dir():
        try:
            return {split: load_images(FASHION_HUB, split, 10) for split in ("train", "test")}
        except UserError as error:
            raise UserError(
                f"Fashion-MNIST is neither in {FASHION_FOLDER}, where `apt-get install dataset-fashion-mnist` (Debian, "
                f"Ubuntu) puts it, nor to be had otherwise: {error}"
            ) from error
    content = {}
    for name, expected in FASHION_FILES.items():
        path = FASHION_FOLDER / name
        if not path.is_file() or file_digest(path) != expected:
            raise UserError(f"{path} is missing or altered: install the package dataset-fashion-mnist again")
        content[name] = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)
    pieces = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        labels = content[f"{prefix}-labels-idx1-ubyte.gz"][8:]
        images: Any = content[f"{prefix}-images-idx3-ubyte.gz"]
        height, width = images[8:16].view(">u4")
        images = images[16:].reshape(-1, height, width)
        pieces[split] = _in_memory(images, labels.tolist(), "fashion-mnist", split)
    return pieces


def _digits() -> dict[str, datasets.Dataset]:
    with extra("train"):
        from sklearn.datasets import load_digits
    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), from 0 to 16
    return {"train": _in_memory(images, found.target.tolist(), "digits", "train")}


def _cifar10() -> dict[str, datasets.Dataset]:
    """From BIG-bench's file of base64 texts, which came verified."""
    rows = read_json(fetch(ARCHIVES["bigbench"]) / CIFAR10_FILE)["examples"]
    images = [base64.b64decode(row["input"]) for row in rows]
    labels = [max(row["target_scores"], key=row["target_scores"].get) for row in rows]
    return {"train": _in_memory(images, labels, "cifar10-10k", "test")}


def _in_memory(images: Iterable[Any], labels: Sequence[int | str], task: str, split: str) -> datasets.Dataset:
    """Rows of files or pixels (height, width) that are not written to the cache of `datasets`."""
    with extra("train"):
        from datasets import ClassLabel, Dataset, Features, Image
    names = CATALOGUE["packaged-images"]["tasks"][task]["labels"]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    return with_rows(Dataset.from_dict({"image": [*images], "label": [*labels]}, features=features, split=split))


_PACKAGED = {"fashion-mnist": _fashion, "digits": _digits, "cifar10-10k": _cifar10}


def _load(task: str, sizes: SplitSizes, split_seed: int) -> datasets.DatasetDict:
    pieces = _PACKAGED[task]() if task in _PACKAGED else _of_hub(task)
    return split_images(pieces, sizes, split_seed, task)


VISION, PACKAGED_IMAGES = tasks_of("images", _load), tasks_of("packaged-images", _load)
