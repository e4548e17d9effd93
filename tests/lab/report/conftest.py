"""Results of runs with known scores."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aurora_lora.lab.report.runs import Section, load_sections

Result = dict[str, Any]


def make(method: str, rate: float, seed: int, params: int, scores: dict[str, float], **options: Any) -> Result:
    """A result; its scores rise with the seed, and its validation score falls with the learning rate."""
    deployed = "calibrated" if "calibrated" in scores else "merged"
    epochs = [
        {"epoch": float(e), "step": e, "train_loss": 1.0 / e + seed / 10, "validation": {"accuracy": 0.6 + 0.05 * e}}
        for e in (1, 2, 3)
    ]
    selected_by = {"split": "validation", "form": deployed, "name": "accuracy", "epoch": 2, "value": 0.7 - rate}
    return {
        "schema": 1,
        "recipe": {
            "model": "m",
            "task": {"name": "movie-sentiment"},
            "method": {"name": method, **options},
            "training": {"learning_rate": rate},
            "seed": seed,
            "name": "n",
        },
        "method": method,
        "model": "<m>",
        "task": "t",
        "seed": seed,
        "metric": {
            "name": "accuracy",
            "split": "test",
            "examples": {"test": 100},
            "by_form": {form: {"accuracy": value + seed / 100} for form, value in scores.items()},
            "selected_by": selected_by,
        },
        "params": {"adapter": params, "head": 2, "total": 9000},
        "time": {"train_s": 10.0 + seed, "samples_per_s": 5.0},
        "memory": {"peak_mb": 100.0 + seed},
        "epochs": epochs,
        "versions": {"python": "3.11", "datasets": None},
        "git_commit": "abc",
        "model_commit": None,
        "device": "cpu",
        "processes": 1,
        "status": "finished",
        "adapter_sha256": {},
    }


@pytest.fixture
def make_result() -> Callable[..., Result]:
    return make


@pytest.fixture
def results() -> list[Result]:
    """LoRA at two learning rates and AuroRA, three seeds each, the last seed first."""
    made = []
    for seed in (2, 1, 0):
        made.append(make("lora", 1e-3, seed, 5000, {"merged": 0.8}))
        made.append(make("lora", 2e-3, seed, 5000, {"merged": 0.7}))
        made.append(make("aurora", 1e-3, seed, 1250, {"dynamic": 0.82, "static": 0.5, "calibrated": 0.81}))
    return made


@pytest.fixture
def load(tmp_path: Path) -> Callable[[list[Result]], Section]:
    """Write results, each into a folder of its own, in their order, and load them as one section."""

    def write(results: list[Result]) -> Section:
        top = tmp_path / f"runs{len(list(tmp_path.glob('runs*')))}"
        for place, one in enumerate(results):
            folder = top / f"{place:02d}"
            folder.mkdir(parents=True)
            (folder / "result.json").write_text(json.dumps(one))
        (section,) = load_sections([top])
        return section

    return write


@pytest.fixture
def runs(results: list[Result], load: Callable[[list[Result]], Section], tmp_path: Path) -> Path:
    """The folder with the results on disk."""
    load(results)
    return tmp_path / "runs0"
