"""An SDXL pipeline of random weights, images of a subject, and a recipe: whole runs in seconds, without network."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

SIDE = 16
"""Pixels of the images; the autoencoder halves them."""
WIDTH = 16
"""Of each text encoder."""
SMALL_VIT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
}
CHARACTERS = "abcdefghijklmnopqrstuvwxyz[],."


def save_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer with a letter a token."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = [*CHARACTERS, *(f"{character}</w>" for character in CHARACTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def make_unet() -> UNet2DConditionModel:
    """A U-Net of SDXL's kind, of random weights."""
    return UNet2DConditionModel(
        sample_size=SIDE // 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        cross_attention_dim=2 * WIDTH,
    )


def save_pipeline(folder: Path, prediction: str = "epsilon") -> Path:
    """The whole pipeline, in diffusers' layout."""
    torch.manual_seed(0)
    tokenizer = save_tokenizer(folder / "tokenizer")
    unet = make_unet()
    vae = AutoencoderKL(
        block_out_channels=(16, 16),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        sample_size=SIDE,
        force_upcast=False,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
    )
    StableDiffusionXLPipeline(
        unet=unet,
        vae=vae,
        text_encoder=CLIPTextModel(text_config(tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizer)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=scheduler,
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """A CLIP of random weights, with its processor."""
    tokenizer = save_tokenizer(folder / "tokenizer")
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=text_config(tokenizer).to_dict(),
        vision_config=CLIPVisionConfig(**SMALL_VIT).to_dict(),
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    CLIPProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


def save_dino(folder: Path) -> Path:
    """A ViT of random weights, with its processor."""
    torch.manual_seed(1)
    ViTModel(ViTConfig(**SMALL_VIT)).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def save_images(folder: Path, count: int = 3) -> Path:
    """Images of a subject: a bright square on a dark ground, wider than high."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 60, (20, 28, 3), dtype=np.uint8)
        pixels[6:14, 8 + number : 16 + number] = (230, 180, 40)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def recipe(pipeline: Path, images: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of a run of a few seconds."""
    made: dict[str, Any] = {
        "name": "tiny",
        "model": str(pipeline),
        "task": {"name": "dreambooth", "images": str(images), "prompt": "a photo of a [V] dog", "resolution": SIDE},
        "method": {"name": "aurora"},
        "training": {"steps": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-2, "precision": "fp32"},
        "validation": {
            "prompts": ["a photo of a [V] dog", "a [V] dog on the beach"],
            "every": 2,
            "inference_steps": 2,
            "noise_samples": 4,
        },
        "calibration": {"examples": 8, "batch_size": 4},
    }
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(made.get(key), dict) and key != "method":
            made[key] = {**made[key], **value}
        else:
            made[key] = value
    return made
