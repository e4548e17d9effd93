"""`RecipeTrainer` for conversations: scored by the tokens of held-out answers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..deploy.calibrate import to_float64
from ..deploy.inputs import IGNORED, evaluated, plain_model
from ..errors import UserError, one_line
from .recipe import Recipe
from .trainer import RecipeTrainer

LOGITS = 2**28
"""Logits that an evaluation computes at once, at most: a batch that has more is scored in parts."""


class ChatTrainer(RecipeTrainer):
    """The trainer of `aurora train chat`.

    Raises:
        UserError: conversations that are packed into a row would see each other in the model.
    """

    def __init__(self, recipe: Recipe, **kwargs: Any) -> None:
        super().__init__(recipe, **kwargs)
        if recipe.task.packing and not self.is_sharded:
            with self.accelerator.autocast():
                check_packing(cast(nn.Module, self.model), in_one=(recipe.base.attention or "").startswith("flash"))

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """No loss, and what `scored` gives of the batch."""
        with torch.no_grad(), self.accelerator.autocast():
            return None, *self.scored(model, inputs)

    def scored(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The sums of `chat_metrics`, (batch, 3), which has no labels: zeros."""
        ids, mask, labels = (batch[name] for name in ("input_ids", "attention_mask", "labels"))
        batch = {"labels": labels}
        if takes(cast(nn.Module, self.model), "logits_to_keep"):  # as in training: those that a label wants
            batch = learned_positions(batch)
        labels = batch.pop("labels")
        config: Any = cast(Any, self.model).config
        width = getattr(config.get_text_config(), "vocab_size", 1)
        rows = len(ids) if self.is_sharded else max(1, LOGITS // (labels.shape[1] * width))
        columns: tuple[Any, ...] = (ids, mask, labels)
        parts = zip(*(one.split(rows) for one in columns), strict=True)
        sums = torch.cat([self._sums(model, *part, **batch) for part in parts])
        return sums, torch.zeros(len(ids), device=ids.device)

    @staticmethod
    def _sums(model: nn.Module, ids: Tensor, mask: Tensor, labels: Tensor, **kept: Tensor) -> Tensor:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **kept).logits[:, :-1].float()
        targets = labels[:, 1:]
        there = targets != IGNORED
        nll = cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
        right = (logits.argmax(-1) == targets) & there
        return torch.stack([to_float64(part).sum(1) for part in (nll, there, right)], dim=1)


def learned_positions(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A training batch that asks for the logits of those positions alone whose next token has a label.

    Args:
        batch: from `TrainingText`.

    Returns:
        The batch with `logits_to_keep`, the k positions after which any text of the batch has a label, and the last
        one, which has none; and labels (batch, k + 1), which `next_token_loss` shifts as ever.
    """
    labels = batch["labels"]
    positions = (labels[:, 1:] != IGNORED).any(0).nonzero().squeeze(1)
    ends = labels.new_tensor([labels.shape[1] - 1])
    nothing = torch.full_like(labels[:, :1], IGNORED)
    shorter = torch.cat((nothing, labels[:, positions + 1]), dim=1)
    return {**batch, "labels": shorter, "logits_to_keep": torch.cat((positions, ends))}


def takes(model: nn.Module, name: str) -> bool:
    """Whether the model below the adapter has such an argument."""
    return name in inspect.signature(plain_model(model).forward).parameters


@torch.no_grad()
def check_packing(model: nn.Module, *, in_one: bool = False) -> None:
    """Raise a UserError where the second of two texts in a row sees the first: where each begins is told by positions
    alone, of which some models make no mask (OPT, Falcon), and some have none (BLOOM) or a state besides (LFM2).

    Args:
        model: a causal language model.
        in_one: a batch has one row; several otherwise.
    """
    device, rows = next(model.parameters()).device, 1 if in_one else 2
    first, second = (torch.arange(start, start + 6, device=device).expand(rows, -1) for start in (5, 12))
    whole, at = torch.cat((first, second), dim=1), torch.arange(6, device=device).expand(rows, -1)
    with evaluated(model):
        try:
            alone = model(input_ids=second, position_ids=at, use_cache=False).logits.float()
            packed = model(input_ids=whole, position_ids=torch.cat((at, at), dim=1), use_cache=False).logits.float()
        except TypeError as error:
            raise UserError(f"task.packing: true is not allowed: {one_line(error)}") from error
        seen = model(input_ids=whole, use_cache=False).logits.float()  # with nothing between them
    if (packed[:, 6:] - alone).norm() > 0.1 * (seen[:, 6:] - alone).norm():
        kind = type(plain_model(model)).__name__
        raise UserError(
            f"task.packing: true is not allowed: conversations in a row would see each other in a {kind}: leave it out"
        )
