"""The model cards of a run: the `README.md` beside the adapter and beside the LoRA, filled in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

from ..forms import FORMS
from ..methods.aurora import AuroraMethod
from ..train.card import CARD, PAPER, PEFT, made_by, save_card
from ..train.finished_run import Result, examples_scored, scores_of
from ..tuner.registration import TAG
from .recipe import SubjectRecipe

DIFFUSERS = "https://github.com/huggingface/diffusers"


def write_lora_card(folder: Path, recipe: SubjectRecipe, result: Result, form: str) -> None:
    """Write the card of the LoRA for diffusers."""
    about = f"A LoRA for [diffusers]({DIFFUSERS}); it needs no other package than PEFT beside it.\n"
    if isinstance(recipe.method, AuroraMethod):
        about += (
            f'\nIt was trained as AuroRA ("{PAPER}") and exported: it computes exactly {FORMS[form].description}.\n'
        )
    _write(
        folder, recipe, result, "diffusers", about, [*_pipeline(recipe), 'pipe.load_lora_weights(".")  # this folder']
    )


def write_adapter_card(folder: Path, recipe: SubjectRecipe, result: Result) -> None:
    """Write the card of the adapter."""
    method = recipe.method
    if not method.peft_loads:
        about = f"What the method {method.name} has trained of the U-Net, for the command of `aurora-lora`:\n\n"
        about += (
            f"    pip install 'aurora-lora[diffusion]'\n    aurora generate RUN \"{recipe.task.prompt}\" --output OUT\n"
        )
        _write(folder, recipe, result, "aurora-lora", about)
        return
    about = f"An adapter of the U-Net for [PEFT]({PEFT}), of the method {method.name}.\n"
    lead = ["import aurora_lora  # pip install aurora-lora"] if isinstance(method, AuroraMethod) else []
    load = 'PeftModel.from_pretrained(pipe.unet, ".").eval()  # this folder; the layers of pipe.unet are replaced'
    _write(folder, recipe, result, "peft", about, [*lead, "from peft import PeftModel", *_pipeline(recipe), load])


def _pipeline(recipe: SubjectRecipe) -> list[str]:
    """Python that loads the pipeline."""
    names, vae, given = "StableDiffusionXLPipeline", [], ""
    if recipe.vae is not None:
        names, vae, given = (
            f"AutoencoderKL, {names}",
            [f"vae = AutoencoderKL.from_pretrained({recipe.vae!r})"],
            ", vae=vae",
        )
    given += f", variant={recipe.variant!r}" if recipe.variant is not None else ""
    load = f"pipe = StableDiffusionXLPipeline.from_pretrained({recipe.model!r}{given})"
    return [f"from diffusers import {names}\n", *vae, load]


def _write(
    folder: Path, recipe: SubjectRecipe, result: Result, library: str, about: str, code: Sequence[str] = ()
) -> None:
    prompt = recipe.task.fill(recipe.task.prompt)
    data = ModelCardData(
        base_model=recipe.model,
        library_name=library,
        pipeline_tag="text-to-image",
        tags=[TAG, "dreambooth", "stable-diffusion-xl", "text-to-image"],
        instance_prompt=prompt,
    )
    title, params = f"{recipe.name}: {recipe.method.name} on {recipe.model} for one subject", result["params"]
    lines = "\n".join([*code, f"image = pipe({prompt!r}).images[0]"])
    loading = f"\n## Load it\n\n```python\n{lines}\n```\n" if code else ""
    text = f"""
{about}{loading}
`{recipe.task.identifier}` in a prompt names the subject.

## Scores

{examples_scored(result)}:

{scores_of(result).markdown()}

Trained parameters: {params["adapter"]:,} of {params["total"]:,} of the U-Net.
{made_by(recipe.resolved(), result["versions"])}"""
    save_card(folder / CARD, data, title, text)
