"""Figure 4, subject-driven generation: the settings of every cell, with where each comes from."""

from __future__ import annotations

from ....forms import STATIC
from ..suite import CellRecipe, Column, Row
from .common import PAPER, Values, our_rows, suite

MODEL = {
    "model": "stabilityai/stable-diffusion-xl-base-1.0",
    "vae": "madebyollin/sdxl-vae-fp16-fix",
    "variant": "fp16",
}
TARGETS = {"target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}
# title, method
METHODS: dict[str, tuple[str, Values]] = {
    "lora": ("LoRA", {"name": "lora", "r": 4, "lora_alpha": 4, "init_lora_weights": "gaussian", **TARGETS}),
    "aurora-paper": ("AuroRA", {"name": "aurora-paper", "r": 2, "alpha": 4, **TARGETS}),
    "aurora": ("ours", {"name": "aurora", "r": 2, "alpha": 4, **TARGETS}),
}
TRAINING = {
    "steps": 500,
    "batch_size": 1,
    "gradient_accumulation_steps": 4,
    "learning_rate": 1e-4,
    "scheduler": "constant",
    "weight_decay": 1e-4,
    "precision": "fp16",
}
# configuration of google/dreambooth -> what the prompts call it, and whether it is alive
SUBJECTS = {"dog": ("dog", True), "bear_plushie": ("bear plushie", False)}
# of DreamBooth's evaluation (Ruiz et al. 2023)
PLACES = """
    in the jungle, in the snow, on the beach, on a cobblestone street, on top of pink fabric, on top of a wooden
    floor, with a city in the background, with a mountain in the background, with a blue house in the background, on
    top of a purple rug in a forest
"""
OBJECTS = """
    with a wheat field in the background, with a tree and autumn leaves in the background, with the Eiffel Tower in
    the background, floating on top of water, floating in an ocean of milk, on top of green grass with sunflowers
    around it, on top of a mirror, on top of the sidewalk in a crowded street, on top of a dirt road, on top of a
    white rug
"""
LIVE = """
    wearing a red hat, wearing a santa hat, wearing a rainbow scarf, wearing a black top hat and a monocle, in a
    chef outfit, in a firefighter outfit, in a police outfit, wearing pink glasses, wearing a yellow shirt, in a
    purple wizard outfit
"""
LOOKS = ("red", "purple", "shiny", "wet", "cube shaped")
SHOWN = {
    "dog": ("in the snow", "on the beach", "wearing a red hat"),
    "bear_plushie": ("on top of green grass with sunflowers around it", "in the jungle", "floating on top of water"),
}
SETTINGS = f"{PAPER} are r = 2 and alpha = 4; the others are those of DreamBooth's script for SDXL in diffusers."
LORA_RANK = "The paper gives no rank for LoRA: 4, with a Gaussian start, as in that script."
PROMPTS = "Scored on the prompts of DreamBooth's evaluation, four images each, in every form."


def prompts(noun: str, alive: bool) -> list[str]:
    """The 25 prompts of a subject."""
    ends = f"{PLACES}, {LIVE if alive else OBJECTS}".split(", ")
    return [*(f"a [V] {noun} {' '.join(end.split())}" for end in ends), *(f"a {look} [V] {noun}" for look in LOOKS)]


def subject_recipe(name: str, _: str) -> CellRecipe:
    """A cell, such as `dog-lora`: a run on a subject of google/dreambooth."""
    subject = next(one for one in SUBJECTS if name.startswith(one.replace("_", "-")))
    short = name[len(subject) + 1 :]
    (title, method), (noun, alive) = METHODS[short], SUBJECTS[subject]
    first = f"A photo of a [V] {noun}"
    values = {
        **MODEL,
        "task": {"name": "dreambooth", "images": "google/dreambooth", "subject": subject, "prompt": first},
        "method": method,
        "training": TRAINING,
        "validation": {"prompts": [first, *(f"a [V] {noun} {end}" for end in SHOWN[subject])], "every": 100},
        "scores": {"prompts": prompts(noun, alive), "images_per_prompt": 4},
    }
    rank = (LORA_RANK,) if short == "lora" else ()
    return CellRecipe(values=values, words=(f"Figure 4: {title}, {noun}.", SETTINGS, *rank, PROMPTS))


SMOKE = CellRecipe(
    values={
        **MODEL,
        "task": {"name": "dreambooth", "images": "diffusers/dog-example", "prompt": "A photo of a [V] dog"},
        "method": METHODS["aurora"][1],
        "training": {**TRAINING, "steps": 20},
        "validation": {"prompts": ["A photo of a [V] dog", "a [V] dog in a bucket"], "every": 10},
    },
    words=("A few steps on diffusers/dog-example: whether SDXL trains on this machine.",),
)
FIGURE4 = suite(
    [
        Column(name="clip-i", label="CLIP-I", metric="clip_i"),
        Column(name="clip-t", label="CLIP-T", metric="clip_t"),
        Column(name="dino", label="DINO", metric="dino"),
    ],
    {
        noun: (
            Row(name="LoRA", recipe=f"{subject.replace('_', '-')}-lora"),
            Row(name="AuroRA", recipe=f"{subject.replace('_', '-')}-aurora-paper", form=STATIC),
            *our_rows(f"{subject.replace('_', '-')}-aurora-paper", f"{subject.replace('_', '-')}-aurora"),
        )
        for subject, (noun, _) in SUBJECTS.items()
    },
    subject_recipe,
    {"smoke": SMOKE},
    name="figure4",
    scale="hub",
    title="Figure 4: subject-driven generation with SDXL",
    seeds=(0,),
    statistic="mean",
    gpu="L20",
    note="The paper shows images and prints no scores.",
)
