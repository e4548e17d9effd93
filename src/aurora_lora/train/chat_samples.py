"""What a finished run on conversations records of its base model: scores and answers before the training."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from ..data.own.chat import text_of
from .chat_answers import answers_greedily
from .chat_data import ChatData

if TYPE_CHECKING:
    from .data import Data
    from .recipe import Recipe

SAMPLE_TOKENS = 64
"""The most tokens of each answer."""


def untrained_scores(recipe: Recipe, trainer: Any, data: Data) -> dict[str, float]:
    """The metrics of the base model, below its adapter; none where the base's own weights were trained."""
    model: Any = trainer.model
    if not _is_untouched(recipe, model):
        return {}
    examples: Any = data.fixed((recipe.test_sets or ("test",))[0])
    with model.disable_adapter():
        found = trainer.evaluate(examples, metric_key_prefix="before")
    return {name: found[f"before_{name}"] for name in recipe.task.kind.metric_names(data.task)}


def _is_untouched(recipe: Recipe, model: Any) -> bool:
    """Whether the base model is there, below its adapter."""
    return recipe.method.base_use == "frozen" and hasattr(model, "disable_adapter")


def sample_answers(recipe: Recipe, trainer: Any, data: Data) -> list[dict[str, str]]:
    """Answers in held-out conversations, before the training and after, in the form that is deployed.

    Of several processes, the main one writes them while the others wait; none where each has a part of the model alone.

    Returns:
        Of each: `prompt`, the last message; `expected`, the conversation's own answer; `before` and `after`.
    """
    from .distributed import is_main, on_main, state

    assert isinstance(data, ChatData)
    if not data.asked:
        return []
    if state().num_processes > 1 and trainer.is_sharded:
        if is_main():
            warnings.warn("no sample answers are written: the processes share out the model", stacklevel=2)
        return []
    return on_main(lambda: _sample_answers(recipe, trainer, data))


def _sample_answers(recipe: Recipe, trainer: Any, data: ChatData) -> list[dict[str, str]]:
    tokenizer: Any = data.processor
    prompts = [one["prompt"] for one in data.asked]
    longest = recipe.task.max_length  # as in the training: what is held out may be far longer
    trainer.model.eval()
    autocast = trainer.accelerator.autocast  # `generate` does not go through the `forward` that has it
    try:
        with autocast(), recipe.method.using(trainer.model, recipe.method.deployed_form):
            after, _ = answers_greedily(trainer.model, tokenizer, prompts, SAMPLE_TOKENS, longest)
        with autocast(), _untrained(recipe, trainer, data) as model:
            before, _ = answers_greedily(model, tokenizer, prompts, SAMPLE_TOKENS, longest)
    except torch.OutOfMemoryError:  # as for a base that is loaded beside the trained model: no run is lost for that
        warnings.warn("no sample answers are written: the GPU has too little memory for them", stacklevel=2)
        return []
    said = [prompt if isinstance(prompt, str) else text_of(prompt.messages[-1]) for prompt in prompts]
    return [
        {"prompt": prompt, "expected": str(asked["expected"]), "before": old, "after": new}
        for prompt, asked, old, new in zip(said, data.asked, before, after, strict=True)
    ]


@contextlib.contextmanager
def _untrained(recipe: Recipe, trainer: Any, data: Data) -> Iterator[Any]:
    """The base model: below its adapter, or loaded anew where its own weights were trained."""
    model: Any = trainer.model
    if _is_untouched(recipe, model):
        with model.disable_adapter():
            yield model
        return
    from .models import base_for

    yield base_for(recipe, data.processor, data.labels).to(next(model.parameters()).device).eval()
