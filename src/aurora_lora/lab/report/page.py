"""The report of a set of runs: its figures, those that apply, and one HTML page with everything in it, which loads
nothing from elsewhere."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import UserError, counted
from ...extras import extra
from ...files import read_json, reading, slug, write_json, write_text
from ...text_table import TextTable
from .figures import about, literal, save
from .measured import GAP, SIGMA, gap_figure, sigma_figure, trajectories, trajectories_figure
from .run_figures import curves_figure, rank_figure, score_figure
from .runs import Section
from .single import loss_figure, single_tables
from .study import convergence_note, section_tables
from .tables import spread

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure


class Made(NamedTuple):
    """A figure: what it is of (a setting, or empty for all of a section), and what it was drawn from, where that is
    not in the results."""

    figure: Figure
    of: str = ""
    record: Mapping[str, Any] | None = None


class FigureKind(NamedTuple):
    """A kind of figure: the name of its files, its title, what is below it, what gives the figures of a section, or
    raises a UserError where the runs lack what they need, and what else is below it where there are several seeds."""

    name: str
    title: str
    note: str
    make: Callable[[Section], Iterable[Made]]
    of_seeds: str = ""

    def below(self, seeds: int) -> str:
        """What is said below a figure of runs with so many seeds."""
        return f"{self.of_seeds} {self.note}".strip() if seeds > 1 else self.note


def _curves(section: Section) -> list[Made]:
    (first, *more), losses = section.results, "losses"
    return [Made(curves_figure(section.scores) if more or len(first.get(losses, ())) < 2 else loss_figure(first))]


def _trajectories(section: Section) -> list[Made]:
    record = trajectories(section.runs)
    return [Made(trajectories_figure(record), record=record)]


def _measured(file: str, command: str, draw: Callable[..., Figure]) -> Callable[[Section], list[Made]]:
    """The figure of each setting that a command has measured, from its files in the folders of the runs."""

    def make(section: Section) -> list[Made]:
        records: dict[str, list[dict[str, Any]]] = {}
        for run in section.runs.itertuples():
            if (path := run.folder / file).is_file():
                with reading(path):
                    record = read_json(path)
                if not isinstance(record, dict) or "layers" not in record:
                    raise UserError(f"{path} has no layers")
                if record["layers"]:
                    records.setdefault(run.setting, []).append(record)
        if not records:
            raise UserError(f"it needs runs with a {file}, which `{command}` writes")
        return [Made(draw(*found), setting) for setting, found in records.items()]

    return make


BEST = "Of settings that differ in their training alone, the best one on validation data, of those with the most seeds."
BARS, MEAN = "Bars: 95% interval of the mean over the seeds.", "Mean over the seeds, and their range."
KINDS = (
    FigureKind(
        "scores",
        "Scores, and trained parameters",
        f"Parameters: outside the head. {BEST}",
        lambda section: [Made(score_figure(section.scores, section.metric))],
        BARS,
    ),
    FigureKind(
        "ranks",
        "Score against rank",
        BEST,
        lambda section: [Made(rank_figure(section.scores, section.metric))],
        BARS,
    ),
    FigureKind(
        "curves",
        "Learning curves",
        "Validation scores are those of the deployed form.",
        _curves,
        MEAN,
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
        "Sigma of each layer, and the histogram of its inputs z on the calibration inputs.",
        _measured(SIGMA, "aurora sigma DIR", lambda first, *_: sigma_figure(first)),
        "Of the first seed.",
    ),
    FigureKind(
        "gap",
        "Merge gap by layer",
        "|B sigma(Ax) - B M x| / |B sigma(Ax)| of each form's linear map M, over held-out inputs.",
        _measured(GAP, "aurora gap DIR", gap_figure),
        MEAN,
    ),
)


def figures_of(section: Section) -> Iterator[tuple[FigureKind, list[Made] | UserError]]:
    """Each kind of figure with those of a section, or with why there are none."""
    for kind in KINDS:
        try:
            made = list(kind.make(section))
            for one in made:
                about(one.figure, ": ".join(filter(None, (section.subject, one.of))))
            yield kind, made
        except UserError as error:
            yield kind, error


def write_figures(sections: Sequence[Section], folder: Path) -> tuple[list[Path], list[str]]:
    """Write the figures of a report as PNG and SVG.

    Args:
        sections: of the report. Where there are several, each has a folder of its own.
        folder: where to.

    Returns:
        The files, and for each kind that does not apply a line that says why.
    """
    written, not_drawn = [], []
    for section in sections:
        place = folder / section.slug if len(sections) > 1 else folder
        for kind, made in figures_of(section):
            if isinstance(made, UserError):
                not_drawn.append(f"{section.title}: no {kind.name}: {made}")
                continue
            for one in made:
                path = place / "-".join(filter(None, (kind.name, slug(one.of))))
                written += save(one.figure, path)
                if one.record is not None:
                    written.append(path.with_name(f"{path.name}.json"))
                    write_json(written[-1], one.record)
    return written, not_drawn


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
        runs=counted(len(results), "run"),
        seeds=len({result["seed"] for result in results}),
        sections=[_section(section) for section in sections],
        environments=_environments(results),
    )
    write_text(path, page)


def _section(section: Section) -> dict[str, Any]:
    """What the template shows of one task and model, or of one study."""
    *answers, scores = section_tables(section, full=True)
    seeds = section.runs["seed"].nunique()
    return {
        "id": section.slug,
        "title": section.title if section.study is None else f"{section.title}, {section.model}",
        "about": "" if section.study is None else f"{_tuning(section.study)} {convergence_note(section.scores)}",
        "answers": answers,
        "scores": scores,
        "single": single_tables(section, full=True),
        "time": _times(section),
        "figures": [
            (f"{kind.title}: {one.of}" if one.of else kind.title, _svg(one.figure), kind.below(seeds))
            for kind, made in figures_of(section)
            if not isinstance(made, UserError)
            for one in made
        ],
    }


def _tuning(study: Mapping[str, Any]) -> str:
    plan = study["study"]
    runs, seeds = counted(plan["tuning"]["budget"], "run"), counted(len(plan["seeds"]), "seed")
    return f"Each setting had {runs} to tune it, on one seed and validation data; what was chosen was run over {seeds}."


def _times(section: Section) -> TextTable:
    """What the training of each setting cost: means and standard deviations over the seeds; the largest memory."""
    table = TextTable("", ["setting", "training, s", "examples / s", "peak memory, MiB"])
    for name, runs in section.runs.groupby("setting", sort=False):
        speeds, memory = (runs[column].dropna() for column in ("samples_per_s", "peak_mb"))
        shown = [spread(runs["train_s"].tolist(), 0), spread(speeds.tolist(), 1) if len(speeds) else ""]
        table.rows.append([str(name), *shown, f"{memory.max():,.0f}" if len(memory) else ""])
    return table


def _environments(results: Sequence[Mapping[str, Any]]) -> TextTable:
    """Each environment that runs come from, once."""
    found: dict[tuple[str, ...], int] = {}
    for result in (result for result in results if "versions" in result):
        versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items() if value)
        device = result["device"] if (n := result.get("processes", 1)) == 1 else f"{n} processes on {result['device']}"
        row = (device, versions, result.get("git_commit") or "unknown")
        found[row] = found.get(row, 0) + 1
    rows = [[str(number), *row] for row, number in found.items()]
    return TextTable("", ["runs", "device", "versions", "commit"], list(rows), align="rl")


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
