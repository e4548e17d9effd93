"""The scores and the answers of docs/chat.md."""

import json
from pathlib import Path
from typing import Any

from make.chat import LONGEST, conversation_scores, sample_answers

ROOT = Path(__file__).parents[2]


def scores(perplexity: float) -> dict[str, float]:
    return {"nll": 1.0, "perplexity": perplexity, "token_accuracy": 0.25}


def result(**more: Any) -> dict[str, Any]:
    return {
        "method": "aurora",
        "recipe": {"task": {"test_sets": ["test"]}, "training": {"epochs": 3}},
        "metric": {
            "split": "test",
            "examples": {"train": 1240, "validation": 20, "test": 30},
            "by_form": {"dynamic": scores(10.0), "calibrated": scores(11.0)},
            "before": scores(66.0),
            "selected_by": {"form": "calibrated", "epoch": 2.0},
        },
        **more,
    }


def test_the_base_model_is_the_first_row() -> None:
    lines = conversation_scores(result()).splitlines()
    assert lines[2].startswith("| before the training | 66.00 | 25.0 |")
    assert [line.split("|")[1].strip() for line in lines[3:5]] == ["trained (dynamic)", "calibrated merge, deployed"]
    assert lines[-1] == ("On 30 test examples; 1,240 were trained on, and epoch 2 of 3 was the best on 20 others.")


def test_answers_are_one_line_each_and_cut() -> None:
    sample = {"prompt": "why?\nwhy *?", "expected": "so", "before": "a " * LONGEST, "after": "so"}
    question, *answers = sample_answers(result(samples=[sample])).splitlines()
    assert question == "- “why? why \\*?”"
    assert answers[0] == "    - in the conversation: “so”"
    assert answers[1].endswith("…”")
    assert len(answers[1]) < LONGEST + 40
    assert len(answers) == 3


def test_what_is_committed_is_the_run_that_the_page_tells_of() -> None:
    record = json.loads((ROOT / "results" / "chat" / "siqa.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")
    task = record["recipe"]["task"]
    command = f"task.data={task['data']} model={record['model']} task.max_length={task['max_length']}"
    command += f" method.skip={str(record['recipe']['method']['skip']).lower()}"
    assert f"`aurora train chat {command}`" in page
    assert conversation_scores(record) in page
    assert sample_answers(record) in page
