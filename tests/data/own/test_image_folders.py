"""Folders of images by class: each image is an example, or refused by its name."""

import re
from pathlib import Path

import pytest
from PIL import Image

from aurora_lora.data.own.source import OwnData, open_data
from aurora_lora.errors import UserError

IMAGES: dict[str, tuple[list[str], dict[str, list[str]] | str]] = {
    "files": (["cat/1", "cat/my test 2", "dog/val_3", "dog/4"], {"train": ["cat", "cat", "dog", "dog"]}),
    "all files": (["cat/test 1", "dog/train_1"], {"train": ["cat", "dog"]}),
    "classes": (["bus/1", "car/1", "train/1"], {"train": ["bus", "car", "train"]}),
    "words of classes": (["test tube/1", "train_station/1"], {"train": ["test tube", "train_station"]}),
    "splits": (
        ["train/cat/1", "train/dog/1", "Valid/cat/2", "test_set/test tube/1"],
        {"train": ["cat", "dog"], "validation": ["cat"], "test": ["test tube"]},
    ),
    "below": (["data/train/cat/1", "data/train/dog/1", "data/test/dog/2"], {"train": ["cat", "dog"], "test": ["dog"]}),
    "another": (["train/cat/1", "valid/cat/1", "hold [out]/cat/1"], r"hold [out]/cat/1.png tells no split"),
    "beside": (["train/cat/1", "test/dog/1", "cover"], r"cover.png tells no split"),
    "deep": (["real/train/1", "fake/car/1"], {"train": ["train", "car"]}),
}


@pytest.mark.parametrize("case", IMAGES)
def test_no_image_is_left_out(case: str, tmp_path: Path) -> None:
    """Splits are folders at the top; what images and classes are called tells none."""
    names, expected = IMAGES[case]
    for name in names:
        (tmp_path / "all" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "all" / f"{name}.png")
    if isinstance(expected, str):
        with pytest.raises(UserError, match=re.escape(expected)):
            open_data(OwnData("all"))
        return
    found = {}
    for name, piece in open_data(OwnData("all")).items():
        names = piece.data.features["label"].names
        found[name] = sorted(names[label] for label in piece.data["label"])
    assert found == {name: sorted(labels) for name, labels in expected.items()}


def test_images_that_datasets_does_not_list(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/2.png", "bird/3.qoi", "bird/4.QOI"):
        (tmp_path / "all" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (200, 0, 0)).save(tmp_path / "all" / name, "png" if name.endswith("png") else "qoi")
    found = open_data(OwnData("all"))["train"].data
    assert found.features["label"].names == ["bird", "cat"]
    assert found["label"][:] == [0, 0, 1, 1]
    assert all(image.convert("RGB").getpixel((1, 1)) == (200, 0, 0) for image in found["image"])


@pytest.mark.parametrize("name", ["bird/3.heic", "bird/3.HEIC", "cat/1.svg", "cat/1.jxl"])
def test_an_image_that_nothing_reads(name: str, tmp_path: Path) -> None:
    """A class of them alone would be left out without a word."""
    for one in ("cat/1.png", "dog/2.png", name):
        (tmp_path / "all" / one).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "all" / one, "png")
    with pytest.raises(
        UserError, match=rf"^all/{re.escape(name)} cannot be read: Pillow has no reader of '\.\w+' files"
    ):
        open_data(OwnData("all"))
    (tmp_path / "all" / name).rename(tmp_path / "all" / "cat" / "notes.txt")
    assert open_data(OwnData("all"))["train"].data["label"][:] == [0, 1]


