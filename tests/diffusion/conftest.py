"""Fixtures of the diffusion tests: a tiny pipeline, a subject, and a process that forks runs to be killed."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aurora_lora.train import recipe_files
from forks import Order, forked

pytest.importorskip("diffusers", reason="diffusers is not installed")

ZYGOTE = Path(__file__).parents[1] / "train" / "zygote.py"
IMPORTS = (*(f"aurora_lora.diffusion.{name}" for name in ("run", "finished_run")), "diffusers")


sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny() -> Any:
    import tiny_pipeline

    return tiny_pipeline


@pytest.fixture(scope="session")
def forks_of_aurora() -> Iterator[Callable[..., list[Order]]]:
    with forked(ZYGOTE, *IMPORTS) as ask:
        yield ask


@pytest.fixture(scope="session")
def model(forks_of_aurora: object, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline; made while the other process imports what it needs."""
    folder: Path = tiny.save_pipeline(tmp_path_factory.mktemp("model"))
    return folder


@pytest.fixture(scope="session")
def images(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tiny.save_images(tmp_path_factory.mktemp("subject"))
    return folder


@pytest.fixture(scope="session")
def aurora(forks_of_aurora: Callable[..., list[Order]], model: Path) -> Callable[..., list[Order]]:
    """`aurora(order, ...)` runs the command once for each order, all at the same time, in forked processes."""
    return forks_of_aurora


@pytest.fixture(scope="session")
def train(
    aurora: Callable[..., list[Order]], tiny: Any, model: Path, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., list[Order]]:
    """`train((folder, changes, strike), ...)`: tiny recipes with changes, at the same time."""

    def run(*wanted: tuple[Path, Order, Order]) -> list[Order]:
        orders = []
        for folder, changes, strike in wanted:
            recipe = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
            recipe.write_text(recipe_files.dump(tiny.recipe(model, images, **changes)))
            orders.append({"args": ["train", str(recipe), "--output", str(folder)], "folder": str(folder), **strike})
        return aurora(*orders)

    return run


@pytest.fixture(scope="session")
def clip_folder(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tiny.save_clip(tmp_path_factory.mktemp("clip"))
    return folder


@pytest.fixture(scope="session")
def dino_folder(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tiny.save_dino(tmp_path_factory.mktemp("dino"))
    return folder


@pytest.fixture(scope="session")
def runs(train: Callable[..., list[Order]], tmp_path_factory: pytest.TempPathFactory) -> Order:
    """Folders of finished runs, AuroRA and LoRA at a scaling other than 1, and what the first one printed."""
    from looking import WHOLE

    root = tmp_path_factory.mktemp("runs")
    lora = {"method": {"name": "lora", "r": 2, "lora_alpha": 6}, "training": {"threads": 1}}
    answers = train((root / "aurora", WHOLE, {}), (root / "lora", lora, {}))
    for answer in answers:
        assert answer["status"] == 0, answer["stderr"]
    return {"aurora": root / "aurora", "lora": root / "lora", "answer": answers[0]}
