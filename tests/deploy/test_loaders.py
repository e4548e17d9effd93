"""A training loop of Accelerate accumulates gradients as before, whatever we read in the middle of it."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import GPT2LMHeadModel

from aurora_lora import AuroraConfig, calibrate, merge_gap, probe
from aurora_lora.deploy.batches import as_batches
from aurora_lora.deploy.hidden import hidden_values
from aurora_lora.deploy.loaders import iterations_of_now


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def loader(examples: int) -> Any:
    generator = torch.Generator().manual_seed(examples)
    rows = torch.randint(100, (examples, 6), generator=generator)
    return DataLoader([{"input_ids": row, "labels": row} for row in rows], batch_size=2)  # type: ignore[arg-type]


def broken(model: PeftModel, other: Any) -> None:
    def fail(*_: Any) -> None:
        raise KeyError

    handle = model.register_forward_hook(fail)
    with pytest.raises(KeyError):
        calibrate(model, other)
    handle.remove()


def gap(model: PeftModel, other: Any) -> None:
    calibrate(model, other)
    merge_gap(model, other, examples=4)


READINGS: dict[str, Callable[[PeftModel, Any], Any]] = {
    "the first examples": lambda model, other: calibrate(model, other, examples=4),
    "all examples": lambda model, other: calibrate(model, other, examples=16),
    "several groups": lambda model, other: calibrate(model, other, max_memory="65MiB"),
    "an iterator": lambda model, other: calibrate(model, iter(other), examples=4),
    "a callback's": lambda _, other: list(as_batches(other, examples=4)),
    "a gap": gap,
    "a probe": lambda model, other: probe(model, other, rank=2),
    "hidden values": lambda model, other: hidden_values(model, as_batches(other, examples=4)),
    "an error": broken,
}


def syncs(model: GPT2LMHeadModel, reading: Callable[[PeftModel, Any], Any], *, same: bool = False) -> tuple[str, int]:
    """At which of 2 x 6 micro-batches the optimiser steps, with a reading after the second; and the loader's epochs."""
    adapted = get_peft_model(model, AuroraConfig(target_modules=["c_attn"], fan_in_fan_out=True, init_weights=False))
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    train, other = accelerator.prepare(loader(12), loader(16))
    adapted = accelerator.prepare(adapted)
    found = ""
    for epoch in range(2):
        for number, batch in enumerate(train):
            with accelerator.accumulate(adapted):
                accelerator.backward(adapted.train()(**batch).loss)
            found += str(int(accelerator.sync_gradients))
            if (epoch, number) == (0, 1):
                reading(adapted, train if same else other)
                assert accelerator.gradient_state.active_dataloader is train
    assert accelerator.gradient_state.dataloader_references == [None]
    return found, train.iteration


@pytest.mark.parametrize("same", [False, True], ids=["another loader", "the loop's own loader"])
@pytest.mark.parametrize("reading", READINGS)
def test_gradients_are_accumulated_as_without_the_reading(
    make_gpt2: Callable[[], GPT2LMHeadModel], reading: str, same: bool
) -> None:
    assert syncs(make_gpt2(), READINGS[reading], same=same) == ("000101" * 2, 2)


def test_accelerate_is_not_imported_for_this(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "accelerate.state")
    batches: list[Tensor] = list(as_batches([torch.zeros(2, 3)] * 3, examples=4))
    assert len(batches) == 2
    iterations_of_now()()
    assert "accelerate.state" not in sys.modules
