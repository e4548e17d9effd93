"""Tables 3, 4 and 5 on a small model and data from the package index."""

from __future__ import annotations

from functools import cache

from ....forms import CALIBRATED
from ..suite import CellRecipe, Column, Group, Row, Suite
from .common import OURS, SMALL_NOTE, form_of, our_rows
from .images import METHODS, TABLE_4_SCORES, TABLE_5_SCORES, TARGETS, Scores

SMALL = "vit-fashion-mnist"
SMALL_TASKS = {
    "digits": {"name": "digits"},
    "cifar10-10k": {"name": "cifar10-10k", "train_size": 2000, "validation_size": 500},
}
SMALL_EPOCHS = {"digits": 10, "cifar10-10k": 6}
SMALL_TRAINING = {"batch_size": 32, "eval_batch_size": 500, "warmup_ratio": 0.06}
# Learning rate of the method and of the head, which the study of that name chose on validation data
# (results/studies/digits, results/studies/cifar10). A linear probe has the head's alone, twice here.
SMALL_STUDIES = {"digits": "digits", "cifar10-10k": "cifar10"}
SMALL_RATES = {
    "digits": {
        "full": (1e-3, 1e-2),
        "linear-probe": (1e-1, 1e-1),
        "lora": (1e-2, 1e-1),
        "fourierft": (3e-2, 1e-2),
        "aurora-paper": (1e-3, 1e-1),
        "aurora": (1e-2, 1e-1),
        "aurora-paper-no-f": (1e-3, 1e-1),
        "aurora-paper-no-l": (1e-3, 1e-1),
        "aurora-paper-leaky-relu": (1e-3, 1e-1),
        "aurora-paper-sigmoid": (1e-3, 1e-1),
    },
    "cifar10-10k": {
        "full": (3e-4, 1e-3),
        "linear-probe": (3e-1, 3e-1),
        "lora": (3e-3, 1e-2),
        "fourierft": (3e-2, 1e-1),
        "aurora-paper": (3e-3, 1e-2),
        "aurora": (3e-3, 1e-2),
        "aurora-paper-no-f": (1e-3, 1e-2),
        "aurora-paper-no-l": (1e-3, 1e-2),
        "aurora-paper-leaky-relu": (3e-3, 1e-2),
        "aurora-paper-sigmoid": (1e-3, 1e-1),
    },
}


def small_recipe(short: str, task: str, *words: str) -> CellRecipe:
    """A method on a packaged task; the words that say where its learning rates come from are added."""
    method = METHODS[short][1] if short in METHODS else {"name": short, **TARGETS}
    if short == "lora":  # as in the studies that its rate comes from, without dropout
        method = {"name": "lora", "r": 8, "lora_alpha": 16, **TARGETS}
    elif short == "fourierft":
        method = {**method, "n_frequency": 1000}
    rate, head_rate = SMALL_RATES[task][short]
    training = {
        "epochs": SMALL_EPOCHS[task],
        **SMALL_TRAINING,
        "learning_rate": rate,
        "head_learning_rate": head_rate,
    }
    return CellRecipe(
        values={"model": SMALL, "task": SMALL_TASKS[task], "method": method, "training": training},
        words=(*words, f"Learning rates chosen on validation data: aurora list study {SMALL_STUDIES[task]}."),
    )


def _small(name: str, rows: dict[str, str], more: tuple[Row, ...]) -> Suite:
    """A packaged table: a row for each method, by its short name."""
    title = name.replace("table", "Table ")
    recipes: dict[str, CellRecipe] = {}
    made = []
    for short, row in rows.items():
        shared = name != "table3" and short == "aurora-paper"
        recipe = f"{'table3/' if shared else ''}{short}-{{column}}"
        made.append(Row(name=row, recipe=recipe, form=form_of(short)))
        for task in () if shared else SMALL_TASKS:
            what = f"{title}, packaged: {row} on {task}."
            recipes[f"{short}-{task}"] = small_recipe(short, task, what, SMALL_NOTE)
    if name == "table3":
        for task in SMALL_TASKS:
            what = f"Beside Table 3, packaged: AuroRA on {task}."
            recipes[f"aurora-{task}"] = small_recipe("aurora", task, what, OURS)
    return Suite(
        name=name,
        scale="packaged",
        title=f"{title}, packaged: a small ViT, pretrained on Fashion-MNIST",
        seeds=(0, 1, 2),
        statistic="mean",
        average="Avg.",
        note=SMALL_NOTE,
        columns=(
            Column(name="digits", label="digits", metric="accuracy"),
            Column(name="cifar10-10k", label="CIFAR10", metric="accuracy"),
        ),
        groups=(Group(name="ViT, 4 layers", rows=(*made, *more)),),
        recipes=recipes,
    )


@cache
def table3_packaged() -> Suite:
    """Table 3's rows."""
    rows = {short: title for short, (title, _, _) in METHODS.items()}
    return _small("table3", rows, our_rows("aurora-paper-{column}", "aurora-{column}"))


def _small_variants(name: str, scores: Scores) -> Suite:
    rows = {short: row for short, (row, _) in scores.items()}
    calibrated = (
        Row(
            name=f"{row}, calibrated",
            recipe=f"{'table3/' if short == 'aurora-paper' else ''}{short}-{{column}}",
            form=CALIBRATED,
        )
        for short, row in rows.items()
    )
    return _small(name, rows, tuple(calibrated))


@cache
def table4_packaged() -> Suite:
    """Table 4's rows."""
    return _small_variants("table4", TABLE_4_SCORES)


@cache
def table5_packaged() -> Suite:
    """Table 5's rows."""
    return _small_variants("table5", TABLE_5_SCORES)
