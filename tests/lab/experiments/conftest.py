"""Fixtures: a tiny model and a folder of suites."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "train"))

import tiny

from aurora_lora.lab.experiments.paper import SUITES
from aurora_lora.lab.experiments.suite import Suite


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
def tiny_suite(base: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Suite]:
    """Make a suite of two methods and two tasks, known by its name (`tiny`) at scale packaged."""

    def make(name: str = "tiny", **changes: Any) -> Suite:
        values = {field: value for field, value in base.items() if field != "name"}
        methods = {
            "aurora": {"name": "aurora", "target_modules": ["query", "value"]},
            "lora": {"name": "lora", "r": 2, "target_modules": ["query", "value"]},
        }
        rows = (
            {"name": "LoRA", "recipe": "lora-{column}", "params": "0.3K", "quoted": True, "scores": {"sentiment": 80}},
            {"name": "AuroRA", "recipe": "aurora-{column}", "form": "static", "scores": {"sentiment": 90}},
            {"name": "AuroRA, calibrated", "recipe": "aurora-{column}", "form": "calibrated"},
        )
        fields = {
            "title": "A tiny table",
            "seeds": (0, 1),
            "statistic": "median",
            "note": "Tiny data.",
            "columns": (
                {"name": "sentiment", "label": "Sentiment", "metric": "accuracy"},
                {"name": "rating", "label": "Rating", "metric": "pearson"},
            ),
            "groups": ({"name": "Tiny", "rows": rows},),
            "recipes": {
                f"{short}-{task}": {
                    "values": {**values, "method": method, "task": {**base["task"], "name": f"tiny-{task}"}},
                    "words": (f"{short} on {task}.",),
                }
                for short, method in methods.items()
                for task in ("sentiment", "rating")
            },
            **changes,
        }
        suite = Suite.model_validate({"name": name, "scale": "packaged", **fields})
        monkeypatch.setitem(SUITES, name, {"packaged": suite})
        return suite

    return make
