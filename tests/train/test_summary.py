"""The table at the end of a run."""

import io

from rich.console import Console

from aurora_lora.forms import FORMS
from aurora_lora.train.finished_run import score_table


def test_numbers_of_many_metrics_are_never_broken() -> None:
    metrics = ["accuracy", "accuracy_norm", "nll", "nll_norm", "accuracy_generated", "unanswered"]
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(score_table("aurora", {form: dict.fromkeys(metrics, 0.5) for form in FORMS}, "calibrated"))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("50.0") + text.count("0.500") == len(metrics) * len(FORMS)
    assert {"form", "accuracy", "nll", "per", "char.", "written", "unanswered", "deployed"} <= set(text.split())
