"""The scores and the answers of docs/chat.md, from results/chat/siqa.json: the `result.json` of its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aurora_lora.train.finished_run import examples_scored, scores_of

LONGEST = 160
"""Letters of an answer that are shown."""


def conversation_scores(result: Mapping[str, Any]) -> str:
    """The metrics before the training and of each form, and what they are of."""
    metric = result["metric"]
    table = scores_of(dict(result))
    table.note = (
        f"On {examples_scored(dict(result))}; {metric['examples']['train']:,} were trained on, and epoch "
        f"{metric['selected_by']['epoch']:g} of {result['recipe']['training']['epochs']} was the best on "
        f"{metric['examples']['validation']:,} others."
    )
    return table.markdown()


def sample_answers(result: Mapping[str, Any]) -> str:
    """What was asked in held-out conversations, what they answer, and what the model did before and after."""
    return "\n".join(f"- “{_short(one['prompt'])}”\n{_answers(one)}" for one in result["samples"])


def chat_parts(result: Mapping[str, Any]) -> dict[str, str]:
    """The blocks of the page by name."""
    return {"scores": conversation_scores(result), "answers": sample_answers(result)}


def _answers(one: Mapping[str, str]) -> str:
    names = {"expected": "in the conversation", "before": "before the training", "after": "after it"}
    return "\n".join(f"    - {name}: “{_short(one[key])}”" for key, name in names.items())


def _short(text: str) -> str:
    """In one line, cut, with nothing that Markdown takes for its own."""
    line = " ".join(text.split())
    line = line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>#|" else letter for letter in line)
