"""The scores of docs/chat.md, from results/chat/siqa.json: the `result.json` of its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aurora_lora.train.finished_run import examples_scored, scores_of


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


def chat_parts(result: Mapping[str, Any]) -> dict[str, str]:
    """The blocks of the page by name."""
    return {"scores": conversation_scores(result)}
