"""Tables 2 and 7 and Figure 5, and the same on packaged data: the settings of every cell, each with its source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....forms import CALIBRATED, DYNAMIC, MERGED, STATIC
from ..suite import HOURS, CellRecipe, Column, Row, Suite
from .common import SMALL_NOTE, Values, opening, our_rows, rows, suite

FIVE = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# the names of the test sets, and what the paper calls them
COMMONSENSE = {
    "boolq": "BoolQ",
    "piqa": "PIQA",
    "siqa": "SIQA",
    "hellaswag": "HellaSwag",
    "winogrande": "WinoGrande",
    "arc-e": "ARC-e",
    "arc-c": "ARC-c",
    "obqa": "OBQA",
}
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
# the row's title, the method, where its settings come from
METHODS: dict[str, tuple[str, Values, str]] = {
    "lora": ("LoRA", {"r": 32, "lora_alpha": 64, "lora_dropout": 0.05, "target_modules": FIVE}, QUOTED_LORA),
    "pissa": ("PiSSA", {"r": 32, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": SEVEN}, QUOTED),
    "milora": ("MiLoRA", {"r": 32, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": FIVE}, QUOTED),
    "aurora-paper": ("AuroRA", {"dropout": 0.05, "target_modules": FIVE}, f"{TABLE_12_WORDS}."),
    "aurora-paper-s": (
        "AuroRA-S",
        {"dropout": 0.05, "target_modules": FIVE},
        f"{TABLE_12_WORDS}, static throughout.",
    ),
    "aurora": ("AuroRA", {"dropout": 0.05, "target_modules": FIVE}, ""),
}
TITLES = {short: title for short, (title, *_) in METHODS.items()}
TABLE_2_SCORES = """
    lora          70.8 85.2 79.9 91.7 84.3 84.2 71.2 79.0  80.8  56.6M
    pissa         67.1 81.1 77.2 83.6 78.9 77.7 63.2 74.6  75.4  83.8M
    milora        68.8 86.7 77.2 92.9 85.6 86.8 75.5 81.8  81.9  56.6M
    aurora-paper  72.5 87.4 79.0 94.2 83.0 89.3 78.8 84.8  83.6  3.5M
"""
TABLE_2 = ("lora", "pissa", "milora", "aurora-paper")
# the paper's hours stand before the scores
TABLE_7_SCORES = """
    lora            15.05  70.8 85.2 79.9 91.7 84.3 84.2 71.2 79.0  80.8  56.6M
    aurora-paper-s  15.18  71.4 86.9 78.1 93.5 81.7 88.5 78.1 83.9  82.8  3.5M
    aurora-paper-d  15.60  72.6 87.5 79.2 94.3 83.0 89.5 78.9 85.0  83.8  3.5M
    aurora-paper    15.28  72.5 87.4 79.0 94.2 83.0 89.3 78.8 84.8  83.6  3.5M
"""
# recipe and form of each of these
TABLE_7 = (
    ("table2/lora", MERGED),
    ("aurora-paper-s", STATIC),
    ("table2/aurora-paper", DYNAMIC),
    ("table2/aurora-paper", STATIC),
)
FIGURE_5_RANKS = (2, 4, 8, 16)
FIGURE_5 = ("hellaswag", "winogrande", "arc-e", "arc-c")
# the row's title, and the method's own words for alpha and dropout
FIGURE_5_METHODS = {
    "lora": ("LoRA", "lora_alpha", "lora_dropout"),
    "moslora": ("MoSLoRA", "alpha", "dropout"),
    "aurora-paper": ("AuroRA", "alpha", "dropout"),
}

# what is packaged: not all of it as the authors have it (MiLoRA's alpha is r there): docs/studies/paper-language.md is
# of these
SMALL_TABLE_2: dict[str, Values] = {
    "lora": {"r": 8, "lora_alpha": 16},
    "pissa": {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0},
    "milora": {"r": 8, "lora_alpha": 16},
}
SMALL_CHOICES = ("siqa", "wikihow-goal", "strategyqa", "winowhy")
SMALL_TASK = {"train_size": 320, "validation_size": 60, "test_size": 150, "max_length": 96, "loss_on": "answer"}
# a run in about three minutes on one core
SMALL_TRAINING = {
    "epochs": 1,
    "batch_size": 8,
    "eval_batch_size": 16,
    "learning_rate": 2e-3,
    "warmup_steps": 4,
    "precision": "bf16",
}


def _hub(name: str, title: str, test_sets: Sequence[str], of_rows: Sequence[Row], **fields: Any) -> Suite:
    """A suite with LLaMA3-8B: a column for each test set, by the generated answer."""
    columns = [Column(name=one, label=COMMONSENSE[one], metric="accuracy_generated", test=one) for one in test_sets]
    if name == "table7":
        columns.insert(0, Column(name=HOURS, label=HOURS, metric=HOURS))
    return suite(
        columns,
        {"LLaMA3-8B": of_rows},
        lambda short, _: _commonsense(name, short, test_sets),
        name=name,
        scale="hub",
        title=title,
        seeds=(0,),
        statistic="mean",
        gpu="L20",
        average="Avg.",
        **fields,
    )


def _commonsense(table: str, short: str, test_sets: Sequence[str]) -> CellRecipe:
    """LLaMA3-8B, fine-tuned on Commonsense170K."""
    if table == "figure5":
        title, method = _of_rank(short, with_dropout=True)
        words: tuple[str, ...] = (f"Figure 5: {title}, LLaMA3-8B, four test sets.", f"{TABLE_12_WORDS}, alpha / r = 2.")
    else:
        title, options, source = METHODS[short]
        method = {"name": short, **options}
        words = opening(table.replace("table", "Table "), title, short, ", LLaMA3-8B, all eight test sets", source)
    task = {"name": "commonsense", "scorer": "generated", "max_length": 256, "test_sets": list(test_sets)}
    values = {"model": "meta-llama/Meta-Llama-3-8B", "task": task, "method": method, "training": TABLE_12}
    if short.startswith("aurora"):
        values["calibration"] = {"batch_size": TABLE_12["batch_size"]}
    return CellRecipe(values=values, words=words)


def _of_rank(name: str, *, with_dropout: bool) -> tuple[str, Values]:
    """The title and the method of a cell of Figure 5, such as `lora-r4`; alpha is twice the rank."""
    short, _, r = name.rpartition("-r")
    title, alpha, dropout = FIGURE_5_METHODS[short]
    method = {"name": short, "r": int(r), alpha: 2 * int(r), "target_modules": FIVE}
    return f"{title} of rank {r}", method | ({dropout: 0.05} if with_dropout else {})


def _rank_rows(names: Sequence[str], recipe: str) -> list[Row]:
    """The rows of Figure 5, and AuroRA's calibrated merges."""
    titles = {name: _of_rank(name, with_dropout=False)[0].replace(" of rank ", " r=") for name in names}
    calibrated = [
        Row(name=f"AuroRA, calibrated r={r}", recipe=recipe.format(f"aurora-paper-r{r}"), form=CALIBRATED)
        for r in FIGURE_5_RANKS
    ]
    return rows(names, titles, recipe=recipe) + calibrated


