"""The figures of a report, each with what it needs of the runs: those that apply are made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ArgumentError, UserError, unknown
from ...files import read_json, reading, slug, write_json, write_text
from .figures import about, save
from .gap_figure import GAP, gap_figure
from .groups import Group
from .merges_figure import merges_figure
from .rates_figure import rates_figure
from .run_figures import curves_figure, rank_figure, score_figure
from .sections import Section
from .sigma_figure import SIGMA, sigma_figure
from .training_cost import time_table
from .trajectory import trajectories, trajectories_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Made:
    """A figure.

    Args:
        figure: with matplotlib.
        of: the setting that it is about; empty for all of a section.
        record: what it was drawn from, where that is not in the results.
    """

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


def _of_section(draw: Callable[[Sequence[Any], str], Figure]) -> Callable[[Section], list[Made]]:
    return lambda section: [Made(draw(section.groups, section.metric))]


def _rates(section: Section) -> list[Made]:
    if section.study is None:
        raise UserError("score against learning rate needs the study.json of aurora sweep, with what was tried")
    chosen_by = section.study["study"]["tuning"].get("metric") or section.groups[0].selected_by
    return [Made(rates_figure(section.study, section.groups, chosen_by))]


def _trajectories(section: Section) -> list[Made]:
    record = trajectories(section.groups)
    return [Made(trajectories_figure(record), record=record)]


def _sigmas(section: Section) -> list[Made]:
    """The learned activations of each setting that has been measured, of its first seed."""
    made = []
    for group in section.groups:
        for record in _measured(group, SIGMA)[:1]:
            made.append(Made(sigma_figure(record), group.label))
    if not made:
        raise UserError(f"sigma needs AuroRA runs with a {SIGMA}, which `aurora sigma DIR` writes")
    return made


def _gaps(section: Section) -> list[Made]:
    """The merge gap of each setting that has been measured, over its seeds."""
    found = {group.label: _measured(group, GAP) for group in section.groups}
    made = [
        Made(gap_figure(*chosen), label) for label, records in found.items() if (chosen := _with(records, "layers"))
    ]
    if not made:
        raise UserError(f"the merge gap needs AuroRA runs with a {GAP}, which `aurora gap DIR` writes")
    return made


def _merges(section: Section) -> list[Made]:
    """What merges lose in each setting that has been measured, over its seeds."""
    found = {group.label: _with(_measured(group, GAP), "merges") for group in section.groups}
    made = [Made(merges_figure(*records), label) for label, records in found.items() if records]
    if not made:
        raise UserError(f"merges need a {GAP} with some, which `aurora gap DIR --merges` writes")
    return made


def _with(records: Sequence[dict[str, Any]], part: str) -> list[dict[str, Any]]:
    """The gap reports that have something in one of their parts."""
    return [record for record in records if record.get(part)]


def _measured(group: Group, name: str) -> list[dict[str, Any]]:
    """What a command has written into the folders of a setting's runs."""
    records = []
    for folder in group.folders:
        if folder is None or not (folder / name).is_file():
            continue
        with reading(folder / name):
            record = read_json(folder / name)
        if not isinstance(record, dict) or "layers" not in record:
            raise UserError(f"{folder / name} has no layers")
        records.append(record)
    return records


BEST = "Of settings that differ in their training alone, the best one on validation data, of those with the most seeds."
KINDS = (
    FigureKind(
        "scores",
        "Scores, and trained parameters",
        f"Bars: 95% interval of the mean over the seeds. Parameters: outside the head. {BEST}",
        _of_section(score_figure),
    ),
    FigureKind(
        "ranks",
        "Score against rank",
        f"Bars: 95% interval of the mean over the seeds. {BEST}",
        _of_section(rank_figure),
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
        _sigmas,
    ),
    FigureKind(
        "gap",
        "Merge gap by layer",
        "|B sigma(Ax) - B M x| / |B sigma(Ax)| of each form's linear map M, over held-out inputs. Mean over the seeds, "
        "and their range.",
        _gaps,
    ),
    FigureKind(
        "merges",
        "What merges lose",
        "sqrt(E|(W_q - W) x|^2 / E|dW x|^2) of each adapted layer, with W_q the weight that the merge gives, and the "
        "predictions beside those of the unmerged model. All seeds.",
        _merges,
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


def choose(names: Sequence[str]) -> list[FigureKind]:
    """Kinds by name; all for no name.

    Raises:
        UserError: there is no such figure.
    """
    known = {kind.name: kind for kind in KINDS}
    for name in names:
        if name not in known:
            raise ArgumentError(f"`only`: '{name}' is an {unknown('figure', known, name)}")
    return [known[name] for name in dict.fromkeys(names)] if names else list(KINDS)


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
    written, left_out, kinds = [], [], choose(only)
    for section in sections:
        place = folder / section.slug if len(sections) > 1 else folder
        for kind, made in figures_of(section, kinds):
            if isinstance(made, UserError):
                if only:
                    raise UserError(f"{section.title}: {made}") from made
                left_out.append(f"{section.title}: no {kind.name}: {made}")
                continue
            for one in made:
                path = place / "-".join(filter(None, (kind.name, one.slug)))
                written += save(one.figure, path)
                if one.record is not None:
                    record = path.with_name(f"{path.name}.json")
                    write_json(record, one.record)
                    written.append(record)
        if not only:
            write_text(place / "times.md", time_table(section.groups) + "\n")
            written.append(place / "times.md")
    return written, left_out
