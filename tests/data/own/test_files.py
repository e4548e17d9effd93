"""Reading files: every format gives the same rows, and every mistake is one line that says where it is."""

import contextlib
import csv
import gzip
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
from datasets import Dataset, DatasetDict
from own_rows import REVIEWS, write_csv

from aurora_lora.data.own.broken import csv_options
from aurora_lora.data.own.source import OwnData, open_data
from aurora_lora.errors import UserError

FORMATS: dict[str, Callable[[Path], object]] = {
    "rows.csv": write_csv,
    "semicolons.csv": lambda path: write_csv(path, ";"),
    "marked.csv": lambda path: write_csv(path, encoding="utf-8-sig"),
    "returns.csv": lambda path: write_csv(path, end="\r"),
    "rows [1].csv": write_csv,
    "rows.tsv": lambda path: write_csv(path, "\t"),
    "rows.json": lambda path: path.write_text(json.dumps(REVIEWS), encoding="utf-8"),
    "rows.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, REVIEWS)), encoding="utf-8"),
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
    assert pieces["train"].data.cache_files  # memory-mapped
    assert re.fullmatch(r"[0-9a-f]{64}", pieces.files[name])


def test_columns_of_a_csv_file_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "odd.csv").write_text("text,label\n007,NA\n1e3,null\n,None\n", encoding="utf-8")
    rows = open_data(OwnData("odd.csv"))["train"].data.to_list()
    assert [tuple(row.values()) for row in rows] == [("007", "NA"), ("1e3", "null"), ("", "None")]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz"])
def test_dates_of_a_json_file_stay_what_they_are(suffix: str, tmp_path: Path) -> None:
    """JSON has none: Arrow takes what looks like one for one, and its zone is lost."""
    for number in (1, 2):  # as a file changes
        rows = [
            {
                "at": "2024-05-01T10:00:00+02:00",
                "days": ["1999-01-01", f"200{number}-01-02"],
                "price": 0.12345678901234567,
            },
            {"at": None, "days": [], "meta": {"day": "2024-05-01", "count": 2**60 + 1}, "price": 1.5},
            {"at": "2024-05-01", "days": None, "meta": {"day": None, "count": 1}, "price": 2.5},
        ]
        text = json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows))
        path = tmp_path / "odd" / f"rows{suffix}"
        path.parent.mkdir(exist_ok=True)
        (gzip.open if suffix.endswith(".gz") else open)(path, "wb").write(text.encode("utf-8-sig"))
        expected = [{**row, "meta": row.get("meta")} for row in rows]
        for source in ("odd",) if suffix.endswith(".gz") else ("odd", f"odd/rows{suffix}"):
            data = open_data(OwnData(source))["train"].data
            assert data.to_list() == expected
            assert data.cache_files  # memory-mapped
    Dataset.from_list([{"at": "a"}]).to_json(tmp_path / "plain.jsonl")
    assert open_data(OwnData("plain.jsonl"))["train"].data.to_list() == [{"at": "a"}]


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv")
    write_csv(tmp_path / "b.csv")
    a, b = (open_data(OwnData(name)).files[name] for name in ("a.csv", "b.csv"))
    assert a == b
    with (tmp_path / "b.csv").open("a") as file:
        file.write('"more","1"\n')
    again = open_data(OwnData("b.csv"))
    assert again.files["b.csv"] != a
    assert len(again["train"].data) == len(REVIEWS) + 1


