"""The plan of a suite (`aurora reproduce --dry-run`), one line for each recipe, and of one run (`aurora train`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...errors import abridged, counted
from ...text_table import TextTable
from ..experiments.estimate import unfit
from ..experiments.suite import Suite

Rows = Sequence[Mapping[str, Any]]
LESS = (
    "Smaller training.batch_size with more gradient_accumulation_steps, training.gradient_checkpointing=true or "
    "training.precision=bf16 need less."
)
NO_CHANGE = "No change of such settings makes it fit"
ESTIMATES = "Memory and time are estimates from shapes"
UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "K"))


def plan_tables(suite: Suite, rows: Rows) -> Iterator[TextTable]:
    """A table for each model."""
    for model in dict.fromkeys(row["model"] for row in rows):
        yield _table(suite, model, [row for row in rows if row["model"] == model])


def plan_lines(rows: Rows) -> Iterator[str]:
    """What it comes to: how many runs, on what, how long, and which do not fit."""
    left = [row for row in rows if row["status"] != "finished"]
    known = [row["hours"] for row in left if row["hours"] is not None]
    length = [f"about {_time(max(sum(known), 1 / 60))} on one {rows[0]['machine']}, one after the other"]
    length += [f"{counted(len(left) - len(known), 'run')} of unknown length"] if len(left) > len(known) else []
    how_long = f": {', and '.join(length)}" if known else ""
    yield f"{counted(len(rows), 'run')}, {len(left)} of them to do{how_long}."
    shares = _shares(left)
    if shares:
        yield f"Of that time {shares}."
    if too_large := unfit(rows):
        names = list(dict.fromkeys(row["recipe"] for row in too_large))
        some = abridged(names, 3)
        yield (
            f"{len(too_large)} of them do NOT fit in the {rows[0]['machine_memory_gb']:.0f} GB of one "
            f"{rows[0]['machine']}: {some}. {LESS}"
        )
    yield f"{ESTIMATES}. Params are trained; the head is not among them."


def run_rows(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What one run trains, needs and takes: a name and a value for each row.

    Args:
        run: of `dry_run`.
    """
    params, machine = run["params"], run["machine"]
    yield "model", f"{run['model']}, {params['total']:,} parameters in all"
    about = "about " if run["budget"] is not None else ""
    trained = f"{about}{params['adapter']:,} trained ({100 * params['adapter'] / params['total']:.3g}%)"
    yield "method", f"{run['method']}, {trained}" + f", {params['head']:,} in the head" * (params["head"] > 0)
    if run["reference"] is not None:
        yield "reference", f"{run['reference']}, trained after it; in the memory and the time below"
    sizes = ", ".join(f"{count:,} {name}" for name, count in run["examples"].items())
    packed = f"; packed into {run['rows']:,} rows to train on" if "rows" in run else ""
    yield "data", run["task"] + f": {sizes}{packed}" * bool(sizes)
    if run["texts"] is not None:
        yield "tokens", _tokens(run["texts"], "rows" in run)
    if (steps := run["steps"]) is not None:
        epochs = f", {steps['epoch']:,} an epoch" if "epoch" in steps else ""
        yield "steps", f"{steps['all']:,} in all{epochs}, of {steps['examples']:,} examples each"
    if run["fits"] is None:
        yield "memory", f"not known: {run['why']}"
        yield "time", "not known"
        return
    fits = "it fits" if run["fits"] else "it does NOT fit"
    yield "memory", f"about {_memory(run)} at the peak, of {run['machine_memory_gb']:.0f} GB of one {machine}: {fits}"
    if run["hours"] is None:
        yield "time", "not known: the data were not loaded"
    else:
        yield "time", f"about {_time(max(run['hours'], 1 / 60))}: {_shares([run])}"


def run_lines(run: Mapping[str, Any]) -> Iterator[str]:
    """What is below `run_rows`: what would make the run fit, and what the numbers are."""
    found = run["fitting"]
    if run["fits"] is False and (found is None or not found["fits"]):
        yield LESS
    if found is not None:
        hours = "" if found["hours"] is None else f" and {_time(max(found['hours'], 1 / 60))}"
        if found["fits"]:
            yield f"It fits, with about {_memory(found)}{hours}, with these changes:"
        else:
            yield f"{NO_CHANGE}: it needs about {_memory(found)} at least, with these changes:"
        yield "  " + " ".join(found["overrides"])
    elif run["fits"] is False:
        yield f"{NO_CHANGE}."
    yield f"{ESTIMATES}. Nothing was trained." if run["fits"] is not None else "Nothing was trained."


def _tokens(texts: Mapping[str, Any], is_packed: bool) -> str:
    """The lengths of what is trained on."""
    found = f"{texts['longest']:,} in the longest {'row' if is_packed else 'text'}, {texts['mean']:,.0f} on average"
    found += "" if is_packed else f", {texts['padded']:,.0f} with padding"
    if not texts["cut"]:
        return found
    return (
        f"{found}; {texts['cut']:,} of {texts['looked_at']:,} texts are longer than {texts['max_length']:,} and are cut"
    )


def _memory(run: Mapping[str, Any]) -> str:
    return f"{max(run['memory_gb'], 0.1):.1f} GB"


def _table(suite: Suite, model: str, rows: Rows) -> TextTable:
    data = list(dict.fromkeys(row["data"] for row in rows))
    named = all(row["recipe"].endswith(row["data"]) for row in rows)
    title = f"{suite.title}: {model}" + (f", {data[0]}" if len(data) == 1 and not named else "")
    with_data = len(data) > 1 and not named
    about = ["recipe", *(["data"] if with_data else [])]
    table = TextTable(title, [*about, "params", "memory", "time", "done"], align="l" * len(about) + "r")
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        runs = [row for row in rows if row["recipe"] == recipe]
        first, done = runs[0], sum(row["status"] == "finished" for row in runs)
        memory = f"{first['memory_gb']:.{1 if first['memory_gb'] < 1000 else 0}f} GB{'' if first['fits'] else '!'}"
        cells = [_count(first["params"]["adapter"]), memory, _time(first["hours"]), f"{done}/{len(runs)}"]
        table.rows.append([recipe, *([first["data"]] if with_data else []), *cells])
    return table


def _shares(rows: Rows) -> str:
    """The parts of the time that are worth naming, the largest first."""
    sums: dict[str, float] = {}
    for row in rows:
        for part, hours in row["hours_of"].items():
            sums[part] = sums.get(part, 0.0) + hours
    whole = sum(sums.values())
    parts = sorted(((100 * hours / whole, part) for part, hours in sums.items() if whole), reverse=True)
    return ", ".join(f"{share:.0f}% {part}" for share, part in parts if share >= 0.5)


def _count(number: int) -> str:
    for size, unit in UNITS:
        if number >= 0.9995 * size:  # what rounds to it
            return f"{number / size:.3g}{unit}"
    return str(number)


def _time(hours: float | None) -> str:
    if hours is None:
        return "?"
    if hours < 1:
        return f"{60 * hours:.0f} min" if hours * 60 >= 1 else "< 1 min"
    return f"{hours:.1f} h" if hours < 100 else f"{hours:,.0f} h"
