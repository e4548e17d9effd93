"""Tables 1, 2 and 7 and Figure 5 on small models and data from the package index."""

from __future__ import annotations

from functools import cache

from ....forms import CALIBRATED, DYNAMIC, STATIC
from ..suite import CellRecipe, Column, Group, Row, Suite
from .common import OURS, SMALL_NOTE, Values, form_of, our_rows
from .commonsense import FIGURE_5_METHODS, FIGURE_5_RANKS, FIVE, TABLE_2_METHODS
from .glue import TABLE_1_METHODS, with_targets

SMALL_TEXT = {
    "movie-sentiment": {"name": "movie-sentiment", "train_size": 1500, "max_length": 48},
    "movie-rating": {"name": "movie-rating", "train_size": 1500, "max_length": 48},
}
SMALL_TEXT_TRAINING = {"epochs": 3, "batch_size": 32, "eval_batch_size": 128, "max_grad_norm": 0.0}
SMALL_TEXT_RATES = {"full": 5e-5, "fourierft": 5e-2}
# not all of it as the authors have it (MiLoRA's alpha is r there): docs/studies/paper-language.md is of these
SMALL_TABLE_2: dict[str, Values] = {
    "lora": {"r": 8, "lora_alpha": 16},
    "pissa": {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0},
    "milora": {"r": 8, "lora_alpha": 16},
}
SMALL_CHOICES = ("siqa", "wikihow-goal", "strategyqa", "winowhy")
# A run in about three minutes on one core.
SMALL_CHOICES_TRAINING = {
    "epochs": 1,
    "batch_size": 8,
    "eval_batch_size": 16,
    "learning_rate": 2e-3,
    "warmup_steps": 4,
    "precision": "bf16",
}


@cache
def table1_packaged() -> Suite:
    """Table 1's rows with MiniLM-L6 on rated film-review sentences."""
    recipes, rows = {}, []
    for short, (title, method, _, _) in TABLE_1_METHODS.items():
        method = {"name": short, "r": 16} if short.startswith("adapter") else method
        for task in SMALL_TEXT:
            words = (f"Table 1, packaged: {title} on {task}.", SMALL_NOTE)
            recipes[f"{short}-{task}"] = CellRecipe(values=small_text(with_targets(method), task), words=words)
        rows.append(Row(name=title, recipe=f"{short}-{{column}}", form=form_of(short)))
    for task in SMALL_TEXT:
        words = (f"Beside Table 1, packaged: AuroRA on {task}.", OURS)
        values = small_text(with_targets({"name": "aurora"}), task)
        recipes[f"aurora-{task}"] = CellRecipe(values=values, words=words)
    rows += our_rows("aurora-paper-{column}", "aurora-{column}")
    return Suite(
        name="table1",
        scale="packaged",
        title="Table 1, packaged: film-review sentences with MiniLM-L6",
        seeds=(0, 1, 2, 3, 4),
        average="Avg.",
        note=SMALL_NOTE,
        columns=(
            Column(name="movie-sentiment", label="sentiment", metric="accuracy"),
            Column(name="movie-rating", label="rating", metric="pearson"),
        ),
        groups=(Group(name="MiniLM-L6", rows=tuple(rows)),),
        recipes=recipes,
    )


def small_text(method: Values, task: str) -> Values:
    """MiniLM-L6 on film-review sentences."""
    training = {**SMALL_TEXT_TRAINING, "learning_rate": SMALL_TEXT_RATES.get(method["name"], 5e-3)}
    return {"model": "minilm-l6", "task": SMALL_TEXT[task], "method": method, "training": training}


def small_choices(method: Values, task: str) -> Values:
    """SmolLM2-135M on a packaged multiple-choice task."""
    section = {
        "name": task,
        "train_size": 320,
        "validation_size": 60,
        "test_size": 150,
        "max_length": 96,
        "loss_on": "answer",
    }
    return {
        "model": "smollm2-135m",
        "task": section,
        "method": method,
        "training": SMALL_CHOICES_TRAINING,
        "calibration": {"examples": 64},
    }


