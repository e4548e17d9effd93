"""What one does with a finished run: export another form as a LoRA, generate images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from rich.console import Console
from torch import nn

from .. import files
from ..data.dreambooth import DREAMBOOTH
from ..data.loading import cannot_load
from ..data.metrics import METRICS
from ..deploy import export_lora
from ..deploy.export import check_replaceable, in_dtype, of_one_rank, write_component
from ..errors import ArgumentError, FormError, UserError, check_count
from ..extras import extra
from ..forms import FormName, form_named
from ..methods import Method
from ..methods.aurora import AuroraMethod
from ..methods.base import load_finite
from ..train.deploying import Exported, check_export_folder
from ..train.finished_run import (
    FinishedRun,
    check_own_recipe,
    examples_scored,
    parameters,
    rate,
    read_finished,
    scores_of,
)
from ..train.models import check_dtype
from ..train.publish import ADAPTER, LORA, RECIPE, RESULT
from ..train.recipe import task_name, validate_as
from ..tuner.adapters import plain_path
from .card import write_lora_card
from .pipeline import GRID, load_diffusion, seed_of, write_grid, write_png
from .recipe import SubjectRecipe

IMAGES, FORMS = "images", "forms.png"


@dataclass(frozen=True)
class SubjectRun(FinishedRun):
    """A finished run of subject-driven generation: what `train_subject` and `load_subject_run` give."""

    recipe: SubjectRecipe = field(repr=False)

    @property
    def written(self) -> list[Path]:
        """What the run left behind; not every method is a LoRA."""
        names = (RECIPE, IMAGES, GRID, FORMS, ADAPTER, LORA, RESULT)
        return [self.folder / name for name in names if (self.folder / name).exists()]


def print_subject_run(console: Console, run: SubjectRun) -> None:
    """Scores of every form, parameter counts, and what was written."""
    result = run.result
    console.print(replace(scores_of(result), title=f"{result['task']}: {examples_scored(result)}"))
    console.print(parameters(result), highlight=False)
    took, epochs = result["time"], result["epochs"]
    console.print(
        f"{epochs[-1]['step']} steps; {took['train_s']:.0f} s of training, {rate(took['samples_per_s'])} images/s; "
        f"noise error {METRICS['noise_error'].shown(epochs[0]['validation']['noise_error'])} before it",
        highlight=False,
    )
    for path in run.written:
        console.print(f"  {path}", highlight=False, soft_wrap=True)


def load_subject_run(folder: Path | str) -> SubjectRun:
    """A finished run of subject-driven generation.

    Raises:
        UserError: the folder holds none.
    """
    folder, values, result = read_finished(folder)
    if task_name(values) != DREAMBOOTH.name:
        raise UserError(f"{folder} is no run of {DREAMBOOTH.name}")
    recipe = validate_as(SubjectRecipe, values, str(folder / RECIPE))
    check_own_recipe(folder, recipe, result)
    return SubjectRun(folder, recipe, result)


def export_subject(
    run: SubjectRun, output: Path | str, *, form: str | None = None, dtype: str = "float32", overwrite: bool = False
) -> Exported:
    """Write a run's adapter as a LoRA that `pipe.load_lora_weights` of diffusers reads.

    Raises:
        UserError: the method is no LoRA; an unknown dtype; a folder that holds something else.
        FormError: the run has no such form, or it cannot be exported.
    """
    method, form, output = run.recipe.method, form or run.deployed_form, Path(output)
    check_dtype(dtype)
    run.check_form(form)
    if (why := no_lora(method, form)) is not None:
        raise UserError(f"{run.folder} cannot be exported: {why}")
    check_export_folder(output, overwrite)
    with extra("diffusion"):
        from diffusers import UNet2DConditionModel
    try:
        unet = UNet2DConditionModel.from_pretrained(
            files.located(run.recipe.model), subfolder="unet", variant=run.recipe.variant, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise cannot_load("model", run.recipe.model, error) from error
    try:
        with files.new_folder(output) as partial:
            write_lora(_with_adapter(run, unet), partial, method, form, dtype)
            write_lora_card(partial, run.recipe, run.result, form)
    except FormError:
        raise
    except ValueError as error:
        raise UserError(str(error).rstrip(".")) from error
    return Exported(output, form)


def generate(
    run: SubjectRun,
    prompts: Sequence[str],
    output: Path,
    *,
    form: str | None = None,
    seed: int | None = None,
    images: int = 1,
    inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> list[Path]:
    """Images of prompts, and `grid.png` with all of them.

    Args:
        run: which.
        prompts: `[V]` in them stands for the subject.
        output: a folder, of no run; images of the same names in it are replaced.
        form: of the adapter; the deployed one if None.
        seed: of the noise that images start from; the recipe's if None.
        images: of each prompt.
        inference_steps: the recipe's if None.
        guidance_scale: the recipe's if None.

    Returns:
        The grid, then the images, those of a prompt together.

    Raises:
        FormError: the run has no such form.
        UserError: a value that is not allowed; the folder of a run; the model or the adapter cannot be loaded.
    """
    recipe, form = run.recipe, form or run.deployed_form
    run.check_form(form)
    for name, value in (("images", images), ("inference_steps", inference_steps)):
        check_count(name, value)
    changes: dict[str, Any] = {"inference_steps": inference_steps, "guidance_scale": guidance_scale}
    wanted = recipe.validation.model_copy(update={k: v for k, v in changes.items() if v is not None})
    seed = recipe.seed if seed is None else seed
    if (output / RECIPE).exists() and (output / RESULT).exists():
        raise ArgumentError(f"`output`: {output} is the folder of a run, which has images of its own: choose another")
    files.check_writable(output)
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = there or torch.device("cpu")
    no_fp16 = device.type == "cpu" and recipe.training.precision == "fp16"
    filled = [recipe.task.fill(prompt) for prompt in prompts]
    diffusion = load_diffusion(recipe, filled, device, "fp32" if no_fp16 else None)
    model = _with_adapter(run, diffusion.unet)
    made: dict[str, list[Path]] = {f"image {number + 1}": [] for number in range(images)}
    with recipe.method.using(model, form):
        for row, prompt in enumerate(filled):
            for number, column in enumerate(made.values()):
                path = output / f"{row:02d}-{number}.png"
                image = diffusion.generate(prompt, wanted, seed_of("generated", seed, row, number))
                write_png(path, image)
                column.append(path)
    write_grid(output / GRID, filled, made)
    return [output / GRID, *(path for row in zip(*made.values(), strict=True) for path in row)]


def _with_adapter(run: SubjectRun, unet: Any) -> nn.Module:
    """The U-Net with the run's adapter."""
    return load_finite(run.recipe.method, unet, run.folder / ADAPTER).eval()


