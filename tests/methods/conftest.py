"""Tiny classifiers and language models, and a training loop that does what a method asks for."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from aurora_lora.methods import Method, Sample
from aurora_lora.methods.parameters import is_head

Batch = dict[str, Tensor]


def _bert() -> PreTrainedModel:
    config = BertConfig(
        vocab_size=100,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        initializer_range=0.3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


LLAMA: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}


def _llama() -> PreTrainedModel:
    return LlamaForSequenceClassification(LlamaConfig(**LLAMA, num_labels=2))


def _llama_lm() -> PreTrainedModel:
    """Its output layer has the weight of the embeddings."""
    return LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=True))


def _qwen2() -> PreTrainedModel:
    """Biases in q, k and v; an output layer of its own."""
    return Qwen2ForCausalLM(Qwen2Config(**LLAMA, tie_word_embeddings=False))


def _gpt2() -> PreTrainedModel:
    """Linear layers that are Conv1D, with biases; tied embeddings."""
    config = GPT2Config(
        vocab_size=100,
        n_embd=16,
        n_layer=3,
        n_head=2,
        n_inner=24,
        n_positions=32,
        initializer_range=0.3,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config)


FAMILIES = {"bert": _bert, "llama": _llama, "llama-lm": _llama_lm, "qwen2": _qwen2, "gpt2": _gpt2}


@pytest.fixture
def make_model() -> Callable[[str], PreTrainedModel]:
    """The same model at every call, of one of `FAMILIES`, in eval mode, without dropout.

    "bert" and "llama" are classifiers, the others causal language models.
    """

    def make(family: str) -> PreTrainedModel:
        torch.manual_seed(0)
        model = FAMILIES[family]()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):  # they start at 0, where an error in them would not be seen
                    parameter.normal_(std=0.1)
        return model.eval()

    return make


@pytest.fixture
def labelled(batches: list[Batch]) -> Batch:
    """16 examples with labels: two batches of one length."""
    chosen = [batches[0], batches[2]]
    together = {name: torch.cat([batch[name] for batch in chosen]) for name in chosen[0]}
    return {**together, "labels": together["input_ids"][:, 0] % 2}


def mean_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy; for a language model, of token 0 or 1 after the text."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs).logits
    return cross_entropy(logits if logits.dim() == 2 else logits[:, -1], batch["labels"])


@pytest.fixture
def loss(labelled: Batch) -> Callable[[nn.Module], float]:
    """The loss in eval mode."""

    def compute(model: nn.Module) -> float:
        with torch.no_grad():
            return mean_loss(model.eval(), labelled).item()

    return compute


@pytest.fixture
def sample(labelled: Batch) -> Sample:
    """What `prepare` may look at."""
    return Sample(batches=lambda share: [labelled], loss=mean_loss, learning_rate=1e-2, seed=0, examples=16)


@pytest.fixture
def fit(labelled: Batch, sample: Sample) -> Callable[..., None]:
    """Train the body's part of a model, its head frozen, with the method's preparation and callbacks."""

    def train(method: Method, model: nn.Module, steps: int, lr: float = 1e-2) -> None:
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if is_head(model, name):
                parameter.requires_grad_(False)
        method.prepare(model, sample)
        callbacks = method.callbacks()
        args, state, control = SimpleNamespace(seed=0), SimpleNamespace(global_step=0, max_steps=steps), None
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)

        def call(event: str) -> None:
            for callback in callbacks:
                getattr(callback, event)(args, state, control, model=model)

        model.train()
        call("on_train_begin")
        for _ in range(steps):
            call("on_step_begin")
            mean_loss(model, labelled).backward()
            call("on_pre_optimizer_step")
            optimizer.step()
            call("on_optimizer_step")
            optimizer.zero_grad()
            state.global_step += 1
        model.eval()

    return train
