"""Linear probing: the pretrained body is frozen, the head alone is trained."""

from .plain import PlainMethod

LINEAR_PROBE = PlainMethod(
    name="linear-probe",
    description="The head alone, on the frozen pretrained model",
    trains=lambda name: False,
    use="frozen",
)