def _on_choices(short: str, what: str, method: Values, note: str) -> dict[str, CellRecipe]:
    """A method on each multiple-choice task."""
    return {
        f"{short}-{task}": CellRecipe(
            values=small_choices(method, task), words=(f"{what} on {task}, SmolLM2-135M.", note)
        )
        for task in SMALL_CHOICES
    }


def _small_rows(methods: dict[str, tuple[str, Values]], what: str) -> tuple[dict[str, CellRecipe], list[Row]]:
    recipes, rows = {}, []
    for short, (title, method) in methods.items():
        recipes.update(_on_choices(short, f"{what}, packaged: {title}", method, SMALL_NOTE))
        rows.append(Row(name=title, recipe=f"{short}-{{column}}", form=form_of(short)))
    return recipes, rows


def _small_suite(name: str, title: str, recipes: dict[str, CellRecipe], rows: list[Row]) -> Suite:
    return Suite(
        name=name,
        scale="packaged",
        title=title,
        seeds=(0, 1, 2),
        statistic="mean",
        average="Avg.",
        note=SMALL_NOTE,
        columns=tuple(Column(name=task, label=task, metric="accuracy") for task in SMALL_CHOICES),
        groups=(Group(name="SmolLM2-135M", rows=tuple(rows)),),
        recipes=recipes,
    )


@cache
def table2_packaged() -> Suite:
    """Table 2's rows with SmolLM2-135M."""
    methods = {
        short: (row, {**method, **SMALL_TABLE_2.get(short, {})}) for short, (row, method) in TABLE_2_METHODS.items()
    }
    recipes, rows = _small_rows(methods, "Table 2")
    ours = {"name": "aurora", "dropout": 0.05, "target_modules": FIVE}
    recipes.update(_on_choices("aurora", "Beside Table 2, packaged: AuroRA", ours, OURS))
    rows += our_rows("aurora-paper-{column}", "aurora-{column}")
    return _small_suite("table2", "Table 2, packaged: multiple choice with SmolLM2-135M", recipes, rows)


@cache
def table7_packaged() -> Suite:
    """Table 7's settings with SmolLM2-135M."""
    method = {"name": "aurora-paper-s", "dropout": 0.05, "target_modules": FIVE}
    recipes = _on_choices("aurora-paper-s", "Table 7, packaged: AuroRA-S", method, SMALL_NOTE)
    rows = [
        Row(name="LoRA", recipe="table2/lora-{column}"),
        Row(name="AuroRA-S", recipe="aurora-paper-s-{column}", form=STATIC),
        Row(name="AuroRA-D", recipe="table2/aurora-paper-{column}", form=DYNAMIC),
        Row(name="AuroRA", recipe="table2/aurora-paper-{column}", form=STATIC),
        Row(name="AuroRA, calibrated", recipe="table2/aurora-paper-{column}", form=CALIBRATED),
    ]
    return _small_suite("table7", "Table 7, packaged: settings of AuroRA with SmolLM2-135M", recipes, rows)


@cache
def figure5_packaged() -> Suite:
    """Score against rank with SmolLM2-135M."""
    methods: dict[str, tuple[str, Values]] = {}
    for r in FIGURE_5_RANKS:
        for short, (title, alpha, _) in FIGURE_5_METHODS.items():
            method = {"name": short, alpha: 2 * r, "r": r, "target_modules": FIVE}
            methods[f"{short}-r{r}"] = (f"{title} r={r}", method)
    recipes, rows = _small_rows(methods, "Figure 5")
    rows += [
        Row(name=f"AuroRA, calibrated r={r}", recipe=f"aurora-paper-r{r}-{{column}}", form=CALIBRATED)
        for r in FIGURE_5_RANKS
    ]
    return _small_suite("figure5", "Figure 5, packaged: multiple choice against rank", recipes, rows)
