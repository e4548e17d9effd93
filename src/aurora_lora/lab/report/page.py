"""The report page: one HTML file for a set of runs, with everything in it; nothing is loaded from elsewhere."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ...data.metrics import Metric, metric_named
from ...errors import UserError, counted
from ...extras import extra
from ...files import NOT_FINITE, write_text
from ...train.score_tables import chance_row, rows_without_model
from .answers import every_answer, note, split_note
from .catalogue import figures_of
from .convergence import convergence_note
from .figures import literal
from .groups import Group, interval
from .results import Result
from .sections import Section
from .study import chance, missing_note, tuning_note
from .tables import left_out, of_seeds
from .training_cost import COLUMNS, time_rows

if TYPE_CHECKING:
    from pathlib import Path

    from markupsafe import Markup
    from matplotlib.figure import Figure


def write_page(sections: Sequence[Section], path: Path, title: str) -> None:
    """Write the page.

    Args:
        sections: what it is about; see `load_sections`.
        path: of the HTML file.
        title: its heading.

    Raises:
        UserError: Jinja2 or matplotlib is missing.
    """
    with extra("report"):
        from jinja2 import Environment, StrictUndefined
    template = (files("aurora_lora.lab.report") / "page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    results = [result for section in sections for result in section.results]
    page = environment.from_string(template).render(
        title=title,
        runs=len(results),
        sections=[_section(section) for section in sections],
        environments=_environments(results),
    )
    write_text(path, page)


def _section(section: Section) -> dict[str, Any]:
    """What the template shows of one task and model, or of one study."""
    found = section.groups
    by_form = [scores for group in found for run in group.runs for scores in run["metric"]["by_form"].values()]
    metrics = list(dict.fromkeys(metric for scores in by_form for metric in scores))
    drawn = [(kind, made) for kind, made in figures_of(section) if not isinstance(made, UserError)]
    return {
        "id": section.slug,
        "title": section.title if section.study is None else f"{section.title}, {section.model}",
        "tuning": None if section.study is None else _tuning(section.study),
        "converged": None if section.study is None else convergence_note(found),
        "answers": [
            (metric, [(one.ask, f"{one.first}, less {one.second}", *one.cells()) for one in found])
            for metric, found in ([] if section.study is None else every_answer(section.study))
        ],
        "answers_note": "" if section.study is None else note(section.study),
        "split": found[0].runs[0]["metric"]["split"],
        "metrics": [metric_named(name).column for name in metrics],
        "rows": [row for group in found for row in _rows(group, metrics, section)],
        "missing": "" if section.study is None else missing_note(section.study),
        "without_model": _without_model(section, list(map(metric_named, metrics))),
        "samples": _samples(found),
        "time_columns": COLUMNS,
        "time": time_rows(found),
        "figures": [
            (f"{kind.title}: {one.of}" if one.of else kind.title, _svg(one.figure), kind.note)
            for kind, made in drawn
            for one in made
        ],
    }


def _without_model(section: Section, metrics: Sequence[Metric]) -> list[list[str]]:
    """The rows of uniform guessing, and of the most frequent class; a study's summary has the first alone."""
    if section.study is None:
        return rows_without_model(section.results[0], metrics)
    guessing = chance(section.study)
    return [chance_row(guessing, metrics)] if guessing else []


def _samples(found: Sequence[Group]) -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    """Held-out conversations: the message, the expected answer, that before the training, and each setting's after."""
    shown: dict[str, tuple[str, str, str, list[tuple[str, str]]]] = {}
    for group in found:
        for one in group.runs[0].get("samples", ()):
            row = shown.setdefault(one["prompt"], (one["prompt"], one["expected"], one["before"], []))
            row[3].append((group.label, one["after"]))
    return list(shown.values())


def _tuning(study: Mapping[str, Any]) -> str:
    plan = study["study"]
    runs, seeds = counted(plan["tuning"]["budget"], "run"), counted(len(plan["seeds"]), "seed")
    tuned = f"Each setting had {runs} to tune it, on one seed and validation data"
    final = f"what was chosen was run over {seeds}."
    return " ".join(filter(None, (f"{tuned}; {final}", split_note(study), tuning_note(study))))


def _rows(group: Group, metrics: Sequence[str], section: Section) -> Iterable[dict[str, Any]]:
    chosen = section.chosen(group)
    wanted = len(group.runs) if section.study is None else len(section.study["study"]["seeds"])
    for form in group.forms:
        yield {
            "label": group.label,
            "chosen": chosen,
            "first": form == group.forms[0],
            "span": len(group.forms),
            "params": group.counted,
            "seeds": len(group.runs),
            "form": form,
            "deployed": form == group.deployed and len(group.forms) > 1,
            "scores": [
                _score(group.scores(form, metric), metric_named(metric), group.runs_of(form), wanted)
                if any(metric in run["metric"]["by_form"].get(form, ()) for run in group.runs)
                else {"mean": "", "interval": ""}  # another setting's
                for metric in metrics
            ],
        }


def _score(values: Sequence[float], metric: Metric, runs: int, wanted: int) -> dict[str, str]:
    """Mean, and as the small print its interval, and of how many runs where some scores are not finite, or of how many
    seeds where some that a study was to have are not there."""
    if not values:
        return {"mean": NOT_FINITE, "interval": ""}
    low, high = interval(values)
    between = "" if low is None or high is None else f"{metric.shown(low)} to {metric.shown(high)}"
    small = " ".join(filter(None, (between, left_out(len(values), runs), of_seeds(runs, wanted))))
    return {"mean": metric.shown(statistics.fmean(values)), "interval": small}


def _environments(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Each environment that runs come from, once."""
    found: dict[str, dict[str, Any]] = {}
    for result in (result for result in results if "versions" in result):
        versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items() if value)
        commit = result.get("git_commit") or "unknown"
        processes = result.get("processes", 1)  # results of earlier versions do not say
        device = f"{processes} processes on {result['device']}" if processes > 1 else result["device"]
        entry = found.setdefault(
            f"{device} {versions} {commit}",
            {"device": device, "versions": versions, "commit": commit, "runs": 0},
        )
        entry["runs"] += 1
    return list(found.values())


def _svg(figure: Figure) -> Markup:
    """A figure as SVG for HTML, which scales with the page."""
    import matplotlib
    from markupsafe import Markup

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "page", "svg.fonttype": "path"}):
        literal(figure).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()[buffer.getvalue().index("<svg") :]
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%" role="img"', svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)  # it names pages on the web
    return Markup(svg)
