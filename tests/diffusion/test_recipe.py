"""Recipes of subject-driven generation: defaults, and mistakes in plain words."""

from typing import Any

import pytest

from aurora_lora.diffusion.recipe import SubjectRecipe
from aurora_lora.errors import UserError
from aurora_lora.train.recipe import validate_as

PLAIN: dict[str, Any] = {
    "name": "dog",
    "model": "stabilityai/stable-diffusion-xl-base-1.0",
    "task": {"name": "dreambooth", "images": "google/dreambooth", "subject": "dog", "prompt": "A photo of a [V] dog"},
    "method": "aurora",
}


def test_defaults_are_those_of_the_paper() -> None:
    recipe = validate_as(SubjectRecipe, PLAIN, "x")
    training = recipe.training
    assert (training.steps, training.batch_size, training.gradient_accumulation_steps) == (500, 1, 4)
    assert (training.learning_rate, training.scheduler, training.precision) == (1e-4, "constant", "fp16")
    assert recipe.task.resolution == 1024
    assert recipe.method.options["target_modules"] == ["to_q", "to_k", "to_v", "to_out.0"]
    assert (recipe.method.options["r"], recipe.method.options["alpha"]) == (2, 4)
    assert recipe.validation_prompts == ("A photo of a sks dog",)
    assert recipe.test_sets == ()
    assert validate_as(SubjectRecipe, recipe.resolved(), "x") == recipe


def test_targets_are_filled_in_for_methods_that_have_them() -> None:
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    for name, expected in (("lora", targets), ("moslora", targets), ("bitfit", None), ("full", None)):
        recipe = validate_as(SubjectRecipe, {**PLAIN, "method": name}, "x")
        assert recipe.method.options.get("target_modules") == expected
    own = {**PLAIN, "method": {"name": "lora", "target_modules": ["to_q"]}}
    assert validate_as(SubjectRecipe, own, "x").method.options["target_modules"] == ["to_q"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": {**PLAIN["task"], "image": 1}}, "task.image: unknown field; did you mean 'images'?"),
        ({"task": {"name": "dreambooth", "prompt": "x"}}, "task.images: this field must be given"),
        ({"training": {"epochs": 3}}, "training.epochs: unknown field"),
        ({"training": {"scheduler": "step"}}, "training.scheduler: 'step' is not allowed: it must be 'constant', "),
        ({"method": "adalora"}, "method.name: 'adalora' with these options is not allowed: it works at the steps"),
        ({"method": "lora-ga"}, "method.name: 'lora-ga' with these options is not allowed: before the training it"),
        ({"method": {"name": "aurora", "budget": 100}}, "method.name: 'aurora' with these options is not allowed"),
        ({"method": {"name": "aurora", "rank": 2}}, "method.rank: unknown option"),
        ({"scores": {"prompts": []}}, "scores.prompts: [] is not allowed"),
        ({"method": "lora-drop"}, "method.name: 'lora-drop' with these options is not allowed: before the training it"),
        ({"task": {**PLAIN["task"], "resolution": 500}}, "task.resolution: 500 is not allowed: it must be a multiple"),
    ],
)
def test_mistakes(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        validate_as(SubjectRecipe, {**PLAIN, **changes}, "dog.yaml")
    assert f"dog.yaml: {words}" in str(error.value)
