"""What a finished run on conversations records of its base model."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from aurora_lora.train import distributed
from aurora_lora.train.chat_data import ChatData
from aurora_lora.train.chat_samples import sample_answers
from aurora_lora.train.trainer import RecipeTrainer


@pytest.mark.parametrize("sharded", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_no_samples_of_a_model_that_is_shared_out(sharded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "state", lambda: SimpleNamespace(num_processes=2, is_main_process=True))
    trainer: Any = RecipeTrainer.__new__(RecipeTrainer)
    trainer.__dict__.update({"is_fsdp_enabled": False, "is_deepspeed_enabled": False})
    assert not trainer.is_sharded
    setattr(trainer, sharded, True)
    data: Any = Mock(spec=ChatData, asked=[{"prompt": "the film was", "expected": "fine"}])
    with pytest.warns(UserWarning, match="no sample answers are written"):
        assert sample_answers(Mock(), trainer, data) == []
