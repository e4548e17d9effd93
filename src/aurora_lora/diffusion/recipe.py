"""A recipe of subject-driven generation.

    name: dog
    model: stabilityai/stable-diffusion-xl-base-1.0
    vae: madebyollin/sdxl-vae-fp16-fix
    task: {name: dreambooth, images: google/dreambooth, subject: dog, prompt: "A photo of a [V] dog"}
    method: {name: aurora, r: 2, alpha: 4}
    training: {steps: 500, learning_rate: 1e-4}

What is left out has a default: that of DreamBooth's script for SDXL in diffusers, or the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from ..data.dreambooth import DREAMBOOTH, PLACEHOLDER
from ..errors import UserError
from ..field_errors import Section
from ..methods import Method, get_method
from ..methods.start import wants_probe
from ..train.recipe import (
    BoundMethod,
    CalibrationSection,
    Number,
    Precision,
    Rate,
    RunRecipe,
    Seed,
    Size,
    Steps,
    Threads,
    is_result,
    override,
    task_name,
    validate,
    validate_as,
)

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
"""The projections of the U-Net's attention."""
Prompt = Annotated[str, Field(min_length=1)]


class SubjectSection(Section):
    """The subject, and how its images are cut."""

    name: Literal["dreambooth"]
    images: Annotated[str, Field(min_length=1)]
    """A folder of images (.bmp, .jpeg, .jpg, .png, .webp, not in folders below), or a data set of the hub."""
    subject: str | None = None
    """The data set's configuration."""
    prompt: Prompt
    """What the images show; `[V]` stands for the identifier."""
    identifier: Prompt = "sks"
    """A word that hardly means anything yet. It takes the place of `[V]` in every prompt."""
    resolution: Annotated[int, Field(gt=0, le=2**16, multiple_of=8)] = 1024
    """Side of the square images, in pixels: a multiple of 8."""
    crop: Literal["random", "center"] = "random"
    """Where a square is cut from an image whose shorter side was resized to the resolution."""
    flip: bool = False
    """Mirror half of the images."""

    def fill(self, prompt: str) -> str:
        """A prompt with the identifier in place of `[V]`."""
        return prompt.replace(PLACEHOLDER, self.identifier)


class DiffusionTrainingSection(Section):
    """AdamW on the noise-prediction loss."""

    steps: Size = 500
    batch_size: Size = 1
    """Images of the subject in a forward pass."""
    gradient_accumulation_steps: Size = 4
    learning_rate: Rate = 1e-4
    scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    """Of the learning rate, after the warm-up, as Transformers computes it; `constant` has no warm-up."""
    warmup_steps: Steps = 0
    """Steps over which the learning rate rises."""
    weight_decay: Number = 1e-4
    max_grad_norm: Number = 1.0
    """0 switches clipping off."""
    precision: Precision = "fp16"
    """Of the frozen weights and the computation; what is trained is kept in fp32. All weights are in fp32 where the
    method trains modules or biases of the model's own: `full`, `bitfit`, `bias`, `modules_to_save`."""
    gradient_checkpointing: bool = True
    checkpoint_every: Size = 100
    """Steps between checkpoints. There is one at each validation, too."""
    threads: Threads | None = None
    """CPU threads; `null` leaves the choice to PyTorch."""


class ValidationSection(Section):
    """Images generated while it trains, and how all images are generated."""

    prompts: Annotated[tuple[Prompt, ...], Field(strict=False)] = ()
    """The prompt of the task if empty."""
    every: Size = 100
    """Steps."""
    inference_steps: Size = 25
    """Also of the images of the forms and of the scores, and the default of `aurora generate`."""
    guidance_scale: Number = 5.0
    """Of classifier-free guidance, of the same images; up to 1 is none."""
    noise_samples: Size = 32
    """Noised images for the error of the noise prediction, the same ones each time."""


