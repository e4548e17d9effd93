"""The report page: one HTML file for a set of runs, with everything in it; nothing is loaded from elsewhere."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Iterable, Sequence
from importlib.resources import files
from itertools import cycle
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..files import write_text
from .figures import new_figure
from .groups import Group, groups, interval
from .study import PERCENT
from .tables import FORM_NAMES, Result

if TYPE_CHECKING:
    from pathlib import Path

    from markupsafe import Markup
    from matplotlib.figure import Figure

# Okabe and Ito's colours; marker and line differ as well.
LINES: Sequence[dict[str, Any]] = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#009E73", "marker": "^", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "D", "linestyle": ":"},
    {"color": "#000000", "marker": "v", "linestyle": "-"},
    {"color": "#E69F00", "marker": "P", "linestyle": "--"},
    {"color": "#56B4E9", "marker": "X", "linestyle": "-."},
)
MOST_LINES = len(LINES)


def write_page(results: Sequence[Result], path: Path, title: str) -> None:
    """Write the page.

    Args:
        results: of finished runs.
        path: of the HTML file.
        title: its heading.

    Raises:
        UserError: Jinja2 or matplotlib is missing.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ModuleNotFoundError as error:
        raise UserError("the report page needs Jinja2: pip install 'aurora-lora[report]'") from error
    template = (files("aurora_lora.report") / "page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    sections = [_section(task, model, found) for (task, model), found in groups(results).items()]
    page = environment.from_string(template).render(
        title=title, runs=len(results), sections=sections, environments=_environments(results)
    )
    write_text(path, page)


def _section(task: str, model: str, found: Sequence[Group]) -> dict[str, Any]:
    """What the template shows of one task and model."""
    metric = found[0].metric
    metrics = list(dict.fromkeys(m for g in found for f in g.forms for m in g.runs[0]["metric"]["by_form"][f]))
    split = found[0].runs[0]["metric"]["split"]
    figures = [
        ("Score against trained parameters", score_figure(found, metric), "Bars: 95% interval over the seeds."),
        (
            "Learning curves",
            curves_figure(found, metric),
            "First seed, validation data, deployed form.",
        ),
    ]
    return {
        "task": task,
        "model": model,
        "split": split,
        "metrics": [f"{name} %" if name in PERCENT else name for name in metrics],
        "rows": [row for group in found for row in _rows(group, metrics)],
        "time": [_time(group) for group in found],
        "figures": [(name, _svg(figure), note) for name, figure, note in figures if figure is not None],
    }


def _rows(group: Group, metrics: Sequence[str]) -> Iterable[dict[str, Any]]:
    for form in group.forms:
        yield {
            "label": group.label,
            "first": form == group.forms[0],
            "span": len(group.forms),
            "params": f"{group.params:,}",
            "seeds": len(group.runs),
            "form": FORM_NAMES.get(form, form),
            "deployed": form == group.deployed and len(group.forms) > 1,
            "scores": [_score(group.scores(form, metric), metric) for metric in metrics],
        }


def _score(values: Sequence[float], metric: str) -> dict[str, str]:
    """Mean, and its interval as the small print."""
    if not values:
        return {"mean": "not a number", "interval": ""}
    scale, digits = (100, 1) if metric in PERCENT else (1, 3)
    low, high = interval(values)
    between = "" if low is None or high is None else f"{scale * low:.{digits}f} to {scale * high:.{digits}f}"
    return {"mean": f"{scale * statistics.fmean(values):.{digits}f}", "interval": between}


def _time(group: Group) -> dict[str, str]:
    seconds = [run["time"]["train_s"] for run in group.runs]
    return {
        "label": group.label,
        "seconds": f"{statistics.fmean(seconds):,.0f}",
        "speed": f"{statistics.fmean([run['time']['samples_per_s'] for run in group.runs]):,.1f}",
        "memory": f"{max(run['memory']['peak_mb'] for run in group.runs):,.0f}",
    }


def _environments(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Each environment that runs come from, once."""
    found: dict[str, dict[str, Any]] = {}
    for result in results:
        versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items() if value)
        commit = result.get("git_commit") or "unknown"
        entry = found.setdefault(
            f"{result['device']} {versions} {commit}",
            {"device": result["device"], "versions": versions, "commit": commit, "runs": 0},
        )
        entry["runs"] += 1
    return list(found.values())


# ---------------------------------------------------------------- figures


def score_figure(found: Sequence[Group], metric: str) -> Figure:
    """Score of each setting's deployed form against its trained parameters, as in the paper's Figure 1."""
    scale = 100 if metric in PERCENT else 1
    figure, (ax,) = new_figure(1, 6.4, 3.4)
    by_method: dict[str, list[Group]] = {}
    for group in found:
        by_method.setdefault(str(group.runs[0]["method"]), []).append(group)
    for (method, several), style in zip(by_method.items(), cycle(LINES), strict=False):
        several = sorted(several, key=lambda group: group.params)
        points = [(g.params, g.scores(g.deployed, metric)) for g in several]
        points = [(params, values) for params, values in points if values]
        means = [scale * statistics.fmean(values) for _, values in points]
        bars = [scale * half(values) for _, values in points]
        look = {**style, "linestyle": "none"}
        ax.errorbar([params for params, _ in points], means, yerr=bars, label=method, capsize=2.5, **look)
    counts = [group.params for group in found]
    if min(counts) > 0:
        ax.set_xscale("log")
    else:  # a linear probe has none
        ax.set_xscale("symlog", linthresh=min((count for count in counts if count), default=1))
    ax.set_xlabel("trained parameters outside the head")
    ax.set_ylabel(f"{metric}, %" if metric in PERCENT else metric)
    _legend(figure, ax)
    return figure


def curves_figure(found: Sequence[Group], metric: str) -> Figure | None:
    """Validation score by epoch, of the first seed of each setting; of the best ones, where there are many."""
    scale = 100 if metric in PERCENT else 1
    curves = [(group, group.runs[0]["epochs"]) for group in found]
    curves = [(g, epochs) for g, epochs in curves if any(metric in entry["validation"] for entry in epochs)]
    curves.sort(key=lambda one: -statistics.fmean(one[0].scores(one[0].deployed, metric) or [float("-inf")]))
    if not curves:
        return None
    figure, (ax,) = new_figure(1, 6.4, 3.4)
    for (group, epochs), style in zip(curves[:MOST_LINES], LINES, strict=False):
        points = [(entry["epoch"], entry["validation"].get(metric)) for entry in epochs]
        points = [(epoch, value) for epoch, value in points if value is not None]
        ax.plot([e for e, _ in points], [scale * v for _, v in points], label=group.label, markersize=4, **style)
    ax.set_xlabel("epoch")
    ax.set_ylabel(f"validation {metric}, %" if metric in PERCENT else f"validation {metric}")
    _legend(figure, ax)
    return figure


def half(values: Sequence[float]) -> float:
    """Half the width of the interval; 0 for one seed."""
    low, high = interval(values)
    return 0.0 if low is None or high is None else (high - low) / 2


def _legend(figure: Figure, ax: Any) -> None:
    handles, names = ax.get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=8, loc="outside lower left", ncols=2)


def _svg(figure: Figure) -> Markup:
    """A figure as SVG for HTML, which scales with the page."""
    import matplotlib
    from markupsafe import Markup

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "page", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()[buffer.getvalue().index("<svg") :]
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%" role="img"', svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)  # it names pages on the web
    return Markup(svg)
