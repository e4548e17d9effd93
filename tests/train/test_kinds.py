"""The kinds of task: each is one object, and no other file of the command decides by a kind's name."""

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from transformers import PretrainedConfig

import aurora_lora
from aurora_lora.data import TASKS
from aurora_lora.data.metrics import METRICS
from aurora_lora.train.kinds import KINDS, Kind, kind_of, kind_of_model
from aurora_lora.train.recipe import TaskSection

ROOT = Path(aurora_lora.__file__).parent


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_a_kind_names_is_there(kind: Kind) -> None:
    import transformers

    assert hasattr(transformers, kind.auto)
    assert set(kind.metrics) <= METRICS.keys()
    assert set(kind.fields) <= TaskSection.model_fields.keys()


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_defaults_are_fields_of_the_kind(task) -> None:
    kind = kind_of(task)
    assert kind.defaults(task).keys() <= set(kind.fields)
    assert TaskSection(name=task.name).kind is kind


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


def test_only_the_kinds_compare_their_names() -> None:
    """Tasks say of which kind they are (`kind=...`); nothing else has a kind's name in it."""
    found = []
    for path in (path for room in ("cli", "lab", "data", "train") for path in (ROOT / room).rglob("*.py")):
        if path.parent.name == "kinds":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        compared = (node for node in ast.walk(tree) if isinstance(node, ast.Compare | ast.Dict))
        inside = {id(one) for node in compared for one in ast.walk(node)}
        for node in ast.walk(tree):
            if id(node) in inside and isinstance(node, ast.Constant) and node.value in KINDS:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.value}")
    assert found == []


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"architectures": ["BertForSequenceClassification"], "num_labels": 3}, "classification"),
        ({"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}, "regression"),
        ({"architectures": ["GPT2LMHeadModel"]}, "multiple-choice"),
        ({"architectures": ["ViTForImageClassification"], "num_labels": 1}, "image-classification"),
        ({"architectures": ["BertModel"]}, "classification"),
        ({}, "classification"),
    ],
)
def test_the_kind_of_a_model_on_disk(config: dict[str, Any], name: str) -> None:
    assert kind_of_model(PretrainedConfig(**config)).name == name


def test_lists_load_no_pytorch() -> None:
    code = "import sys, aurora_lora.train.kinds; print({'torch', 'transformers', 'datasets'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_number_that_marks_what_is_not_learned_is_learned() -> None:
    """-100 in labels stands for no label, in Transformers' count of a step's examples as in the losses."""
    kind = KINDS["regression"]
    labels = torch.tensor([kind.target(label, 1) for label in (-100.0, -100, -99.5, 3.0)])
    assert (labels != -100).all()
    torch.testing.assert_close(labels, torch.tensor([-100.0, -100.0, -99.5, 3.0]), rtol=1e-7, atol=0)
    outputs = {"logits": torch.zeros(4, 1)}
    assert kind.loss()(outputs, labels).item() == pytest.approx((2 * 100**2 + 99.5**2 + 3**2) / 4)


def test_a_study_can_choose_by_what_validation_has() -> None:
    """What a model writes is scored on test data alone."""
    kind, task = KINDS["multiple-choice"], TASKS["siqa"]
    assert set(kind.metric_names(task)) - set(kind.validation_metrics(task)) == {"accuracy_generated", "unanswered"}
    assert all(
        KINDS[name].validation_metrics(task) == KINDS[name].metric_names(task)
        for name in KINDS
        if name != "multiple-choice"
    )
