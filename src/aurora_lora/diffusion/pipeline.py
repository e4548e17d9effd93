"""Stable Diffusion XL through diffusers: loading, prompts, latents, images; and the random numbers of all of them."""

from __future__ import annotations

import contextlib
import hashlib
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from ..data.loading import NO_CODE, cannot_load
from ..errors import UserError
from ..extras import extra
from ..files import located, new_file
from ..train.models import PRECISIONS, cached_commit, check_attention
from ..train.trainer import quiet_libraries
from ..values import check_finite

if TYPE_CHECKING:
    from PIL.Image import Image

    from .recipe import SubjectRecipe, ValidationSection

PREDICTIONS = ("epsilon", "v_prediction")
GRID = "grid.png"
"""What the file with all images is called."""
SIDE = 256
"""Pixels of an image in the grid, at most."""
GAP, HEAD, LABEL = 8, 28, 168
"""Pixels between the images, above them for the columns' titles, and to their left for the prompts."""
TEXT = 13


def seed_of(*what: object) -> int:
    """A seed that what it is for decides, and neither the number of processes nor where a run went on."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=8).digest()) >> 1


def generator(*what: object) -> torch.Generator:
    """A generator on the CPU, so that the numbers are the same on every device."""
    return torch.Generator().manual_seed(seed_of(*what))


def quiet() -> None:
    """Switch off the progress bars and warnings of the libraries underneath."""
    quiet_libraries()
    warnings.filterwarnings("ignore", module=r"diffusers(\.|$)")
    with contextlib.suppress(ImportError):  # said when it is needed
        from diffusers.utils import logging as diffusers_logging

        diffusers_logging.set_verbosity_error()
        diffusers_logging.disable_progress_bar()


@dataclass(frozen=True)
class Prompt:
    """What SDXL's two text encoders make of a prompt: `hidden` (1, tokens, width) and `pooled` (1, width)."""

    hidden: Tensor
    pooled: Tensor


class Diffusion:
    """A pipeline whose text encoders have done their work: the U-Net, the autoencoder, the noise, the prompts.

    Args:
        pipe: diffusers' StableDiffusionXLPipeline.
        prompts: the prompts that will be needed; their embeddings are kept, the text encoders are not.
        device: where to compute.
        resolution: side of the images, in pixels.
        commit: `cached_commit` of what was loaded.
    """

    def __init__(
        self, pipe: Any, prompts: Iterable[str], device: torch.device, resolution: int, commit: str | None = None
    ) -> None:
        from diffusers import DDPMScheduler

        self.pipe, self.device, self.resolution, self.commit = pipe, device, resolution, commit
        self.noise = DDPMScheduler.from_config(pipe.scheduler.config)
        prediction = self.noise.config.prediction_type
        if prediction not in PREDICTIONS:
            raise UserError(f"model: it predicts {prediction!r} (supported: {', '.join(map(repr, PREDICTIONS))})")
        if resolution % pipe.vae_scale_factor:
            raise UserError(
                f"task.resolution: {resolution} is not allowed: it must be a multiple of {pipe.vae_scale_factor}, by "
                "which the autoencoder shrinks images"
            )
        for module in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
            module.requires_grad_(False)
            module.eval()
        self.prompts, self.unprompted = self._encode(prompts)
        pipe.text_encoder = pipe.text_encoder_2 = None
        pipe.to(device)

    @property
    def unet(self) -> nn.Module:
        """The U-Net; adapters of any method are in it, too."""
        unet: nn.Module = self.pipe.unet
        return unet

    @torch.no_grad()
    def _encode(self, prompts: Iterable[str]) -> tuple[dict[str, Prompt], Prompt]:
        for encoder in (self.pipe.text_encoder, self.pipe.text_encoder_2):
            encoder.to(self.device)
        known, unprompted = {}, None
        for prompt in dict.fromkeys(prompts):
            hidden, no_hidden, pooled, no_pooled = self.pipe.encode_prompt(prompt, device=self.device)
            known[prompt] = Prompt(hidden.cpu(), pooled.cpu())
            unprompted = Prompt(no_hidden.cpu(), no_pooled.cpu())
        assert unprompted is not None
        return known, unprompted

    @torch.no_grad()
    def latents(self, pixels: Tensor, draw: torch.Generator | None = None) -> Tensor:
        """Images (batch, 3, side, side) from -1 to 1 as latents: drawn from the encoder's distribution, or its mode."""
        vae = self.pipe.vae
        overflows = vae.dtype == torch.float16 and vae.config.force_upcast  # as SDXL's own does
        if overflows:
            vae.to(torch.float32)
        found = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist
        sampled = found.mode() if draw is None else found.sample(draw)
        if overflows:
            vae.to(torch.float16)
        latents: Tensor = sampled.float()
        config = vae.config
        mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
        if mean is not None and std is not None:  # of each channel, which the pipeline undoes before it decodes
            mean, std = (torch.tensor(x, device=latents.device).view(1, -1, 1, 1) for x in (mean, std))
            latents = (latents - mean) / std
        return latents * float(config.scaling_factor)

    def inputs(self, noisy: Tensor, timesteps: Tensor, prompts: Sequence[Prompt], time_ids: Tensor) -> dict[str, Any]:
        """The U-Net's arguments: noisy latents, timesteps (batch,), a prompt for each, sizes and crops (batch, 6)."""
        dtype = self.pipe.unet.dtype
        on = {"device": self.device, "dtype": dtype}
        return {
            "sample": noisy.to(**on),
            "timestep": timesteps.to(self.device),
            "encoder_hidden_states": torch.cat([prompt.hidden for prompt in prompts]).to(**on),
            "added_cond_kwargs": {
                "text_embeds": torch.cat([prompt.pooled for prompt in prompts]).to(**on),
                "time_ids": time_ids.to(**on),
            },
        }

    # ---------------------------------------------------------------- images

    def generate(self, prompt: str, wanted: ValidationSection, seed: int) -> Image:
        """An image of a prompt; the seed decides the noise that it starts from.

        Raises:
            NotFiniteError: NaN or infinity in it.
        """
        self.unet.eval()
        known, none = self.prompts[prompt], self.unprompted
        guided = wanted.guidance_scale > 1
        on: dict[str, Any] = {"device": self.device, "dtype": self.pipe.unet.dtype}
        pixels = self.pipe(
            prompt_embeds=known.hidden.to(**on),
            pooled_prompt_embeds=known.pooled.to(**on),
            negative_prompt_embeds=none.hidden.to(**on) if guided else None,
            negative_pooled_prompt_embeds=none.pooled.to(**on) if guided else None,
            height=self.resolution,
            width=self.resolution,
            num_inference_steps=wanted.inference_steps,
            guidance_scale=wanted.guidance_scale,
            generator=generator("image", seed),
            output_type="np",
        ).images
        check_finite([(f"the image of {prompt!r}", torch.from_numpy(pixels))], "the pipeline failed")
        image: Image = self.pipe.image_processor.numpy_to_pil(pixels)[0]
        return image


