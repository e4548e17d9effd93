"""Several processes share out the examples of a step, and train the adapter that one process trains on all of them."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file

from aurora_lora.errors import UserError
from aurora_lora.train import recipe_files
from aurora_lora.train.finished_run import read_result
from aurora_lora.train.recipe import Share, TrainingSection, divide

Aurora = Callable[..., list[dict[str, Any]]]


def launch(
    aurora: Aurora, recipe: Path, output: Path, processes: int = 2, last: Mapping[str, Any] | None = None, **more: Any
) -> list[dict[str, Any]]:
    """What `accelerate launch --num_processes N` does: the command N times, with a rank each; `last` is of the last."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return aurora(
        *(
            {
                "args": ["train", str(recipe), "--output", str(output), "--json"],
                "folder": str(output),
                "env": {**common, "ACCELERATE_USE_CPU": "true", "RANK": str(rank), "LOCAL_RANK": str(rank)},
                **more,
                **((last or {}) if rank == processes - 1 else {}),
            }
            for rank in range(processes)
        )
    )


def train_alone(aurora: Aurora, recipe: Path, output: Path) -> None:
    (answer,) = aurora({"args": ["train", str(recipe), "-o", str(output)], "folder": str(output)})
    assert answer["status"] == 0, answer["stderr"]


def recipe_with(write_recipe: Callable[..., Path], model: Path, **more: Any) -> Path:
    training = {"epochs": 2, "batch_size": 16, "learning_rate": 2e-2, "threads": 1, **more}
    return write_recipe(model=model, training=training, reference={"method": "linear-probe"})


def check_same_losses(one: dict[str, Any], other: dict[str, Any], tolerance: float = 1e-4) -> None:
    """Of each interval between evaluations, and the scores at these."""
    assert [entry["step"] for entry in one["epochs"]] == [entry["step"] for entry in other["epochs"]]
    for mine, its in zip(one["epochs"], other["epochs"], strict=True):
        assert its["train_loss"] == pytest.approx(mine["train_loss"], rel=tolerance)
        assert its["validation"] == pytest.approx(mine["validation"], rel=tolerance, abs=tolerance)


def check_same_weights(one: Path, other: Path) -> None:
    mine, its = load_file(one), load_file(other)
    assert mine.keys() == its.keys()
    for key, value in mine.items():
        if "fingerprint" not in key:  # a hash: equal only for equal bits
            torch.testing.assert_close(its[key], value, rtol=1e-4, atol=2e-5, msg=lambda m, k=key: f"{k}: {m}")


# ---------------------------------------------------------------- the share of a process


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "processes", "share"),
    [
        (4, 4, 2, (4, 2)),  # fewer passes first
        (4, 4, 8, (2, 1)),  # then smaller ones
        (4, 4, 16, (1, 1)),
        (4, 6, 4, (2, 3)),
    ],
)
def test_share_of_a_process(batch_size: int, accumulation: int, processes: int, share: tuple[int, int]) -> None:
    training = TrainingSection(batch_size=batch_size, gradient_accumulation_steps=accumulation)
    assert divide(training, processes) == Share(*share)
    assert share[0] * share[1] * processes == batch_size * accumulation


@pytest.mark.parametrize(("batch_size", "accumulation", "processes"), [(16, 1, 3), (4, 4, 32)])
def test_what_cannot_be_divided(batch_size: int, accumulation: int, processes: int) -> None:
    training = TrainingSection(batch_size=batch_size, gradient_accumulation_steps=accumulation)
    with pytest.raises(UserError, match=rf"the {batch_size * accumulation} examples .* among {processes} processes"):
        divide(training, processes)


# ---------------------------------------------------------------- the same training


