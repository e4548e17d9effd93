"""What is wrong with a file of rows, and in which line: asked before a CSV file is read, and when another fails."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

from ...errors import UserError
from ...extras import extra

UTF8 = "utf-8-sig"
"""UTF-8 with the mark that some programs begin a file with, or without it."""
_NULL = re.compile(r"\s*null\b")
_OPEN: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def suffix_of(path: Path) -> str:
    """The suffix of a file, or of the one that is packed in it."""
    return Path(path.stem if path.suffix.lower() in _OPEN else path.name).suffix.lower()


def _open(path: Path, mode: str, **more: Any) -> Any:
    """A file, unpacked."""
    return _OPEN.get(path.suffix.lower(), open)(path, mode, **more)


def csv_options(path: Path, encoding: str | None) -> dict[str, Any]:
    """How `datasets` is to read a CSV file: every column as text, as it stands there.

    Nothing is guessed from what the first rows look like: `007`, `NA` and `1e3` stay what they are.

    Raises:
        UserError: no header, a row with more or fewer fields, a quotation mark that swallows others, a header that
            names a column twice, another separator, or text in another encoding.
    """
    with extra("train"):
        from datasets import Features, Value
    csv.field_size_limit(2**31 - 1)
    separator = _separator(path, encoding)
    with _text(path, encoding, newline="") as file:
        try:
            header = _check_rows(file, path, separator)
        except UnicodeError as error:
            raise UserError(not_text(path, encoding)) from error
        except (csv.Error, EOFError) as error:
            raise UserError(f"{path}: {error}") from error
    if not header:
        raise UserError(f"{path} is empty")
    return {
        "sep": separator,
        "column_names": header,
        "header": 0,
        "features": Features({name: Value("string") for name in header}),
        "keep_default_na": False,
        "encoding": marked(encoding),
    }


def _check_rows(file: IO[str], path: Path, separator: str) -> list[str]:
    """The names of the columns."""
    header: list[str] = []
    written: list[str] = []  # the lines of a row, as they stand there

    def lines() -> Iterator[str]:
        for each in file:
            written.append(each)
            yield each

    rows = csv.reader(lines(), delimiter=separator)
    line = end = 0
    text = ""
    for row in rows:
        line, end = end + 1, rows.line_num  # a row may have several lines
        before, text = text, "".join(written)
        written.clear()
        where = f"{path}, line {line}"
        if before == "\r" and text.startswith(separator):  # which pandas would leave out
            raise UserError(
                f"{where}: a row whose first field is empty stands behind an empty line that ends in a carriage return "
                "alone: take that line out"
            )
        if not header:
            header = [name.strip() or f"column {number}" for number, name in enumerate(row, start=1)]
            if twice := [name for name in header if header.count(name) > 1]:
                raise UserError(f"{path}: the header has the column '{twice[0]}' twice")
        elif len(header) == 1 and (other := _other_separator(header[0], separator.join(row))):
            raise UserError(
                f"{path}: the columns seem to be separated by {other}: the allowed separators are commas, semicolons "
                "where the header has no comma, and tabs in a file whose name ends in .tsv"
            )
        elif why := _wrong_fields(row, header, separator, closed=None if line == end else end):
            raise UserError(f"{where}: {why}")
        if (line < end or text.count('"') % 2) and (why := _swallows(text, separator)):
            raise UserError(f"{where}: {_begins_with_mark(why)}")
    return header


def _wrong_fields(row: Sequence[str], header: Sequence[str], separator: str, closed: int | None) -> str | None:
    """What is wrong with the fields of a row; None if nothing is.

    Args:
        row: the fields.
        header: the names of the columns.
        separator: of the fields.
        closed: the last line of the row, where it has several.
    """
    if row and len(row) != len(header):
        why = (
            "a text with a separator in it must stand in quotation marks"
            if closed is None
            else f"a quotation mark in it is closed in line {closed}, or not at all"
        )
        return f"a row of {len(row)} fields, where the header has {len(header)} ({', '.join(header)[:60]}): {why}"
    if separator == "\t" and any("\t" in field and "\n" in field for field in row):
        return _begins_with_mark("goes on over a tab and the end of its line, up to the next mark")
    return None


def _begins_with_mark(why: str) -> str:
    return (
        f"a text that begins with a quotation mark {why}: it must stand in quotation marks, with those inside doubled"
    )


def _swallows(row: str, separator: str) -> str | None:
    """How a quotation mark takes in what is behind the end of its line, though not meant to; None if it does not.

    A mark that only begins a text (`"Best" of all`) is read as if it were meant to hold it. Where the next mark comes
    lines later, and then more text, the rows between would become part of one text, with as many fields as there ought
    to be.
    """
    field = re.compile(rf'("(?:[^"]++|"")*+")?([^{separator}\r\n]*)(?:{separator}|\r\n?|\n|$)')
    for quoted, rest in field.findall(row):
        if quoted and rest and re.search(r"[\r\n]", quoted):
            return "goes on over the end of its line, up to the next mark, and has more text behind that"
        if not quoted and rest.startswith('"'):
            return "goes on to the end of the file, without another mark"
    return None


def _other_separator(header: str, row: str) -> str | None:
    """What separates columns that were not told apart: bars or tabs, as many in the header as in a row."""
    names = {"|": "bars (|)", "\t": "tabs"}
    return next((name for mark, name in names.items() if 0 < header.count(mark) == row.count(mark)), None)


def _separator(path: Path, encoding: str | None) -> str:
    """A tab by the suffix; a semicolon where the header has no comma, as spreadsheets of many countries write it."""
    if suffix_of(path) != ".csv":
        return "\t"
    with _text(path, encoding, errors="replace") as file:
        header = file.readline()
    return ";" if ";" in header and "," not in header else ","


def marked(encoding: str | None) -> str:
    """The encoding to read a file by, of which a mark at the beginning is no part of the text."""
    return UTF8 if encoding is None or re.fullmatch("utf[-_ ]?8", encoding, re.IGNORECASE) else encoding


def is_utf8(encoding: str | None) -> bool:
    """Whether that is what an encoding means; None does."""
    return marked(encoding) == UTF8


def _text(path: Path, encoding: str | None, **more: Any) -> IO[str]:
    try:
        file: IO[str] = _open(path, "rt", encoding=marked(encoding), **more)
    except LookupError as error:
        raise UserError(f"task.encoding: '{encoding}' is no encoding, such as utf-8, cp1252 or utf-16") from error
    return file


def check_text(path: Path, encoding: str | None) -> None:
    """Raise a UserError where a file is not text of its encoding."""
    try:
        with _text(path, encoding) as file:
            while file.read(2**20):
                pass
    except UnicodeError as error:
        raise UserError(not_text(path, encoding)) from error


def check_json(path: Path, encoding: str | None) -> None:
    """Raise a UserError where a JSON file is not text of its encoding, which JSON's own reader would not notice, or has
    a row that is null, on which Arrow's reader can end the process.
    """
    check_text(path, encoding)
    if _has_null_row(path, encoding):
        raise UserError(why_broken(path, encoding) or f"{path}: a row is null")


def _has_null_row(path: Path, encoding: str | None) -> bool:
    """Whether a row is null, among objects or in a line of its own. A list without objects is one of texts."""
    with (
        _text(path, encoding) as file,
        suppress(ValueError, RecursionError),
    ):  # what is no JSON, or not a row a line, is not judged
        if _is_list(file):
            text = file.read()
            nulls = (found.start() for found in re.finditer("null", text))
            is_value = (text[max(0, start - 99) : start].rstrip().endswith(":") for start in nulls)
            rows = [] if all(is_value) else json.loads(text)
            return None in rows and any(isinstance(row, dict) for row in rows)
        if (before := next((number for number, line in enumerate(file) if _NULL.match(line)), None)) is not None:
            file.seek(0)
            for line in filter(str.strip, islice(file, before)):
                json.loads(line)
            return True
    return False


def is_list(path: Path, encoding: str | None) -> bool:
    """Whether a JSON file is one list."""
    with _text(path, encoding) as file:
        return _is_list(file)


def _is_list(file: IO[str]) -> bool:
    """Whether a JSON file is one list; it is read from the start then."""
    start = file.read(4096).lstrip()[:1]
    file.seek(0)
    return start == "["


def is_blank(path: Path, encoding: str | None) -> bool:
    """Whether a JSON file has no rows: spaces alone, or an empty list."""
    with _text(path, encoding) as file:
        return file.read(2**20).strip() in ("", "[]") and not file.read(1)


def json_rows(path: Path, encoding: str | None) -> Iterator[dict[str, Any]]:
    """The rows of a JSON file that `datasets` can read, as they stand there."""
    with _text(path, encoding) as file:
        for row in json.load(file) if _is_list(file) else _objects(file):
            yield row if isinstance(row, dict) else {"text": row}


def _objects(file: IO[str]) -> Iterator[Any]:
    """The values in a file: one in each line, or over several lines."""
    for line in filter(str.strip, file):
        try:
            yield json.loads(line)
        except ValueError:
            text, end = line.lstrip() + file.read().rstrip(), 0
            while end < len(text):
                value, end = json.JSONDecoder().raw_decode(text, end)
                yield value
                while end < len(text) and text[end].isspace():
                    end += 1


def why_broken(path: Path, encoding: str | None) -> str | None:
    """Which line of a file that could not be loaded is broken, and how; None if nothing is seen."""
    if suffix_of(path) not in (".json", ".jsonl", ".ndjson"):
        return None
    with _text(path, encoding) as file:
        return _broken_json(file, path)


def _broken_json(file: IO[str], path: Path) -> str | None:
    whole = suffix_of(path) == ".json"
    if whole and file.read(4096).lstrip()[:1] != "{":
        file.seek(0)
        try:
            rows = json.load(file)
        except ValueError as error:
            return f"{path} is no JSON: {error}"
        if not isinstance(rows, list):
            return f'{path}: it is no list of objects with named fields, such as [{{"text": ...}}]'
        wrong = next((number for number, row in enumerate(rows, start=1) if not isinstance(row, dict)), None)
        return None if wrong is None else f"{path}, row {wrong}: it is no object with named fields"
    file.seek(0)
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.rstrip())
        except ValueError as error:
            why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            return f"{path}, line {number}: no JSON: {why}"
        if not isinstance(row, dict):
            return f'{path}, line {number}: it is no object with named fields, such as {{"text": ...}}'
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            return f"{path}, line {number}: {error.object[error.start]!a} is half of a character"
    return None


def not_text(path: Path, encoding: str | None) -> str:
    """The message for a file that is in another encoding, with its first bad line."""
    if encoding is None and next(_lines(path), b"")[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return f"{path} is UTF-16 text: task.encoding=utf-16 reads it"
    for number, line in enumerate(_lines(path), start=1):
        try:
            line.decode(encoding or "utf-8")
        except UnicodeError as error:
            byte = f" (byte 0x{line[error.start]:02x})" if isinstance(error, UnicodeDecodeError) else ""
            other = "" if encoding else "; task.encoding=cp1252 or another names the one that it has"
            return f"{path}, line {number}: no {encoding or 'UTF-8'} text{byte}{other}"
    return f"{path} is no {encoding or 'UTF-8'} text"


def _lines(path: Path) -> Iterator[bytes]:
    with _open(path, "rb") as file:
        yield from file


def no_split(folder: Path, left: Path, name: str = "FILE") -> UserError:
    """What is said of a file that would be left out."""
    return UserError(
        f"{folder}: the name of {left.relative_to(folder)} tells no split, as those of other files do: name the "
        f"{name.lower()}s one by one, task.data={name} and task.test_data={name}"
    )
