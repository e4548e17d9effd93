"""The kinds of task: each is one object, and no other file of the command decides by a kind's name."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
from sklearn.metrics import accuracy_score, f1_score
from transformers import PretrainedConfig

import aurora_lora
from aurora_lora.data import TASKS
from aurora_lora.data.metrics import METRICS
from aurora_lora.train.kind_facts import FACTS, facts_of
from aurora_lora.train.kinds import KINDS, kind_of_model
from aurora_lora.train.recipe import TaskSection

ROOT = Path(aurora_lora.__file__).parent


def test_facts_name_what_is_there() -> None:
    """Classes of Transformers, metrics and fields of a recipe; each kind has its object, each task its kind's facts."""
    assert {name: kind.facts for name, kind in KINDS.items()} == dict(FACTS)
    for facts in FACTS.values():
        assert hasattr(transformers, facts.auto)
        assert set(facts.metrics) <= METRICS.keys()
        assert set(facts.fields) <= TaskSection.model_fields.keys()
    for task in TASKS.values():
        facts = facts_of(task)
        assert facts.defaults(task).keys() <= set(facts.fields)
        assert TaskSection(name=task.name).kind is facts


def test_several_labels_are_learned_in_their_places() -> None:
    assert KINDS["multi-label"].target([0, 2], 3) == [1.0, 0.0, 1.0]


class Labels:
    """A split of which only the labels are asked for."""

    def __init__(self, labels: list[int]) -> None:
        self.labels = labels

    def targets(self) -> list[int]:
        return self.labels


@pytest.mark.parametrize("name", ["classification", "image-classification"])
def test_the_most_frequent_class(name: str) -> None:
    """Of the training split, scored as scikit-learn does; nothing where the classes are of about the same size."""
    task = replace(TASKS["mrpc"], kind=name, also=("f1", "macro_f1", "matthews"))

    def found(train: list[int], test: list[int]) -> dict[str, float]:
        splits: Any = {"train": Labels(train), "test": Labels(test)}
        data: Any = SimpleNamespace(task=task, labels=("a", "b", "c"), fixed=splits.__getitem__)
        return KINDS[name].most_frequent(data, "test")

    test = [0, 0, 1, 2, 1, 1, 1]
    always = [1] * len(test)
    assert found([1, 1, 1, 0, 2], test) == pytest.approx(
        {
            "accuracy": accuracy_score(test, always),
            "f1": f1_score([label == 1 for label in test], [True] * len(test)),
            "macro_f1": f1_score(test, always, average="macro"),
            "matthews": 0.0,
        }
    )
    assert found([0, 0, 0, 1, 1, 1, 2, 2, 2], test) == {}
    assert found([0, 0, 0, 1, 1, 1, 2, 2], test) == {}
    assert KINDS["regression"].most_frequent(SimpleNamespace(), "test") == {}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"architectures": ["BertForSequenceClassification"], "num_labels": 3}, "classification"),
        ({"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}, "regression"),
        ({"architectures": ["GPT2LMHeadModel"]}, "multiple-choice"),
        ({"architectures": ["ViTForImageClassification"], "num_labels": 1}, "image-classification"),
    ],
)
def test_the_kind_of_a_model_on_disk(config: dict[str, Any], name: str) -> None:
    assert kind_of_model(PretrainedConfig(**config)).facts.name == name
