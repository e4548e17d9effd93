"""Tables 3, 4 and 5, images, and the same on packaged data: the settings of every cell, each with its source."""

from __future__ import annotations

from collections.abc import Sequence

from ....forms import CALIBRATED, DYNAMIC
from ..suite import CellRecipe, Column, Row, Suite
from .common import PAPER, SMALL_NOTE, Values, by_task, opening, our_rows, rows, suite

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
    "fourierft": ("FourierFT", {"name": "fourierft", "n_frequency": 10_000, "scaling": 300.0, **TARGETS}, None),
}
METHODS |= {
    short: (title, {"name": short, **TARGETS}, None)
    for short, title in {
        "aurora-paper": "AuroRA",
        "aurora": "AuroRA",
        "aurora-paper-no-f": "AuroRA w/o F",
        "aurora-paper-no-l": "AuroRA w/o L",
        "aurora-paper-leaky-relu": "AuroRA-lr",
        "aurora-paper-sigmoid": "AuroRA-sm",
    }.items()
}
TITLES = {short: title for short, (title, *_) in METHODS.items()}
TABLE_3 = ("full", "linear-probe", "lora", "fourierft", "aurora-paper")
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
# the columns of the other two tables, and the paper's scores
TABLE_4 = ("oxford-pets", "cifar10", "dtd", "eurosat")
TABLE_4_SCORES = """
    aurora-paper       93.9 98.8 79.6 98.8
    aurora-paper-no-f  93.3 98.4 78.9 98.3
    aurora-paper-no-l  93.1 98.2 77.8 98.0
"""
TABLE_5 = ("stanford-cars", "fgvc", "resisc45", "cifar100")
TABLE_5_SCORES = """
    aurora-paper             75.7 48.2 93.6 92.0
    aurora-paper-leaky-relu  75.6 47.8 93.4 91.9
    aurora-paper-sigmoid     75.2 47.7 92.9 91.7
"""

SMALL = "vit-fashion-mnist"
SMALL_TASKS = {
    "digits": {"name": "digits"},
    "cifar10-10k": {"name": "cifar10-10k", "train_size": 2000, "validation_size": 500},
}
SMALL_EPOCHS = {"digits": 10, "cifar10-10k": 6}
SMALL_TRAINING = {"batch_size": 32, "eval_batch_size": 500, "warmup_ratio": 0.06}
# Learning rate of the method and of the head, by recipe, which the study of that name chose on validation data
# (results/studies/digits, results/studies/cifar10), for the form of the recipe's row. A linear probe has the head's
# alone, twice here.
SMALL_STUDIES = {"digits": "digits", "cifar10-10k": "cifar10"}
SMALL_RATES = by_task(
    tuple(SMALL_TASKS),
    """
    full                                1e-3,1e-2  3e-4,1e-3
    linear-probe                        1e-1,1e-1  3e-1,3e-1
    lora                                1e-2,1e-1  3e-3,1e-2
    fourierft                           3e-2,1e-2  3e-2,1e-1
    aurora-paper                        3e-4,1e-1  3e-3,1e-2
    aurora-paper-dynamic                1e-3,1e-1  3e-2,1e-2
    aurora-paper-calibrated             1e-3,1e-1  1e-3,1e-1
    aurora                              1e-2,1e-1  1e-2,1e-2
    aurora-paper-no-f                   3e-4,1e-1  1e-3,1e-2
    aurora-paper-no-f-calibrated        1e-3,1e-1  1e-3,1e-1
    aurora-paper-no-l                   3e-4,1e-1  1e-3,1e-2
    aurora-paper-no-l-calibrated        3e-4,1e-1  3e-2,1e-3
    aurora-paper-leaky-relu             3e-4,1e-1  3e-4,1e-2
    aurora-paper-leaky-relu-calibrated  1e-3,1e-1  1e-3,1e-1
    aurora-paper-sigmoid                3e-4,1e-1  3e-4,1e-1
    aurora-paper-sigmoid-calibrated     3e-4,1e-1  3e-4,1e-1
    """,
)


def _hub(
    name: str, title: str, tasks: Sequence[str], groups: dict[str, Sequence[Row]], average: str | None = None
) -> Suite:
    return suite(
        [Column(name=task, label=LABELS[TASKS.index(task)], metric="accuracy") for task in tasks],
        groups,
        lambda cell, task: _image_recipe(name, cell, task),
        name=name,
        scale="hub",
        title=title,
        seeds=SEEDS,
        statistic="mean",
        gpu="RTX 4090",
        average=average,
    )


