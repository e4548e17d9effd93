"""The table at the end of a run."""

import io

from rich.console import Console

from aurora_lora.forms import FORMS
from aurora_lora.train.score_tables import print_scores

CHOICES = ["accuracy", "accuracy_norm", "nll", "nll_norm"]


def printed(metrics: list[str], width: int = 80) -> tuple[list[str], list[str]]:
    """The words of the headings, and the rows."""
    console = Console(width=width, file=io.StringIO(), record=True)
    print_scores(console, "", "aurora", {form: dict.fromkeys(metrics, 0.5) for form in FORMS}, "calibrated")
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    rows = [" ".join(line.replace("│", " │ ").split()) for line in text.splitlines() if line.startswith("│")]
    return text.partition("╇")[0].replace("┃", " ").split(), rows


def test_titles_are_written_out_where_they_have_room() -> None:
    words, rows = printed(["accuracy", "nll", "macro_f1"])
    assert " ".join(words[1:-1]).startswith("form accuracy % neg. log-likelihood macro F1 %")
    assert rows[-1] == "│ calibrated merge, deployed │ 50.0 │ 0.500 │ 50.0 │"


def test_many_metrics_of_a_language_model() -> None:
    """Names and numbers are never broken or cut; headings are broken at their spaces."""
    for metrics in (CHOICES, [*CHOICES, "accuracy_generated", "unanswered"]):
        words, rows = printed(metrics)
        names = ["trained (dynamic)", "static (the paper's merge)", "calibrated merge, deployed"]
        assert [row.split(" │")[0].removeprefix("│ ") for row in rows] == names
        assert rows[0].count("50.0") + rows[0].count("0.500") == len(metrics)
        assert {"form", "accuracy", "nll", "per", "char."} <= set(words)
    assert {"written", "unanswered"} <= set(words)
    assert "form accuracy % accuracy per char. % nll nll per char." in " ".join(printed(CHOICES, 120)[0])