def test_same_adapter_as_one_process(
    aurora: Aurora,
    write_recipe: Callable[..., Path],
    model_without_dropout: Path,
    tmp_path: Path,
) -> None:
    """Of whole steps: the global batch is the recipe's."""
    recipe = recipe_with(write_recipe, model_without_dropout, eval_every=2)
    answers = launch(aurora, recipe, tmp_path / "several")
    assert [answer["status"] for answer in answers] == [0, 0], answers
    json.loads(answers[0]["stdout"])
    assert all(answer["stdout"] == answer["stderr"] == "" for answer in answers[1:])  # the main process alone prints
    train_alone(aurora, recipe, tmp_path / "one")
    for name in ("adapter/adapter_model.safetensors", "reference/adapter/model.safetensors"):
        check_same_weights(tmp_path / "one" / name, tmp_path / "several" / name)
    one, several = read_result(tmp_path / "one"), read_result(tmp_path / "several")
    check_same_losses(one, several)
    assert (one["processes"], several["processes"]) == (1, 2)
    assert one["metric"]["selected_by"]["epoch"] == several["metric"]["selected_by"]["epoch"]


@pytest.mark.slow
def test_accelerate_launch(aurora: Aurora, tmp_path: Path) -> None:
    """The documented command, with gloo: the losses of one process, step by step."""
    model = tiny.save_vit(tmp_path / "model")
    task = {"name": "digits", "train_size": 64, "validation_size": 40, "test_size": 40}  # whole steps
    training = {"epochs": 2, "batch_size": 8, "gradient_accumulation_steps": 2, "learning_rate": 1e-2, "threads": 1}
    values = tiny.image_recipe(model, task=task, training={**training, "eval_every": 2})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_files.dump(values))
    train_alone(aurora, recipe, tmp_path / "one")
    # with --cpu, Accelerate leaves the number of processes to mpirun
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["-m", "aurora_lora.cli", "train", str(recipe), "--output", str(tmp_path / "several")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, several = read_result(tmp_path / "one"), read_result(tmp_path / "several")
    assert several["processes"] == 2
    check_same_losses(one, several)


# ---------------------------------------------------------------- going on, mistakes, methods


@pytest.mark.slow
def test_sigterm_to_one_of_them_is_to_all(
    aurora: Aurora, write_recipe: Callable[..., Path], model_without_dropout: Path, tmp_path: Path
) -> None:
    """They end at the same step, and go on from it together."""
    recipe = recipe_with(write_recipe, model_without_dropout)
    answers = launch(aurora, recipe, tmp_path / "run", last={"terminate_in": 6})
    assert [answer["status"] for answer in answers] == [143, 143], answers
    assert "interrupted: the same command resumes where it was" in answers[0]["stderr"]
    last = max((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))
    assert last.name == "checkpoint-6"  # in the second epoch, whose order is another
    for output in ("run", "whole"):
        answers = launch(aurora, recipe, tmp_path / output)
        assert [answer["status"] for answer in answers] == [0, 0], answers
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_resumes_with_as_many_processes_only(
    aurora: Aurora, write_recipe: Callable[..., Path], model: Path, tmp_path: Path
) -> None:
    recipe, output = recipe_with(write_recipe, model, checkpoint_every=3), tmp_path / "run"
    whole = launch(aurora, recipe, tmp_path / "whole")
    assert whole[0]["status"] == 0, whole
    answers = launch(aurora, recipe, output, kill_at=whole[0]["events"] // 3)
    assert answers[0]["status"] == -9  # the main process writes; the other loses its peer
    last = max((output / "checkpoints").glob("checkpoint-*"))
    assert (last / "rng_state_1.pth").exists()
    (answer,) = aurora({"args": ["train", str(recipe), "-o", str(output)], "folder": str(output)})
    assert answer["status"] == 2
    assert answer["stderr"].strip().endswith("choose another output folder")
    assert "was started with 2 process(es), this is 1" in answer["stderr"]
    answers = launch(aurora, recipe, output)
    assert [answer["status"] for answer in answers] == [0, 0], answers
    name = "adapter/adapter_model.safetensors"
    assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