class ScoresSection(Section):
    """Subject and prompt fidelity of images generated in the end, in every form."""

    prompts: Annotated[tuple[Prompt, ...], Field(min_length=1, strict=False)]
    images_per_prompt: Size = 4
    clip: Annotated[str, Field(min_length=1)] = "openai/clip-vit-base-patch32@refs/pr/15"
    """For CLIP-I (subject) and CLIP-T (prompt): a folder, or a hub id with or without a revision. That revision has the
    weights of the main branch as safetensors; there they are a pickle."""
    dino: str | None = "facebook/dino-vits16"
    """For DINO (subject); `null` leaves it out."""


class DiffusionCalibrationSection(CalibrationSection):
    """Noised images of the subject, with the prompts of the task, of the validation and of guidance in turn."""

    examples: Size = 64
    batch_size: Size = 4


class SubjectRecipe(RunRecipe):
    """A whole run. See the module's docstring for the file."""

    name: str
    model: Annotated[str, Field(min_length=1)]
    """A Stable Diffusion XL pipeline: a hub id or a folder."""
    vae: str | None = None
    """Another autoencoder than the model's own."""
    variant: str | None = None
    """Of the weight files, such as `fp16`; the files without a variant where `null`."""
    task: SubjectSection
    method: BoundMethod
    training: DiffusionTrainingSection = DiffusionTrainingSection()
    validation: ValidationSection = ValidationSection()
    calibration: DiffusionCalibrationSection = DiffusionCalibrationSection()
    scores: ScoresSection | None = None
    seed: Seed = 0

    @field_validator("method", mode="before")
    @classmethod
    def _targets(cls, data: Any) -> Any:
        """Without targets, those of the paper, for methods that have any."""
        given = {"name": data} if isinstance(data, str) else data
        if not isinstance(given, Mapping) or given.get("target_modules") is not None:
            return data
        with_targets = {**given, "target_modules": list(TARGETS)}
        try:
            get_method(str(given.get("name"))).bind({k: v for k, v in with_targets.items() if k != "name"})
        except (ValueError, TypeError):
            return data  # it has none, or another option is at fault and is complained about
        return with_targets

    @field_validator("method")
    @classmethod
    def _can_be_trained(cls, method: Method) -> Method:
        why = None
        if method.callbacks():
            why = "it works at the steps of Transformers' Trainer"
        elif method.looks or wants_probe(method.options):
            why = "before the training it needs a loss on labels, and there are none"
        elif method.start_from is not None:
            why = "`from` goes on from adapters of classifiers and language models alone"
        if why is not None:
            raise PydanticCustomError(
                "below", "{why}", {"why": f"name: {method.name!r} with these options is not allowed: {why}"}
            )
        return method

    @property
    def weights_precision(self) -> Precision:
        """What the model is loaded in: fp32 where modules or biases of its own are trained, or copies of modules.

        These are in fp32, and outside the training loop nothing casts what they get from the rest to that.
        """
        own = self.method.base_use == "trained" or self.method.options.get("modules_to_save")
        return "fp32" if own else self.training.precision

    @property
    def validation_prompts(self) -> tuple[str, ...]:
        """The prompts of the images that are generated while it trains, filled in."""
        return tuple(self.task.fill(prompt) for prompt in self.validation.prompts or (self.task.prompt,))


# ---------------------------------------------------------------- recipes of any kind


def load_found(found: Any, overrides: Sequence[str]) -> RunRecipe:
    """Validate a recipe that was found already, a file or a cell of the paper's tables: its `values()` and `source`."""
    return as_recipe(override(found.values(), overrides), found.source)


def as_recipe(values: Any, source: str) -> RunRecipe:
    """Validate the plain values of a recipe of any kind.

    Args:
        values: of its fields; those that are missing get their defaults.
        source: where they are from, for messages.

    Raises:
        UserError: a value is wrong; one line for each mistake.
    """
    if is_result(values):
        raise UserError(f"{source}: this is the result of a run, not a recipe: recipe.yaml beside it is one")
    if task_name(values) == DREAMBOOTH.name:
        return validate_as(SubjectRecipe, values, source)
    return validate(values, source)
