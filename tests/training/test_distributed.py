"""Two processes on half the batch each train the adapter that one process trains on the whole batch."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

Aurora = Callable[..., list[dict[str, Any]]]


def launch(aurora: Aurora, recipe: Path, output: Path, **more: Any) -> list[dict[str, Any]]:
    """What `accelerate launch --cpu --num_processes 2` does: the command twice, with a rank each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    return aurora(
        *(
            {
                "args": ["train", str(recipe), "--output", str(output), "--json"],
                "folder": str(output),
                "env": {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                **more,
            }
            for rank in (0, 1)
        )
    )


def recipe_with(write_recipe: Callable[..., Path], model: Path, batch_size: int, **more: Any) -> Path:
    training = {"epochs": 2, "batch_size": batch_size, "learning_rate": 2e-2, "threads": 1, **more}
    return write_recipe(model=model, training=training, reference={"method": "linear-probe"})


@pytest.mark.parametrize("accumulation", [1, 2])
def test_same_adapter_as_one_process(
    aurora: Aurora, write_recipe: Callable[..., Path], model_without_dropout: Path, tmp_path: Path, accumulation: int
) -> None:
    more = {"gradient_accumulation_steps": accumulation}
    recipe = recipe_with(write_recipe, model_without_dropout, 8 // accumulation, **more)
    answers = launch(aurora, recipe, tmp_path / "two")
    assert [answer["status"] for answer in answers] == [0, 0], answers
    json.loads(answers[0]["stdout"])
    assert answers[1]["stdout"] == answers[1]["stderr"] == ""  # the main process alone prints

    recipe = recipe_with(write_recipe, model_without_dropout, 16)
    (answer,) = aurora({"args": ["train", str(recipe), "-o", str(tmp_path / "one")], "folder": str(tmp_path)})
    assert answer["status"] == 0, answer["stderr"]
    for name in ("adapter/adapter_model.safetensors", "reference/adapter/trained.safetensors"):
        one, two = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
        assert one.keys() == two.keys()
        for key, value in one.items():
            if "fingerprint" not in key:  # a hash: equal only for equal bits
                torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


def test_resumes_with_as_many_processes_only(
    aurora: Aurora, write_recipe: Callable[..., Path], model: Path, tmp_path: Path
) -> None:
    recipe, output = recipe_with(write_recipe, model, 8), tmp_path / "run"
    whole = launch(aurora, recipe, tmp_path / "whole")
    assert whole[0]["status"] == 0, whole
    answers = launch(aurora, recipe, output, kill_at=whole[0]["events"] // 3)
    assert answers[0]["status"] == -9  # the main process writes; the other loses its peer
    assert list((output / "checkpoints").glob("checkpoint-*"))
    (answer,) = aurora({"args": ["train", str(recipe), "-o", str(output)], "folder": str(output)})
    assert answer["status"] == 2
    assert answer["stderr"].strip().endswith("choose another output folder")
    assert "was started with 2 process(es), this is 1" in answer["stderr"]
    answers = launch(aurora, recipe, output)
    assert [answer["status"] for answer in answers] == [0, 0], answers
    name = "adapter/adapter_model.safetensors"
    assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_error_in_all_processes(aurora: Aurora, write_recipe: Callable[..., Path], model: Path, tmp_path: Path) -> None:
    recipe = recipe_with(write_recipe, model, 8)
    (tmp_path / "run").write_text("a file, not a folder")
    answers = launch(aurora, recipe, tmp_path / "run")
    assert [answer["status"] for answer in answers] == [2, 2]
    assert len(answers[0]["stderr"].splitlines()) == 1
    assert answers[1]["stderr"] == ""


def test_methods_with_steps_of_their_own(
    aurora: Aurora, write_recipe: Callable[..., Path], model_without_dropout: Path, tmp_path: Path
) -> None:
    """Ranks that are shared out, and layers that share an adapter, are the same ones in both processes."""
    methods: list[dict[str, Any]] = [
        {"name": "adalora", "init_r": 4, "target_r": 2, "tfinal": 2, "orth_reg_weight": 0.1},
        {"name": "lora-drop", "r": 4, "threshold": 0.5, "sample_share": 0.5},
    ]
    for method in methods:
        name, saved = method["name"], []
        # lora-drop's sample comes in batches of the recipe's size: alone, it would take other steps
        for processes in (1, 2) if name == "adalora" else (2,):
            training = {"epochs": 1, "batch_size": 16 // processes, "learning_rate": 1e-2, "threads": 1}
            recipe = write_recipe(
                model=model_without_dropout,
                method={**method, "target_modules": ["query", "value"]},
                training=training,
            )
            output = tmp_path / f"{name}-{processes}"
            if processes == 2:
                answers = launch(aurora, recipe, output)
            else:
                answers = aurora({"args": ["train", str(recipe), "-o", str(output)], "folder": str(output)})
            assert all(answer["status"] == 0 for answer in answers), answers
            saved.append(load_file(next((output / "adapter").glob("*.safetensors"))))
        if name == "lora-drop":
            assert any(key.endswith("is_shared") for key in saved[0])
            continue
        one, two = saved
        assert one.keys() == two.keys()
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
