"""Tables 3, 4 and 5, images: the settings of every cell, with where each comes from."""

from __future__ import annotations

from functools import cache

from ....forms import CALIBRATED, STATIC
from ..suite import CellRecipe, Column, Group, Row, Suite
from .common import OURS, PAPER, Values, by_task, form_of, our_rows, printed

TASKS = ("oxford-pets", "stanford-cars", "cifar10", "dtd", "eurosat", "fgvc", "resisc45", "cifar100")
LABELS = ("OxfordPets", "StanfordCars", "CIFAR10", "DTD", "EuroSAT", "FGVC", "RESISC45", "CIFAR100")
MODELS = {"base": "google/vit-base-patch16-224-in21k", "large": "google/vit-large-patch16-224-in21k"}
# query and value, by the names of older and of newer Transformers
TARGETS = {"target_modules": r".*\.(query|value|q_proj|v_proj)"}

# the paper's Table 13: learning rate of AuroRA and of the head
TABLE_13 = by_task(
    TASKS,
    """
    base   5e-3,5e-3  1e-2,1e-2  1e-2,3e-2  1e-2,8e-3  5e-3,8e-3  1e-2,1e-2    8e-3,1e-2      8e-3,5e-3
    large  5e-3,4e-3  9e-3,8e-3  8e-3,4e-2  8e-3,9e-3  4e-3,8e-3  1.5e-2,1e-2  7.5e-3,1.5e-2  1.5e-2,5e-3
    """,
)
# FourierFT (Gao et al. 2024), Table 12: learning rate of the coefficients and of the head, for both models
FOURIERFT = by_task(
    TASKS, "both 3e-1,1e-3  3e-1,1e-3  3e-1,1e-3  3e-1,1e-3  2e-1,8e-4  3e-1,1e-3  3e-1,1e-3  2e-1,7e-4"
)["both"]
# the same in both papers and for both models
WEIGHT_DECAY = by_task(TASKS, "both 8e-4  4e-5  9e-5  7e-5  3e-4  7e-5  3e-4  1e-4")["both"]
SEEDS = (7, 77, 777, 7777, 77777)  # of FourierFT's code for images
BATCH = "No batch size is given: 200 as in FourierFT's code, here {times} times {at_once}."
UNKNOWN = (
    "What the source chose is not known, only that it searched one learning rate, for method and head, from 1e-6 to "
    "1e-3 (exec_optuna.py of FourierFT's code): {rate:g} is ours; the rest is that of the paper's Table 13."
)
# the row's title, the method, the learning rate of method and head where the source's is not known
METHODS: dict[str, tuple[str, Values, float | None]] = {
    "full": ("Full fine-tuning", {"name": "full"}, 1e-4),
    "linear-probe": ("Linear probing", {"name": "linear-probe"}, 1e-3),
    "lora": ("LoRA", {"name": "lora", "r": 16, "lora_alpha": 16, "lora_dropout": 0.1, **TARGETS}, 1e-3),
    "fourierft": (
        "FourierFT",
        {"name": "fourierft", "n_frequency": 10_000, "scaling": 300.0, **TARGETS},
        None,
    ),
    "aurora-paper": ("AuroRA", {"name": "aurora-paper", **TARGETS}, None),
}
# as the paper prints them, in the order of TASKS, then their average and the parameters
TABLE_3_SCORES = {
    "base": """
        full          93.1 79.8 98.9 77.7 99.1 54.8 96.1 92.4  86.5  85.8M
        linear-probe  90.3 25.8 96.4 69.8 88.7 17.4 74.2 84.3  68.4  -
        lora          93.2 45.4 98.8 75.0 98.4 25.2 92.7 92.0  77.6  581K
        fourierft     93.1 56.4 98.7 77.3 98.8 32.4 94.3 91.5  80.3  239K
        aurora-paper  93.9 75.7 98.8 79.6 98.8 48.2 93.6 92.0  85.1  74K
    """,
    "large": """
        full          94.4 88.9 99.2 81.8 99.0 68.3 96.4 93.6  90.2  303.3M
        linear-probe  91.1 37.9 97.8 73.3 92.6 24.6 82.0 84.3  73.0  -
        lora          94.8 73.3 99.1 81.8 98.6 42.3 94.7 94.9  84.9  1.57M
        fourierft     94.8 79.1 99.1 81.9 98.7 51.3 95.2 93.4  86.7  480K
        aurora-paper  94.9 82.5 99.1 82.1 98.9 59.8 94.9 93.3  88.2  197K
    """,
}
NOTES = {
    "lora": ("r = 16 trains 589,824 and 1,572,864 parameters; the paper prints 581K for the base model.",),
    "fourierft": ("FourierFT's Table 12 is for 3,000 coefficients a layer; the paper quotes its row of 10,000.",),
}
Scores = dict[str, tuple[str, tuple[float, ...]]]
# the tables' columns, rows by short name: title and the paper's scores
TABLE_4 = ("oxford-pets", "cifar10", "dtd", "eurosat")
TABLE_4_SCORES: Scores = {
    "aurora-paper": ("AuroRA", (93.9, 98.8, 79.6, 98.8)),
    "aurora-paper-no-f": ("AuroRA w/o F", (93.3, 98.4, 78.9, 98.3)),
    "aurora-paper-no-l": ("AuroRA w/o L", (93.1, 98.2, 77.8, 98.0)),
}
TABLE_5 = ("stanford-cars", "fgvc", "resisc45", "cifar100")
TABLE_5_SCORES: Scores = {
    "aurora-paper": ("AuroRA", (75.7, 48.2, 93.6, 92.0)),
    "aurora-paper-leaky-relu": ("AuroRA-lr", (75.6, 47.8, 93.4, 91.9)),
    "aurora-paper-sigmoid": ("AuroRA-sm", (75.2, 47.7, 92.9, 91.7)),
}


