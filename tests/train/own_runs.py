"""The command on the files of `own_files`, from their folder: see the fixture `here`."""

from typing import Any

import own_files
from typer.testing import CliRunner

from aurora_lora import cli

METRICS = {
    "classification": ["accuracy", "macro_f1", "nll"],
    "regression": ["pearson", "spearman", "mse"],
    "multi-label": ["micro_f1", "macro_f1", "nll"],
    "choices": ["accuracy", "accuracy_norm", "nll", "nll_norm"],
    "images": ["accuracy", "macro_f1", "nll"],
}
SETTINGS = ["training.epochs=2", "training.batch_size=8", "training.threads=1", "calibration.examples=16"]


def aurora(*args: object) -> Any:
    return CliRunner().invoke(cli.app, [str(arg) for arg in args])


def train(kind: str, output: object, *more: object) -> Any:
    model = {"choices": "causal", "images": "vit"}.get(kind, "bert")
    return aurora("train", kind, f"model={model}", *own_files.OVERRIDES[kind], *SETTINGS, *more, "-o", output)
