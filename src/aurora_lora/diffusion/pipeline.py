"""Stable Diffusion XL through diffusers: loading, prompts, latents, generated images."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from ..data.loading import NO_CODE, cannot_load, check_attention
from ..errors import UserError
from ..extras import extra
from ..files import located
from ..train.models import PRECISIONS, cached_commit
from ..values import check_finite
from .random_numbers import generator

if TYPE_CHECKING:
    from PIL.Image import Image

    from .recipe import SubjectRecipe, ValidationSection

PREDICTIONS = ("epsilon", "v_prediction")


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
            self._warn_if_cut(prompt)
            hidden, no_hidden, pooled, no_pooled = self.pipe.encode_prompt(prompt, device=self.device)
            known[prompt] = Prompt(hidden.cpu(), pooled.cpu())
            unprompted = Prompt(no_hidden.cpu(), no_pooled.cpu())
        assert unprompted is not None
        return known, unprompted

    def _warn_if_cut(self, prompt: str) -> None:
        """Warn where a prompt is longer than the model reads: what diffusers logs of that is not shown."""
        tokenizer = self.pipe.tokenizer
        most, has = tokenizer.model_max_length, len(tokenizer(prompt, verbose=False).input_ids)
        if has > most:
            warnings.warn(
                f"the end of a prompt is cut, which has {has} tokens of the {most} that the model reads: {prompt!r}",
                stacklevel=2,
            )

    # ---------------------------------------------------------------- latents and the U-Net's inputs

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
        return self._normalised(sampled.float())

    def _normalised(self, sampled: Tensor) -> Tensor:
        """Latents as the U-Net was trained on them, which the pipeline undoes before it decodes: some autoencoders tell
        the mean and the deviation of each channel."""
        config = self.pipe.vae.config
        mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
        if mean is not None and std is not None:
            shape = (1, -1, 1, 1)
            mean, std = (torch.tensor(x, device=sampled.device).view(shape) for x in (mean, std))
            sampled = (sampled - mean) / std
        latents: Tensor = sampled * config.scaling_factor
        return latents

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
