"""Files of 50 rows for each kind of own data, in the words that the tiny models know; no package of ours is needed."""

import csv
import json
import random
from pathlib import Path
from typing import Any

GOOD, BAD = ("good", "fine", "warm", "funny"), ("bad", "dull", "cold", "slow")
PLAIN = ("the", "a", "film", "plot", "was", "and", "very", "of", "scene", "actor")
ROWS = 50

OVERRIDES = {
    "classification": ["task.data=reviews.csv", "task.text=review", "task.label=stars"],
    "regression": ["task.data=ratings.jsonl"],
    "multi-label": ["task.data=topics.tsv", "task.label=[good, bad]"],
    "choices": ["task.data=questions.jsonl"],
    "images": ["task.data=pictures"],
}
"""What each kind's command names beside the model, from the folder of the files."""


def _texts() -> list[tuple[str, int]]:
    """Texts, and how many good words each has more than bad ones."""
    rng = random.Random(0)
    found: dict[str, int] = {}
    while len(found) < ROWS:
        judged = [rng.choice(GOOD + BAD) for _ in range(rng.choice((1, 3)))]
        words = [*rng.choices(PLAIN, k=5), *judged]
        found[" ".join(words)] = sum(1 if word in GOOD else -1 for word in judged)
    return list(found.items())


def _csv(path: Path, rows: list[dict[str, Any]], separator: str = ",") -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_texts(folder: Path) -> Path:
    """Write the files of texts; gives the folder."""
    texts = _texts()
    rows = [{"review": text, "stars": "positive" if score > 0 else "negative"} for text, score in texts]
    _csv(folder / "reviews.csv", rows)
    _jsonl(folder / "ratings.jsonl", [{"text": text, "label": score} for text, score in texts])
    topics = [
        {
            "text": text,
            **{
                name: int(any(word in text.split() for word in words)) for name, words in (("good", GOOD), ("bad", BAD))
            },
        }
        for text, _ in texts
    ]
    _csv(folder / "topics.tsv", topics, "\t")
    asked = [
        {"question": f"the {text}", "options": ["fine", "bad"], "answer": "fine" if n > 0 else "bad"}
        for text, n in texts
    ]
    _jsonl(folder / "questions.jsonl", asked)
    return folder


def write_images(folder: Path) -> Path:
    """Write a folder of images by class; gives it."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(ROWS):
        pixels = rng.integers(0, 120, (8, 8, 3), dtype=np.uint8)
        pixels[:, :, number % 3] += 100
        path = folder / "pictures" / ("red", "green", "blue")[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder
