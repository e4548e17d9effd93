"""From images of a subject to what the U-Net learns from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..train.data import in_batches
from .pipeline import Diffusion, generator

if TYPE_CHECKING:
    from PIL.Image import Image

    from .recipe import SubjectRecipe


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
    """

    def __init__(self, recipe: SubjectRecipe, diffusion: Diffusion, images: Sequence[Image]) -> None:
        self.recipe, self.diffusion, self.pictures = recipe, diffusion, images
        self.images = [resize(image, recipe.task.resolution) for image in images]
        self.prompt = recipe.task.fill(recipe.task.prompt)

    def batch(self, samples: Sequence[int]) -> Noised:
        """The samples of these numbers."""
        task, seed = self.recipe.task, self.recipe.seed
        made = []
        for number in samples:
            draw = generator("sample", seed, "subject", number)
            image = self.images[row_of(number, len(self.images), seed, "subject")]
            framed = frame(image, task.resolution, task.crop, task.flip, draw)
            timestep = int(torch.randint(len(self.diffusion.noise.alphas_cumprod), (), generator=draw))
            made.append((framed, self.diffusion.prompts[self.prompt], timestep, draw))
        return self._together(made)

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
