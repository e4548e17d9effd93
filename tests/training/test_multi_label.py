"""The loss of several labels each, against PyTorch's own."""

from types import SimpleNamespace

import torch
from torch.nn import functional

from aurora_lora.deploy.batch import IGNORED
from aurora_lora.training.kinds.multi_label import MULTI_LABEL
from aurora_lora.training.losses import binary_loss


def test_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=generator, dtype=torch.float32)
    labels = torch.randint(0, 2, (6, 3), generator=generator).float()
    expected = functional.binary_cross_entropy_with_logits(logits, labels)
    torch.testing.assert_close(binary_loss({"logits": logits}, labels), expected)
    # a step in two halves, with an example that only fills a place
    labels[5] = IGNORED
    halves = [binary_loss({"logits": logits[rows]}, labels[rows], 15) for rows in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(sum(halves), functional.binary_cross_entropy_with_logits(logits[:5], labels[:5]))


def test_answer() -> None:
    config = SimpleNamespace(id2label={0: "a", 1: "b", 2: "c"})
    answer = MULTI_LABEL.answer(torch.tensor([0.5, -1.0, 2.0]), config)
    assert answer["labels"] == ["c", "a"]
    assert answer["probabilities"].keys() == {"a", "b", "c"}
    assert MULTI_LABEL.shown({**answer, "text": "x"}) == ("c, a", "", "x")
    assert MULTI_LABEL.shown({"labels": [], "text": "x"})[0] == "none"
