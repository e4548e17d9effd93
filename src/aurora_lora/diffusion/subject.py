"""From images of a subject, and of its class, to what the U-Net learns from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import files
from ..errors import UserError
from ..train.data import in_batches
from ..train.recipe import differences
from ..train.trainer import own_part
from .pipeline import Diffusion, generator, seed_of, write_png

if TYPE_CHECKING:
    from PIL.Image import Image

    from .recipe import SubjectRecipe

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Framed:
    """A square cut from an image: `pixels` (3, side, side) from -1 to 1, and SDXL's time ids (6,): original height and
    width, top and left of the cut, height and width of the square."""

    pixels: Tensor
    time_ids: Tensor


Resized = tuple[Tensor, tuple[int, int]]
"""An image whose shorter side was resized: pixels (3, height, width) from 0 to 1; and its original height and width."""


def resize(image: Image, resolution: int) -> Resized:
    """Resize the shorter side of an RGB image to the resolution."""
    from torchvision.transforms.v2 import functional

    pixels = functional.to_dtype(functional.to_image(image), torch.float32, scale=True)
    resized = functional.resize(pixels, [resolution], antialias=True).clamp(0, 1)
    return torch.as_tensor(resized), (image.height, image.width)


def frame(image: Resized, resolution: int, crop: str, flip: bool, draw: torch.Generator) -> Framed:
    """Cut a square out of an image.

    Args:
        image: from `resize`, to the same resolution.
        resolution: side of the square.
        crop: `"random"` or `"center"`.
        flip: whether half of the images are mirrored.
        draw: decides what is random.
    """
    pixels, size = image
    down, right = (int(side) - resolution for side in pixels.shape[-2:])
    top, left = down // 2, right // 2
    mirrored = float(torch.rand((), generator=draw)) < 0.5
    if flip and mirrored:
        pixels = pixels.flip(-1)
    if crop == "random":
        top = int(torch.randint(down + 1, (), generator=draw))
        left = int(torch.randint(right + 1, (), generator=draw))
    square = pixels[..., top : top + resolution, left : left + resolution]
    return Framed(square * 2 - 1, torch.tensor([*size, top, left, resolution, resolution], dtype=torch.float32))


def row_of(sample: int, rows: int, *what: object) -> int:
    """Which of so many rows is the `sample`-th of a run: each epoch takes all of them once, in an order of its own."""
    epoch, place = divmod(sample, rows)
    return int(torch.randperm(rows, generator=generator("order", *what, epoch))[place])


def target(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the U-Net is to predict: the noise e, or v = sqrt(a) e - sqrt(1 - a) x, as the scheduler says."""
    if scheduler.config.prediction_type == "v_prediction":
        velocity: Tensor = scheduler.get_velocity(latents, noise, timesteps)
        return velocity
    return noise


@dataclass(frozen=True)
class Noised:
    """Samples for one forward pass: the U-Net's `inputs`, its `timesteps` (batch,), and what it is to predict."""

    inputs: dict[str, Any]
    timesteps: Tensor
    wanted: Tensor


