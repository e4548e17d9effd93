"""`aurora predict` on a file of rows: each row again, with what the model says of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import files
from ..errors import ArgumentError, UserError
from ..tasks.own.source import as_files, open_file
from ..tasks.own.split import BadRow
from .merge_and_predict import Predictor


@dataclass(frozen=True)
class Written:
    """What was written: of how many rows of what, and how many of them were cut, to how many tokens."""

    name: str
    rows: int
    cut: int
    cut_at: int | None


def predict_file(
    predictor: Predictor,
    file: str,
    output: Path,
    columns: Sequence[str] = (),
    *,
    encoding: str | None = None,
    batch_size: int = 16,
    step: Callable[[int, int], None] = lambda done, of: None,
) -> Written:
    """Write a line of JSON for each row of a file: its columns, and the answer, `predicted_X` where X is one of them.

    Args:
        predictor: what answers.
        file: .csv, .tsv, .json, .jsonl or .parquet; a data set of the hub.
        output: .jsonl, which is replaced when the last row is answered.
        columns: the columns with the texts or images, or with the question and then the options, where they are not
            those that the run was trained on.
        encoding: of a text file; None is that of the data that the run was trained on.
        batch_size: rows of one forward pass.
        step: called with the rows that are answered and all of them.

    Raises:
        UserError: the file cannot be read, or a row cannot be answered: none is, then.
    """
    if Path(file).exists() and Path(file).resolve() == output.resolve():
        raise ArgumentError(f"`output`: {output} is the file that is read: choose another")
    kind = predictor.kind
    named = {**predictor.columns, **(kind.named(columns) if columns else {})}
    piece = open_file(file, encoding or predictor.encoding)
    rows, cut = as_files(piece.data), []

    def asked(number: int, row: Mapping[str, Any]) -> Any:
        try:
            return kind.asked(row, named)
        except KeyError as error:
            there = ", ".join(map(repr, rows.column_names))
            raise ArgumentError(f"{piece.name} has no column {error} (it has {there}): `columns` names it") from None
        except BadRow as error:
            raise UserError(f"{piece.name}, row {number}: {error}") from error

    for number, row in enumerate(rows, start=1):  # before hours of answers are in vain
        asked(number, row)
    with files.new_file(output) as partial, partial.open("w", encoding="utf-8") as out:
        for start in range(0, len(rows), batch_size):
            batch = [rows[at] for at in range(start, min(start + batch_size, len(rows)))]
            texts = [asked(number, row) for number, row in enumerate(batch, start=start + 1)]
            answers = zip(batch, predictor.answers(texts, batch_size), strict=True)
            for number, (row, answer) in enumerate(answers, start=start + 1):
                said = {
                    f"predicted_{name}" if name in row else name: value
                    for name, value in answer.items()
                    if name != "text"
                }
                shown = {name: _path(value, number) for name, value in row.items()}
                line = files.finite_or_none({**shown, **said})
                out.write(json.dumps(line, ensure_ascii=False, allow_nan=False, default=str) + "\n")
                cut += [answer["cut_at"]] if "cut_at" in answer else []
            step(start + len(batch), len(rows))
    return Written(piece.name, len(rows), len(cut), cut[0] if cut else None)


def _path(value: Any, number: int) -> Any:
    """What stands for an image in its line: its path, or the number of the row where it has none."""
    if isinstance(value, Mapping) and value.keys() == {"bytes", "path"}:
        return value["path"] or number
    return number if isinstance(value, bytes) else value
