"""Real images without the hub: Fashion-MNIST, scikit-learn's digits, and the test images of CIFAR-10.

Fashion-MNIST is what a small ViT is pretrained on here; the other two are what it is adapted to.
"""

from __future__ import annotations

import base64
import binascii
import functools
import gzip
import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..extras import extra
from ..files import file_digest, read_json
from .bigbench import BIGBENCH, CIFAR10_FILE
from .fetch import fetch
from .hub import HubData
from .task import Augment, SplitSizes, Task
from .vision import load_images, split_images, with_rows

if TYPE_CHECKING:
    import datasets

# ---------------------------------------------------------------- Fashion-MNIST

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
    "T - shirt / top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in a gzipped IDX file of bytes, LeCun's format: zero, zero, type 8, the sizes as big-endian integers.

    Raises:
        UserError: the file cannot be read, or does not have this form.
    """
    try:
        content = gzip.decompress(path.read_bytes())
        zeros, kind, dimensions = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
        if zeros or kind != 8:
            raise ValueError(f"its type is {kind}, expected 8, bytes")
        return values.reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise UserError(f"{path} is no IDX file of bytes: {error}") from error


def _fashion_pieces() -> dict[str, datasets.Dataset]:
    if not FASHION_FOLDER.is_dir():
        return _fashion_from_hub()
    for name, expected in FASHION_FILES.items():
        path = FASHION_FOLDER / name
        if not path.is_file() or file_digest(path) != expected:
            raise UserError(f"{path} is missing or altered: install the package dataset-fashion-mnist again")
    pieces = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = read_idx(FASHION_FOLDER / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(FASHION_FOLDER / f"{prefix}-labels-idx1-ubyte.gz")
        pieces[split] = _dataset(map(png, images), labels.tolist(), FASHION_LABELS, split)
    return pieces


def _fashion_from_hub() -> dict[str, datasets.Dataset]:
    try:
        return {split: load_images(FASHION_HUB, split, len(FASHION_LABELS)) for split in ("train", "test")}
    except UserError as error:
        raise UserError(
            f"Fashion-MNIST is neither in {FASHION_FOLDER}, where `apt-get install dataset-fashion-mnist` (Debian, "
            f"Ubuntu) puts it, nor to be had otherwise: {error}"
        ) from error


# ---------------------------------------------------------------- the digits of scikit-learn

DIGIT_LABELS = tuple("0123456789")


def _digits_pieces() -> dict[str, datasets.Dataset]:
    with extra("train"):
        from sklearn.datasets import load_digits
    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), from 0 to 16
    return {"train": _dataset(map(png, images), found.target.tolist(), DIGIT_LABELS, "train")}


# ---------------------------------------------------------------- the test images of CIFAR-10

CIFAR10_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


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
    except (OSError, ValueError, KeyError, TypeError, StopIteration, binascii.Error) as error:
        raise UserError(f"{path} does not hold the images of CIFAR-10: {error}") from error
    return images, labels


def _cifar10_pieces() -> dict[str, datasets.Dataset]:
    images, labels = read_cifar10(fetch(BIGBENCH) / CIFAR10_FILE)
    return {"train": _dataset(images, labels, CIFAR10_LABELS, "test")}


# ---------------------------------------------------------------- all three


def png(image: NDArray[np.uint8]) -> bytes:
    """A PNG file of an image (height, width) or (height, width, 3)."""
    with extra("vision"):
        from PIL import Image
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png", compress_level=1)
    return file.getvalue()


def _dataset(images: Any, labels: Sequence[int], names: Sequence[str], split: str) -> datasets.Dataset:
    """In memory: nothing is written to the cache of `datasets`."""
    with extra("train"):
        from datasets import ClassLabel, Dataset, Features, Image
    features = Features({"image": Image(), "label": ClassLabel(names=list(names))})
    columns = {"image": [{"bytes": image, "path": None} for image in images], "label": list(labels)}
    return with_rows(Dataset.from_dict(columns, features=features, split=split))


_PIECES = {"fashion-mnist": _fashion_pieces, "digits": _digits_pieces, "cifar10-10k": _cifar10_pieces}


def _load(name: str, sizes: SplitSizes, split_seed: int) -> datasets.DatasetDict:
    return split_images(_PIECES[name](), sizes, split_seed, name)


def _task(
    name: str,
    description: str,
    labels: tuple[str, ...],
    sizes: SplitSizes,
    train: int,
    source: str,
    license: str,
    augment: Augment,
) -> Task:
    return Task(
        name=name,
        description=description,
        kind="image-classification",
        labels=labels,
        metric="accuracy",
        text_columns=(),
        source=source,
        license=license,
        load=functools.partial(_load, name),
        group="packaged images",
        sizes=sizes,
        train_examples=train,
        held_out={"test": 10_000} if sizes.test is None else {},
        augment=augment,
    )


PACKAGED_IMAGES = (
    _task(
        "fashion-mnist",
        "What piece of clothing is it?",
        FASHION_LABELS,
        SplitSizes(None, 5000, None),
        55_000,
        "Fashion-MNIST (Xiao et al., 2017), from Debian's package dataset-fashion-mnist, else hub " + FASHION_HUB.repo,
        "MIT",
        "shift-flip",
    ),
    _task(
        "digits",
        "Which digit was written?",
        DIGIT_LABELS,
        SplitSizes(None, 200, 500),
        1_097,
        "digits of 13 people (Alpaydin and Kaynak, 1998), 8 by 8 pixels, in scikit-learn",
        "CC BY 4.0",
        "shift",
    ),
    _task(
        "cifar10-10k",
        "What is on a small photograph? (the 10,000 test images of CIFAR-10)",
        CIFAR10_LABELS,
        SplitSizes(None, 1000, 2000),
        7_000,
        "CIFAR-10 (Krizhevsky, 2009), from the package bigbench 1.0.0",
        "Apache-2.0 (the package)",
        "shift-flip",
    ),
)