class Subject:
    """The training data. What a sample is, is decided by the seed and its number alone.

    Args:
        recipe: the run's.
        diffusion: the pipeline.
        images: of the subject.
        class_images: of prior preservation; paths, read when they are needed.
    """

    def __init__(
        self,
        recipe: SubjectRecipe,
        diffusion: Diffusion,
        images: Sequence[Image],
        class_images: Sequence[Path] = (),
    ) -> None:
        self.recipe, self.diffusion, self.class_images = recipe, diffusion, class_images
        self.pictures = images
        self.images = [resize(image, recipe.task.resolution) for image in images]
        self.prompt = recipe.task.fill(recipe.task.prompt)

    def batch(self, samples: Sequence[int]) -> Noised:
        """The samples of these numbers; with prior preservation, as many images of the class after them."""
        own = [self._sample(self.images, self.prompt, "subject", number) for number in samples]
        if self.recipe.prior is not None:
            prompt = self.recipe.task.fill(self.recipe.prior.prompt)
            own += [self._sample(self.class_images, prompt, "class", number) for number in samples]
        return self._together(own)

    def _sample(self, images: Sequence[Any], prompt: str, kind: str, number: int) -> tuple[Any, ...]:
        from PIL import Image

        task, seed = self.recipe.task, self.recipe.seed
        image = images[row_of(number, len(images), seed, kind)]
        if isinstance(image, Path):
            with Image.open(image) as opened:
                image = resize(opened.convert("RGB"), task.resolution)
        draw = generator("sample", seed, kind, number)
        framed = frame(image, task.resolution, task.crop, task.flip, draw)
        timestep = int(torch.randint(len(self.diffusion.noise.alphas_cumprod), (), generator=draw))
        return framed, self.diffusion.prompts[prompt], timestep, draw

    def fixed(self, count: int, prompts: Sequence[str | None], what: str, batch_size: int) -> list[Noised]:
        """Noised images of the subject, the same ones at every call, with timesteps spread evenly.

        Args:
            count: how many.
            prompts: they take turns, so that each comes with every image; None is the empty prompt of guidance.
            what: names them: others for another name.
            batch_size: how many at a time.
        """
        steps, task = len(self.diffusion.noise.alphas_cumprod), self.recipe.task
        pairs = math.lcm(len(self.images), len(prompts))  # samples until the same pairs would come again
        made = []
        for number in range(count):
            draw = generator(what, self.recipe.seed, number)
            image = self.images[number % len(self.images)]
            prompt = prompts[(number + number // pairs) % len(prompts)]
            embedded = self.diffusion.unprompted if prompt is None else self.diffusion.prompts[prompt]
            timestep = (2 * number + 1) * steps // (2 * count)
            made.append((frame(image, task.resolution, "center", False, draw), embedded, timestep, draw))
        return [self._together(some) for some in in_batches(made, batch_size)]

    def _together(self, samples: Sequence[tuple[Any, ...]]) -> Noised:
        diffusion = self.diffusion
        latents = torch.cat([diffusion.latents(framed.pixels[None], draw) for framed, _, _, draw in samples]).cpu()
        noise = torch.stack([torch.randn(latents.shape[1:], generator=draw) for *_, draw in samples])
        timesteps = torch.tensor([timestep for _, _, timestep, _ in samples])
        noisy = diffusion.noise.add_noise(latents, noise, timesteps)
        time_ids = torch.stack([framed.time_ids for framed, *_ in samples])
        inputs = diffusion.inputs(noisy, timesteps, [prompt for _, prompt, *_ in samples], time_ids)
        wanted = target(diffusion.noise, latents, noise, timesteps)
        return Noised(inputs, timesteps.to(diffusion.device), wanted.to(diffusion.device))


# ---------------------------------------------------------------- prior preservation


def prepare_class_images(recipe: SubjectRecipe, folder: Path) -> None:
    """Write down in a folder how its images of the class are generated, or see that it is as written down.

    Args:
        recipe: with a prior.
        folder: where they are kept.

    Raises:
        UserError: the folder holds images of other settings, or cannot be written.
    """
    assert recipe.prior is not None
    prompt = recipe.task.fill(recipe.prior.prompt)
    settings = {
        "model": recipe.model,
        "variant": recipe.variant,
        "vae": recipe.vae,
        "prompt": prompt,
        "resolution": recipe.task.resolution,
        "inference_steps": recipe.validation.inference_steps,
        "guidance_scale": recipe.validation.guidance_scale,
    }
    files.check_writable(folder)
    path = folder / SETTINGS
    if not path.exists():
        if any(folder.glob("*.png")):
            raise UserError(f"prior.folder: {folder} holds images, but no {SETTINGS}: choose another folder")
        files.write_json(path, settings)
        return
    with files.reading(path):
        found = files.read_json(path)
    if odd := differences(found, settings):
        raise UserError(
            f"prior.folder: {folder} holds images of other settings: {', '.join(odd)}: choose another folder"
        )


def class_images(recipe: SubjectRecipe, diffusion: Diffusion, folder: Path) -> Iterator[Path]:
    """This process's share of the images of the class, one after the other, generated where they are not there yet.

    Each is written whole or not at all, and has its own seed: a run that was interrupted goes on with the next.

    Args:
        recipe: with a prior.
        diffusion: the model before it is trained.
        folder: where they are kept; see `prepare_class_images`.
    """
    assert recipe.prior is not None
    prompt = recipe.task.fill(recipe.prior.prompt)
    for number, path in own_part(list(enumerate(class_paths(recipe, folder)))):
        if not path.exists():
            write_png(path, diffusion.generate(prompt, recipe.validation, seed_of("class image", number)))
        yield path


def class_paths(recipe: SubjectRecipe, folder: Path) -> list[Path]:
    """The files of all images of the class."""
    return [folder / f"{number:05d}.png" for number in range(0 if recipe.prior is None else recipe.prior.images)]