def _image_recipe(table: str, name: str, task: str) -> CellRecipe:
    """A cell, such as `base-lora` on `dtd`."""
    size, _, short = name.partition("-")
    title, method, known = METHODS[short]
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
    training = {
        "epochs": 10,
        "batch_size": at_once,
        "gradient_accumulation_steps": times,
        "learning_rate": rate,
        "head_learning_rate": head_rate,
        "weight_decay": WEIGHT_DECAY[task][0],
        "warmup_ratio": 0.0,
        "workers": 4,
    }
    settings = (source, BATCH.format(times=times, at_once=at_once), *NOTES.get(short, ()))
    where = f" on {LABELS[TASKS.index(task)]}, ViT {size}"
    words = opening(table.replace("table", "Table "), title, short, where, *settings)
    return CellRecipe(
        values={"model": MODELS[size], "task": {"name": task}, "method": method, "training": training},
        words=(*words, *settings) if short == "aurora" else words,
    )


def _variants(scores: str, tasks: Sequence[str], recipe: str, calibrated: str) -> list[Row]:
    """The rows of Table 4 or 5: variants of AuroRA merged statically, beside the runs of Table 3, and calibrated."""
    found = []
    for own, form in ((recipe, None), (calibrated, CALIBRATED)):
        for row in rows(scores, TITLES, tasks, own):
            of_table_3 = row.recipe == own.format("aurora-paper")
            update: Values = {"recipe": f"table3/{row.recipe}"} if of_table_3 else {}
            if form is not None:
                update |= {"name": f"{row.name}, {form}", "form": form, "scores": {}}
            found.append(row.model_copy(update=update))
    return found


TABLE3 = _hub(
    "table3",
    "Table 3: image classification with ViT",
    TASKS,
    {
        f"ViT-{size.capitalize()}": (
            *rows(scores, TITLES, TASKS, f"{size}-{{}}-{{{{column}}}}"),
            *our_rows(f"{size}-aurora-paper-{{column}}", f"{size}-aurora-{{column}}"),
        )
        for size, scores in TABLE_3_SCORES.items()
    },
    average="Avg.",
)
TABLE4 = _hub(
    "table4",
    "Table 4: AuroRA without F or L, ViT base",
    TABLE_4,
    {"ViT-Base": _variants(TABLE_4_SCORES, TABLE_4, "base-{}-{{column}}", "base-{}-{{column}}")},
)
TABLE5 = _hub(
    "table5",
    "Table 5: activations of AuroRA, ViT base",
    TABLE_5,
    {"ViT-Base": _variants(TABLE_5_SCORES, TABLE_5, "base-{}-{{column}}", "base-{}-{{column}}")},
)


# ---------------------------------------------------------------- packaged


def _packaged(name: str, of_rows: Sequence[Row]) -> Suite:
    return suite(
        [
            Column(name="digits", label="digits", metric="accuracy"),
            Column(name="cifar10-10k", label="CIFAR10", metric="accuracy"),
        ],
        {"ViT, 4 layers": of_rows},
        lambda cell, task: _small_recipe(name, cell, task),
        name=name,
        scale="packaged",
        title=f"{name.replace('table', 'Table ')}, packaged: a small ViT, pretrained on Fashion-MNIST",
        seeds=(0, 1, 2),
        statistic="mean",
        average="Avg.",
        note=SMALL_NOTE,
    )


def _small_recipe(table: str, name: str, task: str) -> CellRecipe:
    """A method on a packaged task, such as `aurora-paper-calibrated`, with the learning rates that a study chose."""
    form = next((one for one in (DYNAMIC, CALIBRATED) if name.endswith(one)), None)
    short = name.removesuffix(f"-{form}")
    title, method, _ = METHODS[short]
    if short == "lora":  # as in the studies that its rate comes from, without dropout
        method = {"name": "lora", "r": 8, "lora_alpha": 16, **TARGETS}
    elif short == "fourierft":
        method = {**method, "n_frequency": 1000}
    rate, head_rate = SMALL_RATES[name][task]
    rates = {"learning_rate": rate, "head_learning_rate": head_rate}
    training = {"epochs": SMALL_EPOCHS[task], **SMALL_TRAINING, **rates}
    where = f" on {task}" if form is None else f" for its {form} form on {task}"
    words = opening(f"{table.replace('table', 'Table ')}, packaged", title, short, where, SMALL_NOTE)
    chosen = f"Learning rates chosen on validation data: aurora list study {SMALL_STUDIES[task]}."
    return CellRecipe(
        values={"model": SMALL, "task": SMALL_TASKS[task], "method": method, "training": training},
        words=(*words, chosen),
    )


TABLE3_PACKAGED = _packaged(
    "table3",
    [
        *rows(TABLE_3, TITLES),
        *our_rows(
            "aurora-paper-{column}",
            "aurora-{column}",
            dynamic=f"aurora-paper-{DYNAMIC}-{{column}}",
            calibrated=f"aurora-paper-{CALIBRATED}-{{column}}",
        ),
    ],
)
TABLE4_PACKAGED = _packaged("table4", _variants(TABLE_4_SCORES, (), "{}-{{column}}", "{}-calibrated-{{column}}"))
TABLE5_PACKAGED = _packaged("table5", _variants(TABLE_5_SCORES, (), "{}-{{column}}", "{}-calibrated-{{column}}"))
