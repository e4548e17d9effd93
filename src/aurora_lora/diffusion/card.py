"""The model cards of a run: the `README.md` beside the adapter and beside the LoRA, filled in."""

from __future__ import annotations

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
    came = ""
    if isinstance(recipe.method, AuroraMethod):
        came = f'\nIt was trained as AuroRA ("{PAPER}") and exported: it computes exactly {FORMS[form].description}.\n'
    text = f"""
A LoRA for [diffusers]({DIFFUSERS}); it needs no other package than PEFT beside it.
{came}
## Load it

```python
{_pipeline(recipe)}
pipe.load_lora_weights(".")  # this folder
image = pipe({recipe.task.fill(recipe.task.prompt)!r}).images[0]
```
"""
    _write(folder, recipe, result, text, "diffusers")


def write_adapter_card(folder: Path, recipe: SubjectRecipe, result: Result) -> None:
    """Write the card of the adapter."""
    method = recipe.method
    if method.peft_loads:
        aurora = isinstance(method, AuroraMethod)
        lead = "import aurora_lora  # pip install aurora-lora\n" if aurora else ""
        text = f"""
An adapter of the U-Net for [PEFT]({PEFT}), of the method {method.name}.

## Load it

```python
{lead}from peft import PeftModel
{_pipeline(recipe)}
PeftModel.from_pretrained(pipe.unet, ".").eval()  # this folder; the layers of pipe.unet are replaced
image = pipe({recipe.task.fill(recipe.task.prompt)!r}).images[0]
```
"""
    else:
        text = f"""
What the method {method.name} has trained of the U-Net, for the command of `aurora-lora`:

    pip install 'aurora-lora[diffusion]'
    aurora generate RUN "{recipe.task.prompt}" --output OUT
"""
    _write(folder, recipe, result, text, "peft" if method.peft_loads else "aurora-lora")


def _pipeline(recipe: SubjectRecipe) -> str:
    """Python that loads the pipeline."""
    imports, vae = "StableDiffusionXLPipeline", ""
    if recipe.vae is not None:
        imports = "AutoencoderKL, StableDiffusionXLPipeline"
        vae = f"vae = AutoencoderKL.from_pretrained({recipe.vae!r})\n"
    given = (", vae=vae" if vae else "") + (f", variant={recipe.variant!r}" if recipe.variant is not None else "")
    return (
        f"from diffusers import {imports}\n\n"
        f"{vae}pipe = StableDiffusionXLPipeline.from_pretrained({recipe.model!r}{given})"
    )


def _write(folder: Path, recipe: SubjectRecipe, result: Result, text: str, library: str) -> None:
    prompt = recipe.task.fill(recipe.task.prompt)
    data = ModelCardData(
        base_model=recipe.model,
        library_name=library,
        pipeline_tag="text-to-image",
        tags=[TAG, "dreambooth", "stable-diffusion-xl", "text-to-image"],
        instance_prompt=prompt,
    )
    title, params = f"{recipe.name}: {recipe.method.name} on {recipe.model} for one subject", result["params"]
    text += f"""
`{recipe.task.identifier}` in a prompt names the subject.

## Scores

{examples_scored(result)}:

{scores_of(result).markdown()}

Trained parameters: {params["adapter"]:,} of {params["total"]:,} of the U-Net.
{made_by(recipe.resolved(), result["versions"])}"""
    save_card(folder / CARD, data, title, text)
