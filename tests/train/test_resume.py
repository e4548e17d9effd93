"""A run may end at any moment, in any way: the same command finishes it, with the same weights to the last bit."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from safetensors.torch import load_file

from aurora_lora import files
from aurora_lora.train import recipe_files, train
from aurora_lora.train.publish import checkpoints, manifest_of
from aurora_lora.train.recipe import validate

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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 8, 24])  # within an epoch, and its last steps
def test_terminated(aurora: Aurora, whole: tuple[Path, Path, int], tmp_path: Path, step: int) -> None:
    """SIGTERM, as schedulers send it: the step is finished, and written down."""
    recipe, expected, _ = whole
    output = tmp_path / "run"
    (answer,) = aurora(order(recipe, output, terminate_in=step))
    assert answer["status"] == 143, answer["stderr"]
    assert answer["stderr"].splitlines()[-1] == "interrupted: the same command resumes where it was"
    assert "Traceback" not in answer["stderr"]
    assert (output / "checkpoints" / f"checkpoint-{step}" / "manifest.json").exists()
    (answer,) = aurora(order(recipe, output))
    assert answer["status"] == 0, answer["stderr"]
    assert weights(output) == weights(expected)
    assert scores(output)[0] == scores(expected)[0]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def garbage(path: Path) -> None:
    path.write_bytes(b"\x00\xff" * (path.stat().st_size // 2) + b"\x00" * (path.stat().st_size % 2))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.fixture(scope="module")
def killed(aurora: Aurora, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A recipe, the folder of its whole run, and that of one killed when there were two checkpoints at least."""
    folder = tmp_path_factory.mktemp("killed")
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe_files.dump(tiny.recipe(model)))
    (answer,) = aurora(order(recipe, folder / "whole"))
    assert answer["status"] == 0, answer["stderr"]
    for share in (0.7, 0.6, 0.5):  # the last operations come after the checkpoints are gone
        output = folder / f"run{share}"
        (killed,) = aurora(order(recipe, output, kill_at=int(answer["events"] * share)))
        assert killed["status"] == -9
        if len(list((output / "checkpoints").glob("checkpoint-*"))) > 1:
            return recipe, folder / "whole", output
    raise AssertionError("no kill left two checkpoints")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (flip_a_bit, "optimizer.pt"),
        (flip_a_bit, "trainer_state.json"),
        (cut, "adapter_model.safetensors"),
        (garbage, "manifest.json"),
    ],
)
def test_damaged_checkpoint_is_passed_over(
    aurora: Aurora, killed: tuple[Path, Path, Path], tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    """The run goes on from the one before, says so, and ends with the same weights."""
    recipe, expected, interrupted = killed
    output = tmp_path / "run"
    shutil.copytree(interrupted, output)
    *_, before, newest = sorted((output / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    damage(newest / name)
    (answer,) = aurora(order(recipe, output))
    assert answer["status"] == 0, answer["stderr"]
    assert f"{output / 'checkpoints'}: damaged: {newest.name}; the run goes on from {before.name}" in answer["stderr"]
    assert weights(output) == weights(expected)
    assert scores(output) == scores(expected)


@pytest.mark.slow
def test_no_whole_checkpoint_is_a_new_beginning(
    aurora: Aurora, killed: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    recipe, expected, interrupted = killed
    output = tmp_path / "run"
    shutil.copytree(interrupted, output)
    for checkpoint in (output / "checkpoints").glob("checkpoint-*"):
        flip_a_bit(checkpoint / "optimizer.pt")
    (answer,) = aurora(order(recipe, output))
    assert answer["status"] == 0, answer["stderr"]
    assert "; the run begins anew" in answer["stderr"]
    assert weights(output) == weights(expected)


def test_kept_checkpoints(model: Path, tmp_path: Path) -> None:
    """The best one, the last one and the one before."""
    training = {"epochs": 2, "batch_size": 8, "learning_rate": 2e-2, "threads": 1, "eval_every": 2}
    recipe = validate(tiny.recipe(model, training=training), "tiny")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path, make_callbacks=lambda: [tiny.Stop(13)])
    found = checkpoints(tmp_path / "checkpoints")
    manifest = manifest_of(found[12])
    assert manifest is not None
    assert {12, manifest["best"]} <= set(found)
    assert len(found) <= 3
    flip_a_bit(found[12] / "optimizer.pt")
    assert manifest_of(found[12]) is None


@pytest.mark.slow
def test_full_disk(aurora: Aurora, whole: tuple[Path, Path, int], tmp_path: Path) -> None:
    """Files that cannot grow further: one plain line, and the run goes on when there is room."""
    recipe, expected, events = whole
    output = tmp_path / "run"
    (answer,) = aurora(order(recipe, output, kill_at=events // 6))
    (answer,) = aurora(order(recipe, output, file_limit=15_000))
    assert answer["status"] == 2, answer["stderr"]
    assert answer["stderr"].splitlines()[-1].startswith("cannot write ")
    assert "Traceback" not in answer["stderr"]
    (answer,) = aurora(order(recipe, output))
    assert answer["status"] == 0, answer["stderr"]
    assert weights(output) == weights(expected)
