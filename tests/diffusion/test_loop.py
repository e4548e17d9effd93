"""How the loop sets a model up, before its first step."""

from pathlib import Path
from typing import Any

import pytest
import torch

from aurora_lora.diffusion.loop import Loop, make_accelerator
from aurora_lora.diffusion.pipeline import load_diffusion
from aurora_lora.diffusion.recipe import SubjectRecipe
from aurora_lora.diffusion.run import needed_prompts
from aurora_lora.diffusion.subject import Subject
from aurora_lora.tasks.dreambooth import subject_images
from aurora_lora.training.build import apply_method
from aurora_lora.training.reading import validate_as


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_trained_is_in_fp32_and_blocks_are_recomputed_if_asked(
    tiny: Any, model: Path, images: Path, tmp_path: Path, checkpointing: bool
) -> None:
    training = {"precision": "bf16", "gradient_checkpointing": checkpointing}
    recipe = validate_as(SubjectRecipe, tiny.recipe(model, images, training=training), "tiny")
    accelerator = make_accelerator(recipe)
    diffusion = load_diffusion(recipe, needed_prompts(recipe), accelerator.device)
    adapted = apply_method(recipe, diffusion.unet, "TEXT_TO_IMAGE")
    adapted.to(torch.bfloat16)
    loop = Loop(recipe, adapted, Subject(recipe, diffusion, subject_images(str(images))), accelerator, tmp_path)
    dtypes = {(parameter.requires_grad, parameter.dtype) for parameter in adapted.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    assert diffusion.pipe.unet.is_gradient_checkpointing == checkpointing
    assert loop.trained
    assert len(loop.optimizer.param_groups[0]["params"]) == len(loop.trained)
