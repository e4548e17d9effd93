"""`RecipeTrainer` for conversations: scored by the tokens of held-out answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..deploy.float64 import to_float64
from .batches import IGNORED
from .choice_trainer import LanguageTrainer
from .choices import learned_positions, takes

LARGEST = 2**28
"""Logits that are computed at once when conversations are scored."""


class ChatTrainer(LanguageTrainer):
    """The trainer of `aurora train chat`."""

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The sums of `chat_metrics`, (batch, 3); no loss."""
        batch = self._prepare_inputs(inputs)
        ids, mask, labels = (batch[name] for name in ("input_ids", "attention_mask", "labels"))
        batch = {"labels": labels}
        if takes(self.module, "logits_to_keep"):  # as in training: those that a label wants
            batch = learned_positions(batch)
        labels = batch.pop("labels")
        config: Any = self.module.config
        width = getattr(config.get_text_config(), "vocab_size", 1)
        rows = max(1, LARGEST // (labels.shape[1] * width))
        parts = zip(ids.split(rows), mask.split(rows), labels.split(rows), strict=True)
        with torch.no_grad(), self.accelerator.autocast():
            sums = torch.cat([self._sums(model, *part, **batch) for part in parts])
        return None, sums, torch.zeros(len(ids), device=ids.device)

    @staticmethod
    def _sums(model: nn.Module, ids: Tensor, mask: Tensor, labels: Tensor, **kept: Tensor) -> Tensor:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **kept).logits[:, :-1].float()
        targets = labels[:, 1:]
        there = targets != IGNORED
        nll = cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
        right = (logits.argmax(-1) == targets) & there
        return torch.stack([to_float64(part).sum(1) for part in (nll, there, right)], dim=1)
