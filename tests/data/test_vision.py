"""The loaders of the eight image data sets on copies in the hub's own form; how they are split."""

import base64
import gzip
import hashlib
import itertools
import json
import struct
from pathlib import Path
from typing import Any

import datasets
import hub_copy
import image_copy
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from aurora_lora.data import SplitSizes, get_task, vision
from aurora_lora.data.vision import VISION, class_names, rgb, split_images, with_rows
from aurora_lora.errors import UserError

REPOS = {repo["repo"]: repo for repo in hub_copy.read("vision.json")["repos"]}
ALL = SplitSizes(None, None, None)
# the paper's Table 10: classes, train, validation, test; and what the hub has: train, validation, test
TABLE_10 = {
    "oxford-pets": (37, 3_312, 368, 3_669, (3_680, 0, 3_669)),
    "stanford-cars": (196, 7_329, 815, 8_041, (8_144, 0, 8_041)),
    "cifar10": (10, 45_000, 5_000, 10_000, (50_000, 0, 10_000)),
    "dtd": (47, 4_060, 452, 1_128, (5_640, 0, 0)),
    "eurosat": (10, 16_200, 5_400, 5_400, (16_200, 5_400, 5_400)),
    "fgvc": (100, 3_000, 334, 3_333, (3_334, 0, 3_333)),
    "resisc45": (45, 18_900, 6_300, 6_300, (18_900, 6_300, 6_300)),
    "cifar100": (100, 45_000, 5_000, 10_000, (50_000, 0, 10_000)),
}


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`copies(repo, ...)` makes these, and no others, what the loaders find."""
    calls = itertools.count()

    def make(*repos: dict[str, Any]) -> None:
        folder = tmp_path / str(next(calls))
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
        monkeypatch.setenv("AURORA_LORA_DATA", str(folder))
        for repo in repos:
            image_copy.write(repo, folder)

    return make


def repos_of(task: str) -> list[dict[str, Any]]:
    source = get_task(task).source.rsplit("hub ", 1)[1]
    return [REPOS[name] for name in source.split(" and ")]


@pytest.mark.parametrize("task", VISION, ids=lambda task: task.name)
def test_each_data_set(task: Any, copies: Any) -> None:
    repos = repos_of(task.name)
    copies(*repos)
    data = task.load_splits(ALL, 0)
    there = {split: count for repo in repos for split, count in repo["splits"].items()}
    assert sum(map(len, data.values())) == sum(there.values())
    assert class_names(data["train"]) == tuple(image_copy.names(repos[0]))
    assert task.num_labels == len(class_names(data["train"]))
    seen: set[tuple[str, int]] = set()
    for name, split in data.items():
        assert split.column_names == ["image", "label", "row"]
        assert str(split.split) == (name if name in there else "train")
        for example in split:
            # every image is the one of its row, whatever its mode
            grey = np.asarray(example["image"].convert("RGB"))
            if task.name == "dtd":  # files are read in the order of their names: the row is not the file's number
                assert abs(int(grey.mean()) // 4 % 47 - example["label"]) <= 1
            else:
                assert np.abs(grey.astype(int) - image_copy.colour(example["row"])).max() <= 2
                assert example["label"] == example["row"] % task.num_labels
            key = (str(split.split), example["row"])
            assert key not in seen
            seen.add(key)


def numbered(count: int, name: str) -> datasets.Dataset:
    return with_rows(datasets.Dataset.from_dict({"label": [0] * count}, split=name))


@pytest.mark.parametrize("task", VISION, ids=lambda task: task.name)
def test_sizes_are_those_of_table_10(task: Any) -> None:
    classes, train, validation, test, there = TABLE_10[task.name]
    names = ("train", "validation", "test")
    pieces = {name: numbered(count, name) for name, count in zip(names, there, strict=True) if count}
    data = split_images(pieces, task.sizes, 0, task.name)
    assert tuple(len(data[name]) for name in names) == (train, validation, test)
    assert (task.num_labels, task.train_examples) == (classes, train)
    for name in names:
        if name in pieces and name != "train":
            assert data[name]["row"][:] == list(range(len(pieces[name])))
    held_out = [set(data[name]["row"][:]) for name in names if name == "train" or name not in pieces]
    assert sum(map(len, held_out)) == len(set.union(*held_out)) == there[0]


def test_the_seed_decides_and_smaller_sizes_are_parts() -> None:
    whole, own = {"train": numbered(50, "train")}, {name: numbered(50, name) for name in ("train", "test")}

    def rows(seed: int, *sizes: int | None, pieces: Any = whole) -> dict[str, list[int]]:
        return {name: split["row"][:] for name, split in split_images(pieces, SplitSizes(*sizes), seed, "x").items()}

    assert rows(3, None, 5, 10)["validation"] != rows(4, None, 5, 10)["validation"]
    few, more = rows(3, 10, 5, 10), rows(3, 20, 5, 10)
    assert more["train"][:10] == few["train"]
    assert more["validation"] == few["validation"]
    assert rows(3, 10, 8, 15)["train"] == few["train"]  # whatever is held out
    assert [len(part) for part in rows(0, None, None, None).values()] == [36, 4, 10]
    # and what is taken of a split of its own
    ten = rows(0, None, None, 10, pieces=own)["test"]
    assert set(range(10)) != set(ten) != set(rows(1, None, None, 10, pieces=own)["test"])
    assert ten[:4] == rows(0, None, None, 4, pieces=own)["test"]
    with pytest.raises(UserError, match=r"task\.train_size: 60 is more than the 36 images of x that are left"):
        rows(0, 60, None, None)
    with pytest.raises(UserError, match=r"task\.validation_size: 60 is more than the 39 images of x to hold out from"):
        rows(0, None, 60, None)


def test_odd_copies(copies: Any) -> None:
    (pets,) = repos_of("oxford-pets")
    copies({**pets, "classes": 36})
    with pytest.raises(UserError, match=r"oxford-iiit-pet, train: there are 36 classes, expected 37"):
        get_task("oxford-pets").load_splits(ALL, 0)
    train, test = repos_of("cifar10")
    copies(train, {**test, "classes": test["classes"][::-1]})
    with pytest.raises(UserError, match=r"the classes of train and test differ"):
        get_task("cifar10").load_splits(ALL, 0)


# ---------------------------------------------------------------- packaged

IMAGES = np.arange(4 * 6 * 5, dtype=np.uint8).reshape(4, 6, 5)


def write_idx(path: Path, values: np.ndarray) -> None:
    """LeCun's format: two zero bytes, the type, the number of dimensions, the sizes, the values."""
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(head + values.tobytes()))


