"""`aurora predict` on a file of rows: each row again, with what the model says of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .. import files
from ..errors import ArgumentError, UserError
from ..tasks.own.source import OwnData, open_data
from ..tasks.own.split import BadRow
from .merge_and_predict import Predictor


def predict_file(
    predictor: Predictor,
    file: str,
    output: Path,
    columns: Sequence[str] = (),
    *,
    batch_size: int = 16,
    step: Callable[[int, int], None] = lambda done, of: None,
) -> int:
    """Write a line of JSON for each row of a file: its columns, and the answer, `predicted_X` where X is one of them.

    Args:
        predictor: what answers.
        file: .csv, .tsv, .json, .jsonl or .parquet; a data set of the hub.
        output: .jsonl, which is replaced when the last row is answered.
        columns: the columns with the texts or images, where they are not those that the run was trained on.
        batch_size: rows of one forward pass.
        step: called with the rows that are answered and all of them.

    Returns:
        How many rows.

    Raises:
        UserError: the file cannot be read, or a row cannot be answered.
    """
    kind = predictor.kind
    named: Mapping[str, Sequence[str]] = {kind.inputs: columns} if columns else predictor.columns
    piece = open_data(OwnData(file))["train"]
    rows = piece.data
    with files.new_file(output) as partial, partial.open("w", encoding="utf-8") as out:
        for start in range(0, len(rows), batch_size):
            batch = [rows[number] for number in range(start, min(start + batch_size, len(rows)))]
            asked = []
            for number, row in enumerate(batch, start=start + 1):
                try:
                    asked.append(kind.asked(row, named))
                except KeyError as error:
                    there = ", ".join(map(repr, rows.column_names))
                    raise ArgumentError(
                        f"{piece.name} has no column {error} (it has {there}): `columns` names it"
                    ) from None
                except BadRow as error:
                    raise UserError(f"{piece.name}, row {number}: {error}") from error
            for row, answer in zip(batch, predictor.answers(asked, batch_size), strict=True):
                said = {
                    f"predicted_{name}" if name in row else name: value
                    for name, value in answer.items()
                    if name != "text"
                }
                out.write(json.dumps({**row, **said}, ensure_ascii=False, default=str) + "\n")
            step(start + len(batch), len(rows))
    return len(rows)
