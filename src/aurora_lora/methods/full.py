"""Full fine-tuning: every weight is trained."""

from .base import PlainMethod

FULL = PlainMethod(
    name="full",
    description="Every weight of the model",
    trains=lambda name: True,
)
