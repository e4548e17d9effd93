"""Opening data: every format gives the same rows, which of it is which split, and every mistake is one line."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from own_rows import ALL, REVIEWS, TEXT, save_images, write_csv
from PIL import Image

from aurora_lora.data.own.kinds import OWN
from aurora_lora.data.own.source import OwnData, folder_digest, open_data, open_given
from aurora_lora.errors import ArgumentError, UserError

FORMATS: dict[str, Callable[[Path], object]] = {
    "rows.csv": write_csv,
    "semicolons.CSV": lambda path: write_csv(path, ";"),
    "rows.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, REVIEWS)), encoding="utf-8"),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress("\n".join(map(json.dumps, REVIEWS)).encode())),
    "rows.xlsx": lambda path: pandas.DataFrame(REVIEWS).to_excel(path, index=False),
    "rows.parquet": lambda path: Dataset.from_list(REVIEWS).to_parquet(path),
    "saved": lambda path: Dataset.from_list(REVIEWS).save_to_disk(path),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str, tmp_path: Path) -> None:
    FORMATS[name](tmp_path / name)
    pieces = open_data(OwnData(name))
    assert list(pieces) == ["train"]
    assert pieces["train"].data.to_list() == REVIEWS
    assert len(pieces.files[name]) == 64


def test_json_stays_what_it_is(tmp_path: Path) -> None:
    """Dates are texts, numbers have all their digits, and objects only the fields that they were given."""
    rows = [
        {"at": "2024-05-01", "price": 0.12345678901234567, "meta": {"a": 1}, "tools": [{"x": None}, {"y": "3"}]},
        {"at": None, "price": 1, "meta": {"b": "2"}, "tools": []},
    ]
    (tmp_path / "odd.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert open_data(OwnData("odd.jsonl"))["train"].data.to_list() == rows


BROKEN = {
    "fields.csv": ('text,label\n"a\n\na",x\nb,y,z\n', r"fields\.csv, line 5: it has more fields than the header"),
    "line.jsonl": ('{"text": "a"}\n{"text": }\n', r"line\.jsonl, line 2: no JSON: "),
    "list.json": ('[{"text": "a"}, 3]', r"list\.json, row 2: it is no object"),
    "three.jsonl": ('{"text": "a"}\n\n3', r"three\.jsonl, line 3: it is no object"),
    "half.jsonl": ('{"text": "\\ud83d"}', r"half\.jsonl has text .*surrogates not allowed"),
    "latin.csv": ("text,label\n\udce9,x\n", r"latin\.csv has text in another encoding .*task\.encoding=cp1252"),
    "no.parquet": ("text", r"no\.parquet cannot be read: "),
    "rows.doc": ("text", r"rows\.doc: '\.doc' is not one of \.csv"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_ends_in_one_line(name: str, tmp_path: Path) -> None:
    text, message = BROKEN[name]
    (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError, match=message) as raised:
        open_data(OwnData(name))
    assert "\n" not in str(raised.value)


def test_a_file_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a dull film,bad\na warm film,good\nanother,bad\n")
    with pytest.raises(UserError, match=r"has no column 'text' \(it has 'a dull film', 'bad'\): is its first line no"):
        OWN["classification"].load(OwnData("rows.csv"), TEXT, ALL, 0)


def test_the_line_of_a_row_is_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('text,label\n"a\nfilm",x\n\n"another\n\none",\n,y\n')
    assert open_data(OwnData("rows.csv"))["train"].places() == ["line 2", "line 5", "line 8"]
    with pytest.raises(UserError, match=r"^rows\.csv, line 5: it has no label; task\.skip_bad_rows=true leaves such"):
        OWN["classification"].load(OwnData("rows.csv"), TEXT, ALL, 0)


def test_rows_that_cannot_be_used_are_left_out_and_counted(tmp_path: Path) -> None:
    """Of labels and then of texts; what is said of others has their own lines."""
    rows = [{"text": f"film {n}" if n % 10 else "", "label": "ab"[n % 2] if n % 7 else None} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    splits = OWN["classification"].load(OwnData("rows.jsonl", skip_bad_rows=True), TEXT, ALL, 0)
    good = [row["text"] for row in rows if row["text"] and row["label"]]
    assert sorted(text for split in splits.values() for text in split["text"]) == sorted(good)
    assert (splits.record["rows"], splits.record["skipped"]) == (60, 60 - len(good))
    (tmp_path / "test.jsonl").write_text('{"text": "", "label": "a"}\n{"text": "another", "label": "c"}\n')
    with pytest.raises(UserError, match=r"^test\.jsonl, line 2: the label 'c' is in no row"):
        OWN["classification"].load(OwnData("rows.jsonl", test_data="test.jsonl", skip_bad_rows=True), TEXT, ALL, 0)


def test_decimal_commas(tmp_path: Path) -> None:
    """Of numbers alone, where they are said to be there; else the error names the option."""
    rows = "".join(f"3,{n} or 4;{'-' * (n % 2)}{n},25\n" for n in range(12))
    (tmp_path / "rows.csv").write_text(f"text;label\n{rows}")
    splits = OWN["regression"].load(OwnData("rows.csv", decimal_comma=True), TEXT, ALL, 0)
    found = {row["text"]: row["label"] for split in splits.values() for row in split}
    assert found == {f"3,{n} or 4": (-1) ** n * (n + 0.25) for n in range(12)}
    with pytest.raises(UserError, match=r"line 2: the label '0,25' is no number: task\.decimal_comma=true reads"):
        OWN["regression"].load(OwnData("rows.csv"), TEXT, ALL, 0)


@pytest.mark.parametrize("how", ["link", "link by configs", "configs", "state", "splits"])
def test_a_folder_takes_no_rows_from_outside(how: str, tmp_path: Path) -> None:
    """Neither by a link nor by what its own files name."""
    Dataset.from_list(REVIEWS).save_to_disk(tmp_path / "secret")
    write_csv(tmp_path / "secret.csv")
    data = tmp_path / "data"
    if how == "configs":
        data.mkdir()
        (data / "README.md").write_text("---\nconfigs:\n- {config_name: a, data_files: ../secret.csv}\n---\n")
    elif "link" in how:
        data.mkdir()
        (data / "train.csv").symlink_to(tmp_path / "secret.csv")
        if "configs" in how:
            (data / "README.md").write_text("---\nconfigs:\n- {config_name: a, data_files: train.csv}\n---\n")
    elif how == "state":
        Dataset.from_list(REVIEWS).save_to_disk(data)
        state = json.loads((data / "state.json").read_text())
        name = state["_data_files"][0]["filename"]
        (data / "state.json").write_text(json.dumps({**state, "_data_files": [{"filename": f"../secret/{name}"}]}))
    else:
        data.mkdir()
        (data / "dataset_dict.json").write_text('{"splits": ["../secret"]}')
    with pytest.raises(UserError, match=r"train\.csv is a link|takes rows from .*secret.* not in it"):
        open_data(OwnData("data"))


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
    with pytest.raises(UserError, match=r"data: the name of other\.csv tells no split, as those of others do"):
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


ROWS = [{"review": f"film {n}", "stars": str(n % 3)} for n in range(12)]


@pytest.mark.parametrize("where", ["folder", "copy of the hub"])
def test_named_splits(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, rows in (("train", ROWS[:8]), ("dev", ROWS[8:])):
        Dataset.from_list(rows).to_json(tmp_path / "copies" / "owner" / "name" / f"{split}.jsonl")
    monkeypatch.setenv("AURORA_LORA_DATA", str(tmp_path / "copies"))
    data = "copies/owner/name" if where == "folder" else "owner/name"
    pieces = open_data(OwnData(data))
    assert {name: len(piece.data) for name, piece in pieces.items()} == {"train": 8, "validation": 4}
    assert pieces["validation"].name == f"{data}, validation"
    swapped = open_data(OwnData(data, train_split="validation", validation_split="train"))
    assert {name: len(piece.data) for name, piece in swapped.items()} == {"train": 4, "validation": 8}
    with pytest.raises(UserError, match=r"task\.test_split: .* has no split 'exam' \(it has train, validation\)"):
        open_data(OwnData(data, test_split="exam"))
    with pytest.raises(UserError, match=r"task\.\w+_split: .*, train is another split already"):
        open_data(OwnData(data, test_split="train"))


def test_a_split_found_by_its_name_gives_way_to_one_that_is_asked_for(tmp_path: Path) -> None:
    """As where the test split has no labels: the test takes the validation split, and training gives a new one."""
    for split, count in (("train", 8), ("dev", 3), ("test", 2)):
        Dataset.from_list(ROWS[:count]).to_csv(tmp_path / "data" / f"{split}.csv")

    def sizes(**splits: str) -> dict[str, int]:
        return {name: len(piece.data) for name, piece in open_data(OwnData("data", **splits)).items()}

    assert sizes() == {"train": 8, "validation": 3, "test": 2}
    assert sizes(test_split="validation") == {"train": 8, "test": 3}
    assert sizes(validation_split="test") == {"train": 8, "validation": 2}
    assert sizes(train_split="test") == {"train": 2, "validation": 3}


def test_a_test_split_without_labels(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(30)]
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    for split, some in (("train", rows[:20]), ("validation", rows[20:25]), ("test", rows[25:])):
        some = [{**row, "label": -1} for row in some] if split == "test" else some
        Dataset.from_list(some, features=features).to_parquet(tmp_path / "data" / f"{split}.parquet")
    with pytest.raises(
        UserError, match=r"^data, test, row 1: it has no label; task\.test_split takes another split; no"
    ):
        OWN["classification"].load(OwnData("data"), TEXT, ALL, 0)
    splits = OWN["classification"].load(OwnData("data", test_split="validation"), TEXT, ALL, 0)
    assert {name: len(split) for name, split in splits.items()} == {"train": 18, "validation": 2, "test": 5}


def test_the_split_to_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name; of a data set of the hub, in the configuration that the run was trained on, of what it names alone."""
    folder = tmp_path / "copies" / "owner" / "name"
    folder.mkdir(parents=True)
    files = ("short-train", 4), ("short-test", 3), ("long-test", 2)
    for name, count in files:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:count]))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: short\n  data_files:\n"
        "  - {split: train, path: short-train.jsonl}\n  - {split: test, path: short-test.jsonl}\n"
        "- config_name: long\n  data_files:\n"
        "  - {split: dev, path: long-test.jsonl}\n  - {split: test, path: long-test.jsonl}\n---\n"
    )
    monkeypatch.setenv("AURORA_LORA_DATA", str(tmp_path / "copies"))
    own = OwnData("owner/name", config="short")
    assert len(open_given("owner/name", own)["train"].data) == 4
    assert len(open_given("./copies/owner/name/", OwnData("copies/owner/name", config="short"))["train"].data) == 4
    assert len(open_given("owner/name", own, split="test")["train"].data) == 3
    with pytest.raises(ArgumentError, match=r"^`split`: owner/name has no split 'exam' \(it has train, test\)"):
        open_given("owner/name", own, split="exam")
    with pytest.raises(ArgumentError, match=r"^'none' is no file, no folder"):
        open_given("none", own)
