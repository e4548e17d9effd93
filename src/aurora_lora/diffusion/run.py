"""`train_subject(recipe, output)`: one whole run, from a recipe to an adapter, its images and its result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from transformers import set_seed

from .. import files, termination
from ..data.dreambooth import subject_images
from ..deploy import calibrate
from ..errors import UserError
from ..forms import CALIBRATED
from ..methods import count_parameters
from ..methods.base import apply_method
from ..train import publish
from ..train.finished_run import FinishedRun, Result, build_result, read_result
from ..train.publish import CHECKPOINTS, LORA
from ..train.recipe import Recipe, RunRecipe
from ..train.run import train
from ..train.trainer import bar, check_precision, peak_memory, reset_peak_memory, state
from .card import write_adapter_card, write_lora_card
from .fidelity import Scorers, plain_prompt
from .finished_run import FORMS, IMAGES, SubjectRun, no_lora, write_lora
from .loop import Loop, prediction_scores
from .pipeline import GRID, load_diffusion, quiet, seed_of, write_grid, write_png
from .recipe import SubjectRecipe
from .subject import Subject

EXPLAINED = "explained"
"""The main score of a run without others; higher is better, as in all tasks."""


def train_subject(recipe: SubjectRecipe, output: Path | str, console: Console | None = None) -> SubjectRun:
    """Fine-tune on images of a subject, calibrate, generate in every form; go on with an interrupted run.

    Writes into `output`: `recipe.yaml`; `images/` and `grid.png`, generated while it trains; `forms.png`, the same
    prompts in every form of the trained model; `adapter/`; `lora/`, for `pipe.load_lora_weights` of diffusers; and
    `result.json`. With `scores` in the recipe also their images. A finished run is read, not run again.

    Args:
        recipe: what to do.
        output: folder of the run.
        console: shows how far it is; nothing does if None.

    Raises:
        UserError: the folder holds another recipe's run, or cannot be written; what the recipe names cannot be had; the
            training diverged; there are several processes.
    """
    folder = Path(output)
    if state().num_processes > 1:
        raise UserError(f"a run of {recipe.task.name} is of one process: start it without a launcher")
    with publish.open_run(folder, recipe, [*(folder / IMAGES).glob("*")]):
        if (finished := read_result(folder)) is not None:
            return SubjectRun(folder, recipe, finished)
        reset_peak_memory()
        with bar(console or Console(quiet=True)) as bars:
            return SubjectRun(folder, recipe, _Training(recipe, folder, bars).run(), was_finished=False)


def train_any(recipe: RunRecipe, output: Path) -> FinishedRun:
    """Run a recipe of any kind; as `train`."""
    if isinstance(recipe, SubjectRecipe):
        quiet()
        return train_subject(recipe, output)
    assert isinstance(recipe, Recipe)
    return train(recipe, output)


def needed_prompts(recipe: SubjectRecipe) -> list[str]:
    """Every prompt of a run, filled in."""
    prompts = [recipe.task.prompt, *recipe.validation_prompts]
    prompts += [] if recipe.scores is None else recipe.scores.prompts
    return [recipe.task.fill(prompt) for prompt in prompts]


class _Training:
    """A run on its way."""

    def __init__(self, recipe: SubjectRecipe, folder: Path, bars: Progress) -> None:
        self.recipe, self.folder, self.bars = recipe, folder, bars
        self.method, self.prompts = recipe.method, recipe.validation_prompts

    def run(self) -> Result:
        recipe, wanted = self.recipe, self.recipe.scores
        if recipe.training.threads is not None:
            torch.set_num_threads(recipe.training.threads)
        check_precision(recipe.training.precision)
        # first: what cannot be scored in the end is not worth the hours
        self.scorers = None if wanted is None else Scorers(wanted.clip, wanted.dino)
        images = subject_images(recipe.task.images, recipe.task.subject)
        self.diffusion = load_diffusion(recipe, needed_prompts(recipe), state().device)
        self.subject = Subject(recipe, self.diffusion, images)
        self.held = self.subject.fixed(
            recipe.validation.noise_samples, [self.subject.prompt], "noise error", recipe.training.batch_size
        )
        set_seed(recipe.seed)  # the adapter starts at random
        self.model = apply_method(recipe.method, self.diffusion.unet, "TEXT_TO_IMAGE")
        checkpoints = self.folder / CHECKPOINTS
        self.loop = Loop(recipe, self.model, self.subject, checkpoints)
        if (checkpoint := publish.last_intact(checkpoints)) is not None:
            self.loop.resume(checkpoint)
            self._say(f"going on from step {self.loop.progress.step}")
        done, steps = self.loop.progress.step, recipe.training.steps
        if done < steps:  # images of an end whose last checkpoint was lost are of other weights
            for path in (self.folder / IMAGES).glob("*"):
                if path.name.startswith(("form-", "scores-")):
                    files.remove(path)
        task = self.bars.add_task(recipe.method.name, total=steps, completed=done, note="")
        with termination.deferred():
            self.loop.run(self._validate, lambda note: self.bars.update(task, advance=1, note=note))
        self.bars.remove_task(task)
        return self._finish()

    def _say(self, what: str) -> None:
        self.bars.console.print(f"{self.recipe.method.name}: {what}", highlight=False, soft_wrap=True)

    # ---------------------------------------------------------------- while it trains

    def _validate(self) -> dict[str, Any]:
        """Images of the prompts and the error on held noise, in what `eval()` computes before a calibration."""
        step = self.loop.progress.step
        found = prediction_scores(self.diffusion.unet, self.held)
        self._images(f"step-{step:06d}", self.prompts, again=True)
        columns = {}
        for path in sorted(path for path in (self.folder / IMAGES).glob("step-*") if path.is_dir()):
            made_at = int(path.name.removeprefix("step-"))
            if made_at <= step:  # later ones are made again, by a run that went on
                columns[f"step {made_at}"] = [path / f"{row:02d}-0.png" for row in range(len(self.prompts))]
        write_grid(self.folder / GRID, self.prompts, columns)
        losses = self.loop.progress.losses
        loss = f", loss {losses[-1]:.3f}" if losses else ""
        self._say(f"step {step} of {self.recipe.training.steps}, noise error {found['noise_error']:.4f}{loss}")
        return found

    def _images(self, name: str, prompts: Sequence[str], count: int = 1, again: bool = False) -> list[Path]:
        """Images of each prompt in what the model computes now, the same noise for all folders; `again` also those that
        are there already."""
        folder = self.folder / IMAGES / name
        files.check_writable(folder)
        paths = [folder / f"{row:02d}-{number}.png" for row in range(len(prompts)) for number in range(count)]
        task = self.bars.add_task("images", total=len(paths), note="")
        for index, path in enumerate(paths):
            if again or not path.exists():
                row, number = divmod(index, count)
                seed = seed_of("generated", self.recipe.seed, row, number)
                write_png(path, self.diffusion.generate(prompts[row], self.recipe.validation, seed))
            self.bars.advance(task)
        self.bars.remove_task(task)
        return paths

    # ---------------------------------------------------------------- in the end

    def _finish(self) -> Result:
        recipe, loop = self.recipe, self.loop
        self.model.eval()
        if CALIBRATED in self.method.forms:
            self._calibrate()
        forms, deployed, wanted = self.method.forms, self.method.deployed_form, recipe.scores
        scored, examples = "train", {"train": len(self.subject.images)}
        scores: dict[str, dict[str, float]] = {}
        columns: dict[str, list[Path]] = {}
        generated: dict[str, list[Path]] = {}
        for form in forms:
            with self.method.using(self.model, form):
                self.model.eval()
                scores[form] = prediction_scores(self.diffusion.unet, self.held)
                columns[form] = self._images(f"form-{form}", self.prompts)
                if wanted is not None:
                    prompts = [recipe.task.fill(prompt) for prompt in wanted.prompts]
                    generated[form] = self._images(f"scores-{form}", prompts, wanted.images_per_prompt)
        write_grid(self.folder / FORMS, self.prompts, columns)
        if wanted is not None:
            assert self.scorers is not None
            scored = "generated"
            examples[scored] = len(generated[deployed])
            texts = [plain_prompt(prompt) for prompt in wanted.prompts for _ in range(wanted.images_per_prompt)]
            found = self.scorers.fidelity(generated, self.subject.pictures, texts, state().device)
            scores = {form: {**found[form], **scores[form]} for form in forms}
        progress = loop.progress
        result = build_result(
            recipe,
            model_commit=self.diffusion.commit,
            metric=EXPLAINED if recipe.scores is None else "clip_i",
            split=scored,
            examples=examples,
            test={scored: scores},
            validation=scores,
            selected_by={
                "split": "train",
                "form": deployed,
                "name": EXPLAINED,
                "value": scores[deployed][EXPLAINED],
                "epoch": progress.validations[-1]["epoch"],
            },
            params=count_parameters(self.model),
            train_s=progress.train_s,
            trained_examples=progress.step * loop.samples_per_step,
            peak_mb=max(progress.peak_mb, peak_memory()),
            processes=1,
            epochs=progress.validations,
        )
        self._write(result, deployed)
        return result

    def _calibrate(self) -> None:
        wanted = self.recipe.calibration
        prompts = [self.subject.prompt, None, *self.prompts]
        batches = self.subject.fixed(wanted.examples, prompts, "calibration", wanted.batch_size)
        calibrate(self.model, [batch.inputs for batch in batches], ridge=wanted.ridge)

    def _write(self, result: Result, deployed: str) -> None:
        """The plain LoRA, the adapter and the result."""

        def lora(partial: Path) -> None:
            write_lora(self.model, partial, self.method, deployed)
            write_lora_card(partial, self.recipe, result, deployed)

        def save(adapter: Path) -> None:
            self.method.save(self.model, adapter)
            write_adapter_card(adapter, self.recipe, result)

        why = no_lora(self.method, deployed)
        if (why := why or publish.write_lora(self.folder, lora)) is not None:
            self._say(f"no {LORA}/ is written: {why}")
        publish.finish(self.folder, result, save)
