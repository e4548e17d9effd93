"""Learning a teacher's hidden states: the score against a plain computation, and what a run of it can be asked for."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from aurora_lora.data import get_task
from aurora_lora.errors import UserError
from aurora_lora.train import TrainedRun, load_recipe, load_run, recipe_files, train
from aurora_lora.train.deploying import merge
from aurora_lora.train.kinds import distillation
from aurora_lora.train.kinds.distillation import states_loss
from aurora_lora.train.measuring import evaluate, gap
from aurora_lora.train.predicting import predict

WriteRecipe = Callable[..., Path]
TASK = {"name": "tiny-sentiment", "train_size": 64, "validation_size": 32, "test_size": 32}


@pytest.fixture(scope="module")
def teacher(model: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A classifier of the tiny model, all of it trained."""
    import tiny

    folder = tmp_path_factory.mktemp("teacher")
    (folder / "recipe.yaml").write_text(recipe_files.dump(tiny.recipe(model, method="full")))
    return train(load_recipe(folder / "recipe.yaml"), folder / "run")


def states(model: Any, tokenizer: Any, texts: list[str]) -> list[torch.Tensor]:
    """The last hidden states of each text (tokens, channels), one text at a time."""
    with torch.no_grad():
        found = [model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True) for text in texts]
    return [one.hidden_states[-1][0] for one in found]


@pytest.mark.parametrize("method", ["aurora", "lora", "full"])
def test_the_score_is_the_share_of_the_teachers_effect(
    write_recipe: WriteRecipe,
    teacher: TrainedRun,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    options: dict[str, Any] = {"name": method}
    if method != "full":
        options["target_modules"] = ["query", "value"]
    monkeypatch.setenv("HOME", str(teacher.folder.parent))
    path = write_recipe(task={**TASK, "teacher": f"~/{teacher.folder.name}"}, method=options)
    run = train(load_recipe(path), tmp_path / "run")
    found = run.result["metric"]
    deployed = found["selected_by"]["form"]
    assert found["name"] == found["selected_by"]["name"] == "captured"
    assert set(found["by_form"]) >= {deployed}
    assert run.result["params"]["head"] == 0

    merged = merge(load_run(run.folder), tmp_path / "merged", form=deployed)
    trained = merge(load_run(teacher.folder), tmp_path / "teacher")
    tokenizer = AutoTokenizer.from_pretrained(merged.folder)
    splits = get_task("tiny-sentiment").load_splits(load_sizes(), 0)
    texts = list(splits["test"]["text"])
    student = states(AutoModel.from_pretrained(merged.folder).eval(), tokenizer, texts)
    wanted = states(AutoModelForSequenceClassification.from_pretrained(trained.folder).eval(), tokenizer, texts)
    base = states(AutoModel.from_pretrained(model).eval(), tokenizer, texts)
    error = sum((one - other).square().sum() for one, other in zip(student, wanted, strict=True))
    effect = sum((one - other).square().sum() for one, other in zip(base, wanted, strict=True))
    assert found["by_form"][deployed]["captured"] == pytest.approx(1 - (error / effect).item(), abs=1e-4)
    assert found["by_form"][deployed]["captured"] > 0.02
    again = evaluate(load_run(run.folder), forms=[deployed])
    assert again[deployed]["captured"] == pytest.approx(found["by_form"][deployed]["captured"], abs=1e-6)
    card = (run.folder / "adapter" / "README.md").read_text()
    assert "pipeline_tag: feature-extraction" in card
    with pytest.raises(UserError, match="has learned hidden states: it has nothing to say about a text"):
        predict(run.folder, ["good"])


@pytest.mark.slow
def test_another_teacher_at_its_place_is_noticed(
    write_recipe: WriteRecipe, teacher: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is captured of one teacher is not compared with what is captured of another."""
    path = tmp_path / "teacher"
    shutil.copytree(teacher.folder, path)
    options = {"name": "lora", "target_modules": ["query", "value"]}
    recipe = load_recipe(write_recipe(task={**TASK, "teacher": str(path)}, method=options))
    first = train(recipe, tmp_path / "run").result
    (digest,) = first["data"]["files"].values()
    (tmp_path / "run" / "result.json").unlink()
    retrained = load_run(teacher.folder).recipe.model_copy(update={"seed": 1})
    shutil.rmtree(path)
    train(retrained, path)
    with pytest.raises(UserError, match=r"teacher/adapter has changed since this run began"):
        train(recipe, tmp_path / "run")
    other = train(recipe, tmp_path / "other").result
    assert list(other["data"]["files"].values()) != [digest]


def test_a_teacher_teaches_in_float32(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it was trained in: a run of PiSSA in bfloat16 rounds the base weight to that."""
    options = {"name": "pissa", "r": 2, "target_modules": ["query", "value"]}
    training = {"epochs": 1, "batch_size": 8, "threads": 1, "learning_rate": 1e-2, "precision": "bf16"}
    teacher = train(load_recipe(write_recipe(method=options, training=training)), tmp_path / "teacher")
    dtypes: set[torch.dtype] = set()
    ask = distillation.lessons

    def lessons(data: Any, base: Any, teacher: Any, batch_size: int) -> Any:
        dtypes.update(parameter.dtype for parameter in teacher.parameters())
        return ask(data, base, teacher, batch_size)

    monkeypatch.setattr(distillation, "lessons", lessons)
    train(load_recipe(write_recipe(task={**TASK, "teacher": str(teacher.folder)})), tmp_path / "run")
    assert dtypes == {torch.float32}


def load_sizes() -> Any:
    from aurora_lora.data import SplitSizes

    return SplitSizes(64, 32, 32)


def test_the_loss_is_the_mean_over_what_is_no_padding() -> None:
    torch.manual_seed(0)
    found, wanted = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    labels = wanted.clone()
    labels[1, 2] = -100
    expected = np.concatenate(
        [(found - wanted)[0].reshape(-1).square().numpy(), (found - wanted)[1, :2].reshape(-1).square().numpy()]
    )
    found.requires_grad_()
    loss = states_loss(lambda **inputs: {"last_hidden_state": found}, {"labels": labels})
    assert loss.item() == pytest.approx(expected.mean(), rel=1e-6)
    loss.backward()
    assert not found.grad[1, 2].any()


def test_mistakes(write_recipe: WriteRecipe, teacher: TrainedRun, tmp_path: Path, model_without_dropout: Path) -> None:
    task = {**TASK, "teacher": str(tmp_path / "none")}
    with pytest.raises(UserError, match=r"task\.teacher: .*none is not the folder of a run"):
        train(load_recipe(write_recipe(task=task)), tmp_path / "run")
    other = write_recipe(task={**TASK, "teacher": str(teacher.folder)}, model=model_without_dropout)
    with pytest.raises(UserError, match=r"task\.teacher: .* is a run of .*, not of "):
        train(load_recipe(other), tmp_path / "other")


@pytest.mark.parametrize("method", ["aurora"])
def test_the_gap_is_that_of_the_hidden_states(
    write_recipe: WriteRecipe, teacher: TrainedRun, tmp_path: Path, method: str
) -> None:
    options = {"name": method, "target_modules": ["query", "value"]}
    run = train(
        load_recipe(write_recipe(task={**TASK, "teacher": str(teacher.folder)}, method=options)), tmp_path / "run"
    )
    found = gap(load_run(run.folder))
    assert found.predictions > TASK["test_size"]  # each token's
    assert all(end.metric == {} and end.kl is None for end in found.end_to_end)
    assert all(end.largest_logit_difference > 0 for end in found.end_to_end[1:])
