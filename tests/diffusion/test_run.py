"""Whole runs on a tiny pipeline: what they write, that they learn and survive a kill, what can be set."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from looking import WHOLE, contents, pixels

from aurora_lora import files
from aurora_lora.diffusion import pipeline as grid
from aurora_lora.diffusion import run
from aurora_lora.diffusion.pipeline import load_diffusion
from aurora_lora.diffusion.recipe import SubjectRecipe
from aurora_lora.train.finished_run import read_result
from aurora_lora.train.recipe import validate_as

Train = Callable[..., list[dict[str, Any]]]


def test_what_a_run_writes_and_prints(runs: dict[str, Any]) -> None:
    folder, answer = runs["aurora"], runs["answer"]
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {
        *("recipe.yaml", "result.json", "adapter", "lora", "images", "grid.png", "forms.png"),
    }
    result = read_result(folder)
    assert result["status"] == "finished"
    assert set(result["metric"]["by_form"]) == {"dynamic", "static", "calibrated"}
    assert [entry["step"] for entry in result["epochs"]] == [0, 2, 4]
    assert result["metric"]["examples"] == {"train": 3}
    assert result["params"]["head"] == 0
    assert 0 < result["params"]["adapter"] < result["params"]["total"] / 20
    assert "calibrated merge, deployed" in answer["stdout"]
    assert str(folder / "grid.png") in answer["stdout"]
    assert "aurora: step 2 of 4, noise error" in answer["stderr"]


def test_the_grid_has_a_row_for_each_prompt_and_a_column_for_each_step(runs: dict[str, Any], tiny: Any) -> None:
    folder = runs["aurora"]
    for path, columns in (
        (folder / "grid.png", ["step-000000", "step-000002", "step-000004"]),
        (folder / "forms.png", ["form-dynamic", "form-static", "form-calibrated"]),
    ):
        sheet = pixels(path)
        wide, high = grid.LABEL + grid.GAP, grid.HEAD
        assert sheet.shape[1::-1] == (wide + 3 * (grid.SIDE + grid.GAP), high + 2 * (grid.SIDE + grid.GAP))
        enlarged = grid.SIDE // tiny.SIDE
        for row in range(2):
            for column, name in enumerate(columns):
                top = grid.HEAD + row * (grid.SIDE + grid.GAP)
                left = grid.LABEL + grid.GAP + column * (grid.SIDE + grid.GAP)
                cell = sheet[top : top + grid.SIDE, left : left + grid.SIDE]
                expected = pixels(folder / "images" / name / f"{row:02d}-0.png")
                np.testing.assert_array_equal(cell, expected.repeat(enlarged, 0).repeat(enlarged, 1))
        label = sheet[grid.HEAD :, : grid.LABEL]
        assert (label < 128).any()
        assert (sheet[: grid.HEAD, grid.LABEL :] < 128).any()


def test_the_loss_falls(train: Train, tmp_path: Path) -> None:
    changes = {
        "training": {
            "steps": 30,
            "gradient_accumulation_steps": 1,
            "batch_size": 4,
            "learning_rate": 5e-2,
            "threads": 1,
        },
        "validation": {"prompts": [], "every": 1000, "noise_samples": 24},
        "method": {"name": "aurora", "r": 4, "alpha": 16},
    }
    (answer,) = train((tmp_path / "run", changes, {}))
    assert answer["status"] == 0, answer["stderr"]
    result = read_result(tmp_path / "run")
    before, after = (entry["validation"]["noise_error"] for entry in result["epochs"])
    assert after < 0.99 * before, (before, after)
    # the dynamic form is what was trained; calibration keeps most of it
    forms = {form: scores["noise_error"] for form, scores in result["metric"]["by_form"].items()}
    assert forms["dynamic"] == pytest.approx(after)
    assert forms["calibrated"] < before


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_same_weights_and_images(
    train: Train, runs: dict[str, Any], tmp_path: Path
) -> None:
    """kill -9 just before a write, rename or deletion: among the validations, checkpoints, at the end."""
    expected, events = contents(runs["aurora"]), runs["answer"]["events"]
    folder = tmp_path / "run"
    for at in (events // 9, events // 3, events // 4, events // 5):  # counted from where it goes on
        (answer,) = train((folder, WHOLE, {"kill_at": at}))
        assert answer["status"] == -9
        if at == events // 9:  # as after an end whose last checkpoint was lost
            earlier = folder / "images" / "form-dynamic" / "00-0.png"
            earlier.parent.mkdir(parents=True)
            earlier.write_bytes(b"of other weights")
    (answer,) = train((folder, WHOLE, {}))
    assert answer["status"] == 0, answer["stderr"]
    found = contents(folder)
    assert set(found) == set(expected)
    assert [name for name in found if found[name] != expected[name]] == []
    theirs, ours = read_result(runs["aurora"]), read_result(folder)
    assert (ours["metric"], ours["epochs"]) == (theirs["metric"], theirs["epochs"])
    assert not [path for path in folder.rglob("*") if path.suffix in (files.PARTIAL, files.TRASH)]


def test_a_finished_run_is_shown_again(train: Train, runs: dict[str, Any]) -> None:
    (answer,) = train((runs["aurora"], WHOLE, {}))
    assert answer["status"] == 0
    assert "finished: nothing to train" in answer["stderr"]
    assert "calibrated merge, deployed" in answer["stdout"]
    (answer,) = train((runs["aurora"], {**WHOLE, "seed": 1}, {}))
    assert answer["status"] == 2
    assert "they differ in seed (there 0, here 1)" in answer["stderr"]


def test_the_calibration_has_every_prompt_and_the_recipes_ridge(
    tiny: Any, model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {
        "training": {"steps": 1, "gradient_accumulation_steps": 1, "threads": 1},
        "validation": {"inference_steps": 1},
        "calibration": {"ridge": 0.25},
    }
    recipe = validate_as(SubjectRecipe, tiny.recipe(model, images, **changes), "tiny")
    seen: list[torch.Tensor] = []

    def calibrate(model: Any, batches: Any, own: Callable[..., Any] = run.calibrate, **options: Any) -> Any:
        assert options == {"ridge": 0.25}
        seen.extend(row for batch in batches for row in batch["encoder_hidden_states"])
        return own(model, batches, **options)

    monkeypatch.setattr(run, "calibrate", calibrate)
    run.train_subject(recipe, tmp_path / "run")
    diffusion = load_diffusion(recipe, run.needed_prompts(recipe), torch.device("cpu"))
    prompts = [diffusion.prompts[recipe.task.fill(prompt)] for prompt in recipe.validation_prompts]
    counts = [sum(row.equal(one.hidden[0]) for row in seen) for one in (*prompts, diffusion.unprompted)]
    assert counts == [4, 2, 2]  # the first one is the prompt of the task, too


def test_scorers_are_loaded_before_anything_is_trained(
    train: Train, clip_folder: Path, dino_folder: Path, tmp_path: Path
) -> None:
    """CLIP can be had, DINO has its weights as a pickle alone; the model itself is not even looked for."""
    dino = Path(shutil.copytree(dino_folder, tmp_path / "dino"))
    (dino / "model.safetensors").rename(dino / "pytorch_model.bin")
    scores = {"prompts": ["a [V] dog"], "clip": str(clip_folder), "dino": str(dino)}
    (answer,) = train((tmp_path / "run", {"model": str(tmp_path / "none"), "scores": scores}, {}))
    assert answer["status"] == 2
    assert answer["stderr"].startswith("scores.dino: ")
    assert "pytorch_model.bin is a pickle" in answer["stderr"]
    assert not (tmp_path / "run" / "images").exists()
