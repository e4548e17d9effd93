"""The GLUE loaders on copies in the hub's own form, through `datasets.load_dataset`."""

from collections.abc import Callable
from pathlib import Path

import hub_copy
import numpy as np
import pytest

from aurora_lora.data import SplitSizes, get_task
from aurora_lora.data.glue import GLUE
from aurora_lora.data.metrics import classification_metrics, regression_metrics
from aurora_lora.errors import UserError
from aurora_lora.train.kinds import kind_of

Hub = Callable[..., Path]
ALL = SplitSizes(None, None, None)
FIXTURE = hub_copy.read("glue.json")


@pytest.mark.parametrize("task", GLUE, ids=lambda task: task.name)
def test_the_splits_are_the_hubs(task, hub: Hub) -> None:
    hub(FIXTURE)
    data = task.load_splits(ALL, 0)
    content = FIXTURE["configs"][task.name]["splits"]
    for row, given in zip(data["train"], content["train"], strict=True):
        assert [row[column] for column in task.text_columns] == [given[column] for column in task.text_columns]
        assert row["label"] == pytest.approx(given["label"])
    if task.name == "mnli":
        assert data["matched"]["premise"] == [row["premise"] for row in content["validation_matched"]]
        assert data["mismatched"]["label"] == [row["label"] for row in content["validation_mismatched"]]
        assert data["validation"]["premise"] == [*data["matched"]["premise"], *data["mismatched"]["premise"]]
    else:
        assert data["validation"]["idx"] == [row["idx"] for row in content["validation"]]
        assert set(data) == {"train", "validation"}
    assert all(-1 not in split["label"] for split in data.values())
    assert task.reported_split == "validation"


def test_labels_and_metrics() -> None:
    metrics = {task.name: task.metric for task in GLUE}
    assert metrics == {**dict.fromkeys(metrics, "accuracy"), "cola": "matthews", "stsb": "pearson"}
    for task in GLUE:
        feature = FIXTURE["configs"][task.name]["features"]["label"]
        assert list(task.labels) == feature.get("names", [])
        names = kind_of(task).facts.metric_names(task)
        predictions = np.eye(len(task.labels))[[0, 1]] if task.labels else np.array([[0.0], [1.0]])
        measure = classification_metrics if task.labels else regression_metrics
        assert set(measure(predictions, np.array([0, 1]), task.also)) == set(names)
        assert ("f1" in names) == (task.name in ("mrpc", "qqp"))


def test_sizes(hub: Hub) -> None:
    hub(FIXTURE)
    cola = get_task("cola")
    two, three = (cola.load(SplitSizes(n, 1, None), 3)["train"]["idx"] for n in (2, 3))
    assert three[:2] == two
    assert {tuple(cola.load(SplitSizes(2, 1, None), seed)["train"]["idx"]) for seed in range(6)} != {tuple(two)}
    with pytest.raises(UserError, match=r"task\.train_size: 9 is more than the 4 examples of cola"):
        cola.load(SplitSizes(9, None, None), 0)
    mnli = get_task("mnli").load(SplitSizes(1, 4, None), 1)
    assert mnli.num_rows["validation"] == mnli.num_rows["matched"] + mnli.num_rows["mismatched"] == 4
    other = get_task("mnli").load(SplitSizes(1, 4, None), 0)
    assert set(other["matched"]["idx"]) != set(mnli["matched"]["idx"])
    with pytest.raises(UserError, match="leaves nothing of one of matched and mismatched"):
        get_task("mnli").load(SplitSizes(1, 1, None), 1)
    with pytest.raises(UserError, match=r"task\.validation_size: 6 is more than the 5 examples of mnli"):
        get_task("mnli").load(SplitSizes(1, 6, None), 1)


def test_odd_copies(hub: Hub) -> None:
    def changed(config: str, split: str, row: int = 0, **values: object) -> dict:
        content = FIXTURE["configs"][config]
        rows = [dict(one) for one in content["splits"][split]]
        rows[row].update(values)
        splits = {**content["splits"], split: rows}
        return {**FIXTURE, "configs": {config: {**content, "splits": splits}}}

    hub(changed("cola", "validation", 1, label=-1))
    with pytest.raises(UserError, match=r"nyu-mll/glue \(cola\), validation, row 1: label -1 is not one of 0 to 1"):
        get_task("cola").load(ALL, 0)
    rte = {**FIXTURE["configs"]["rte"]}
    rte["features"] = {**rte["features"], "label": {"names": ["not_entailment", "entailment"], "_type": "ClassLabel"}}
    hub({**FIXTURE, "configs": {"rte": rte}})
    with pytest.raises(UserError, match="the labels are not_entailment, entailment, expected entailment, not_entail"):
        get_task("rte").load(ALL, 0)


def test_what_cannot_be_loaded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub({**FIXTURE, "configs": {"cola": FIXTURE["configs"]["cola"]}})
    with pytest.raises(UserError, match=r"glue: the train split cannot be loaded: .*BuilderConfig 'sst2' not found"):
        get_task("sst2").load(ALL, 0)
    monkeypatch.setenv("AURORA_LORA_DATA", str(folder / "elsewhere"))
    with pytest.raises(
        UserError, match=r"of nyu-mll/glue \(cola\) cannot be loaded from the Hugging Face hub"
    ) as error:
        get_task("cola").load(ALL, 0)
    assert "AURORA_LORA_DATA=FOLDER" in str(error.value)
    assert "\n" not in str(error.value)
