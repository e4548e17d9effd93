"""Tiny random models, built from configs: no network, a few milliseconds each."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import pytest
import torch
import torch.distributed as dist
from packaging.version import Version
from torch import nn

import aurora_lora
from aurora_lora.extras import drop_import_noise

drop_import_noise()
gc.disable()  # until the tests are imported

from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel  # noqa: E402

FIRST = {
    "test_chat.py",
    "test_cli.py",
    "test_distributed.py",
    "test_every_method.py",
    "test_export.py",
    "test_finished_run.py",
    "test_fuzzing.py",
    "test_imports.py",
    "test_merge_quantized.py",
    "test_own_data.py",
    "test_parallel.py",
    "test_processes.py",
    "test_quantized.py",
    "test_resume.py",
    "test_run.py",
    "test_sharded.py",
    "test_speed.py",
    "test_suites.py",
    "test_sweep.py",
    "test_wheel.py",
    "test_without_package.py",
}
"""Files whose tests take long for their number."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These first: begun last, one of the test processes would be done long before the other."""
    items.sort(key=lambda item: item.path.name not in FIRST)


def pytest_collection_finish() -> None:
    """What has been imported stays: garbage collections that look through it again take a quarter of the time."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Else libraries complain of what is left when the process ends."""
    gc.unfreeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if item.get_closest_marker("slow") and "AURORA_LORA_SLOW_TESTS" not in os.environ:
        pytest.skip("one of the slow tests: AURORA_LORA_SLOW_TESTS is not set, as .ci/run does")
    if item.get_closest_marker("compiles_peft") and release < (2, 7):
        pytest.skip("torch 2.6 cannot trace PEFT's own forward as one graph, with LoRA either")
    if item.get_closest_marker("seq2seq") and not _peft_makes_seq2seq():
        pytest.skip(
            "PEFT before 0.21.2 cannot make a sequence-to-sequence model with this Transformers, with LoRA either"
        )


def _peft_makes_seq2seq() -> bool:
    from transformers import T5ForConditionalGeneration

    needed = "_prepare_encoder_decoder_kwargs_for_generation"
    return Version(peft.__version__) >= Version("0.21.2") or hasattr(T5ForConditionalGeneration, needed)


@pytest.fixture
def make_bert() -> Callable[..., BertForSequenceClassification]:
    """The same tiny BERT classifier at every call; eval mode, all dropouts as in BERT."""

    def make(**kwargs: Any) -> BertForSequenceClassification:
        torch.manual_seed(0)
        sizes: dict[str, Any] = {
            "vocab_size": 100,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 40,
            "max_position_embeddings": 32,
        }
        return BertForSequenceClassification(BertConfig(**{**sizes, **kwargs})).eval()

    return make


@pytest.fixture
def make_gpt2() -> Callable[[], GPT2LMHeadModel]:
    """A tiny GPT-2, whose linear layers are Conv1D."""

    def make() -> GPT2LMHeadModel:
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=32)).eval()

    return make


@pytest.fixture
def batches() -> list[dict[str, torch.Tensor]]:
    """Four padded batches for the models above."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for length in (12, 9, 12, 7):
        ids = torch.randint(0, 100, (8, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[::2, length - 3 :] = 0
        made.append({"input_ids": ids, "attention_mask": mask})
    return made


@pytest.fixture
def logits(batches: list[dict[str, torch.Tensor]]) -> Callable[[nn.Module], torch.Tensor]:
    """The logits of the first batch."""

    def compute(model: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return model(**batches[0]).logits

    return compute


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has no locks, by the error that it gives."""
    fcntl = pytest.importorskip("fcntl")

    def flock(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture
def train_step(batches: list[dict[str, torch.Tensor]]) -> Callable[..., None]:
    """A few optimiser steps in train mode, then eval mode."""

    def step(model: nn.Module, n: int = 1, lr: float = 1e-2) -> None:
        model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
        for i in range(n):
            batch = batches[i % len(batches)]
            labels = batch["input_ids"][:, 0] % 2
            loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()

    return step


@pytest.fixture
def config() -> Callable[..., aurora_lora.AuroraConfig]:
    """An adapter that is not a no-op, on BERT's query, key and value."""

    def make(**kwargs: Any) -> aurora_lora.AuroraConfig:
        fields = {"target_modules": ["query", "key", "value"], "init_weights": False, "task_type": "SEQ_CLS"}
        return aurora_lora.AuroraConfig(**{**fields, **kwargs})

    return make


@pytest.fixture
def process_group() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    gc.collect()
    dist.destroy_process_group()
