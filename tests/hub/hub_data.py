"""The paper's data sets as repositories of the stand-in hub: the fixtures of `tests/data`, their rows repeated."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

import hub_copy
import image_copy

TEXTS = (
    "glue",
    "commonsense_170k",
    "boolq",
    "piqa",
    "social_i_qa",
    "hellaswag",
    "winogrande",
    "ai2_arc",
    "openbookqa",
)
CONVERTED = "@refs%2Fconvert%2Fparquet"
"""Of a repository whose main branch is a script: its files are on another one."""
SUBJECTS = ("dog", "bear_plushie")


def rows_of(name: str, split: str, rows: list[Any]) -> list[Any]:
    """The rows of a fixture as the hub has them: more of the first one, another number for each fixture."""
    times = 8 if split == "train" or name == "glue" else 1
    return [*rows[:1] * (TEXTS.index(name) + 1), *rows * times]


def write(root: Path) -> None:
    """Write all of them to `root/datasets`."""
    folder = root / "datasets"
    for name in TEXTS:
        _write_texts(name, folder)
    for repo in hub_copy.read("vision.json")["repos"]:
        splits = {split: count if "{label}" in repo["path"] else 24 for split, count in repo["splits"].items()}
        image_copy.write({**repo, "splits": splits, "rows": _dark_and_bright}, folder)
    _write_subjects(folder)


def _write_texts(name: str, folder: Path) -> None:
    fixture = hub_copy.read(f"{name}.json")
    configs = {
        config: {**content, "splits": {split: rows_of(name, split, rows) for split, rows in content["splits"].items()}}
        for config, content in fixture["configs"].items()
    }
    if fixture.get("card", True):
        hub_copy.write({**fixture, "configs": configs}, folder)
        return
    owner, name = fixture["repo"].split("/")
    (folder / fixture["repo"]).mkdir(parents=True)
    (folder / fixture["repo"] / f"{name}.py").write_text("raise RuntimeError('scripts are not run')\n")
    hub_copy.write({**fixture, "repo": f"{owner}/{name}{CONVERTED}", "configs": configs}, folder)


def _dark_and_bright(repo: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Images of the first two classes alone, the second one bright: there is something to be learned in a few steps."""
    rows = image_copy.rows(repo, count)
    for number, row in enumerate(rows):
        row["label"] = number % 2
        row["image"] = {"bytes": image_copy.picture(60 * row["label"], repo["format"]), "path": None}
    return rows


def _write_subjects(folder: Path) -> None:
    """`google/dreambooth`, a configuration for each subject, and `diffusers/dog-example`, a folder of images."""
    configs = []
    for subject in SUBJECTS:
        for row in range(4):
            picture(folder / "google/dreambooth/dataset" / subject / f"0{row}.jpg", row)
        files = [{"split": "train", "path": f"dataset/{subject}/*.jpg"}]
        configs.append({"config_name": subject, "data_files": files})
    (folder / "google/dreambooth/README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    for row in range(5):
        picture(folder / "diffusers/dog-example" / f"alvan-nee-{row}.jpeg", row)


def picture(path: Path, row: int) -> None:
    """A bright square on a dark ground, wider than high."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Image.new("RGB", (28, 20), (30, 30, 60))
    made.paste((230, 180, 40), (6 + row, 6, 16 + row, 14))
    made.save(path, quality=95)
