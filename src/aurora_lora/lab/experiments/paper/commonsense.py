"""Tables 2 and 7 and Figure 5: the settings of every cell, with where each comes from."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from ....forms import CALIBRATED, DYNAMIC, MERGED, STATIC
from ..suite import CellRecipe, Column, Group, Row, Suite
from .common import OURS, Values, form_of, our_rows, printed

LLAMA = "meta-llama/Meta-Llama-3-8B"
FIVE = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
COMMONSENSE = ("boolq", "piqa", "siqa", "hellaswag", "winogrande", "arc-e", "arc-c", "obqa")
COMMONSENSE_LABELS = ("BoolQ", "PIQA", "SIQA", "HellaSwag", "WinoGrande", "ARC-e", "ARC-c", "OBQA")
# the paper's Table 12; texts are cut at 256 tokens and the loss is on all of them, as in LLM-Adapters, which also takes
# the 16 texts of a step in four parts
TABLE_12 = {
    "epochs": 3,
    "batch_size": 4,
    "gradient_accumulation_steps": 4,
    "eval_batch_size": 4,  # each with 4 beams, and some questions have a thousand tokens
    "learning_rate": 3e-4,
    "warmup_steps": 100,
    "precision": "bf16",
    "gradient_checkpointing": True,  # for a GPU of 24 GB
    "checkpoint_every": 500,
}
TABLE_12_WORDS = "The paper's settings (Table 12)"
QUOTED = (
    "Settings of MiLoRA's paper (Wang et al. 2025, Table 10), whose numbers these are; rank and targets give the "
    "parameters that are printed."
)
QUOTED_LORA = (
    "Settings of MiLoRA's paper (Wang et al. 2025, Table 10), which quotes these numbers from DoRA's (Liu et al. 2024, "
    "Table 1); rank and targets give the parameters that are printed."
)
TABLE_2_METHODS: dict[str, tuple[str, Values]] = {
    "lora": ("LoRA", {"name": "lora", "r": 32, "lora_alpha": 64, "lora_dropout": 0.05, "target_modules": FIVE}),
    "pissa": ("PiSSA", {"name": "pissa", "r": 32, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": SEVEN}),
    "milora": ("MiLoRA", {"name": "milora", "r": 32, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": FIVE}),
    "aurora-paper": ("AuroRA", {"name": "aurora-paper", "dropout": 0.05, "target_modules": FIVE}),
}
TABLE_2_SCORES = """
    lora          70.8 85.2 79.9 91.7 84.3 84.2 71.2 79.0  80.8  56.6M
    pissa         67.1 81.1 77.2 83.6 78.9 77.7 63.2 74.6  75.4  83.8M
    milora        68.8 86.7 77.2 92.9 85.6 86.8 75.5 81.8  81.9  56.6M
    aurora-paper  72.5 87.4 79.0 94.2 83.0 89.3 78.8 84.8  83.6  3.5M
"""
# the paper's hours stand before the scores
TABLE_7_SCORES = """
    lora            15.05  70.8 85.2 79.9 91.7 84.3 84.2 71.2 79.0  80.8  56.6M
    aurora-paper-s  15.18  71.4 86.9 78.1 93.5 81.7 88.5 78.1 83.9  82.8  3.5M
    aurora-paper-d  15.60  72.6 87.5 79.2 94.3 83.0 89.5 78.9 85.0  83.8  3.5M
    aurora-paper    15.28  72.5 87.4 79.0 94.2 83.0 89.3 78.8 84.8  83.6  3.5M
