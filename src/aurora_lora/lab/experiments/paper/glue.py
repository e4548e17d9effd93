"""Table 1, GLUE, and its rows on packaged data: the settings of every cell, with where each comes from."""

from __future__ import annotations

from ....data.glue import SEEDS
from ..suite import CellRecipe, Column
from .common import PAPER, SMALL_NOTE, Values, by_task, opening, our_rows, rows, suite

GLUE = ("sst2", "mrpc", "cola", "qnli", "rte", "stsb")
GLUE_LABELS = ("SST-2", "MRPC", "CoLA", "QNLI", "RTE", "STS-B")
GLUE_METRICS = {"cola": "matthews", "stsb": "pearson"}

# epochs, learning rate, batch size, longest text: the paper's Table 11
TABLE_11 = by_task(
    GLUE,
    """
    base   30,8e-4,32,512  30,8e-4,64,512  90,5e-3,32,512  80,5e-3,32,512  80,5e-4,16,512  30,6e-4,64,512
    large  40,8e-4,16,128  30,1e-3,16,512  50,5e-4,16,256  20,4e-4,16,512  10,4e-4,32,512  20,3e-4,16,512
    """,
)
# epochs, learning rate, batch of a GPU, GPUs, longest text. Base: the scripts of microsoft/LoRA, examples/NLU. Large:
# the restricted setup of LoRA's paper (Hu et al. 2022, Table 9), whose scores the table quotes, on as many GPUs
LORA_GLUE = by_task(
    GLUE,
    """
    base   60,5e-4,16,8,512  30,4e-4,16,8,512  80,4e-4,32,2,512  25,4e-4,32,8,512  80,5e-4,32,8,512  40,4e-4,16,8,512
    large  10,4e-4,4,8,128   20,3e-4,4,8,128   20,2e-4,4,8,128   10,2e-4,4,8,128   20,4e-4,4,8,128   10,2e-4,4,8,128
    """,
)
# epochs, learning rate: the same table; batch 32, 128 tokens
ADAPTER_GLUE = by_task(
    GLUE,
    """
    adapter-p  20,3e-5  20,3e-4  20,3e-4  10,3e-4  20,3e-4  20,3e-4
    adapter-h  5,3e-4   10,3e-4  10,3e-4  5,3e-4   20,3e-4  10,3e-4
    """,
)
LORA_WEIGHT_DECAY = 0.1
# the scale there, for each method whose schedule it is, by the method's own word
LORA_ALPHA = {name: {"lora_alpha": 16} for name in ("lora", "dora")}
LORA_ALPHA |= {name: {"alpha": 16} for name in ("dylora", "lora-drop")}
DYLORA_RTE = (80, 5e-4, 16, 8, 512)  # DyLoRA's scripts (huawei-noah/Efficient-NLP) are LoRA's but for this one
# epochs, learning rate, of the head, batch size, longest text, scaling: FourierFT's paper (Table 9), or its scripts and
# logs where these agree on another value
FOURIERFT_GLUE = {
    "base": {
        "cola": (100, 0.12, 0.008, 32, 512, 49.0),
        "mrpc": (30, 0.05, 0.006, 32, 512, 151.0),
        "qnli": (40, 0.1, 0.001, 32, 512, 29.0),
        "rte": (90, 0.09, 0.011, 32, 512, 110.0),
        "sst2": (40, 0.05, 0.006, 32, 512, 140.0),
        "stsb": (60, 0.09, 0.009, 32, 512, 84.0),
    },
    "large": {
        "cola": (80, 0.043, 0.011, 128, 256, 120.0),
        "mrpc": (30, 0.06, 0.001, 32, 512, 120.0),
        "qnli": (30, 0.06, 0.005, 32, 512, 69.0),
        "rte": (60, 0.08, 0.005, 32, 512, 90.0),
        "sst2": (10, 0.043, 0.001, 32, 128, 99.0),
        "stsb": (30, 0.07, 0.001, 32, 512, 121.0),
    },
}
UNKNOWN = "The source's schedule is not known here: it is that of the paper's Table 11, with learning rate {rate:g}."
SCRIPTS = "LoRA's scripts (microsoft/LoRA), whose batch is that of several GPUs; here it is accumulated."
RESTRICTED = "the restricted setup of LoRA's paper (Hu et al. 2022, Table 9), whose score is quoted"
LORA_WORDS = {
    "base": f"Settings of {SCRIPTS}",
    "large": f"Settings of {RESTRICTED}; the batch is that of 8 GPUs, as in their scripts, and accumulated here.",
}
LIKE_LORA = {
    "dylora": f"DyLoRA's scripts (huawei-noah/Efficient-NLP): nearly those of {SCRIPTS}",
    "other": f"The source's schedule is not known here: it is that of {SCRIPTS}",
}
TARGETS = {"target_modules": ["query", "value"]}
WITHOUT_TARGETS = ("full", "bitfit", "adapter-d", "adapter-h", "adapter-p")