MISTAKES: dict[str, tuple[str, bytes | None, str]] = {
    "no file": ("revews.csv", None, r"task\.data: 'revews.csv' is no file, .*; did you mean 'reviews.csv'\?"),
    "no data set": ("reviews", None, r"task\.data: 'reviews' is no file, no folder and no data set of the hub"),
    "empty": ("x.csv", b"", r"x\.csv is empty"),
    "blank lines alone": ("x.csv", b"\n\n\n", r"^x\.csv is empty$"),
    "a header alone": ("x.csv", b"text,label\n", r"x\.csv has no rows"),
    "empty lines": ("x.jsonl", b"\n\n", r"x\.jsonl has no rows"),
    "more fields": (
        "x.csv",
        b"text,label\na,1\nb, c,2\n",
        r"x\.csv, line 3: a row of 3 fields, where the header has 2",
    ),
    "fewer fields": ("x.tsv", b"text\tlabel\na\t1\nb\n", r"x\.tsv, line 3: a row of 1 fields, where the header has 2"),
    "an empty line that takes a separator with it": (
        "x.csv",
        b"id,text,label\r1,a,1\r\r,b,0\r",
        r"x\.csv, line 4: a row whose first field is empty stands behind an empty line that ends in a carriage return",
    ),
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
    "a mark that takes in rows": (
        "x.csv",
        b'text,label\na,1\n"Best ever, they said,1\nb,0\n"Best" of all,1\nc,0\n',
        r"x\.csv, line 3: a text that begins with a quotation mark goes on over the end of its line, up to the next "
        r"mark, and has more text behind that: it must stand in quotation marks, with those inside doubled$",
    ),
    "a mark in the header": ("x.csv", b'"text,label\na,1\n"b" c,0\n', r"x\.csv, line 1: a text that begins with"),
    "a mark in the last column": (
        "x.csv",
        b'text,label\na,1\nb,"0\nc,1\n',
        r"x\.csv, line 3: a text that begins with a quotation mark goes on to the end of the file",
    ),
    "bars": ("x.csv", b"text|label\na, b|1\nc|0\n", r"x\.csv: the columns seem to be separated by bars \(\|\): the "),
    "tabs": ("x.csv", b"text\tlabel\na\t1\n", r"x\.csv: the columns seem to be separated by tabs: the allowed .*\.tsv"),
    "cp1252": (
        "x.csv",
        b"text,label\na,1\ncaf\xe9,2\n",
        r"x\.csv, line 3: no UTF-8 text \(byte 0xe9\); task\.encoding=",
    ),
    "utf-16": ("x.csv", "text,label\na,1\n".encode("utf-16"), r"x\.csv is UTF-16 text: task\.encoding=utf-16"),
    "json, a line": ("x.jsonl", b'{"text": "a"}\n{"text": "b"\n', r"x\.jsonl, line 2: no JSON: .* at column 13$"),
    "json, half a line": (
        "x.jsonl",
        b'{"text": "a"}\n{"text":\n',
        r"^x\.jsonl, line 2: no JSON: Expecting value at column 9$",
    ),
    "json, no object": ("x.jsonl", b'{"text": "a"}\n["b"]\n', r"x\.jsonl, line 2: it is no object with named fields"),
    "json, latin": ("x.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', r"x\.jsonl, line 2: no UTF-8 text \(byte 0xe9\)"),
    "json, whole": ("x.json", b'[{"text": "a"}, {"text"}]', r"x\.json is no JSON: .*line 1 column"),
    "json, a number": ("x.json", b"5", r"^x\.json: it is no list of objects with named fields, such as \[\{"),
    "json, nothing": ("x.json", b"null\n", r"^x\.json: it is no list of objects with named fields"),
    "json, a text": ("x.json", b' "x"', r"^x\.json: it is no list of objects with named fields"),
    "json, a row of nothing": (
        "x.json",
        b'[\n  null,\n  {"a": [null]}\n]',
        r"^x\.json, row 1: it is no object with named",
    ),
    "json, a line of nothing": (
        "x.jsonl",
        b'null\n{"a": 1}\n',
        r"^x\.jsonl, line 1: it is no object with named fields",
    ),
    "parquet": ("x.parquet", b"PAR1, or not", r"x\.parquet cannot be loaded: "),
    "another suffix": ("x.xlsx", b"PK", r"task\.data: x\.xlsx: '\.xlsx' is not one of \.csv, \.tsv"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name, content, message = MISTAKES[mistake]
    write_csv(tmp_path / "reviews.csv")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        open_data(OwnData(name))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 250
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('["a", null]', [{"text": "a"}, {"text": None}]),
        ('[{"a": [null, 1], "b": null}]', [{"a": [None, 1], "b": None}]),
        ('{"a": "of, null"}\n{"a": null}\n', [{"a": "of, null"}, {"a": None}]),
    ],
)
def test_null_may_be_a_value(text: str, rows: list[object], tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    assert open_data(OwnData("x.json"))["train"].data.to_list() == rows


@pytest.mark.parametrize(("encoding", "kind"), [("cp1252", "csv"), ("utf-16", "csv"), ("cp1252", "jsonl")])
def test_other_encodings(encoding: str, kind: str, tmp_path: Path) -> None:
    text = "text,label\ncafé,1\n" if kind == "csv" else '{"text": "café", "label": "1"}\n'
    (tmp_path / f"x.{kind}").write_bytes(text.encode(encoding))
    assert open_data(OwnData(f"x.{kind}", encoding=encoding))["train"].data.to_list() == [
        {"text": "café", "label": "1"}
    ]
    with pytest.raises(UserError, match=r"task\.encoding: 'klingon' is no encoding"):
        open_data(OwnData(f"x.{kind}", encoding="klingon"))


@pytest.mark.parametrize("encoding", [None, "utf-8", "UTF8", "utf-8-sig"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_mark_at_the_beginning_is_no_part_of_the_text(kind: str, encoding: str | None, tmp_path: Path) -> None:
    text = "text,label\na,1\n" if kind == "csv" else '{"text": "a", "label": "1"}\n'
    (tmp_path / f"x.{kind}").write_text(text, encoding="utf-8-sig")
    rows = open_data(OwnData(f"x.{kind}", encoding=encoding))["train"].data.to_list()
    assert rows == [{"text": "a", "label": "1"}]


READ = {
    "marks in a text": ('"Great" film,1\na "fine" one,2\n5" of it,3\n', ["Great film", 'a "fine" one', '5" of it']),
    "several lines": ('"a\nb ""c""\n",1\n"Great" film,"2\n"\n', ['a\nb "c"\n', "Great film"]),
    "backslashes": ('"he said \\"hi\\" ok",1\n', ['he said \\hi\\" ok"']),
    "bars": ("a|b,1\n", ["a|b"]),
}


@pytest.mark.parametrize("written", READ)
def test_quotation_marks_that_mislead_nobody_are_read_as_ever(written: str, tmp_path: Path) -> None:
    rows, texts = READ[written]
    (tmp_path / "x.csv").write_text(f"text,label|n\n{rows}")
    assert open_data(OwnData("x.csv"))["train"].data["text"][:] == texts


def test_what_is_checked_is_what_is_read(tmp_path: Path) -> None:
    """Python's reader finds the mistakes, pandas' the rows: files of odd marks are refused, or have the same rows."""
    drawn, read, path = random.Random(0), 0, tmp_path / "x.csv"
    for _ in range(1500):
        rows = "".join(drawn.choices(['"', '""', "a", ",", "\n", "\r\n", "\r", "\\", " "], k=drawn.randint(1, 16)))
        path.write_text(f"t,l\nb,1\n{rows}", newline="")
        with contextlib.suppress(UserError, pandas.errors.ParserError):
            options = csv_options(path, None)
            names, _ = options.pop("column_names"), options.pop("features")
            there = pandas.read_csv(path, dtype=str, names=names, **options).to_numpy().tolist()
            with path.open(newline="") as file:
                assert there == [row for row in csv.reader(file) if row][1:], repr(rows)
            read += 1
    assert read > 150


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_a_json_list_in_another_encoding(encoding: str, tmp_path: Path) -> None:
    rows = [{"text": f"café {n}", "label": n if n < 1500 else n / 4, "more": None} for n in range(1600)]
    rows[-1]["more"] = "at last"
    (tmp_path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding=encoding)
    assert open_data(OwnData("rows.json", encoding=encoding))["train"].data.to_list() == rows
    assert open_data(OwnData("rows.json", encoding=encoding))["train"].data.to_list() == rows, "from the cache"


def test_the_numbers_of_a_json_list_have_all_their_digits(tmp_path: Path) -> None:
    rows = [{"text": "film", "label": 3.2e-11}, {"text": "plot", "label": 1.2345678901234567e-9}]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    assert open_data(OwnData("rows.json"))["train"].data.to_list() == rows


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("damage", ["cut off", "flipped"])
def test_a_packed_file_that_is_damaged(kind: str, damage: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    FORMATS[f"rows.{kind}"](tmp_path / "rows")
    packed = bytearray(gzip.compress((tmp_path / "rows").read_bytes() * 50))
    half = len(packed) // 2
    damaged = packed[:half] if damage == "cut off" else packed[:half] + bytes(b ^ 255 for b in packed[half:])
    (tmp_path / "data" / f"train.{kind}.gz").write_bytes(damaged)
    with pytest.raises(UserError) as error:
        open_data(OwnData("data"))
    assert "data" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_path_whose_home_is_nobodys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task\.data: '~nobodys-name/x\.csv' is no file, no folder and no data set"):
        open_data(OwnData("~nobodys-name/x.csv"))


def test_half_of_a_character_is_told_by_its_line(tmp_path: Path) -> None:
    """As JavaScript cuts texts; Arrow counts rows from the start of a block."""
    lines = [json.dumps({"text": f"t {n}"}) for n in range(30)]
    lines[7] = '{"text": "cut \\ud83d"}'
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"a\.jsonl, line 8: '\\ud83d' is half of a character"):
        open_data(OwnData(str(tmp_path / "a.jsonl")))