def load_diffusion(
    recipe: SubjectRecipe, prompts: Iterable[str], device: torch.device, precision: str | None = None
) -> Diffusion:
    """The pipeline of a recipe.

    Args:
        recipe: names the model.
        prompts: those that will be needed.
        device: where to compute.
        precision: of the weights; `recipe.weights_precision` if None.

    Raises:
        UserError: diffusers is missing, or the model or autoencoder cannot be loaded or is of another kind.
    """
    with extra("diffusion"):
        import torchvision  # noqa: F401  (for the images, later)
        from diffusers import AutoencoderKL, StableDiffusionXLPipeline
    dtype = PRECISIONS[precision or recipe.weights_precision]
    kept: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": True}
    more = {}
    if recipe.vae is not None:
        try:
            more["vae"] = AutoencoderKL.from_pretrained(located(recipe.vae), **kept)
        except (OSError, ValueError) as error:
            raise cannot_load("vae", recipe.vae, error) from error
    try:
        _check_text_encoders(located(recipe.model))
        pipe = StableDiffusionXLPipeline.from_pretrained(
            located(recipe.model), variant=recipe.variant, **kept, **more, **NO_CODE
        )
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise cannot_load("model", recipe.model, error) from error
    if pipe.text_encoder is None:
        raise UserError(f"model: {recipe.model!r} has one text encoder: it is a refiner, not a base model")
    pipe.set_progress_bar_config(disable=True)
    pipe.watermark = None  # an invisible watermark needs another package, and would be learned from class images
    commit = cached_commit(recipe.model, file="model_index.json")
    return Diffusion(pipe, prompts, device, recipe.task.resolution, commit)


def _check_text_encoders(model: str) -> None:
    """Raise a ValueError where one of them asks for code of the hub."""
    for part in ("text_encoder", "text_encoder_2"):
        with contextlib.suppress(OSError):  # the pipeline says what is not there
            check_attention(AutoConfig.from_pretrained(model, subfolder=part, **NO_CODE))


# ---------------------------------------------------------------- files of images


def write_png(path: Path, image: Image) -> None:
    """Write an image, whole or not at all."""
    with new_file(path) as partial:
        image.save(partial, format="PNG")


def write_grid(path: Path, rows: Sequence[str], columns: Mapping[str, Sequence[Path]]) -> None:
    """Write the grid, whole or not at all.

    Args:
        path: of the PNG.
        rows: the prompts.
        columns: title -> the image of each prompt, by its file.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(TEXT)
    side = SIDE
    width, height = LABEL + GAP + len(columns) * (side + GAP), HEAD + len(rows) * (side + GAP)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (title, images) in enumerate(columns.items()):
        left = LABEL + GAP + column * (side + GAP)
        draw.text((left + side / 2, HEAD / 2), title, fill="black", font=font, anchor="mm")
        for row, image in enumerate(images):
            with Image.open(image) as opened:
                # small images are enlarged without smoothing, so that their pixels show
                smooth = Image.Resampling.LANCZOS if max(opened.size) > side else Image.Resampling.NEAREST
                square = opened.convert("RGB").resize((side, side), smooth)
                sheet.paste(square, (left, HEAD + row * (side + GAP)))
    for row, prompt in enumerate(rows):
        middle = HEAD + row * (side + GAP) + side / 2
        lines = textwrap.wrap(prompt, int((LABEL - GAP) / (0.55 * TEXT)), max_lines=12, placeholder=" ...")
        draw.multiline_text((GAP, middle), "\n".join(lines), fill="black", font=font, anchor="lm")
    write_png(path, sheet)