# the row's title, the method, whose schedule, the learning rate where the schedule's is not it
METHODS: dict[str, tuple[str, Values, str, float | None]] = {
    "full": ("Full fine-tuning", {"name": "full"}, "paper", 2e-5),
    "bitfit": ("BitFit", {"name": "bitfit"}, "paper", 1e-3),
    "adapter-d": ("Adapter-D", {"name": "adapter-d", "r": 64}, "paper", 3e-4),
    "adapter-p": ("Adapter-P", {"name": "adapter-p", "r": 64}, "adapter", None),
    "adapter-h": (
        "Adapter-H",
        {"name": "adapter-h", "r": 64, "activation": "silu", "train_norms": False},
        "adapter",
        None,
    ),
    "lora": ("LoRA", {"name": "lora", "r": 8, "lora_alpha": 8}, "lora", None),
    "adalora": ("AdaLoRA", {"name": "adalora"}, "lora", None),
    "dylora": ("DyLoRA", {"name": "dylora", "r": 8, "frozen": True}, "lora", None),
    "fourierft": ("FourierFT", {"name": "fourierft"}, "fourierft", None),
    "lora-drop": ("LoRA-drop", {"name": "lora-drop", "r": 8}, "lora", None),
    "dora": ("DoRA", {"name": "dora", "r": 8, "lora_alpha": 8}, "lora", None),
    "aurora-paper": ("AuroRA", {"name": "aurora-paper"}, "paper", None),
    "aurora": ("AuroRA", {"name": "aurora"}, "paper", None),
}
TITLES = {short: title for short, (title, *_) in METHODS.items()}
# as the paper prints them: SST-2, MRPC, CoLA, QNLI, RTE, STS-B, their average, parameters
TABLE_1_SCORES = {
    "base": """
        full          94.8 90.2 63.6 92.8 78.7 91.2  85.2  125M
        bitfit        93.7 92.7 62.0 91.8 81.5 90.8  85.4  0.1M
        adapter-d     94.7 88.4 62.6 93.0 75.9 90.3  84.2  0.9M
        lora          95.1 89.7 63.4 93.3 78.4 91.5  85.2  0.3M
        adalora       94.5 88.7 62.0 93.1 81.0 90.5  85.0  0.3M
        dylora        94.3 89.5 61.1 92.2 78.7 91.1  84.5  0.3M
        fourierft     94.2 90.0 63.8 92.2 79.1 90.8  85.0  0.024M
        lora-drop     94.5 89.5 62.9 93.1 81.4 91.0  85.4  0.15M
        dora          95.0 89.7 64.9 92.9 79.2 91.3  85.5  0.3M
        aurora-paper  95.2 91.9 65.1 93.4 85.2 91.5  87.1  0.075M
    """,
    "large": """
        full          96.4 90.9 68.0 94.7 86.6 92.4  88.2  356M
        adapter-p     96.1 90.2 68.3 94.8 83.8 92.1  87.6  3M
        adapter-h     96.2 88.7 66.5 94.7 83.4 91.0  86.8  6M
        lora          96.2 90.2 68.2 94.8 85.2 92.3  87.8  0.8M
        fourierft     96.0 90.9 67.1 94.4 87.4 91.9  88.0  0.048M
        aurora-paper  96.6 91.2 69.2 95.0 89.9 92.5  89.1  0.2M
    """,
}
NOTES = {
    "dora": (
        "The paper's DoRA is Mao et al.'s dynamic rank distribution; this is PEFT's, weight-decomposed (NVIDIA's).",
    ),
    "adapter-d": ("Without the first 3 layers, the bottleneck of 64 gives the 0.9M parameters that the paper prints.",),
}


# the same rows on rated film-review sentences
SMALL_TASKS = {
    "movie-sentiment": {"name": "movie-sentiment", "train_size": 1500, "max_length": 48},
    "movie-rating": {"name": "movie-rating", "train_size": 1500, "max_length": 48},
}
SMALL_TRAINING = {"epochs": 3, "batch_size": 32, "eval_batch_size": 128, "max_grad_norm": 0.0}
SMALL_RATES = {"full": 5e-5, "fourierft": 5e-2}


