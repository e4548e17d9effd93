"""The kinds of task. What one does, from encoding to the line that `predict` prints, is one object in one file.

A new kind is a row in `kind_facts.FACTS`, a file here and a word in `KINDS`.
"""

from typing import Any

from ...data import Task
from .chat import Chat
from .choices import MultipleChoice
from .distillation import Distillation
from .images import ImageClassification
from .text import Classification, Kind, MultiLabel, Regression

__all__ = ["KINDS", "Kind", "kind_of", "kind_of_model"]

KINDS: dict[str, Kind] = {
    kind.facts.name: kind
    for kind in (
        MultiLabel(),
        Regression(),
        Classification(),
        MultipleChoice(),
        Chat(),
        Distillation(),
        ImageClassification(),
    )
}
"""The kinds by name; of those whose models look alike, the one that takes only some of them comes first."""


def kind_of(task: Task) -> Kind:
    """The kind of a task."""
    return KINDS[task.kind]


def kind_of_model(config: Any) -> Kind:
    """The kind of task that a model on disk was made for: classification of texts where nothing says otherwise.

    Args:
        config: of Transformers.
    """
    return next((kind for kind in KINDS.values() if kind.made(config)), KINDS["classification"])
