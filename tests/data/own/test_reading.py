"""Reading files and folders: every format gives the same rows, and every mistake is one line that names the file."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from own_rows import REVIEWS, load, save_images, write_csv
from PIL import Image

from aurora_lora.data.own.source import OwnData, folder_digest, open_data
from aurora_lora.errors import UserError

FORMATS: dict[str, Callable[[Path], object]] = {
    "rows.csv": write_csv,
    "semicolons.CSV": lambda path: write_csv(path, ";"),
    "marked.csv": lambda path: write_csv(path, encoding="utf-8-sig"),
    "rows [1].csv": write_csv,
    "rows.tsv": lambda path: write_csv(path, "\t"),
    "rows.json": lambda path: path.write_text(json.dumps(REVIEWS), encoding="utf-8-sig"),
    "rows.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, REVIEWS)), encoding="utf-8"),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress("\n".join(map(json.dumps, REVIEWS)).encode())),
    "rows.parquet": lambda path: Dataset.from_list(REVIEWS).to_parquet(path),
    "saved": lambda path: Dataset.from_list(REVIEWS).save_to_disk(path),
    "saved-splits": lambda path: DatasetDict({"train": Dataset.from_list(REVIEWS)}).save_to_disk(path),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str, tmp_path: Path) -> None:
    FORMATS[name](tmp_path / name)
    pieces = open_data(OwnData(name))
    assert list(pieces) == ["train"]
    assert pieces["train"].data.to_list() == REVIEWS
    assert len(pieces.files[name]) == 64


def test_cells_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "odd.csv").write_text("text,label\n007,NA\n1e3,null\n,None\n", encoding="utf-8")
    rows = open_data(OwnData("odd.csv"))["train"].data.to_list()
    assert [tuple(row.values()) for row in rows] == [("007", "NA"), ("1e3", "null"), ("", "None")]


def test_json_stays_what_it_is(tmp_path: Path) -> None:
    """Dates are texts, numbers have all their digits, and objects only the fields that they were given."""
    rows = [
        {"at": "2024-05-01", "price": 0.12345678901234567, "meta": {"a": 1}, "tools": [{"x": None}, {"y": "3"}]},
        {"at": None, "price": 1, "meta": {"b": "2"}, "tools": []},
    ]
    (tmp_path / "odd.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert open_data(OwnData("odd.jsonl"))["train"].data.to_list() == rows


BROKEN = {
    "fields.csv": ("text,label\na,x\nb,y,z\n", r"fields\.csv cannot be read: .*Expected 2 fields in line 3, saw 3"),
    "wide.csv": ("text,label\na,x,1\nb,y,2\n", r"wide\.csv cannot be read: Length of header"),
    "open.csv": ('text,label\n"a,x\nb,y\n', r"open\.csv cannot be read: .*EOF inside string"),
    "empty.csv": ("", r"empty\.csv cannot be read: No columns"),
    "header.csv": ("text,label\n", r"header\.csv has no rows"),
    "line.jsonl": ('{"text": "a"}\n{"text": }\n', r"line\.jsonl, line 2: no JSON: "),
    "null.jsonl": ("null\n", r"null\.jsonl, row 1: it is no object with named fields"),
    "list.json": ('[{"text": "a"}, 3]', r"list\.json, row 2: it is no object"),
    "deep.json": ("[" * 100_000, r"deep\.json: no JSON: it is nested too deeply"),
    "half.jsonl": ('{"text": "\\ud83d"}', r"half\.jsonl: the values of 'text' .*surrogates not allowed"),
    "large.jsonl": ('{"text": 1' + "0" * 400 + "}", r"large\.jsonl: the values of 'text'"),
    "mixed.jsonl": ('{"text": ["a"]}\n{"text": "b"}', r"mixed\.jsonl: the values of 'text' are not of one type"),
    "no.parquet": ("text", r"no\.parquet cannot be read: "),
    "latin.csv": ("text,label\n\udce9,x\n", r"latin\.csv has text in another encoding .*task\.encoding=cp1252"),
    "latin.jsonl": ('{"text": "\udce9"}', r"latin\.jsonl has text in another encoding"),
    "rows.doc": ("text", r"rows\.doc: '\.doc' is not one of \.csv"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_ends_in_one_line(name: str, tmp_path: Path) -> None:
    text, message = BROKEN[name]
    (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match=message) as raised:
        open_data(OwnData(name))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "encoding"), [("a.csv", "cp1252"), ("a.json", "utf-16"), ("a.txt", "cp1252")])
def test_encodings(name: str, encoding: str, tmp_path: Path) -> None:
    text = {"a.csv": "text,n\nKäse,1\n", "a.json": '[{"text": "Käse", "n": "1"}]', "a.txt": "Käse\n"}[name]
    (tmp_path / name).write_text(text, encoding=encoding)
    assert open_data(OwnData(name, encoding=encoding))["train"].data["text"][:] == ["Käse"]
    with pytest.raises(UserError, match=r"task\.encoding: 'klingon' is no encoding"):
        open_data(OwnData(name, encoding="klingon"))


def test_a_folder_of_files_is_read_by_the_splits_in_their_names(tmp_path: Path) -> None:
    (tmp_path / "data" / "test").mkdir(parents=True)
    for name in ("train-0.csv", "train-1.csv", "my_dev.csv", "test/0.csv"):
        (tmp_path / "data" / name).write_text(f"text,label\n007,{name}\n")
    (tmp_path / "data" / "README.md").write_text("# Films")
    pieces = open_data(OwnData("data"))
    assert {name: piece.data["label"][:] for name, piece in pieces.items()} == {
        "train": ["train-0.csv", "train-1.csv"],
        "validation": ["my_dev.csv"],
        "test": ["test/0.csv"],
    }
    assert pieces["train"].data["text"][:] == ["007"] * 2
    before = folder_digest(tmp_path / "data")
    (tmp_path / "data" / "other.csv").write_text("text,label\na,b\n")
    assert folder_digest(tmp_path / "data") != before
    with pytest.raises(UserError, match=r"data: the name of other\.csv tells no split, as those of other files do"):
        open_data(OwnData("data"))
    (tmp_path / "data" / "other.csv").rename(tmp_path / "data" / "train.jsonl")
    with pytest.raises(UserError, match=r"data has files of several formats \(csv, json\)"):
        open_data(OwnData("data"))


@pytest.mark.parametrize("tops", [[""], ["train", "valid", "test"], ["bus", "train", "car"]])
def test_no_image_is_left_out(tops: list[str], tmp_path: Path) -> None:
    """Folders that are called like splits are splits where all of them are and the classes are in them."""
    for top in tops:
        if top == "" or "test" in tops:
            save_images(tmp_path / "pictures [1]" / top, 6)
        else:
            (tmp_path / "pictures [1]" / top).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / "pictures [1]" / top / "0.png")
    pieces = open_data(OwnData("pictures [1]"))
    classes = {"bus", "train", "car"} if "bus" in tops else {"red", "green", "blue"}
    assert all(set(piece.data["label"][:]) == classes for piece in pieces.values())
    assert sum(len(piece.data) for piece in pieces.values()) == (3 if "bus" in tops else 6 * len(tops))
    assert len(pieces) == (3 if "test" in tops else 1)
    Image.new("RGB", (4, 4)).save(tmp_path / "pictures [1]" / "stray.png")
    with pytest.raises(UserError, match=r"stray\.png is not in the folder of a class"):
        open_data(OwnData("pictures [1]"))


def test_a_table_of_images(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save_images(tmp_path / "all" / split, 30 if split == "train" else 6)
        files = sorted((tmp_path / "all" / split).rglob("*.png"))
        lines = [f"{file.relative_to(tmp_path / 'all' / split)},00{file.parent.name}" for file in files]
        (tmp_path / "all" / split / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    splits = load("images", "all", {"image": ("image",), "label": ("label",)})
    assert len(splits["test"]) == 6
    assert splits["test"].features["label"].names == ["00blue", "00green", "00red"]
    assert splits["test"][0]["image"].size == (8, 8)
