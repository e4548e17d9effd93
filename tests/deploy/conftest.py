"""What several files here ask for."""

from __future__ import annotations

import pytest
from torch import Tensor


@pytest.fixture
def labelled(batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The batches with labels of two classes."""
    return [{**batch, "labels": batch["input_ids"][:, 0] % 2} for batch in batches]
