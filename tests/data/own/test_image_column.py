"""A column of images: where they are looked for, and what is wrong with one."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Audio, Dataset, DatasetInfo, Features, Image, List, Value
from own_rows import load, save_images
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

from aurora_lora.data import vision
from aurora_lora.data.own.kinds import image_file
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


def test_paths_in_a_table_are_looked_for_beside_it_first() -> None:
    paths = _table("data/labels.csv")
    expected = {int(Path(path).stem): Path(path).parent.name for path in paths}
    splits = load("images", "data/labels.csv", COLUMNS_OF_IMAGES)
    assert _shades(splits) == expected
    for path in paths:  # others of the same names, in the working directory
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Pillow.new("RGB", (8, 8), (100 + int(Path(path).stem),) * 3).save(path)
    again = load("images", "data/labels.csv", COLUMNS_OF_IMAGES)
    assert _shades(again) == expected
    assert again.record == splits.record
    Path("data/img").rename("data/gone")
    there = _shades(load("images", "data/labels.csv", COLUMNS_OF_IMAGES))
    assert there == {100 + shade: name for shade, name in expected.items()}
    Path(paths[3]).unlink()
    here = Path.cwd() / paths[3]
    with pytest.raises(UserError) as error:
        load("images", "data/labels.csv", COLUMNS_OF_IMAGES)
    assert str(error.value) == (
        f"data/labels.csv, row 4: {paths[3]} is no file: neither data/{paths[3]} nor, in the working directory, {here}"
    )


def test_a_file_that_is_no_image() -> None:
    save_images(Path("pictures"))
    Path("pictures/red/broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"pictures, row \d+: .*broken\.png is no image that can be read"):
        load("images", "pictures", {"image": ("image",), "label": ("label",)})


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_an_image_that_is_cut_off(suffix: str) -> None:
    save_images(Path("pictures"))
    path = Path("pictures/red/broken").with_suffix(suffix)
    Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    load("images", "pictures", {"image": ("image",), "label": ("label",)})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"pictures, row \d+: .*broken\{suffix} is no image .*[Tt]runc"):
        load("images", "pictures", {"image": ("image",), "label": ("label",)})


def test_whole_images_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take as long as an epoch."""
    monkeypatch.setattr(vision, "rgb", None)
    for suffix in ("png", "jpeg"):
        file = io.BytesIO()
        Pillow.new("RGB", (8, 8)).save(file, suffix)
        assert image_file(file.getvalue(), "image") == file.getvalue()


def test_an_image_with_very_long_texts_in_it() -> None:
    """Such as what image editors note there; Pillow raises a ValueError."""
    save_images(Path("pictures"))
    noted = PngInfo()
    noted.add_itxt("XML:com.adobe.xmp", "x" * 2_000_000, zip=True)
    Pillow.new("RGB", (8, 8)).save("pictures/red/noted.png", pnginfo=noted)
    with pytest.raises(UserError, match=r"noted\.png is no image that can be read: Decompressed data too large"):
        load("images", "pictures", {"image": ("image",), "label": ("label",)})
    with pytest.raises(UserError, match=r"noted\.png is no image that can be read"):
        vision.read_image(Path("pictures/red/noted.png"))


@pytest.mark.parametrize("values", [list(range(20)), [["a.png"]] * 20], ids=["numbers", "lists"])
def test_a_column_that_holds_no_images(values: list[Any]) -> None:
    Dataset.from_dict({"image": values, "label": ["a", "b"] * 10}).to_parquet("rows.parquet")
    with pytest.raises(UserError, match=r"task\.image: rows\.parquet: column 'image' cannot be read"):
        load("images", "rows.parquet", {"image": ("image",), "label": ("label",)})


def test_what_is_not_asked_for_is_not_decoded() -> None:
    """Sound, for which a package may be missing, and images in lists, whose repr has an address."""
    save_images(Path("pictures"))
    image = {"path": "pictures/red/0.png", "bytes": None}
    sound = Dataset.from_dict({"sound": [{"bytes": b"RIFF", "path": "a.wav"}]})
    types = Features({"one": Image(), "several": List(Image()), "text": Value("string")})
    data = Dataset.from_list([{"one": image, "several": [image], "text": "x"}], features=types)
    (row,) = vision.as_files(data)
    assert row == {"one": image, "several": [image], "text": "x"}
    told = Features({"sound": Audio()})
    (row,) = vision.as_files(Dataset(sound.data, info=DatasetInfo(features=told)))
    assert row == {"sound": {"path": "a.wav", "bytes": b"RIFF"}}


def test_an_image_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    save_images(Path("pictures"))
    Pillow.new("1", (30, 30)).save("pictures/red/huge.png")
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"row \d+: .*huge\.png is no image that can be read: .* decompression bomb"):
        load("images", "pictures", {"image": ("image",), "label": ("label",)})


def test_pixels_that_have_other_numbers() -> None:
    save_images(Path("pictures"))
    Pillow.fromarray(np.full((8, 8), 0.5, np.float32)).save("pictures/red/float.tiff")
    with pytest.raises(UserError, match=r"float\.tiff is no image .*numbers from 0\.5 to 0\.5"):
        load("images", "pictures", {"image": ("image",), "label": ("label",)})


@pytest.mark.parametrize("most", [255, 4095])
def test_grey_values_that_are_black_in_16_bits_are_refused(most: int) -> None:
    save_images(Path("pictures"))
    grey = np.linspace(0, most, 64).astype(np.uint16).reshape(8, 8)
    for name, values in (("dark", grey * 0), ("bright", grey * 16 + 4095)):
        Pillow.fromarray(values).save(f"pictures/red/{name}.png")
    load("images", "pictures", COLUMNS_OF_IMAGES)
    Pillow.fromarray(grey).save("pictures/red/x-ray.png")
    with pytest.raises(UserError, match=rf"row \d+: .*x-ray\.png is no image .*numbers from 0 to {most}, .* scale"):
        load("images", "pictures", COLUMNS_OF_IMAGES)


def test_a_table_of_images_without_labels() -> None:
    Path("images.csv").write_text("image\na.png\nb.png\n")
    with pytest.raises(UserError, match=r"task\.label: images\.csv has no column 'label' \(it has 'image'\)"):
        load("images", "images.csv", {"image": ("image",), "label": ("label",)})
