"""Writes the fixtures as copies of hub data sets: Parquet files with the hub's names, and a card that lists them."""

import json
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, Features, disable_progress_bars

FIXTURES = Path(__file__).parent / "fixtures"


def read(name: str) -> dict[str, Any]:
    """A fixture; `form` says what its form comes from."""
    value: dict[str, Any] = json.loads((FIXTURES / name).read_text(encoding="utf-8"))
    return value


def write(fixture: dict[str, Any], folder: Path) -> Path:
    """Write a fixture to `folder/owner/name`; gives that path."""
    disable_progress_bars()
    repo = folder / fixture["repo"]
    cards = []
    for config, content in fixture["configs"].items():
        files = []
        for split, rows in content["splits"].items():
            path = fixture["path"].format(config=config, split=split)
            (repo / path).parent.mkdir(parents=True, exist_ok=True)
            features = Features.from_dict(content["features"])
            Dataset.from_list(rows, features=features).to_parquet(repo / path)
            files.append({"split": split, "path": path})
        cards.append({"config_name": config, "data_files": files})
    if fixture.get("card", True):
        (repo / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': cards})}---\n", encoding="utf-8")
    return repo
