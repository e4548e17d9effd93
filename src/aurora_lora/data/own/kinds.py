"""The kinds of tasks that a user's own data can be: which columns each reads, and what it makes of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..task import SplitSizes, Task
from .chat import prepare_chats
from .choices import prepare_choices
from .labelled import prepare_classification, prepare_images, prepare_multi_label, prepare_regression
from .source import Columns, OwnData, open_data
from .split import Prepared, Splits


@dataclass(frozen=True)
class OwnKind:
    """One kind.

    Args:
        name: `task.name` in a recipe, and the name of the recipe to start from.
        kind: of the task.
        description: in one line.
        columns: the fields that name columns, and the column that each is by default.
        prepare: `prepare(pieces, columns, labels)` gives the data ready to be split; `labels` are the classes of a
            finished run, in their order, None where the training rows are to say them.
        metric: that is reported and selected by.
        also: further metrics.
        several: how many columns a field may name, where that is not one.
        more: what else the task has.
    """

    name: str
    kind: Any  # `Task.kind`
    description: str
    columns: Mapping[str, tuple[str, ...]]
    prepare: Callable[..., Prepared]
    metric: str
    also: tuple[str, ...] = ()
    several: Mapping[str, int] = field(default_factory=dict)
    text_columns: tuple[str, ...] = ("text",)
    more: Mapping[str, Any] = field(default_factory=dict)

    def load(self, data: OwnData, columns: Columns, sizes: SplitSizes, split_seed: int, **form: str) -> Splits:
        """The splits.

        Raises:
            UserError: the data cannot be read, or a row cannot be used.
        """
        return self.prepare(open_data(data), columns, None, **form).split(sizes, split_seed)

    def task(self, data: OwnData, columns: Columns) -> Task:
        """The task that a recipe's data and columns make."""
        pair = self.text_columns == ("text",) and len(columns["text"]) == 2
        return Task(
            name=f"{self.name} of {data.title}",
            description=self.description,
            kind=self.kind,
            labels=(),
            metric=self.metric,
            text_columns=("text", "text_b") if pair else self.text_columns,
            source=data.title,
            license="its owner's",
            load=functools.partial(self.load, data, columns),
            group="own",
            also=self.also,
            sizes=SplitSizes(None, None, None),
            **self.more,
        )


_TEXT = {"text": ("text",), "label": ("label",)}
OWN: dict[str, OwnKind] = {
    kind.name: kind
    for kind in (
        OwnKind(
            "classification",
            "classification",
            "Which class is a text, or a pair of texts, of?",
            _TEXT,
            prepare_classification,
            "accuracy",
            also=("macro_f1",),
            several={"text": 2},
        ),
        OwnKind(
            "regression",
            "regression",
            "Which number belongs to a text, or a pair of texts?",
            _TEXT,
            prepare_regression,
            "pearson",
            also=("spearman",),
            several={"text": 2},
            more={"standardise": True},
        ),
        OwnKind(
            "multi-label",
            "multi-label",
            "Which of several labels does a text have?",
            _TEXT,
            prepare_multi_label,
            "micro_f1",
            several={"text": 2, "label": 10_000},
        ),
        OwnKind(
            "choices",
            "multiple-choice",
            "Which of its options is the answer to a question?",
            {"question": ("question",), "options": ("options",), "answer": ("answer",)},
            prepare_choices,
            "accuracy",
            several={"options": 26},
            text_columns=("prompt", "choices"),
            more={"max_length": 256, "prompt_forms": ("cloze", "instruction")},
        ),
        OwnKind(
            "images",
            "image-classification",
            "Which class is an image of?",
            {"image": ("image",), "label": ("label",)},
            prepare_images,
            "accuracy",
            also=("macro_f1",),
            text_columns=(),
        ),
        OwnKind(
            "chat",
            "chat",
            "What is the assistant's answer in a conversation?",
            {},
            prepare_chats,
            "nll",
            also=("perplexity", "token_accuracy"),
            text_columns=(),
            more={"max_length": 1024},
        ),
    )
}
"""The kinds, by the name that a recipe's `task.name` has."""
