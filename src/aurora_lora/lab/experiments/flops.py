"""The work of a run in floating-point operations, and the hours it takes on a machine: not of training alone.

- Forward, 2 operations a parameter and token; backward 2 more through a frozen model, 4 through a trained one, none
  where the head alone is trained; and once more forward where activations are computed again.
- Validation after each epoch, and before it the calibration where the calibrated form is deployed.
- In the end, validation and each test set in each form; where the model writes its answers, all its beams at once.
- A GPU needs at least so long for each layer as it takes to launch its kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ...forms import CALIBRATED
from ...train.kinds.choices import BEAMS, NEW_TOKENS
from ...train.models import positions
from ...train.precision import PRECISIONS
from ...train.recipe import Recipe, steps_of_an_epoch
from . import shapes, text_lengths
from .architectures import architecture, image_tokens
from .machines import Machine
from .text_lengths import Sizes

TRAINED_LAYER_S, FORWARD_LAYER_S = 2e-3, 0.7e-3
"""Seconds that a layer takes at least on a GPU, in a training step and in a forward pass: some 200 launches of 10
microseconds, and a third of them."""
IMAGE_S = 0.7e-3
"""Seconds to read and transform a small image, where the same cores train."""
CALIBRATION = 2
"""Forward passes that calibrating on a batch is worth: one, and the second moments of each layer's inputs."""
START_S, READ = 10, 0.5e9
"""Seconds until a process has begun, and bytes of weights that it reads in one."""
WIDTH = {name: dtype.itemsize for name, dtype in PRECISIONS.items()}


@dataclass(frozen=True)
class Hours:
    """Hours of the parts of a run."""

    training: float
    evaluation: float
    calibration: float
    generation: float = 0.0
    loading: float = 0.0

    @property
    def total(self) -> float:
        """Hours of all parts together."""
        return float(sum(getattr(self, field.name) for field in fields(self)))

    def __add__(self, other: Hours) -> Hours:
        return Hours(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


def hours(recipe: Recipe, machine: Machine, sizes: Sizes | None = None) -> Hours | None:
    """How long a run takes; None where it is not known how much data there is.

    Args:
        recipe: of the run.
        machine: that it is planned for.
        sizes: of its data, where these are loaded.

    Raises:
        UserError: the model is not known, or the method does not fit it.
    """
    splits = ("train", "validation", *recipe.test_sets)
    counts = {name: text_lengths.examples(recipe, name, sizes) for name in splits}
    if None in counts.values():
        return None
    known = {name: count or 0 for name, count in counts.items()}
    clock = _Clock(recipe, machine, sizes)
    method = recipe.method
    forms, wanted = method.forms, recipe.training
    rounds = wanted.epochs
    if isinstance(wanted.eval_every, int):
        steps = steps_of_an_epoch(wanted, known["train"]) * wanted.epochs
        rounds = math.ceil(steps / wanted.eval_every)  # the last step is always evaluated
    evaluation = (rounds + len(forms)) * clock.scoring("validation", known["validation"])
    writing = 0.0
    for name in recipe.test_sets:
        if name != "validation":
            evaluation += len(forms) * clock.scoring(name, known[name])
        if recipe.task.scorer == "generated":
            writing += len(forms) * clock.writing(name, known[name])
    calibrations = (rounds if method.deployed_form == CALIBRATED else 0) + (CALIBRATED in forms)
    calibration = calibrations * clock.calibration()
    return Hours(
        training=wanted.epochs * clock.training(known["train"]) / 3600,
        evaluation=evaluation / 3600,
        calibration=calibration / 3600,
        generation=writing / 3600,
        loading=loading(clock.weights.bytes),
    )


def loading(size: float) -> float:
    """Hours until a model of so many bytes is there and trains."""
    return (START_S + size / READ) / 3600


class _Clock:
    """Seconds of the parts of a run."""

    def __init__(self, recipe: Recipe, machine: Machine, sizes: Sizes | None) -> None:
        self.recipe, self.machine, self.sizes = recipe, machine, sizes
        self.weights = shapes.weights(recipe, sizes)
        self.speed = machine.speed(recipe.training.precision, recipe.training.threads)
        config = architecture(recipe.base)
        text = config.get_text_config()
        self.layers, self.positions = int(text.num_hidden_layers), positions(text)
        self.image = image_tokens(config)

    def length(self, batch: int, split: str = "train") -> float:
        """Tokens of an example in a batch of so many."""
        return self.image or text_lengths.padded(self.recipe, batch, self.positions, self.sizes, split)

    def training(self, count: int) -> float:
        """Seconds of one epoch."""
        batch, params = self.recipe.training.batch_size, self.weights.params
        trained = params.adapter + params.head
        passes = 2 if not params.adapter else 6 if trained > params.total / 2 else 4
        if self.recipe.training.gradient_checkpointing and params.adapter:
            passes += 2
        operations = passes * self.weights.multiplied * self.length(batch) * count
        return max(operations / self.speed, self._launching(TRAINED_LAYER_S, count, batch)) + self._reading(count)

    def scoring(self, split: str, count: int) -> float:
        """A split in one form: sorted by length, with hardly any padding."""
        tokens = self.length(1, split) + self.recipe.task.kind.scored_tokens
        return self._forward(count, tokens, self.recipe.training.eval_batch_size)

    def calibration(self) -> float:
        """Seconds of calibrating on the recipe's examples."""
        wanted = self.recipe.calibration
        return CALIBRATION * self._forward(wanted.examples, self.length(wanted.batch_size), wanted.batch_size)

    def writing(self, split: str, count: int) -> float:
        """The model's own answers to so many questions: each token waits for the one before it."""
        batch = self.recipe.training.eval_batch_size
        read = WIDTH[self.recipe.training.precision] * self.weights.multiplied / (1e9 * self.machine.bandwidth)
        tokens = self.length(1, split) + NEW_TOKENS
        compute = BEAMS * self._forward(count, tokens, batch)
        one_by_one = NEW_TOKENS * max(read * count / batch, self._launching(FORWARD_LAYER_S, count, batch))
        return max(compute, one_by_one)

    def _forward(self, count: int, tokens: float, batch: int) -> float:
        operations = 2 * self.weights.multiplied * tokens * count
        return max(operations / self.speed, self._launching(FORWARD_LAYER_S, count, batch)) + self._reading(count)

    def _reading(self, count: int) -> float:
        return 0.0 if self.image is None or self.machine.is_gpu else IMAGE_S * count

    def _launching(self, layer: float, count: int, batch: int) -> float:
        return self.layers * layer * math.ceil(count / batch) if self.machine.is_gpu else 0.0
