"""The forms of a trained adapter: how each is called and shown, and what it can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

FormName = Literal["dynamic", "static", "calibrated"]
"""The forms, which are told of in `FORMS`."""
TrainForm = Literal["dynamic", "static"]
"""The forms that an adapter can be trained in."""

MERGED = "merged"
"""The single form of every method but AuroRA: it has this name in results also where `merge` refuses."""
CALIBRATED: Final = "calibrated"
"""The form that `calibrate` makes."""
DYNAMIC: Final = "dynamic"
"""The form `B sigma(A x)`."""
STATIC: Final = "static"
"""The form that the paper merges, `B sigma(A) x`."""


@dataclass(frozen=True)
class Form:
    """A form of AuroRA.

    Args:
        name: in configs, recipes and results.
        title: beside the scores of one run.
        label: in tables and figures over many runs.
        description: what it computes, for model cards.
        mergeable: whether it is an update of the weight, which can be merged and exported.
    """

    name: str
    title: str
    label: str
    description: str
    mergeable: bool = True


FORMS = {
    form.name: form
    for form in (
        Form(
            DYNAMIC,
            "trained (dynamic)",
            "dynamic (trained)",
            "the dynamic form, `B sigma(A x)`, as it was trained",
            mergeable=False,
        ),
        Form(
            STATIC,
            "static (the paper's merge)",
            "static (the paper's merge)",
            "the static form, `B sigma(A) x`",
        ),
        Form(
            CALIBRATED,
            "calibrated merge",
            "calibrated (ours)",
            "the calibrated form, `B A_cal x`: the best linear stand-in for the trained `B sigma(A x)`",
        ),
    )
}
"""The forms of AuroRA by name, in the order in which they are evaluated and shown."""


def form_named(name: str) -> Form:
    """A form; `MERGED`, and those of another version's results, are called by their name."""
    return FORMS.get(name) or Form(name, name, name, f"the {name} form")
