"""The kinds of task. What one needs, from the head to the line that `predict` prints, is one object in one file.

A new kind is one file here and one line in `KINDS`.
"""

from typing import Any

from ...data import Task
from .base import Kind
from .chat import CHAT
from .classification import CLASSIFICATION
from .distillation import DISTILLATION
from .image_classification import IMAGE_CLASSIFICATION
from .multi_label import MULTI_LABEL
from .multiple_choice import MULTIPLE_CHOICE
from .regression import REGRESSION

__all__ = ["KINDS", "Kind", "kind_of", "kind_of_model"]

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (MULTI_LABEL, REGRESSION, CLASSIFICATION, MULTIPLE_CHOICE, CHAT, DISTILLATION, IMAGE_CLASSIFICATION)
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
    return next((kind for kind in KINDS.values() if kind.made(config)), CLASSIFICATION)
