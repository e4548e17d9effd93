"""Fixtures: a tiny model and a folder of suites."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

import tiny

from aurora_lora.training import yaml_text


@pytest.fixture(scope="session", autouse=True)
def _tiny_tasks() -> None:
    tiny.register()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def base(model: Path) -> dict[str, Any]:
    """A recipe that trains in about a second."""
    recipe = tiny.recipe(model)
    recipe["training"] = {**recipe["training"], "epochs": 1}  # type: ignore[dict-item]
    return recipe


@pytest.fixture
def recipes(tmp_path: Path, base: dict[str, Any]) -> Callable[..., Path]:
    """Write a suite `tiny` of two methods and two tasks; gives the folder of the suites."""

    def write(**changes: Any) -> Path:
        folder = tmp_path / "recipes" / "tiny" / "packaged"
        folder.mkdir(parents=True, exist_ok=True)
        methods = {
            "aurora": {"name": "aurora", "target_modules": ["query", "value"]},
            "lora": {"name": "lora", "r": 2, "target_modules": ["query", "value"]},
        }
        for name, method in methods.items():
            for task in ("sentiment", "rating"):
                recipe = {**base, "method": method, "task": {**base["task"], "name": f"tiny-{task}"}}
                (folder / f"{name}-{task}.yaml").write_text(yaml_text.dump(recipe))
        rows = [
            {"name": "LoRA", "recipe": "lora-{column}", "params": "0.3K", "quoted": True, "scores": {"sentiment": 80}},
            {"name": "AuroRA", "recipe": "aurora-{column}", "form": "static", "scores": {"sentiment": 90}},
            {"name": "AuroRA, calibrated", "recipe": "aurora-{column}", "form": "calibrated"},
        ]
        suite = {
            "title": "A tiny table",
            "seeds": [0, 1],
            "statistic": "median",
            "note": "Tiny data.",
            "columns": [
                {"name": "sentiment", "label": "Sentiment", "metric": "accuracy"},
                {"name": "rating", "label": "Rating", "metric": "pearson"},
            ],
            "groups": [{"name": "Tiny", "rows": rows}],
            **changes,
        }
        (folder / "suite.yaml").write_text(yaml_text.dump(suite))
        return tmp_path / "recipes"

    return write
