"""Writes copies of the hub's image data sets from `fixtures/vision.json`, in the hub's own form."""

import io
from pathlib import Path
from typing import Any

import yaml
from datasets import ClassLabel, Dataset, Features, Image, Value, disable_progress_bars
from PIL import Image as Pillow

MODES = ("RGB", "L", "RGBA")
"""Photographs are not all in colour."""


def names(repo: dict[str, Any]) -> list[str]:
    """The class names of a repository: its own, or made up, in alphabetical order."""
    classes = repo["classes"]
    return classes if isinstance(classes, list) else [f"class-{index:03d}" for index in range(classes)]


def colour(row: int) -> int:
    """The grey of image `row`, which tells it from the others."""
    return 4 * row


def picture(row: int, kind: str) -> bytes:
    """The file of image `row`, 8 by 6 pixels."""
    made = Pillow.new("L", (8, 6), colour(row)).convert("RGB").convert("L" if kind == "JPEG" and row % 2 else "RGB")
    file = io.BytesIO()
    (made if kind == "JPEG" else made.convert(MODES[row % 3])).save(file, kind, quality=95)
    return file.getvalue()


def rows(repo: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """`count` rows, every class in turn."""
    found = []
    for row in range(count):
        more = {
            name: row % len(kind) if isinstance(kind, list) else f"{name} {row}" if kind == "string" else row
            for name, kind in repo["more"].items()
        }
        image = {"bytes": picture(row, repo["format"]), "path": None}
        found.append({"image": image, "label": row % len(names(repo)), **more})
    return found


def write(repo: dict[str, Any], folder: Path) -> Path:
    """Write a repository to `folder/owner/name`; gives that path."""
    disable_progress_bars()
    target = folder / repo["repo"]
    if "{label}" in repo["path"]:
        for row in range(repo["splits"]["train"]):
            label = names(repo)[row % len(names(repo))]
            path = target / repo["path"].format(label=label, row=row)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(row, repo["format"]))
        return target
    more = {
        name: ClassLabel(names=kind) if isinstance(kind, list) else Value(kind) for name, kind in repo["more"].items()
    }
    features = Features({"image": Image(), "label": ClassLabel(names=names(repo)), **more})
    files = []
    for split, count in repo["splits"].items():
        path = repo["path"].format(split=split)
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        made = repo.get("rows", rows)(repo, count)
        Dataset.from_list(made, features=features).to_parquet(target / path)
        files.append({"split": split, "path": path})
    if repo["card"]:
        card = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": files}]})
        (target / "README.md").write_text(f"---\n{card}---\n", encoding="utf-8")
    return target
