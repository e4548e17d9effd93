"""Data of the user's own as tests write and load them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from aurora_lora.data.own.kinds import OWN
from aurora_lora.data.own.source import OwnData
from aurora_lora.data.task import SplitSizes

ALL = SplitSizes(None, None, None)
TEXT = {"text": ("text",), "label": ("label",)}
QUESTION = {"question": ("question",), "options": ("options",), "answer": ("answer",)}
REVIEWS = [{"review": f'a film, "number" {n}\nof {n + 1}', "stars": str(n % 3)} for n in range(12)]


def write_rows(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def write_csv(path: Path, separator: str = ",", encoding: str = "utf-8", end: str = "\n") -> None:
    """The reviews, as a CSV file."""
    lines = [separator.join(('"' + str(one).replace('"', '""') + '"') for one in row.values()) for row in REVIEWS]
    path.write_text(end.join([separator.join(REVIEWS[0]), *lines]) + end, encoding=encoding, newline="")


def load(
    kind: str,
    rows: list[dict[str, Any]] | str,
    columns: Any = TEXT,
    sizes: SplitSizes = ALL,
    seed: int = 0,
    **more: Any,
) -> Any:
    data = rows if isinstance(rows, str) else write_rows("rows.jsonl", rows)
    source = {
        name: write_rows(f"{name}.jsonl", more.pop(name)) for name in ("validation_data", "test_data") if name in more
    }
    return OWN[kind].load(OwnData(data, **source), columns, sizes, seed, **more)


def labelled(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": f"text {n}", "label": label} for n, label in enumerate(labels)]


def save_images(folder: Path, count: int = 30) -> None:
    for n in range(count):
        path = folder / ("red", "green", "blue")[n % 3] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(np.full((8, 8, 3), n, np.uint8)).save(path)
