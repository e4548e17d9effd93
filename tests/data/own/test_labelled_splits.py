"""Splits of labelled texts and images: the same example is in one of them, and each class in training."""

from pathlib import Path

import numpy as np
from own_rows import labelled, load, save_images
from PIL import Image as Pillow

from aurora_lora.data.task import SplitSizes


def test_two_text_columns_and_columns_called_label_and_text() -> None:
    rows = [{"label": f"first {n}", "text": f"second {n}", "stars": n % 2} for n in range(20)]
    splits = load("classification", rows, {"text": ("label", "text"), "label": ("stars",)})
    assert splits["train"].column_names == ["text", "text_b", "label"]
    assert {(row["text"].split()[0], row["text_b"].split()[0]) for row in splits["train"]} == {("first", "second")}


def test_texts_that_differ_in_case_and_punctuation_are_the_same() -> None:
    splits = load("classification", [*labelled(["a", "b"] * 10), {"text": "TEXT 3!", "label": "a"}])
    assert splits.record["repeated"] == 1


def test_each_of_several_labels_stays_in_training() -> None:
    rows = labelled([["rare", "a"]] * 2 + [["a"], ["b"]] * 19)
    for seed in range(10):
        splits = load("multi-label", rows, sizes=SplitSizes(None, 12, 12), seed=seed)
        assert splits.record["untrained"] == 0
        assert 2 in {one for row in splits["train"]["label"] for one in row}


def test_images_by_class() -> None:
    save_images(Path("pictures"))
    (Path("pictures") / "red" / "again.png").write_bytes((Path("pictures") / "red" / "0.png").read_bytes())
    splits = load("images", "pictures", {"image": ("image",), "label": ("label",)})
    assert splits.record["examples"] == {"train": 23, "validation": 4, "test": 4}
    assert splits.record["repeated"] == 1
    assert splits["train"].features["label"].names == ["blue", "green", "red"]
    assert all({0: 2, 1: 1, 2: 0}[np.asarray(row["image"])[0, 0, 0] % 3] == row["label"] for row in splits["train"])


def test_each_class_of_images_stays_in_training() -> None:
    for n in range(40):
        path = Path("pictures", "rare" if n < 2 else ("dog", "cat")[n % 2], f"{n}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Pillow.new("L", (4, 4), n).save(path)
    columns = {"image": ("image",), "label": ("label",)}
    for seed in range(10):
        splits = load("images", "pictures", columns, SplitSizes(2, 12, 12), seed)
        assert splits.record["untrained"] == 1
        assert 2 in load("images", "pictures", columns, SplitSizes(None, 12, 12), seed)["train"]["label"]


def test_images_in_folders_of_splits() -> None:
    save_images(Path("pictures/train"))
    save_images(Path("pictures/test"), 6)
    splits = load("images", "pictures", {"image": ("image",), "label": ("label",)})
    assert splits.record["examples"] == {"train": 21, "validation": 3, "test": 6}
    assert splits.record["left_out"] == 6


def test_the_same_image_in_two_classes_is_counted() -> None:
    save_images(Path("pictures"))
    Path("pictures/blue/again.png").write_bytes(Path("pictures/red/0.png").read_bytes())
    record = load("images", "pictures", {"image": ("image",), "label": ("label",)}).record
    assert (record["repeated"], record["contradict"]) == (1, 1)
