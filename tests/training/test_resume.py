"""A run may end at any moment, in any way: the same command finishes it, with the same weights to the last bit."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from aurora_lora import files

REFERENCE = {"method": "linear-probe"}
Aurora = Callable[..., list[dict[str, Any]]]


def order(recipe: Path, output: Path, **more: Any) -> dict[str, Any]:
    return {"args": ["train", str(recipe), "--output", str(output)], "folder": str(output), **more}


def weights(folder: Path) -> dict[str, bytes]:
    """Everything that was trained, adapter, head and reference, as bytes."""
    return {
        f"{path.relative_to(folder)}:{name}": value.numpy().tobytes()
        for path in sorted(folder.rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def scores(folder: Path) -> tuple[Any, Any]:
    result = json.loads((folder / "result.json").read_text())
    return result["metric"], result["epochs"]


@pytest.fixture
def whole(aurora: Aurora, write_recipe: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path, int]:
    """A recipe with a reference, the folder of its uninterrupted run, and the writing operations that this took."""
    recipe, output = write_recipe(reference=REFERENCE), tmp_path / "whole"
    (answer,) = aurora(order(recipe, output))
    assert answer["status"] == 0, answer["stderr"]
    return recipe, output, answer["events"]


def test_killed_at_20_moments(aurora: Aurora, whole: tuple[Path, Path, int], tmp_path: Path) -> None:
    """kill -9: ten times by the clock, ten times just before a write, rename or deletion of a file of the run."""
    recipe, expected, events = whole
    rng = random.Random(0)
    kills = [{"kill_after": rng.uniform(0.05, 1.2)} for _ in range(10)]
    # The first operations make the folder; most of the others write, publish and delete checkpoints.
    kills += [{"kill_at": at} for at in sorted(rng.sample(range(1, events + 1), 10))]
    rng.shuffle(kills)
    done, runs = 0, 0
    while done < 20:
        output = tmp_path / f"run{runs}"
        for _ in range(4):  # killed up to four times on its way, then left to finish
            if kills:
                (answer,) = aurora(order(recipe, output, **kills.pop()))
                done += answer["status"] == -9
        (answer,) = aurora(order(recipe, output))
        assert answer["status"] == 0, answer["stderr"]
        assert weights(output) == weights(expected)
        assert scores(output) == scores(expected)
        assert scores(output / "reference") == scores(expected / "reference")
        for ending in (files.PARTIAL, files.TRASH):
            assert not list(output.rglob(f"*{ending}"))
        runs += 1
        if not kills and done < 20:  # some came after the run's end: strike again
            kills = [{"kill_at": rng.randint(1, events // 2)} for _ in range(20 - done)]
    assert done >= 20


def test_killed_at_each_stage_of_a_checkpoint(
    aurora: Aurora, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Every third writing operation: making, filling and publishing a checkpoint, deleting the one before."""
    recipe = write_recipe(training={"epochs": 2, "batch_size": 16, "learning_rate": 2e-2, "threads": 1})
    aurora(order(recipe, tmp_path / "whole"))
    output = tmp_path / "run"
    for at in range(2, 40, 3):
        (answer,) = aurora(order(recipe, output, kill_at=at))
        if answer["status"] == 0:
            break
        assert answer["status"] == -9
    (answer,) = aurora(order(recipe, output))
    assert answer["status"] == 0, answer["stderr"]
    assert weights(output) == weights(tmp_path / "whole")


def test_interrupted_with_ctrl_c(aurora: Aurora, whole: tuple[Path, Path, int], tmp_path: Path) -> None:
    recipe, expected, events = whole
    output = tmp_path / "run"
    for at in (events // 3, events // 4):
        (answer,) = aurora(order(recipe, output, interrupt_at=at))
        assert answer["status"] == 130
        assert answer["stderr"].splitlines()[-1] == "interrupted: the same command goes on where it was"
        assert "Traceback" not in answer["stderr"]
    (answer,) = aurora(order(recipe, output))
    assert answer["status"] == 0
    assert weights(output) == weights(expected)


def test_time_adds_up(aurora: Aurora, whole: tuple[Path, Path, int], tmp_path: Path) -> None:
    """The seconds before the kill count, those of steps that had to be done again do not."""
    recipe, _, events = whole
    output = tmp_path / "run"
    (answer,) = aurora(order(recipe, output, kill_at=events // 3))
    assert answer["status"] == -9
    (checkpoint,) = sorted((output / "checkpoints").glob("checkpoint-*"))[-1:]
    before = json.loads((checkpoint / "run_state.json").read_text())["train_s"]
    aurora(order(recipe, output))
    after = json.loads((output / "result.json").read_text())["time"]["train_s"]
    assert 0 < before < after


def test_damaged_checkpoint_is_passed_over(aurora: Aurora, whole: tuple[Path, Path, int], tmp_path: Path) -> None:
    recipe, expected, events = whole
    output = tmp_path / "run"
    (answer,) = aurora(order(recipe, output, kill_at=events // 3))
    assert answer["status"] == -9
    for checkpoint in (output / "checkpoints").glob("checkpoint-*"):
        weights_file = checkpoint / "adapter_model.safetensors"
        weights_file.write_bytes(weights_file.read_bytes()[:100])
    (answer,) = aurora(order(recipe, output))
    assert answer["status"] == 0, answer["stderr"]
    assert weights(output) == weights(expected)


@pytest.mark.parametrize("limit", [4_000, 15_000])  # between the sizes of a checkpoint's files: PEFT's, then PyTorch's
def test_full_disk(aurora: Aurora, whole: tuple[Path, Path, int], tmp_path: Path, limit: int) -> None:
    """Files that cannot grow further: one plain line, and what was there is still whole."""
    recipe, expected, events = whole
    output = tmp_path / "run"
    for strike in ({"kill_at": events // 3}, {"file_limit": limit}):
        (answer,) = aurora(order(recipe, output, **strike))
        found = sorted((output / "checkpoints").glob("checkpoint-*"))
        if "kill_at" in strike:
            earlier = found
    assert answer["status"] == 2, answer["stderr"]
    assert answer["stderr"].splitlines()[-1].startswith("cannot write ")
    assert "Traceback" not in answer["stderr"]
    assert found == earlier
    (answer,) = aurora(order(recipe, output))
    assert answer["status"] == 0, answer["stderr"]
    assert weights(output) == weights(expected)


@pytest.mark.parametrize("changes", [{"eval_every": 5}, {"checkpoint_every": 3}, {"gradient_accumulation_steps": 2}])
def test_other_checkpoint_rhythms(
    aurora: Aurora, write_recipe: Callable[..., Path], tmp_path: Path, changes: dict[str, int]
) -> None:
    training = {"epochs": 2, "batch_size": 8, "learning_rate": 2e-2, "threads": 1, **changes}
    recipe, output = write_recipe(training=training), tmp_path / "run"
    (answer,) = aurora(order(recipe, tmp_path / "whole"))
    assert answer["status"] == 0, answer["stderr"]
    for share in (0.6, 0.2):
        (killed,) = aurora(order(recipe, output, kill_at=int(answer["events"] * share)))
        assert killed["status"] == -9
    (answer,) = aurora(order(recipe, output))
    assert answer["status"] == 0, answer["stderr"]
    assert weights(output) == weights(tmp_path / "whole")
    assert scores(output)[0] == scores(tmp_path / "whole")[0]
