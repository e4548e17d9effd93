"""`aurora predict` on a file of rows: each row again, with what the model says of it."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from .. import files
from ..data.list_types import item_type
from ..data.own.files import FORMATS
from ..data.own.source import open_file
from ..data.own.split import BadRow, bad_row
from ..data.vision import as_files
from ..errors import ArgumentError, UserError, check_count
from .defaults import BATCH_SIZE
from .predicting import Predictor
from .publish import hold

LINES = (".jsonl", ".ndjson")
"""What a file with a line of JSON for each row may be called, of the suffixes that tell a format."""


@dataclass(frozen=True)
class Written:
    """What was written: of how many rows of what, and how many of them were cut, to how many tokens."""

    name: str
    rows: int
    resumed: int
    """Rows that were answered before the command was interrupted."""
    cut: int
    cut_at: int | None


def check_answers_file(file: Path | str, output: Path, overwrite: bool = False) -> None:
    """Raise an ArgumentError where the answers to the rows of a file cannot be written to `output`."""
    if Path(file).exists() and Path(file).resolve() == output.resolve():
        raise ArgumentError(f"`output`: {output} is the file that is read: choose another")
    if output.is_dir():
        raise ArgumentError(f"`output`: {output} is a folder: name a file, such as {output / 'answers.jsonl'}")
    if output.suffix.lower() in FORMATS.keys() - set(LINES):
        raise ArgumentError(
            f"`output`: {output}: answers are written as lines of JSON: name it {output.with_suffix(LINES[0])}"
        )
    if output.exists() and not overwrite:
        raise ArgumentError(f"{output} is there already: choose another file, or `overwrite` replaces it")


def predict_file(
    predictor: Predictor,
    file: Path | str,
    output: Path | str,
    columns: Sequence[str] = (),
    *,
    encoding: str | None = None,
    split: str | None = None,
    batch_size: int = BATCH_SIZE,
    overwrite: bool = False,
    step: Callable[[int, int], None] = lambda done, of: None,
) -> Written:
    """Write a line of JSON for each row of a file: its columns, and the answer, `predicted_X` where X is one of them,
    and `predicted_X_2` where that is one, too.

    Interrupted, the same call goes on after the batches that were answered: they are kept in a hidden file beside the
    output.

    Args:
        predictor: what answers.
        file: what `task.data` may be: .csv, .tsv, .json, .jsonl, .parquet or .arrow, a folder, a data set of the hub.
        output: .jsonl, which has its place when the last row is answered; see `check_answers_file`.
        columns: the columns with the texts or images, or with the question and then the options, where they are not
            those that the run was trained on.
        encoding: of a text file; None is that of the data that the run was trained on.
        split: of a folder or a data set of the hub; None is `train`, or the only one.
        batch_size: rows of one forward pass.
        overwrite: replace a file that is there.
        step: called with the rows that are answered and all of them.

    Raises:
        UserError: the file cannot be read, or a row cannot be answered: none is, then; or `output` cannot be written.
    """
    file, output = str(file), Path(output)
    check_answers_file(file, output, overwrite)
    check_count("batch_size", batch_size)
    kind = predictor.kind
    named = {**predictor.columns, **(kind.named(columns) if columns else {})}
    piece = open_file(file, encoding, predictor.data, split)
    rows, cut = as_files(piece.data), []

    def asked(number: int, row: Mapping[str, Any], is_first: bool = False) -> Any:
        try:
            found = kind.asked(kind.located(row, named, piece.folder), named)
            if is_first:
                kind.check_asked(found, predictor.processor)
            return found
        except KeyError as error:
            there = ", ".join(map(repr, rows.column_names))
            raise ArgumentError(f"{piece.name} has no column {error} (it has {there}): `columns` names it") from None
        except BadRow as error:
            raise bad_row(piece, number, error) from error

    of = hashlib.sha256(repr((_model(predictor), sorted(named.items()), batch_size)).encode())
    try:
        for number, row in enumerate(rows, start=1):  # before hours of answers are in vain
            asked(number, row, is_first=True)
            of.update(repr(row).encode("utf-8", "surrogatepass"))
    except UnicodeDecodeError as error:
        raise UserError(f"{piece.name} has text that is no UTF-8: {error}") from error
    with _gathered(output, of.hexdigest(), batch_size) as (out, earlier):
        cut += [line[cut_at] for line in earlier if (cut_at := _column("cut_at", rows.column_names)) in line]
        for start in range(len(earlier), len(rows), batch_size):
            batch = [rows[at] for at in range(start, min(start + batch_size, len(rows)))]
            texts = [asked(number, row) for number, row in enumerate(batch, start=start + 1)]
            answers = zip(batch, predictor.answers_to(texts, batch_size), strict=True)
            for number, (row, answer) in enumerate(answers, start=start + 1):
                said = {_column(name, row): value for name, value in answer.items() if name != "text"}
                shown = {name: _shown(value, rows.features[name], number) for name, value in row.items()}
                line = files.finite_or_none({**shown, **said})
                out.write(json.dumps(line, ensure_ascii=False, allow_nan=False, default=str) + "\n")
                cut += [answer["cut_at"]] if "cut_at" in answer else []
            out.flush()
            step(start + len(batch), len(rows))
    return Written(piece.name, len(rows), len(earlier), len(cut), cut[0] if cut else None)


def _column(name: str, there: Collection[str]) -> str:
    """What a part of the answer is called beside the columns of its row."""
    names = itertools.chain((name, f"predicted_{name}"), (f"predicted_{name}_{at}" for at in itertools.count(2)))
    return next(free for free in names if free not in there)


def _model(predictor: Predictor) -> tuple[Any, ...]:
    """What tells whether the same model answers: its form and dtype, and its files by size and time of writing."""
    there = sorted(path for path in predictor.folder.rglob("*") if path.suffix in (".safetensors", ".json"))
    states = [(str(path), path.stat()) for path in there]
    return predictor.form_name, predictor.dtype, [(path, state.st_size, state.st_mtime_ns) for path, state in states]


@contextmanager
def _gathered(output: Path, of: str, batch_size: int) -> Iterator[tuple[TextIO, list[dict[str, Any]]]]:
    """A file for lines that becomes `output` when the block ends without an error, and else is kept for the next time.

    Args:
        output: its name in the end.
        of: what the lines are of; those of something else are not gone on with.
        batch_size: lines that are written together: some of them alone are not kept.

    Yields:
        The file, and the lines that are in it.

    Raises:
        UserError: it cannot be written.
        RunLockedError: another process writes it.
    """
    with files.plain_write_errors(output):
        output = output.resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = output.with_name(f".{output.name}{files.PARTIAL}")
        lock = partial.with_name(f"{partial.name}.lock")
        head = json.dumps({"answers_of": of}) + "\n"
        with hold(lock, f"{output}: another aurora predict is writing it"):
            try:
                with (
                    partial.open("a", encoding="utf-8", newline="") as out,
                    # what a full disk has cut off may end within a character
                    partial.open(encoding="utf-8", errors="replace", newline="") as kept,
                ):
                    earlier = _whole_batches(kept, batch_size) if kept.readline() == head else None
                    if earlier is None:
                        out.truncate(0)
                        out.write(head)
                    else:  # what is kept is not written again: it cannot get lost
                        out.truncate(len("".join((head, *earlier)).encode()))
                    earlier = earlier or []
                    yield out, [json.loads(line) for line in earlier]
                with files.new_file(output) as whole, partial.open("rb") as lines, whole.open("wb") as written:
                    lines.readline()
                    shutil.copyfileobj(lines, written)
                partial.unlink()
            finally:
                if partial.exists() and partial.stat().st_size <= len(head):  # nothing was answered
                    partial.unlink()
                lock.unlink(missing_ok=True)


def _whole_batches(lines: TextIO, batch_size: int) -> list[str]:
    """The lines but for those of a batch that was cut off."""
    found = [line for line in lines if line.endswith("\n")]
    return found[: len(found) // batch_size * batch_size]


def _shown(value: Any, feature: Any, number: int) -> Any:
    """What stands in a line for a class, also in a list or a field of an object: its name; and for an image: its path,
    or the row's number if it has none.
    """
    if isinstance(value, Mapping) and value.keys() == {"bytes", "path"}:
        return value["path"] or number
    if isinstance(value, Mapping) and isinstance(feature, Mapping):
        return {name: _shown(one, feature[name], number) for name, one in value.items()}
    if isinstance(value, list):
        return [_shown(one, item_type(feature), number) for one in value]
    if isinstance(value, int) and hasattr(feature, "int2str"):
        return feature.int2str(value) if value >= 0 else None
    return number if isinstance(value, bytes) else value