# ---------------------------------------------------------------- a LoRA of diffusers, read without this package


def no_lora(method: Method, form: str) -> str | None:
    """Why a form of a method is no LoRA of diffusers; None if it is one."""
    if not form_named(form).mergeable:
        return "the dynamic form is no linear map"
    if not isinstance(method, AuroraMethod) and method.name != "lora":
        return f"diffusers loads LoRA, and {method.name} is none"
    options = method.options
    for name in ("modules_to_save", "trainable_token_indices"):
        if options.get(name):
            return f"a LoRA file of diffusers has no place for what {name} trains"
    if method.base_use == "trained":
        return f"a LoRA file of diffusers has no place for the biases that bias={options['bias']!r} trains"
    if method.base_use == "start":
        kasa = options.get("kasa_config") is not None
        start = "kasa_config" if kasa else f"init_lora_weights={options['init_lora_weights']!r}"
        return f"a LoRA file of diffusers is for the base as it is, and {start} may change it"
    return None


def write_lora(model: nn.Module, folder: Path, method: Method, form: str, dtype: str = "float32") -> None:
    """Write `pytorch_lora_weights.safetensors` for the U-Net.

    Args:
        model: the U-Net with the adapter of the method, AuroRA or PEFT's LoRA.
        folder: an earlier export there is replaced; what it holds of other components of the pipeline stays.
        method: of the adapter.
        form: the form to write.
        dtype: of the factors.

    Raises:
        FormError, NotCalibratedError, NotFiniteError: as `export_lora`.
        ValueError: the adapter has or trains more than LoRA's A and B, or is a variant of LoRA; an unknown dtype; a
            folder that holds anything but an earlier export.
    """
    if isinstance(method, AuroraMethod):
        export_lora(model, folder, cast("FormName", form), format="diffusers", dtype=dtype)
        return
    weights = in_dtype(_lora_state(model), dtype)
    check_replaceable(folder)
    write_component(folder, "unet", weights)


@torch.no_grad()
def _lora_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """PEFT's LoRA under the names in the U-Net; the scaling goes into B, as such files have no alpha.

    Raises:
        ValueError: as `write_lora`.
    """
    held = get_peft_model_state_dict(model, save_embedding_layers=False)
    if other := next((name for name in held if not name.endswith((".lora_A.weight", ".lora_B.weight"))), None):
        raise ValueError(f"a LoRA file of diffusers holds LoRA's A and B only, and the adapter has {other} too")
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for path, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            adapted: Any = layer
            (name,) = layer.active_adapters
            if layer.lora_variant:
                raise ValueError("a variant of LoRA does not fit into a LoRA file of diffusers")
            A, B = (side[name].weight for side in (adapted.lora_A, adapted.lora_B))
            factors[plain_path(model, path)] = A, B * layer.scaling[name]
    return {
        f"{path}.{name}.weight": factor
        for path, pair in of_one_rank(factors).items()
        for name, factor in zip(("lora_A", "lora_B"), pair, strict=True)
    }
