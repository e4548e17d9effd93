"""Each form of AuroRA against the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import UserError
from ...forms import FORMS
from .figures import FORM_STYLES, about, draw_range, legend, new_figure
from .results import Result, by_learning_rate
from .tables import finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def forms_figure(results: Sequence[Result]) -> Figure:
    """Accuracy and negative log-likelihood of each form against the learning rate; bars are the range over seeds."""
    groups = by_learning_rate(results)
    forms = {form for runs in groups.values() for run in runs for form in run["metric"]["by_form"]}
    if forms != FORMS.keys():
        raise UserError(f"the forms figure needs runs with the forms {', '.join(FORMS)}")
    every = (scores for runs in groups.values() for run in runs for scores in run["metric"]["by_form"].values())
    if not all({"accuracy", "nll"} <= scores.keys() for scores in every):
        raise UserError("the forms figure is for classification tasks, whose results have accuracy and nll")
    figure, axes = new_figure(2, 7.2, 2.9)
    rates = list(groups)
    places = range(len(rates))
    seeds = max(map(len, groups.values()))
    panels = (("accuracy", "accuracy, %", 100.0), ("nll", "negative log-likelihood", 1.0))
    for ax, (name, label, factor) in zip(axes, panels, strict=True):
        for offset, form in zip((-0.06, 0.0, 0.06), FORMS.values(), strict=True):
            scores = [[run["metric"]["by_form"][form.name][name] for run in groups[rate]] for rate in rates]
            values = [[factor * value for value in finite(found)] for found in scores]
            draw_range(ax, [place + offset for place in places], values, label=form.label, **FORM_STYLES[form.name])
        ax.set_xticks(list(places), [f"{rate:g}" for rate in rates])
        ax.set_xlabel("learning rate of the adapter")
        ax.set_ylabel(label)
    legend(figure, axes[0])
    axes[0].set_title(f"test accuracy, {seeds} seed{'s' if seeds > 1 else ''}", fontsize=9, loc="left")
    axes[1].set_title("lower is better", fontsize=9, loc="left")
    first = next(iter(groups.values()))[0]
    return about(figure, f"{first['task']}, {first['model']}")
