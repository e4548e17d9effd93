"""Texts, or pairs of texts, with a number each."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from ...data.metrics import regression_metrics
from .texts import HeadKind

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ...data import Task
    from ..data import Data, Encoded
    from ..trainer import RecipeTrainer


BESIDE_IGNORED = -99.99999237060547
"""The number of float32 next to `IGNORED`."""


class Regression(HeadKind):
    """Float labels; squared error, of standardised labels where the task says so."""

    name = "regression"
    metrics = ("pearson", "mse")
    fields = ("max_length", "teacher")
    problem_type = "regression"
    label_dtype = "float32"
    scored_at_least = 2  # a correlation

    def made(self, config: Any) -> bool:
        return super().made(config) and config.num_labels == 1

    def target(self, label: Any, count: int) -> Any:
        """`IGNORED` itself is the mark of what is not learned, here and in Transformers."""
        from ...deploy.inputs import IGNORED

        return BESIDE_IGNORED if label == IGNORED else label

    def dtype_of(self, task: Task) -> str:
        """Numbers of any size need more digits than float32 has before their mean is taken away."""
        import torch

        return "float64" if task.standardise and not torch.backends.mps.is_available() else self.label_dtype

    def standardised(self, data: Data, model: Any) -> Data:
        from ..label_scale import AS_THEY_ARE, LabelScale, held_by_float32, mean_and_deviation, output_layer

        if not data.task.standardise:
            return data
        targets = cast("Encoded", data.fixed("train")).targets()
        mean, deviation = mean_and_deviation(targets)
        in_float64 = self.dtype_of(data.task) == "float64" and not held_by_float32(targets)
        layer, scale = output_layer(model), None
        if layer is None:
            trained = AS_THEY_ARE
        elif layer.bias is None:
            # divided by the deviation alone, labels far from 0 would still be out of reach
            trained, scale = (
                "divided by their root mean square",
                LabelScale(0.0, math.hypot(mean, deviation) or 1.0, in_float64),
            )
        else:
            trained, scale = "standardised", LabelScale(mean, deviation or 1.0, in_float64)
        labels = {"mean": mean, "deviation": deviation, "trained": trained}
        return replace(data, scale=scale, record={**(data.record or {}), "labels": labels})

    def trainer(self, data: Data) -> Callable[..., RecipeTrainer]:
        if not data.task.standardise:
            return super().trainer(data)
        from ..regression_trainer import RegressionTrainer

        return functools.partial(RegressionTrainer, scale=data.scale)

    def keep_exact(self, model: Any) -> None:
        from ..label_scale import compute_in_float32, output_layer

        if (layer := output_layer(model)) is not None:
            compute_in_float32(layer)

    def compute_metrics(self, task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return regression_metrics(predictions, labels, also=task.also)

    def guessed(self, data: Data, split: str) -> dict[str, float]:
        """The scores of always guessing the mean of the training labels; a constant has no correlation."""
        import numpy as np

        train, scored = (np.asarray(cast("Encoded", data.fixed(name)).targets()) for name in ("train", split))
        return {"mse": float(np.square(scored - train.mean()).mean())}

    def answer(self, logits: Tensor, config: Any) -> dict[str, Any]:
        return {"value": logits.item()}

    def shown(self, answer: Mapping[str, Any]) -> tuple[str, ...]:
        return f"{answer['value']:+.2f}", answer["text"]


REGRESSION = Regression()
