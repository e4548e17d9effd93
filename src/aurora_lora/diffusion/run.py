"""`train_subject(recipe, output)`: one whole run, from a recipe to an adapter, its images and its result."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import set_seed

from .. import files, termination
from ..data.dreambooth import subject_images
from ..data.models import check_access
from ..deploy import calibrate
from ..files import expanded
from ..forms import CALIBRATED
from ..methods import Sample, count_parameters
from ..methods.base import apply_method
from ..train import publish
from ..train.distributed import on_main, own_part, peak_memory, reset_peak_memory, state
from ..train.publish import CHECKPOINTS, LORA
from ..train.recipe import divide
from ..train.results import Result, build_result, read_result
from .card import write_adapter_card, write_lora_card
from .export import no_lora, write_lora
from .fidelity import Clip, Dino, plain_prompt, prompt_fidelity, subject_fidelity
from .finished_run import SubjectRun
from .grid import GRID, write_grid, write_png
from .loop import Loop, make_accelerator, prediction_scores
from .pipeline import load_diffusion
from .progress import SilentWatcher, Watcher
from .random_numbers import mine, seed_of
from .recipe import SubjectRecipe
from .subject import Noised, Subject, class_images, prepare_class_images

IMAGES, CLASS_IMAGES = "images", "class-images"
FORMS = "forms.png"
EXPLAINED = "explained"
"""The main score of a run without others; higher is better, as in all tasks."""


def train_subject(recipe: SubjectRecipe, output: Path | str, watcher: Watcher | None = None) -> SubjectRun:
    """Fine-tune on images of a subject, calibrate, generate in every form; go on with an interrupted run.

    Writes into `output`: `recipe.yaml`; `images/` and `grid.png`, generated while it trains; `forms.png`, the same
    prompts in every form of the trained model; `adapter/`; `lora/`, for `pipe.load_lora_weights` of diffusers; and
    `result.json`. With `scores` in the recipe also their images. A finished run is read, not run again.

    Args:
        recipe: what to do.
        output: folder of the run.
        watcher: is told how far it is.

    Raises:
        UserError: the folder holds another recipe's run, cannot be written, or is not one for all processes; what the
            recipe names cannot be had; a step's images cannot be divided among the processes; the training diverged.
    """
    folder, watcher = Path(output), watcher or SilentWatcher()
    divide(recipe.training, state().num_processes)  # joins the other processes, if there are any
    with contextlib.ExitStack() as stack:
        inside = [folder / CLASS_IMAGES, *(folder / IMAGES).glob("*")]
        on_main(lambda: stack.enter_context(publish.open_run(folder, recipe, inside)))
        finished = on_main(lambda: read_result(folder))
        if finished is not None:
            return SubjectRun(folder, recipe, finished)
        reset_peak_memory()
        return SubjectRun(folder, recipe, _Training(recipe, folder, watcher).run(), was_finished=False)


def needed_prompts(recipe: SubjectRecipe) -> list[str]:
    """Every prompt of a run, filled in."""
    prompts = [recipe.task.prompt, *recipe.validation_prompts]
    prompts += [] if recipe.prior is None else [recipe.prior.prompt]
    prompts += [] if recipe.scores is None else recipe.scores.prompts
    return [recipe.task.fill(prompt) for prompt in prompts]


class _Training:
    """A run on its way."""

    def __init__(self, recipe: SubjectRecipe, folder: Path, watcher: Watcher) -> None:
        self.recipe, self.folder, self.watcher = recipe, folder, watcher
        self.method = recipe.method
        self.prompts = recipe.validation_prompts

    def run(self) -> Result:
        recipe = self.recipe
        if recipe.training.threads is not None:
            torch.set_num_threads(recipe.training.threads)
        accelerator = make_accelerator(recipe)
        on_main(self._load_scorers)  # first: what cannot be scored in the end is not worth the hours
        on_main(lambda: check_access(recipe.model))
        images = subject_images(recipe.task.images, recipe.task.subject)
        self.diffusion = load_diffusion(recipe, needed_prompts(recipe), accelerator.device)
        self.subject = Subject(recipe, self.diffusion, images, self._class_images())
        self.held = self.subject.fixed(
            recipe.validation.noise_samples, [self.subject.prompt], "noise error", recipe.training.batch_size
        )
        set_seed(recipe.seed)  # the adapter starts at random
        self.model = apply_method(recipe.method, self.diffusion.unet, "TEXT_TO_IMAGE")
        checkpoints = self.folder / CHECKPOINTS
        checkpoint = on_main(lambda: publish.last_intact(checkpoints))
        prepare = functools.partial(self._prepare, checkpoint)
        self.loop = Loop(recipe, self.model, self.subject, accelerator, checkpoints, prepare)
        if checkpoint is not None:
            self.loop.resume(checkpoint)
            self.watcher.say(f"{recipe.method.name}: going on from step {self.loop.progress.step}")
        if self.loop.progress.step < recipe.training.steps:
            on_main(self._remove_final_images)
        each = self.watcher.begin(recipe.method.name, recipe.training.steps, self.loop.progress.step)
        with termination.deferred():
            self.loop.run(self._validate, each)
        self.watcher.end()
        return self._finish()

    def _remove_final_images(self) -> None:
        """Remove the images of an earlier end, whose last checkpoint was lost: they are of other weights."""
        for path in (self.folder / IMAGES).glob("*"):
            if path.name.startswith(("form-", "scores-")):
                files.remove(path)

    def _load_scorers(self) -> None:
        """The models that score the images in the end, in the main process; until then on the CPU."""
        wanted = self.recipe.scores
        if wanted is not None:
            self.clip = Clip(wanted.clip)
            self.dino = None if wanted.dino is None else Dino(wanted.dino)

    def _class_images(self) -> list[Path]:
        prior = self.recipe.prior
        if prior is None:
            return []
        folder = self.folder / CLASS_IMAGES if prior.folder is None else expanded(prior.folder)
        each = self.watcher.begin("images of the class", prior.images)
        on_main(lambda: prepare_class_images(self.recipe, folder))
        made = class_images(self.recipe, self.diffusion, folder, lambda: each(""))
        state().wait_for_everyone()
        self.watcher.end()
        return made

    def _prepare(self, checkpoint: Path | None, loss: Callable[[torch.nn.Module, Noised], Tensor]) -> None:
        """Let the method decide from training data what is trained, or take that from a checkpoint."""
        if checkpoint is not None:
            self.method.restore(self.model, checkpoint)
            return
        size = self.recipe.training.batch_size
        count = -(-len(self.subject.images) // size)
        sample = Sample(
            batches=lambda share: [
                self.subject.batch(range(i * size, (i + 1) * size)) for i in range(max(1, round(share * count)))
            ],
            loss=loss,
            learning_rate=self.recipe.training.learning_rate,
            seed=self.recipe.seed,
            examples=len(self.subject.images),
            agree=lambda value: on_main(lambda: value),
            in_float16=self.recipe.training.precision == "fp16",
        )
        self.method.prepare(self.model, sample)

    # ---------------------------------------------------------------- while it trains

    def _validate(self) -> dict[str, Any]:
        """Images of the prompts and the error on held noise, in what `eval()` computes before a calibration."""
        step = self.loop.progress.step
        found = prediction_scores(self.diffusion.unet, self.held)
        self._images(f"step-{step:06d}", self.prompts, again=True)
        on_main(self._write_grid)
        losses = self.loop.progress.losses
        loss = f", loss {losses[-1]:.3f}" if losses else ""
        where = f"{self.recipe.method.name}: step {step} of {self.recipe.training.steps}"
        self.watcher.say(f"{where}, noise error {found['noise_error']:.4f}{loss}")
        return found

    def _images(self, name: str, prompts: Sequence[str], count: int = 1, again: bool = False) -> list[Path]:
        """Images of each prompt in what the model computes now; each process makes a share.

        Args:
            name: of their folder.
            prompts: what to generate; the same noise for all folders.
            count: images of each prompt.
            again: also those that are there already.
        """
        folder = self.folder / IMAGES / name
        files.check_writable(folder)
        paths = [folder / f"{row:02d}-{number}.png" for row in range(len(prompts)) for number in range(count)]
        each = self.watcher.begin("images", len(mine(paths)))
        for index, path in mine(paths):
            if again or not path.exists():
                row, number = divmod(index, count)
                seed = seed_of("generated", self.recipe.seed, row, number)
                image = self.diffusion.generate(prompts[row], self.recipe.validation, seed)
                write_png(path, image)
            each("")
        self.watcher.end()
        state().wait_for_everyone()
        return paths

    def _write_grid(self) -> None:
        steps = sorted(path for path in (self.folder / IMAGES).glob("step-*") if path.is_dir())
        now = self.loop.progress.step
        columns = {}
        for path in steps:
            step = int(path.name.removeprefix("step-"))
            if step <= now:  # a run that went on from an earlier checkpoint makes the later ones again
                columns[f"step {step}"] = [path / f"{row:02d}-0.png" for row in range(len(self.prompts))]
        write_grid(self.folder / GRID, self.prompts, columns)

    # ---------------------------------------------------------------- in the end

    def _finish(self) -> Result:
        recipe, loop = self.recipe, self.loop
        self.model.eval()
        if CALIBRATED in self.method.forms:
            self._calibrate()
        forms, deployed = self.method.forms, self.method.deployed_form
        scores: dict[str, dict[str, float]] = {}
        columns: dict[str, list[Path]] = {}
        for form in forms:
            with self.method.using(self.model, form):
                self.model.eval()
                scores[form] = prediction_scores(self.diffusion.unet, self.held)
                columns[form] = self._images(f"form-{form}", self.prompts)
        on_main(lambda: write_grid(self.folder / FORMS, self.prompts, columns))
        scored, examples = "train", {"train": len(self.subject.images)}
        if recipe.scores is not None:
            scored = "generated"
            examples[scored] = len(recipe.scores.prompts) * recipe.scores.images_per_prompt
            generated = self._scored_images(forms)
            for form, found in on_main(lambda: self._fidelity(generated)).items():
                scores[form] = {**found, **scores[form]}
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
            processes=progress.processes,
            epochs=progress.validations,
        )
        on_main(lambda: self._write(result, deployed))
        return result

    def _scored_images(self, forms: Sequence[str]) -> dict[str, list[Path]]:
        """The images to score, by form."""
        wanted = self.recipe.scores
        assert wanted is not None
        prompts = [self.recipe.task.fill(prompt) for prompt in wanted.prompts]
        generated = {}
        for form in forms:
            with self.method.using(self.model, form):
                self.model.eval()
                generated[form] = self._images(f"scores-{form}", prompts, wanted.images_per_prompt)
        return generated

    def _fidelity(self, generated: Mapping[str, Sequence[Path]]) -> dict[str, dict[str, float]]:
        """Subject and prompt fidelity of the images of each form."""
        wanted, device = self.recipe.scores, self.diffusion.device
        assert wanted is not None
        plain = [plain_prompt(prompt) for prompt in wanted.prompts for _ in range(wanted.images_per_prompt)]
        clip = self.clip.to(device)
        texts, real = clip.texts(plain), clip.images(self.subject.pictures)
        found = {}
        for form, paths in generated.items():
            embedded = clip.files(paths)
            found[form] = {"clip_i": subject_fidelity(embedded, real), "clip_t": prompt_fidelity(embedded, texts)}
        if self.dino is not None:
            dino = self.dino.to(device)
            real = dino.images(self.subject.pictures)
            for form, paths in generated.items():
                found[form]["dino"] = subject_fidelity(dino.files(paths), real)
        return found

    def _calibrate(self) -> None:
        wanted = self.recipe.calibration
        prompts = [self.subject.prompt, None, *self.prompts]
        batches = self.subject.fixed(wanted.examples, prompts, "calibration", wanted.batch_size)
        share = own_part(batches) if len(batches) >= state().num_processes else batches
        calibrate(self.model, [batch.inputs for batch in share], ridge=wanted.ridge)

    def _write(self, result: Result, deployed: str) -> None:
        """The plain LoRA, the adapter and the result."""
        if (why := self._write_lora(result, deployed)) is not None:
            self.watcher.say(f"{self.method.name}: no {LORA}/ is written: {why}")

        def save(adapter: Path) -> None:
            self.method.save(self.model, adapter)
            write_adapter_card(adapter, self.recipe, result)

        publish.finish(self.folder, result, save)

    def _write_lora(self, result: Result, form: str) -> str | None:
        """The form as a LoRA of diffusers.

        Returns:
            Why there is none; None if there is one.
        """
        if (why := no_lora(self.method, form)) is not None:
            return why

        def write(partial: Path) -> None:
            write_lora(self.model, partial, self.method, form)
            write_lora_card(partial, self.recipe, result, form)

        return publish.write_lora(self.folder, write)