TABLE2 = _hub(
    "table2",
    "Table 2: commonsense reasoning with LLaMA3-8B",
    list(COMMONSENSE),
    [*rows(TABLE_2_SCORES, TITLES, list(COMMONSENSE), "{}"), *our_rows("aurora-paper", "aurora")],
)
TABLE7 = _hub(  # two of the settings are two forms of one training run
    "table7",
    "Table 7: settings of AuroRA with LLaMA3-8B",
    list(COMMONSENSE),
    [
        row.model_copy(update={"recipe": recipe, "form": form})
        for row, (recipe, form) in zip(
            rows(TABLE_7_SCORES, {**TITLES, "aurora-paper-d": "AuroRA-D"}, [HOURS, *COMMONSENSE]), TABLE_7, strict=True
        )
    ],
    note="The paper's hours are of training and inference; ours are of training.",
)
FIGURE5 = _hub(
    "figure5",
    "Figure 5: commonsense reasoning against rank, LLaMA3-8B",
    FIGURE_5,
    _rank_rows([f"{short}-r{r}" for short in FIGURE_5_METHODS for r in FIGURE_5_RANKS], "{}"),
)


# ---------------------------------------------------------------- packaged


def _packaged(name: str, title: str, of_rows: Sequence[Row]) -> Suite:
    """A suite with SmolLM2-135M: a column for each multiple-choice task."""
    return suite(
        [Column(name=task, label=task, metric="accuracy") for task in SMALL_CHOICES],
        {"SmolLM2-135M": of_rows},
        lambda short, task: _choices(name, short, task),
        name=name,
        scale="packaged",
        title=title,
        seeds=(0, 1, 2),
        statistic="mean",
        average="Avg.",
        note=SMALL_NOTE,
    )


def _choices(table: str, short: str, task: str) -> CellRecipe:
    """SmolLM2-135M on a packaged multiple-choice task."""
    if table == "figure5":
        title, method = _of_rank(short, with_dropout=False)
        title = title.replace(" of rank ", " r=")
    else:
        title, options, _ = METHODS[short]
        method = {"name": short, **options, **SMALL_TABLE_2.get(short, {})}
    what = f"{table.replace('table', 'Table ').replace('figure', 'Figure ')}, packaged"
    return CellRecipe(
        values={
            "model": "smollm2-135m",
            "task": {"name": task, **SMALL_TASK},
            "method": method,
            "training": SMALL_TRAINING,
            "calibration": {"examples": 64},
        },
        words=opening(what, title, short, f" on {task}, SmolLM2-135M", SMALL_NOTE),
    )


TABLE2_PACKAGED = _packaged(
    "table2",
    "Table 2, packaged: multiple choice with SmolLM2-135M",
    [*rows(TABLE_2, TITLES), *our_rows("aurora-paper-{column}", "aurora-{column}")],
)
TABLE7_PACKAGED = _packaged(
    "table7",
    "Table 7, packaged: settings of AuroRA with SmolLM2-135M",
    [
        Row(name="LoRA", recipe="table2/lora-{column}"),
        Row(name="AuroRA-S", recipe="aurora-paper-s-{column}", form=STATIC),
        Row(name="AuroRA-D", recipe="table2/aurora-paper-{column}", form=DYNAMIC),
        Row(name="AuroRA", recipe="table2/aurora-paper-{column}", form=STATIC),
        Row(name="AuroRA, calibrated", recipe="table2/aurora-paper-{column}", form=CALIBRATED),
    ],
)
FIGURE5_PACKAGED = _packaged(
    "figure5",
    "Figure 5, packaged: multiple choice against rank",
    _rank_rows([f"{short}-r{r}" for r in FIGURE_5_RANKS for short in FIGURE_5_METHODS], "{}-{{column}}"),
)