@pytest.mark.parametrize(
    ("files", "rows"),
    [
        ({"rows.csv": "text,label\na,1\nb,2\n", "a.svg": "", "b.svg": ""}, 2),
        ({"a.txt": "one\ntwo\n", "b.svg": ""}, 2),
    ],
)
def test_drawings_beside_tables_and_texts_are_no_examples(files: dict[str, str], rows: int, tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    for name, text in files.items():
        (tmp_path / "all" / name).write_text(text or "<svg/>")
    assert len(open_data(OwnData("all"))["train"].data) == rows


def test_a_drawing_beside_the_folders_of_classes_is_no_example(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/2.png", "bird/3.mpo"):
        (tmp_path / "all" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "all" / name, "jpeg" if name.endswith("mpo") else "png")
    (tmp_path / "all" / "logo.svg").write_text("<svg/>")
    assert open_data(OwnData("all"))["train"].data.features["label"].names == ["bird", "cat", "dog"]


def test_a_table_of_images_in_each_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "all" / split).mkdir(parents=True)
        for name in "ab":
            Image.new("RGB", (4, 4)).save(tmp_path / "all" / split / f"{name}.png")
        (tmp_path / "all" / split / "metadata.csv").write_text("file_name,label\na.png,x\nb.png,y\n")
    pieces = open_data(OwnData("all"))
    assert {name: piece.data["label"][:] for name, piece in pieces.items()} == {"train": ["x", "y"], "test": ["x", "y"]}


@pytest.mark.parametrize(
    "labels", [["007", "12"], ["cat", "NA"], ["None", "bird"], ["1.10", "1.1"], ["1e3", "True"], ["1", "2"]]
)
def test_labels_in_a_table_of_images_stay_as_they_stand(labels: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for n in range(2):
        Image.new("RGB", (4, 4), (n, 0, 0)).save(folder / f"{n}.png")
    lines = [f"{n}.png,{label},{n}" for n, label in enumerate(labels)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label,age", *lines]) + "\n", encoding="utf-8")
    data = open_data(OwnData(str(folder)))["train"].data
    assert data["label"][:] == labels
    assert data[0]["image"].size == (4, 4)


def test_a_class_that_datasets_would_leave_out(tmp_path: Path) -> None:
    for name in ("cat", "__background__"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "pictures" / name / "0.png")
    with pytest.raises(UserError, match=r"__background__/0\.png: a folder that is called __\.\.\. is left out"):
        open_data(OwnData(str(tmp_path / "pictures")))
    (tmp_path / "pictures" / "__background__").rename(tmp_path / "pictures" / "dog")
    (tmp_path / "pictures" / "dog" / "0.png").rename(tmp_path / "pictures" / "dog" / "__0.png")
    assert open_data(OwnData(str(tmp_path / "pictures")))["train"].data["label"][:] == [0, 1]


def test_the_encoding_of_a_table_in_a_folder_of_images() -> None:
    folder = Path("photos")
    folder.mkdir()
    for name in "ab":
        Image.new("RGB", (4, 4)).save(folder / f"{name}.png")
    table = "file_name,label\na.png,Käse\nb.png,Brot\n"
    (folder / "metadata.csv").write_bytes(table.encode("cp1252"))
    for encoding, word in (("cp1252", "Käse"), ("cp1253", "Kδse")):  # and none from the cache of another
        assert open_data(OwnData("photos", encoding=encoding))["train"].data["label"][0] == word
    with pytest.raises(UserError, match=r"metadata\.csv, line 2: no UTF-8 text .*task\.encoding=cp1252"):
        open_data(OwnData("photos"))
    (folder / "metadata.csv").write_bytes(table.encode("utf-8-sig"))
    assert open_data(OwnData("photos"))["train"].data["label"][0] == "Käse"
    (folder / "metadata.csv").unlink()
    (folder / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "label": "x"}\n{"file_name": "b.png", "label": "y"}\n'
    )
    assert open_data(OwnData("photos"))["train"].data["label"][0] == "x"
    with pytest.raises(UserError, match=r"task\.encoding: 'cp1252': photos/metadata\.jsonl is read as UTF-8"):
        open_data(OwnData("photos", encoding="cp1252"))
