"""The report of a set of runs: its figures, those that apply, and one HTML page with everything in it, which loads
nothing from elsewhere."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...data.metrics import Metric, metric_named
from ...errors import ArgumentError, UserError, counted, unknown
from ...extras import extra
from ...files import NOT_FINITE, read_json, reading, slug, write_json, write_text
from ...text_table import TextTable
from ...train.results import chance_row, rows_without_model
from .answers import every_answer, note, split_note
from .figures import about, literal, save
from .groups import Group, Result, interval
from .measured import (
    GAP,
    SIGMA,
    gap_figure,
    merges_figure,
    sigma_figure,
    trajectories,
    trajectories_figure,
)
from .run_figures import curves_figure, rank_figure, rates_figure, score_figure
from .sections import Section
from .study import chance, convergence_note, missing_note, tuning_note
from .tables import left_out, of_seeds, spread

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Made:
    """A figure: what it is of (a setting, or empty for all of a section), and what it was drawn from, where that is
    not in the results."""

    figure: Figure
    of: str = ""
    record: Mapping[str, Any] | None = None

    @property
    def slug(self) -> str:
        """`of` as a file name."""
        return slug(self.of)


@dataclass(frozen=True)
class FigureKind:
    """A kind of figure.

    Args:
        name: of its files, and on the command line.
        title: above it.
        note: below it.
        make: gives the figures of a section; raises UserError where the runs lack what they need.
    """

    name: str
    title: str
    note: str
    make: Callable[[Section], Iterable[Made]]


def _rates(section: Section) -> list[Made]:
    if section.study is None:
        raise UserError("score against learning rate needs the study.json of aurora sweep, with what was tried")
    chosen_by = section.study["study"]["tuning"].get("metric") or section.groups[0].selected_by
    return [Made(rates_figure(section.study, section.groups, chosen_by))]


def _trajectories(section: Section) -> list[Made]:
    record = trajectories(section.groups)
    return [Made(trajectories_figure(record), record=record)]


def _measured(file: str, part: str, command: str, draw: Callable[..., Figure]) -> Callable[[Section], list[Made]]:
    """The figure of each setting that a command has measured, from its files in the folders of the runs."""

    def make(section: Section) -> list[Made]:
        made = []
        for group in section.groups:
            records = []
            for path in (folder / file for folder in group.folders if folder is not None):
                if path.is_file():
                    with reading(path):
                        record = read_json(path)
                    if not isinstance(record, dict) or "layers" not in record:
                        raise UserError(f"{path} has no layers")
                    records += [record] if record.get(part) else []
            made += [Made(draw(*records), group.label)] if records else []
        if not made:
            raise UserError(f"it needs runs with a {file}, which `{command}` writes")
        return made

    return make


BEST = "Of settings that differ in their training alone, the best one on validation data, of those with the most seeds."
KINDS = (
    FigureKind(
        "scores",
        "Scores, and trained parameters",
        f"Bars: 95% interval of the mean over the seeds. Parameters: outside the head. {BEST}",
        lambda section: [Made(score_figure(section.groups, section.metric))],
    ),
    FigureKind(
        "ranks",
        "Score against rank",
        f"Bars: 95% interval of the mean over the seeds. {BEST}",
        lambda section: [Made(rank_figure(section.groups, section.metric))],
    ),
    FigureKind(
        "rates",
        "Score against learning rate",
        "Validation score of every run that a setting was tuned with, on one seed, a panel for each method; grey: the "
        "other settings. Ring: the rate that was chosen; where the best few were run over all seeds, their mean "
        "decides, which need not be the best on this one. Cross on the edge: a score beyond it, or a run that failed. "
        "Where a second field was tuned, the best of the runs with this rate. What is tuned by the head's rate is left "
        "out.",
        _rates,
    ),
    FigureKind(
        "curves",
        "Learning curves",
        "Mean over the seeds, and their range. Validation scores are those of the deployed form.",
        lambda section: [Made(curves_figure(section.groups))],
    ),
    FigureKind(
        "updates",
        "The trajectory of the weight updates",
        "Principal components of the updates of all runs, at the start (ring) and after each epoch. Of AuroRA, the "
        "form is named.",
        _trajectories,
    ),
    FigureKind(
        "sigma",
        "The learned activation, before and after training",
        "Sigma of each layer, and the histogram of its inputs z on the calibration inputs. The first seed.",
        _measured(SIGMA, "layers", "aurora sigma DIR", lambda first, *_: sigma_figure(first)),
    ),
    FigureKind(
        "gap",
        "Merge gap by layer",
        "|B sigma(Ax) - B M x| / |B sigma(Ax)| of each form's linear map M, over held-out inputs. Mean over the seeds, "
        "and their range.",
        _measured(GAP, "layers", "aurora gap DIR", gap_figure),
    ),
    FigureKind(
        "merges",
        "What merges lose",
        "sqrt(E|(W_q - W) x|^2 / E|dW x|^2) of each adapted layer, with W_q the weight that the merge gives, and the "
        "predictions beside those of the unmerged model. All seeds.",
        _measured(GAP, "merges", "aurora gap DIR --merges", merges_figure),
    ),
)


def figures_of(
    section: Section, kinds: Iterable[FigureKind] = KINDS
) -> Iterator[tuple[FigureKind, list[Made] | UserError]]:
    """Each kind with its figures, or with why there are none."""
    for kind in kinds:
        try:
            made = list(kind.make(section))
            for one in made:
                about(one.figure, ": ".join(filter(None, (section.subject, one.of))))
            yield kind, made
        except UserError as error:
            yield kind, error


def write_figures(sections: Sequence[Section], folder: Path, only: Sequence[str] = ()) -> tuple[list[Path], list[str]]:
    """Write the figures of a report as PNG and SVG, and a table of times.

    Args:
        sections: of the report. Where there are several, each has a folder of its own.
        folder: where to.
        only: names of kinds; each must then apply to every section.

    Returns:
        The files, and for each kind that does not apply a line that says why.

    Raises:
        UserError: an unknown kind, one of `only` that does not apply, or nothing to draw.
    """
    written, not_drawn, known = [], [], {kind.name: kind for kind in KINDS}
    for name in only:
        if name not in known:
            raise ArgumentError(f"`only`: '{name}' is an {unknown('figure', known, name)}")
    kinds = [known[name] for name in dict.fromkeys(only)] or list(KINDS)
    for section in sections:
        place = folder / section.slug if len(sections) > 1 else folder
        for kind, made in figures_of(section, kinds):
            if isinstance(made, UserError):
                if only:
                    raise UserError(f"{section.title}: {made}") from made
                not_drawn.append(f"{section.title}: no {kind.name}: {made}")
                continue
            for one in made:
                path = place / "-".join(filter(None, (kind.name, one.slug)))
                written += save(one.figure, path)
                if one.record is not None:
                    record = path.with_name(f"{path.name}.json")
                    write_json(record, one.record)
                    written.append(record)
        if not only:
            times = TextTable(
                "", ["setting", *COLUMNS], [[label, *cells] for label, cells in time_rows(section.groups)]
            )
            write_text(place / "times.md", times.markdown() + "\n")
            written.append(place / "times.md")
    return written, not_drawn


# ---------------------------------------------------------------- what training cost


COLUMNS = ("training, s", "examples / s", "peak memory, MiB")


def time_rows(found: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """For each setting, mean and standard deviation over the seeds of `COLUMNS`; the memory is the largest.

    A study.json without its runs knows the seconds alone.
    """
    return [
        (group.label, [_spread(group, "train_s", 0), _spread(group, "samples_per_s", 1), _memory(group)])
        for group in found
    ]


def _spread(group: Group, name: str, digits: int) -> str:
    values = [run["time"][name] for run in group.runs if name in run["time"]]
    return spread(values, digits) if values else ""


def _memory(group: Group) -> str:
    values: list[Any] = [run["memory"]["peak_mb"] for run in group.runs if "memory" in run]
    return f"{max(values):,.0f}" if values else ""


# ---------------------------------------------------------------- the page


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
