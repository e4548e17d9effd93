"""Images of own data: where they are looked for, what is wrong with one, and how they are split."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from own_rows import load, save_images
from PIL import Image as Pillow

from aurora_lora.errors import UserError

COLUMNS_OF_IMAGES = {"image": ("image",), "label": ("label",)}


def _table(path: str, folder: str = "img") -> list[str]:
    """A table of images in a folder beside it, by their paths from there; gives the paths."""
    save_images(Path(path).parent / folder)
    found = sorted((Path(path).parent / folder).rglob("*.png"))
    paths = [one.relative_to(Path(path).parent).as_posix() for one in found]
    Path(path).write_text("\n".join(["image,label", *(f"{one},{Path(one).parent.name}" for one in paths)]) + "\n")
    return paths


def _shades(splits: Any) -> dict[int, str]:
    names = splits["train"].features["label"].names
    return {int(np.asarray(row["image"])[0, 0, 0]): names[row["label"]] for split in splits.values() for row in split}


def test_paths_in_a_table_are_looked_for_beside_it() -> None:
    paths = _table("data/labels.csv")
    expected = {int(Path(path).stem): Path(path).parent.name for path in paths}
    splits = load("images", "data/labels.csv", COLUMNS_OF_IMAGES)
    assert _shades(splits) == expected
    for path in paths:  # others of the same names, in the working directory
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Pillow.new("RGB", (8, 8), (100 + int(Path(path).stem),) * 3).save(path)
    assert _shades(load("images", "data/labels.csv", COLUMNS_OF_IMAGES)) == expected
    Path("data", paths[3]).unlink()
    with pytest.raises(UserError, match=f"line 5: data/{paths[3]} is no image that can be read: .*No such file"):
        load("images", "data/labels.csv", COLUMNS_OF_IMAGES)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_an_image_that_is_cut_off(suffix: str) -> None:
    save_images(Path("pictures"))
    path = Path("pictures/red/broken").with_suffix(suffix)
    Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    load("images", "pictures", COLUMNS_OF_IMAGES)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"pictures, row \d+: .*broken\{suffix} is no image .*[Tt]runc"):
        load("images", "pictures", COLUMNS_OF_IMAGES)


def test_a_column_that_holds_no_images() -> None:
    Dataset.from_dict({"image": list(range(20)), "label": ["a", "b"] * 10}).to_parquet("rows.parquet")
    with pytest.raises(UserError, match=r"task\.image: rows\.parquet: column 'image' cannot be read"):
        load("images", "rows.parquet", COLUMNS_OF_IMAGES)


def test_grey_values_that_are_black_in_16_bits_are_refused() -> None:
    save_images(Path("pictures"))
    grey = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    for name, values in (("dark", grey * 0), ("bright", grey * 16 + 4095)):
        Pillow.fromarray(values).save(f"pictures/red/{name}.png")
    load("images", "pictures", COLUMNS_OF_IMAGES)
    Pillow.fromarray(grey).save("pictures/red/x-ray.png")
    with pytest.raises(UserError, match=r"row \d+: .*x-ray\.png is no image .*numbers from 0 to 4095, .* scale"):
        load("images", "pictures", COLUMNS_OF_IMAGES)


def test_a_table_of_images(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save_images(tmp_path / "all" / split, 30 if split == "train" else 6)
        files = sorted((tmp_path / "all" / split).rglob("*.png"))
        lines = [f"{file.relative_to(tmp_path / 'all' / split)},00{file.parent.name}" for file in files]
        (tmp_path / "all" / split / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    splits = load("images", "all", COLUMNS_OF_IMAGES)
    assert splits.record["examples"] == {"train": 21, "validation": 3, "test": 6}
    assert splits.record["left_out"] == 6
    assert splits["test"].features["label"].names == ["00blue", "00green", "00red"]
    assert splits["test"][0]["image"].size == (8, 8)


def test_images_by_class() -> None:
    save_images(Path("pictures"))
    (Path("pictures") / "red" / "again.png").write_bytes((Path("pictures") / "red" / "0.png").read_bytes())
    splits = load("images", "pictures", COLUMNS_OF_IMAGES)
    assert splits.record["examples"] == {"train": 23, "validation": 4, "test": 4}
    assert splits.record["repeated"] == 1
    assert splits["train"].features["label"].names == ["blue", "green", "red"]
    assert all({0: 2, 1: 1, 2: 0}[np.asarray(row["image"])[0, 0, 0] % 3] == row["label"] for row in splits["train"])