def test_fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, sizes = get_task("fashion-mnist"), SplitSizes(None, 1, None)
    monkeypatch.setattr(vision, "FASHION_FOLDER", tmp_path / "none")
    monkeypatch.setenv("AURORA_LORA_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"apt-get install dataset-fashion-mnist.*zalando-datasets/fashion_mnist"):
        task.load_splits(sizes, 0)
    monkeypatch.setattr(vision, "FASHION_FOLDER", tmp_path)
    labels = np.array([3, 1, 0, 9], np.uint8)
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", IMAGES)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", labels)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz is missing or altered: install the package"):
        task.load_splits(sizes, 0)
    names = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.glob("*.gz")}
    monkeypatch.setattr(vision, "FASHION_FILES", names)
    data = task.load_splits(sizes, 0)
    assert data.num_rows == {"train": 3, "validation": 1, "test": 4}
    assert data["test"]["label"][:] == labels.tolist()
    for example in data["train"]:
        assert np.array_equal(np.asarray(example["image"]), IMAGES[example["row"]])
        assert example["label"] == labels[example["row"]]
    assert (str(data["validation"].split), str(data["test"].split)) == ("train", "test")


def test_digits() -> None:
    found = load_digits()
    data = get_task("digits").load_splits(get_task("digits").sizes, 0)
    assert data.num_rows == {"train": 1_097, "validation": 200, "test": 500}
    for example in data["validation"]:
        pixels = np.asarray(example["image"])
        assert np.abs(pixels / 255 * 16 - found.images[example["row"]]).max() < 0.05
        assert example["label"] == found.target[example["row"]]
    assert sorted({row for split in data.values() for row in split["row"][:]}) == list(range(1_797))


def test_cifar10_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shades = {10: "ship", 200: "bird", 90: "cat"}
    rows = []
    for shade, label in shades.items():
        Image.new("RGB", (4, 4), (shade,) * 3).save(tmp_path / "image.png")
        scores = {name: int(name == label) for name in get_task("cifar10-10k").labels}
        content = base64.b64encode((tmp_path / "image.png").read_bytes()).decode()
        rows.append({"input": content, "target_scores": scores})
    (tmp_path / "cifar10.json").write_text(json.dumps({"examples": rows}))
    monkeypatch.setattr(vision, "fetch", lambda _: tmp_path)
    data = get_task("cifar10-10k").load_splits(SplitSizes(1, 1, 1), 0)
    for example in (example for split in data.values() for example in split):
        assert get_task("cifar10-10k").labels[example["label"]] == shades[np.asarray(example["image"])[0, 0, 0]]
    assert {str(split.split) for split in data.values()} == {"test"}


# ---------------------------------------------------------------- how images are read


def on_white(image: Any) -> Any:
    """The formula of a picture on a white ground."""
    drawn = np.asarray(image.convert("RGBA")).astype(float)
    alpha = drawn[..., 3:] / 255
    return np.rint(drawn[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_what_is_transparent_is_white(mode: str) -> None:
    rng = np.random.default_rng(0)
    made = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).convert("RGBA").convert(mode)
    made.putalpha(255)
    opaque = np.asarray(made.convert("RGBA"))[..., :3]
    np.testing.assert_array_equal(rgb(made), opaque)
    made.putalpha(Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)))
    assert np.abs(np.asarray(rgb(made)).astype(int) - on_white(made)).max() <= 1
    drawing = Image.new("RGBA", (2, 1), (0, 0, 0, 0))  # black on no ground
    drawing.putpixel((1, 0), (0, 0, 0, 255))
    assert np.asarray(rgb(drawing.convert(mode)))[0, :, 0].tolist() == [255, 0]