def glue_recipe(name: str, task: str) -> CellRecipe:
    """A cell of Table 1, such as `base-lora` on `rte`."""
    size, _, short = name.partition("-")
    title, options, schedule, rate = METHODS[short]
    if (size, short) == ("large", "full"):
        rate = 1e-5
    method, more = with_targets(options), Values()
    if schedule == "fourierft":
        epochs, learning_rate, head_rate, batch, length, scaling = FOURIERFT_GLUE[size][task]
        method.update(n_frequency=1000, scaling=scaling)
        more = {"head_learning_rate": head_rate, "max_grad_norm": 0.0}
        source = "FourierFT's published best settings (one random entry matrix for all layers: its share_entry)."
    elif schedule == "lora":
        settings = DYLORA_RTE if (short, task) == ("dylora", "rte") else LORA_GLUE[size][task]
        epochs, learning_rate, batch, gpus, length = settings
        method.update(LORA_ALPHA.get(short, {}))
        more = {"gradient_accumulation_steps": gpus}
        source = LORA_WORDS[size] if short == "lora" else LIKE_LORA.get(short, LIKE_LORA["other"])
    elif schedule == "adapter":
        (epochs, learning_rate), batch, length = ADAPTER_GLUE[short][task], 32, 128
        source = f"Settings of {RESTRICTED}."
    else:
        epochs, learning_rate, batch, length = TABLE_11[size][task]
        source = f"{PAPER} (Table 11)." if rate is None else UNKNOWN.format(rate=rate)
    training: Values = {"epochs": epochs, "batch_size": batch, "learning_rate": rate or learning_rate, **more}
    training.update(weight_decay=LORA_WEIGHT_DECAY if schedule == "lora" else 0.0, warmup_ratio=0.06)
    section = {"name": task, "max_length": length}
    label = GLUE_LABELS[GLUE.index(task)]
    return CellRecipe(
        values={"model": f"FacebookAI/roberta-{size}", "task": section, "method": method, "training": training},
        words=opening("Table 1", title, short, f" on {label}, RoBERTa {size}", source, *NOTES.get(short, ())),
    )


def with_targets(method: Values) -> Values:
    """A method's options, on query and value where it is told its layers; the caller's own copy."""
    return {**method} if method["name"] in WITHOUT_TARGETS else {**method, **TARGETS}


def small_recipe(short: str, task: str) -> CellRecipe:
    """A method of Table 1 with MiniLM-L6 on a packaged task."""
    title, options, *_ = METHODS[short]
    method = with_targets({"name": short, "r": 16} if short.startswith("adapter") else options)
    training = {**SMALL_TRAINING, "learning_rate": SMALL_RATES.get(short, 5e-3)}
    return CellRecipe(
        values={"model": "minilm-l6", "task": SMALL_TASKS[task], "method": method, "training": training},
        words=opening("Table 1, packaged", title, short, f" on {task}", SMALL_NOTE),
    )


TABLE1 = suite(
    [
        Column(name=task, label=label, metric=GLUE_METRICS.get(task, "accuracy"))
        for task, label in zip(GLUE, GLUE_LABELS, strict=True)
    ],
    {
        f"RoBERTa-{size.capitalize()}": (
            *rows(scores, TITLES, GLUE, f"{size}-{{}}-{{{{column}}}}"),
            *our_rows(f"{size}-aurora-paper-{{column}}", f"{size}-aurora-{{column}}"),
        )
        for size, scores in TABLE_1_SCORES.items()
    },
    glue_recipe,
    name="table1",
    scale="hub",
    title="Table 1: GLUE with RoBERTa",
    seeds=SEEDS,
    gpu="RTX 4090",
    average="Avg.",
)
TABLE1_PACKAGED = suite(
    [
        Column(name="movie-sentiment", label="sentiment", metric="accuracy"),
        Column(name="movie-rating", label="rating", metric="pearson"),
    ],
    {
        "MiniLM-L6": (
            *rows([short for short in METHODS if short != "aurora"], TITLES),
            *our_rows("aurora-paper-{column}", "aurora-{column}"),
        )
    },
    small_recipe,
    name="table1",
    scale="packaged",
    title="Table 1, packaged: film-review sentences with MiniLM-L6",
    seeds=(0, 1, 2, 3, 4),
    average="Avg.",
    note=SMALL_NOTE,
)
