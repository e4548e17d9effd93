"""Texts with several labels each."""

from types import SimpleNamespace

import torch

from aurora_lora.train.kinds.text import MultiLabel


def test_answer() -> None:
    config = SimpleNamespace(id2label={0: "a", 1: "b", 2: "c"})
    answer = MultiLabel().answer(torch.tensor([0.5, -1.0, 2.0]), config)
    assert answer["labels"] == ["c", "a"]
    assert answer["probabilities"].keys() == {"a", "b", "c"}
    assert MultiLabel().shown({**answer, "text": "x"}) == ("c, a", "", "x")
    assert MultiLabel().shown({"labels": [], "text": "x"})[0] == "none"
