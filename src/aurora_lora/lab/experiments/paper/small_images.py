"""Tables 3, 4 and 5 on a small model and data from the package index."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from ....forms import CALIBRATED, DYNAMIC, STATIC
from ..suite import CellRecipe, Column, Group, Row, Suite
from .common import OURS, SMALL_NOTE, by_task, form_of, our_rows
from .images import METHODS, TABLE_4_SCORES, TABLE_5_SCORES, TARGETS, Scores

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


def small_recipe(name: str, short: str, task: str, *words: str) -> CellRecipe:
    """A method on a packaged task with a recipe's learning rates; the words that say what chose them are added."""
    method = METHODS[short][1] if short in METHODS else {"name": short, **TARGETS}
    if short == "lora":  # as in the studies that its rate comes from, without dropout
        method = {"name": "lora", "r": 8, "lora_alpha": 16, **TARGETS}
    elif short == "fourierft":
        method = {**method, "n_frequency": 1000}
    rate, head_rate = SMALL_RATES[name][task]
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


def _recipes(name: str, short: str, what: str, note: str = SMALL_NOTE) -> dict[str, CellRecipe]:
    """A method on each task."""
    return {f"{name}-{task}": small_recipe(name, short, task, f"{what} on {task}.", note) for task in SMALL_TASKS}


def _small(name: str, recipes: dict[str, CellRecipe], rows: Iterable[Row]) -> Suite:
    return Suite(
        name=name,
        scale="packaged",
        title=f"{name.replace('table', 'Table ')}, packaged: a small ViT, pretrained on Fashion-MNIST",
        seeds=(0, 1, 2),
        statistic="mean",
        average="Avg.",
        note=SMALL_NOTE,
        columns=(
            Column(name="digits", label="digits", metric="accuracy"),
            Column(name="cifar10-10k", label="CIFAR10", metric="accuracy"),
        ),
        groups=(Group(name="ViT, 4 layers", rows=tuple(rows)),),
        recipes=recipes,
    )


@cache
def table3_packaged() -> Suite:
    """Table 3's rows, and each form of the paper's setting with learning rates of its own."""
    recipes: dict[str, CellRecipe] = {}
    rows = []
    for short, (title, _, _) in METHODS.items():
        recipes |= _recipes(short, short, f"Table 3, packaged: {title}")
        rows.append(Row(name=title, recipe=f"{short}-{{column}}", form=form_of(short)))
    for form in (DYNAMIC, CALIBRATED):
        recipes |= _recipes(f"aurora-paper-{form}", "aurora-paper", f"Table 3, packaged: AuroRA for its {form} form")
    recipes |= _recipes("aurora", "aurora", "Beside Table 3, packaged: AuroRA", OURS)
    ours = our_rows(
        "aurora-paper-{column}",
        "aurora-{column}",
        dynamic=f"aurora-paper-{DYNAMIC}-{{column}}",
        calibrated=f"aurora-paper-{CALIBRATED}-{{column}}",
    )
    return _small("table3", recipes, (*rows, *ours))


def _small_variants(name: str, scores: Scores) -> Suite:
    """Table 4 or 5: variants of AuroRA beside the runs of Table 3, merged statically and calibrated."""
    recipes: dict[str, CellRecipe] = {}
    static, calibrated = [], []
    for short, (title, _) in scores.items():
        folder = "table3/" if short == "aurora-paper" else ""
        own = f"{short}-{CALIBRATED}"
        static.append(Row(name=title, recipe=f"{folder}{short}-{{column}}", form=STATIC))
        calibrated.append(Row(name=f"{title}, calibrated", recipe=f"{folder}{own}-{{column}}", form=CALIBRATED))
        if not folder:
            what = f"{name.replace('table', 'Table ')}, packaged: {title}"
            recipes |= _recipes(short, short, what)
            recipes |= _recipes(own, short, f"{what} for its {CALIBRATED} form")
    return _small(name, recipes, (*static, *calibrated))


@cache
def table4_packaged() -> Suite:
    """Table 4's rows."""
    return _small_variants("table4", TABLE_4_SCORES)


@cache
def table5_packaged() -> Suite:
    """Table 5's rows."""
    return _small_variants("table5", TABLE_5_SCORES)
