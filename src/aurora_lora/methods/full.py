"""Full fine-tuning: every weight is trained."""

from .plain import PlainMethod

FULL = PlainMethod(
    name="full",
    description="Every weight of the model",
    trains=lambda name: True,
)