def label(task: str) -> str:
    """What the paper calls a data set."""
    return LABELS[TASKS.index(task)]


def columns(tasks: tuple[str, ...]) -> tuple[Column, ...]:
    """A column for each task."""
    return tuple(Column(name=task, label=label(task), metric="accuracy") for task in tasks)


def image_recipe(size: str, task: str, short: str, method: Values, *words: str) -> CellRecipe:
    """A cell; the words that say where its settings come from are added."""
    known = METHODS.get(short, METHODS["aurora-paper"])[2]
    if known is not None:
        rate = head_rate = known
        source = UNKNOWN.format(rate=rate)
    elif short == "fourierft":
        rate, head_rate = FOURIERFT[task]
        source = "FourierFT's settings (Gao et al. 2024, Table 12)."
    else:
        rate, head_rate = TABLE_13[size][task]
        source = f"{PAPER} (Table 13)."
    # 50 images of the large model do not fit into the paper's 24 GB at once
    at_once = 50 if size == "base" else 25
    times = 200 // at_once
    batch = {"batch_size": at_once, "gradient_accumulation_steps": times}
    training = {
        "epochs": 10,
        **batch,
        "learning_rate": rate,
        "head_learning_rate": head_rate,
        "weight_decay": WEIGHT_DECAY[task][0],
        "warmup_ratio": 0.0,
        "workers": 4,
    }
    values = {"model": MODELS[size], "task": {"name": task}, "method": method, "training": training}
    words = (*words, source, BATCH.format(times=times, at_once=at_once), *NOTES.get(short, ()))
    return CellRecipe(values=values, words=words)


@cache
def table3() -> Suite:
    """Eight data sets, ViT base and large."""
    recipes: dict[str, CellRecipe] = {}
    groups = []
    for size, scores in TABLE_3_SCORES.items():
        rows = []
        for short, (*numbers, average), params in printed(scores):
            title, method, _ = METHODS[short]
            for task in TASKS:
                what = f"Table 3: {title} on {label(task)}, ViT {size}."
                recipes[f"{size}-{short}-{task}"] = image_recipe(size, task, short, method, what)
            rows.append(
                Row(
                    name=title,
                    recipe=f"{size}-{short}-{{column}}",
                    form=form_of(short),
                    params=params,
                    quoted=short != "aurora-paper",
                    scores=dict(zip(TASKS, numbers, strict=True)),
                    average=average,
                )
            )
        for task in TASKS:
            what, method = f"Beside Table 3: AuroRA on {label(task)}, ViT {size}.", {"name": "aurora", **TARGETS}
            recipes[f"{size}-aurora-{task}"] = image_recipe(size, task, "aurora", method, what, OURS)
        ours = our_rows(f"{size}-aurora-paper-{{column}}", f"{size}-aurora-{{column}}")
        groups.append(Group(name=f"ViT-{size.capitalize()}", rows=(*rows, *ours)))
    return Suite(
        name="table3",
        scale="hub",
        title="Table 3: image classification with ViT",
        seeds=SEEDS,
        statistic="mean",
        gpu="RTX 4090",
        average="Avg.",
        columns=columns(TASKS),
        groups=tuple(groups),
        recipes=recipes,
    )


def _variants(name: str, title: str, tasks: tuple[str, ...], scores: Scores) -> Suite:
    """Table 4 or 5: variants of AuroRA on ViT base, beside the runs of Table 3."""
    recipes: dict[str, CellRecipe] = {}
    rows, calibrated = [], []
    for short, (row, numbers) in scores.items():
        recipe = f"table3/base-{short}-{{column}}" if short == "aurora-paper" else f"base-{short}-{{column}}"
        for task in tasks if short != "aurora-paper" else ():
            what = f"{name.replace('table', 'Table ')}: {row} on {label(task)}, ViT base."
            recipes[f"base-{short}-{task}"] = image_recipe("base", task, short, {"name": short, **TARGETS}, what)
        scores_by_task = dict(zip(tasks, numbers, strict=True))
        rows.append(Row(name=row, recipe=recipe, form=STATIC, scores=scores_by_task))
        calibrated.append(Row(name=f"{row}, calibrated", recipe=recipe, form=CALIBRATED))
    return Suite(
        name=name,
        scale="hub",
        title=title,
        seeds=SEEDS,
        statistic="mean",
        gpu="RTX 4090",
        columns=columns(tasks),
        groups=(Group(name="ViT-Base", rows=(*rows, *calibrated)),),
        recipes=recipes,
    )


@cache
def table4() -> Suite:
    """Without the fixed or the learnable nonlinearity."""
    return _variants("table4", "Table 4: AuroRA without F or L, ViT base", TABLE_4, TABLE_4_SCORES)


@cache
def table5() -> Suite:
    """Other activations."""
    return _variants("table5", "Table 5: activations of AuroRA, ViT base", TABLE_5, TABLE_5_SCORES)
