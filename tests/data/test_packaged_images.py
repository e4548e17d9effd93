"""Fashion-MNIST, the digits and CIFAR-10's packaged images: small files of their form, and the real ones."""

import base64
import gzip
import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from aurora_lora.data import SplitSizes, get_task, vision
from aurora_lora.data.bigbench import BIGBENCH, CIFAR10_FILE
from aurora_lora.data.fetch import OfflineError, fetch
from aurora_lora.data.vision import CIFAR10_LABELS, FASHION_FOLDER, png, read_cifar10, read_idx
from aurora_lora.errors import UserError

IMAGES = np.arange(4 * 6 * 5, dtype=np.uint8).reshape(4, 6, 5)


def write_idx(path: Path, values: np.ndarray, kind: int = 8) -> Path:
    """LeCun's format: two zero bytes, the type, the number of dimensions, the sizes, the values."""
    head = struct.pack(f">HBB{values.ndim}I", 0, kind, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(head + values.tobytes()))
    return path


def test_idx_files(tmp_path: Path) -> None:
    assert np.array_equal(read_idx(write_idx(tmp_path / "a.gz", IMAGES)), IMAGES)
    assert np.array_equal(read_idx(write_idx(tmp_path / "b.gz", IMAGES.ravel())), IMAGES.ravel())
    short = write_idx(tmp_path / "c.gz", IMAGES)
    short.write_bytes(gzip.compress(gzip.decompress(short.read_bytes())[:-1]))
    with pytest.raises(UserError, match=r"c\.gz is no IDX file of bytes"):
        read_idx(short)
    with pytest.raises(UserError, match="its type is 13, expected 8, bytes"):
        read_idx(write_idx(tmp_path / "d.gz", IMAGES, kind=13))
    (tmp_path / "e.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"e\.gz is no IDX file"):
        read_idx(tmp_path / "e.gz")


def test_altered_fashion_files_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "FASHION_FOLDER", tmp_path)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", IMAGES)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz is missing or altered: install the package"):
        get_task("fashion-mnist").load_splits(SplitSizes(1, 1, 1), 0)


def test_without_debians_package_the_hub_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "FASHION_FOLDER", tmp_path / "none")
    monkeypatch.setenv("AURORA_LORA_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"apt-get install dataset-fashion-mnist.*zalando-datasets/fashion_mnist"):
        get_task("fashion-mnist").load_splits(SplitSizes(1, 1, 1), 0)


def test_fashion_from_small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "FASHION_FOLDER", tmp_path)
    labels = np.array([3, 1, 0, 9], np.uint8)
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", IMAGES)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", labels)
    names = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.glob("*.gz")}
    monkeypatch.setattr(vision, "FASHION_FILES", names)
    data = get_task("fashion-mnist").load_splits(SplitSizes(None, 1, None), 0)
    assert data.num_rows == {"train": 3, "validation": 1, "test": 4}
    assert data["test"]["label"][:] == labels.tolist()
    for example in data["train"]:
        assert np.array_equal(np.asarray(example["image"]), IMAGES[example["row"]])
        assert example["label"] == labels[example["row"]]
    assert (str(data["validation"].split), str(data["test"].split)) == ("train", "test")


@pytest.mark.skipif(not FASHION_FOLDER.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_the_real_fashion_images() -> None:
    for prefix, count in (("train", 60_000), ("t10k", 10_000)):
        assert read_idx(FASHION_FOLDER / f"{prefix}-images-idx3-ubyte.gz").shape == (count, 28, 28)
        labels = read_idx(FASHION_FOLDER / f"{prefix}-labels-idx1-ubyte.gz")
        assert np.bincount(labels).tolist() == [count // 10] * 10


def test_digits() -> None:
    from sklearn.datasets import load_digits

    found = load_digits()
    data = get_task("digits").load_splits(get_task("digits").sizes, 0)
    assert data.num_rows == {"train": 1_097, "validation": 200, "test": 500}
    for example in data["validation"]:
        pixels = np.asarray(example["image"])
        assert np.abs(pixels / 255 * 16 - found.images[example["row"]]).max() < 0.05
        assert example["label"] == found.target[example["row"]]
    assert sorted({row for split in data.values() for row in split["row"][:]}) == list(range(1_797))


def test_cifar10_file(tmp_path: Path) -> None:
    pictures = [png(np.full((4, 4, 3), value, np.uint8)) for value in (10, 200)]
    rows = [
        {
            "input": base64.b64encode(picture).decode(),
            "target_scores": {name: int(name == label) for name in CIFAR10_LABELS},
        }
        for picture, label in zip(pictures, ("ship", "bird"), strict=True)
    ]
    path = tmp_path / CIFAR10_FILE
    path.write_text(json.dumps({"examples": rows}))
    assert read_cifar10(path) == (pictures, [8, 2])
    for broken in ({"input": "?"}, {"target_scores": {"cow": 1}}, {"target_scores": {"bird": 0}}):
        path.write_text(json.dumps({"examples": [{**rows[0], **broken}]}))
        with pytest.raises(UserError, match=r"cifar10\.json does not hold the images of CIFAR-10"):
            read_cifar10(path)


@pytest.mark.packaged
def test_the_real_cifar10_images() -> None:
    try:
        folder = fetch(BIGBENCH)
    except OfflineError as error:
        pytest.skip(str(error))
    images, labels = read_cifar10(folder / CIFAR10_FILE)
    assert len(images) == len(set(images)) == 10_000
    assert np.bincount(labels).tolist() == [1_000] * 10
    data = get_task("cifar10-10k").load_splits(SplitSizes(3, 2, 2), 0)
    assert all(example["image"].size == (32, 32) for split in data.values() for example in split)
    assert {str(split.split) for split in data.values()} == {"test"}
