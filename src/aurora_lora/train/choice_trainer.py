"""`RecipeTrainer` for multiple choice: trained as a language model, evaluated by the choices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..temporary_attributes import temporary_attributes
from .choices import NEW_TOKENS, Questions, choice_scores, generated_choices, learned_positions, takes
from .model_inputs import most_tokens
from .recipe import Recipe
from .scoring_trainer import ScoringTrainer


class LanguageTrainer(ScoringTrainer):
    """The trainer of `aurora train` for a causal language model."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss, as in Transformers; logits are computed only where a label wants them.

        With the loss on answers these are few of a text's tokens, and a vocabulary is wide.
        """
        if "labels" in inputs and takes(self.module, "logits_to_keep"):
            inputs = learned_positions(inputs)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class ChoiceTrainer(LanguageTrainer):
    """The trainer of `aurora train` for questions with choices.

    Args:
        recipe, checkpoints, kwargs: as in `RecipeTrainer`; the data collator is the one for training.
        questions: the collator for evaluation.
    """

    def __init__(
        self,
        recipe: Recipe,
        checkpoints: Path,
        *,
        questions: Questions,
        **kwargs: Any,
    ) -> None:
        super().__init__(recipe, checkpoints, **kwargs)
        self.questions = questions
        self.generate = False
        """Whether evaluations also let the model write its answer, which takes many times as long."""

    def scoring(self, split: str) -> None:
        self.generate = self.recipe.task.scorer == "generated" and split in self.recipe.test_sets

    def get_eval_dataloader(self, eval_dataset: str | Dataset[Any] | None = None) -> DataLoader[Any]:
        room = NEW_TOKENS if self.generate else 0
        questions = replace(self.questions, positions=most_tokens(self.module), room=room)
        with temporary_attributes([self], data_collator=questions):
            loader: DataLoader[Any] = super().get_eval_dataloader(eval_dataset)
        return loader

    def scored(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scores of the choices, (batch, choices, 2 or 3), see `choice_metrics`, and the right ones."""
        most = self.questions.max_choices
        scores = choice_scores(model, batch, most, whole=self.is_sharded)
        if self.generate:
            written = generated_choices(self.accelerator.unwrap_model(model), batch, most, self.questions.padding)
            scores = torch.cat((scores, written), dim=-1)
        return scores, batch["labels"]
