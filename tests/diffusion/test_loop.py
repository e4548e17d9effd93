"""How the loop sets a model up, and what one step after another does."""

import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from aurora_lora.data.dreambooth import subject_images
from aurora_lora.diffusion.loop import Loop
from aurora_lora.diffusion.pipeline import load_diffusion
from aurora_lora.diffusion.recipe import SubjectRecipe
from aurora_lora.diffusion.run import needed_prompts
from aurora_lora.diffusion.subject import Noised, Subject
from aurora_lora.errors import UserError
from aurora_lora.methods.base import apply_method
from aurora_lora.termination import TerminatedError, deferred, watched
from aurora_lora.train import publish
from aurora_lora.train.recipe import validate_as

MakeLoop = Callable[..., Loop]


@pytest.fixture
def make_loop(tiny: Any, model: Path, images: Path, tmp_path: Path) -> MakeLoop:
    """`make_loop(seed, **training)`: a loop before its first step, the same at each call."""

    def make(seed: int = 0, **training: Any) -> Loop:
        wanted = {"precision": "fp32", "threads": 1, **training}
        recipe = validate_as(SubjectRecipe, tiny.recipe(model, images, seed=seed, training=wanted), "tiny")
        diffusion = load_diffusion(recipe, needed_prompts(recipe), torch.device("cpu"))
        torch.manual_seed(0)
        adapted = apply_method(recipe.method, diffusion.unet, "TEXT_TO_IMAGE")
        subject = Subject(recipe, diffusion, subject_images(str(images)))
        return Loop(recipe, adapted, subject, tmp_path / "checkpoints")

    return make


def test_samples_follow_one_another_each_batch_with_dropout_of_its_own(
    make_loop: MakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    for seed in (0, 1):
        loop = make_loop(seed, batch_size=2, gradient_accumulation_steps=2)
        asked: list[int] = []

        def batch(
            samples: Sequence[int],
            own: Callable[[Sequence[int]], Noised] = loop.subject.batch,
            asked: list[int] = asked,
        ) -> Noised:
            asked.extend(samples)
            seeds.append(torch.initial_seed())
            return own(samples)

        monkeypatch.setattr(loop.subject, "batch", batch)
        for step in range(2):
            loop._step(step)
        assert asked == list(range(8))
    assert len(set(seeds)) == 8


def test_a_run_that_goes_on_has_the_rate_of_its_step(make_loop: MakeLoop) -> None:
    training = {"scheduler": "linear", "warmup_steps": 2, "steps": 6, "gradient_accumulation_steps": 1}
    first, again = make_loop(**training), make_loop(**training)
    for step in range(3):
        first._step(step)
        first.progress.step += 1
    first._save()
    checkpoint = publish.last_intact(again.checkpoints)
    assert checkpoint is not None
    again.resume(checkpoint)
    assert again.schedule.get_last_lr() == first.schedule.get_last_lr()
    assert again.optimizer.param_groups[0]["lr"] == first.optimizer.param_groups[0]["lr"] > 0
    for loop in (first, again):
        loop._step(3)
    assert all(torch.equal(one, other) for one, other in zip(first.trained, again.trained, strict=True))


def test_a_run_goes_on_with_the_images_it_was_started_with(make_loop: MakeLoop) -> None:
    first, again = make_loop(), make_loop()
    images, first.progress.images = first.progress.images, "0" * 64
    assert images is not None
    first._save()
    checkpoint = publish.last_intact(again.checkpoints)
    assert checkpoint is not None
    with pytest.raises(UserError, match=r"the images in .* have changed since the run in .* began: put them back"):
        again.resume(checkpoint)


def test_a_validation_has_the_mean_loss_since_the_one_before(make_loop: MakeLoop) -> None:
    loop = make_loop(steps=4, gradient_accumulation_steps=1)
    validation = loop.recipe.validation.model_copy(update={"every": 2})
    loop.recipe = loop.recipe.model_copy(update={"validation": validation})
    loop.run(dict, lambda note: None)
    losses, found = loop.progress.losses, [one["train_loss"] for one in loop.progress.validations]
    assert [one["epoch"] for one in loop.progress.validations] == [0, 0.6667, 1.3333]  # of three images
    assert found == [None, pytest.approx(sum(losses[:2]) / 2), pytest.approx(sum(losses[2:]) / 2)]


def test_terminated_it_goes_on_from_the_step_that_it_was_at(make_loop: MakeLoop) -> None:
    training = {"steps": 5, "checkpoint_every": 100}
    whole, begun = make_loop(**training), make_loop(**training)
    whole.run(dict, lambda note: None)
    shutil.rmtree(whole.checkpoints)

    def terminate(note: str) -> None:
        if begun.progress.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TerminatedError), watched(), deferred():
        begun.run(dict, terminate)
    resumed = make_loop(**training)
    checkpoint = publish.last_intact(resumed.checkpoints)
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-3"
    resumed.resume(checkpoint)
    resumed.run(dict, lambda note: None)
    assert resumed.progress.losses == whole.progress.losses
    for ours, expected in zip(resumed.trained, whole.trained, strict=True):
        assert torch.equal(ours, expected)


def test_a_step_is_taken_in_train_mode(make_loop: MakeLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make_loop()
    loop.model.eval()  # as a validation leaves it
    modes: list[set[bool]] = []

    def batch(samples: Sequence[int], own: Callable[[Sequence[int]], Noised] = loop.subject.batch) -> Noised:
        modes.append({module.training for module in loop.model.modules()})
        return own(samples)

    monkeypatch.setattr(loop.subject, "batch", batch)
    loop._step(0)
    assert modes == [{True}, {True}]


def gradients_of_a_step(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Those that the optimizer takes its first step with."""
    gradients: list[torch.Tensor] = []
    own = loop.optimizer.step

    def step() -> None:
        gradients.append(torch.cat([weight.grad.flatten() for weight in loop.trained if weight.grad is not None]))
        own()

    monkeypatch.setattr(loop.optimizer, "step", step)
    loop._step(0)
    return gradients[-1]


def test_gradients_are_clipped_and_weights_decay(make_loop: MakeLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clipped once a step: samples give the same gradients together and in parts."""
    for most in (0.0, 1e-3):
        found = []
        for batch_size, parts in ((1, 2), (2, 1)):
            training = {"batch_size": batch_size, "gradient_accumulation_steps": parts}
            loop = make_loop(max_grad_norm=most, weight_decay=0.25, **training)
            assert [group["weight_decay"] for group in loop.optimizer.param_groups] == [0.25]
            found.append(gradients_of_a_step(loop, monkeypatch))
        assert found[0].norm().item() == pytest.approx(1e-3, rel=1e-2) if most else found[0].norm().item() > 2e-3
        torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-8 if most else 1e-6)
