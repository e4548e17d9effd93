"""Reading files and folders: every format gives the same rows, and every mistake is one line that says where it is."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from aurora_lora.errors import UserError
from aurora_lora.tasks.own.source import OwnData, open_data

ROWS = [{"review": f'a film, "number" {n}\nof {n + 1}', "stars": str(n % 3)} for n in range(12)]


def _csv(path: Path, separator: str = ",", encoding: str = "utf-8") -> None:
    lines = [separator.join(('"' + str(one).replace('"', '""') + '"') for one in row.values()) for row in ROWS]
    path.write_text("\n".join([separator.join(ROWS[0]), *lines]) + "\n", encoding=encoding)


FORMATS: dict[str, Callable[[Path], object]] = {
    "rows.csv": _csv,
    "semicolons.csv": lambda path: _csv(path, ";"),
    "marked.csv": lambda path: _csv(path, encoding="utf-8-sig"),
    "rows [1].csv": _csv,
    "rows.tsv": lambda path: _csv(path, "\t"),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS), encoding="utf-8"),
    "rows.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8"),
    "rows.parquet": lambda path: Dataset.from_list(ROWS).to_parquet(path),
    "saved": lambda path: Dataset.from_list(ROWS).save_to_disk(path),
    "saved-splits": lambda path: DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(path),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str, tmp_path: Path) -> None:
    FORMATS[name](tmp_path / name)
    pieces = open_data(OwnData(name))
    assert list(pieces) == ["train"]
    assert pieces["train"].data.to_list() == ROWS
    assert pieces["train"].data.cache_files  # memory-mapped
    assert re.fullmatch(r"[0-9a-f]{64}", pieces.files[name])


def test_columns_of_a_csv_file_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "odd.csv").write_text("text,label\n007,NA\n1e3,null\n,None\n", encoding="utf-8")
    rows = open_data(OwnData("odd.csv"))["train"].data.to_list()
    assert [tuple(row.values()) for row in rows] == [("007", "NA"), ("1e3", "null"), ("", "None")]


def test_a_folder_of_csv_files_is_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    for name in ("train", "test"):
        (tmp_path / "odd" / f"{name}.csv").write_text(f"text;label\n007;NA\n{name};1e3\n;None\n", encoding="latin-1")
    pieces = open_data(OwnData("odd", encoding="latin-1"))
    assert {name: [tuple(row.values()) for row in piece.data] for name, piece in pieces.items()} == {
        name: [("007", "NA"), (name, "1e3"), ("", "None")] for name in ("train", "test")
    }
    (tmp_path / "odd" / "test.csv").write_text("label;text\n1;a\n")
    with pytest.raises(UserError, match=r"odd: train\.csv has another header or separator than test\.csv: "):
        open_data(OwnData("odd"))


@pytest.mark.parametrize("suffixes", [(".csv", ".jsonl"), (".csv", ".csv", ".parquet"), (".jsonl", ".csv.gz")], ids=str)
def test_a_folder_of_two_formats_is_refused(suffixes: tuple[str, ...], tmp_path: Path) -> None:
    """`datasets` would read those of the commonest alone."""
    (tmp_path / "mixed").mkdir()
    for number, suffix in enumerate(suffixes):
        (tmp_path / "mixed" / f"part{number}{suffix}").write_text("text,label\n007,NA\n")
    last = [suffix.rpartition(".")[2] for suffix in sorted(set(suffixes), key=lambda one: one.rpartition(".")[2])]
    with pytest.raises(UserError, match=rf"^mixed has \.{last[0]} and \.{last[1]} files: .*task\.data=FILE"):
        open_data(OwnData("mixed"))


@pytest.mark.parametrize("beside", ["README.md", "LICENSE", "notes.txt", "logo.png", ".hidden.jsonl", "config.json"])
@pytest.mark.parametrize("suffix", [".csv", ".CSV", ".tab", ".jsonl"])
def test_what_is_no_data_changes_nothing_in_a_folder(suffix: str, beside: str, tmp_path: Path) -> None:
    (tmp_path / "odd [1]").mkdir()
    row = '{"text": "007", "label": "NA"}' if suffix == ".jsonl" else "text{}label\n007{}NA"
    row = row.replace("{}", "\t" if suffix == ".tab" else ",")
    (tmp_path / "odd [1]" / f"data{suffix}").write_text(f"{row}\n")
    (tmp_path / "odd [1]" / beside).write_text("a line\nand another\n")
    pieces = open_data(OwnData("odd [1]"))
    assert {name: list(piece.data) for name, piece in pieces.items()} == {"train": [{"text": "007", "label": "NA"}]}


def test_no_file_of_a_folder_is_left_out(tmp_path: Path) -> None:
    """Where names tell splits, `datasets` passes over those that tell none."""
    (tmp_path / "named").mkdir()
    for name in ("train.csv", "test.csv"):
        _csv(tmp_path / "named" / name)
    assert set(open_data(OwnData("named"))) == {"train", "test"}
    _csv(tmp_path / "named" / "more.csv")
    with pytest.raises(UserError, match=r"named: the name of more\.csv tells no split"):
        open_data(OwnData("named"))


def test_a_card_of_a_folder_says_which_files_are_what(tmp_path: Path) -> None:
    (tmp_path / "card").mkdir()
    for name, text in (("a.csv", "text,label\nb,1\n"), ("other.jsonl", '{"text": "c"}\n')):
        (tmp_path / "card" / name).write_text(text)
    (tmp_path / "card" / "README.md").write_text("---\nconfigs:\n- config_name: one\n  data_files: a.csv\n---\n")
    assert open_data(OwnData("card"))["train"].data["text"][:] == ["b"]


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    _csv(tmp_path / "a.csv")
    _csv(tmp_path / "b.csv")
    a, b = (open_data(OwnData(name)).files[name] for name in ("a.csv", "b.csv"))
    assert a == b
    with (tmp_path / "b.csv").open("a") as file:
        file.write('"more","1"\n')
    again = open_data(OwnData("b.csv"))
    assert again.files["b.csv"] != a
    assert len(again["train"].data) == len(ROWS) + 1


MISTAKES: dict[str, tuple[str, bytes | None, str]] = {
    "no file": ("revews.csv", None, r"task\.data: 'revews.csv' is no file, .*; did you mean 'reviews.csv'\?"),
    "no data set": ("reviews", None, r"task\.data: 'reviews' is no file, no folder and no data set of the hub"),
    "empty": ("x.csv", b"", r"x\.csv is empty"),
    "a header alone": ("x.csv", b"text,label\n", r"x\.csv has no rows"),
    "empty lines": ("x.jsonl", b"\n\n", r"x\.jsonl has no rows"),
    "more fields": (
        "x.csv",
        b"text,label\na,1\nb, c,2\n",
        r"x\.csv, line 3: a row of 3 fields, where the header has 2",
    ),
    "fewer fields": ("x.tsv", b"text\tlabel\na\t1\nb\n", r"x\.tsv, line 3: a row of 1 fields, where the header has 2"),
    "twice": ("x.csv", b"text,text\na,1\n", r"x\.csv: the header has the column 'text' twice"),
    "a mark that is not closed": (
        "x.tsv",
        b'text\tlabel\na\t1\n"Great, they said\t1\nAwful" is the word\t0\n',
        r"x\.tsv, line 3: a text that begins with a quotation mark goes on over a tab",
    ),
    "a mark that is never closed": (
        "x.csv",
        b'text,label\n"a\nb",1\n\n"c,2\nd,1\n',
        r"x\.csv, line 5: a row of 1 fields, .*: a quotation mark in it is closed in line 6, or not at all",
    ),
    "cp1252": (
        "x.csv",
        b"text,label\na,1\ncaf\xe9,2\n",
        r"x\.csv, line 3: no UTF-8 text \(byte 0xe9\); task\.encoding=",
    ),
    "utf-16": ("x.csv", "text,label\na,1\n".encode("utf-16"), r"x\.csv is UTF-16 text: task\.encoding=utf-16"),
    "json, a line": ("x.jsonl", b'{"text": "a"}\n{"text": "b"\n', r"x\.jsonl, line 2: no JSON: "),
    "json, no object": ("x.jsonl", b'{"text": "a"}\n["b"]\n', r"x\.jsonl, line 2: it is no object with named fields"),
    "json, latin": ("x.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', r"x\.jsonl, line 2: no UTF-8 text \(byte 0xe9\)"),
    "json, whole": ("x.json", b'[{"text": "a"}, {"text"}]', r"x\.json is no JSON: .*line 1 column"),
    "parquet": ("x.parquet", b"PAR1, or not", r"x\.parquet cannot be loaded: "),
    "another suffix": ("x.xlsx", b"PK", r"task\.data: x\.xlsx: '\.xlsx' is not one of \.csv, \.tsv"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name, content, message = MISTAKES[mistake]
    _csv(tmp_path / "reviews.csv")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        open_data(OwnData(name))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 250
    assert not caplog.records


@pytest.mark.parametrize(("encoding", "kind"), [("cp1252", "csv"), ("utf-16", "csv"), ("cp1252", "jsonl")])
def test_other_encodings(encoding: str, kind: str, tmp_path: Path) -> None:
    text = "text,label\ncafé,1\n" if kind == "csv" else '{"text": "café", "label": "1"}\n'
    (tmp_path / f"x.{kind}").write_bytes(text.encode(encoding))
    assert open_data(OwnData(f"x.{kind}", encoding=encoding))["train"].data.to_list() == [
        {"text": "café", "label": "1"}
    ]
    with pytest.raises(UserError, match=r"task\.encoding: 'klingon' is no encoding"):
        open_data(OwnData(f"x.{kind}", encoding="klingon"))