"""
FIGURE_5_RANKS = (2, 4, 8, 16)
FIGURE_5 = ("hellaswag", "winogrande", "arc-e", "arc-c")
# the row's title, and the method's own words for alpha and dropout
FIGURE_5_METHODS = {
    "lora": ("LoRA", "lora_alpha", "lora_dropout"),
    "moslora": ("MoSLoRA", "alpha", "dropout"),
    "aurora-paper": ("AuroRA", "alpha", "dropout"),
}


def commonsense_columns(names: tuple[str, ...]) -> tuple[Column, ...]:
    """A column for each test set, by the generated answer."""
    labels = dict(zip(COMMONSENSE, COMMONSENSE_LABELS, strict=True))
    return tuple(Column(name=name, label=labels[name], metric="accuracy_generated", test=name) for name in names)


def commonsense_recipe(method: Values, test_sets: tuple[str, ...] = COMMONSENSE) -> Values:
    """Fine-tuning LLaMA3-8B on Commonsense170K."""
    task = {"name": "commonsense", "scorer": "generated", "max_length": 256, "test_sets": list(test_sets)}
    recipe: Values = {"model": LLAMA, "task": task, "method": method, "training": TABLE_12}
    if method["name"].startswith("aurora"):
        recipe["calibration"] = {"batch_size": TABLE_12["batch_size"]}
    return recipe


def _suite(
    name: str,
    title: str,
    columns: tuple[Column, ...],
    rows: Iterable[Row],
    recipes: dict[str, CellRecipe],
    note: str | None = None,
) -> Suite:
    return Suite(
        name=name,
        scale="hub",
        title=title,
        seeds=(0,),
        statistic="mean",
        gpu="L20",
        average="Avg.",
        note=note,
        columns=columns,
        groups=(Group(name="LLaMA3-8B", rows=tuple(rows)),),
        recipes=recipes,
    )


@cache
def table2() -> Suite:
    """Commonsense reasoning with LLaMA3-8B."""
    recipes, rows = {}, []
    for short, (*numbers, average), params in printed(TABLE_2_SCORES):
        row, method = TABLE_2_METHODS[short]
        ours, quoted = short == "aurora-paper", QUOTED_LORA if short == "lora" else QUOTED
        words = (f"Table 2: {row}, LLaMA3-8B, all eight test sets.", f"{TABLE_12_WORDS}." if ours else quoted)
        recipes[short] = CellRecipe(values=commonsense_recipe(method), words=words)
        rows.append(
            Row(
                name=row,
                recipe=short,
                form=form_of(short),
                params=params,
                quoted=not ours,
                scores=dict(zip(COMMONSENSE, numbers, strict=True)),
                average=average,
            )
        )
    recipes["aurora"] = CellRecipe(
        values=commonsense_recipe({"name": "aurora", "dropout": 0.05, "target_modules": FIVE}),
        words=("Beside Table 2: AuroRA, LLaMA3-8B, all eight test sets.", OURS),
    )
    rows += our_rows("aurora-paper", "aurora")
    title = "Table 2: commonsense reasoning with LLaMA3-8B"
    return _suite("table2", title, commonsense_columns(COMMONSENSE), rows, recipes)


@cache
def table7() -> Suite:
    """The three settings of AuroRA, and their time. Two of them are two forms of one training run."""
    rows = []
    forms = {"lora": MERGED, "aurora-paper": STATIC, "aurora-paper-d": DYNAMIC, "aurora-paper-s": STATIC}
    names = {"lora": "LoRA", "aurora-paper": "AuroRA", "aurora-paper-d": "AuroRA-D", "aurora-paper-s": "AuroRA-S"}
    for short, (hours, *numbers, average), params in printed(TABLE_7_SCORES):
        rows.append(
            Row(
                name=names[short],
                recipe=short if short == "aurora-paper-s" else f"table2/{short.removesuffix('-d')}",
                form=forms[short],
                params=params,
                quoted=short == "lora",
                scores={"hours": hours, **dict(zip(COMMONSENSE, numbers, strict=True))},
                average=average,
            )
        )
    static = CellRecipe(
        values=commonsense_recipe({"name": "aurora-paper-s", "dropout": 0.05, "target_modules": FIVE}),
        words=("Table 7: AuroRA-S, LLaMA3-8B, all eight test sets.", f"{TABLE_12_WORDS}, static throughout."),
    )
    columns = (Column(name="hours", label="hours", metric="hours", scale=1), *commonsense_columns(COMMONSENSE))
    title = "Table 7: settings of AuroRA with LLaMA3-8B"
    note = "The paper's hours are of training and inference; ours are of training."
    return _suite("table7", title, columns, rows, {"aurora-paper-s": static}, note)


@cache
def figure5() -> Suite:
    """Score against rank. The paper prints no numbers."""
    recipes, rows = {}, []
    for short, (title, alpha, dropout) in FIGURE_5_METHODS.items():
        for r in FIGURE_5_RANKS:
            name = f"{short}-r{r}"
            method = {"name": short, "r": r, alpha: 2 * r, dropout: 0.05, "target_modules": FIVE}
            words = (f"Figure 5: {title} of rank {r}, LLaMA3-8B, four test sets.", f"{TABLE_12_WORDS}, alpha / r = 2.")
            recipes[name] = CellRecipe(values=commonsense_recipe(method, FIGURE_5), words=words)
            rows.append(Row(name=f"{title} r={r}", recipe=name, form=form_of(short)))
    rows += [
        Row(name=f"AuroRA, calibrated r={r}", recipe=f"aurora-paper-r{r}", form=CALIBRATED) for r in FIGURE_5_RANKS
    ]
    title = "Figure 5: commonsense reasoning against rank, LLaMA3-8B"
    return _suite("figure5", title, commonsense_columns(FIGURE_5), rows, recipes)
