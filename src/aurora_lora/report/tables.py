"""Markdown tables from results, and their place in a document."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import write_text

Result = Mapping[str, Any]

FORM_NAMES = {
    "dynamic": "dynamic (trained)",
    "static": "static (the paper's merge)",
    "calibrated": "calibrated (ours)",
    "merged": "merged",
}


def load_results(paths: Iterable[Path | str]) -> list[Result]:
    """The results of runs: each path a `result.json`, a run's folder, or a folder of either.

    Raises:
        UserError: a path with no result in or below it, or one that is not a result.
    """
    results = []
    for path in map(Path, paths):
        files = [path] if path.is_file() else sorted(path.rglob("*.json"))
        found = [result for file in files if (result := _read(file, must_be=path.is_file())) is not None]
        if not found:
            raise UserError(f"{path} holds no result.json of a finished run")
        results += found
    return results


def _read(path: Path, *, must_be: bool) -> Result | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if must_be:
            raise UserError(f"{path} cannot be read: {error}") from error
        return None
    is_result = isinstance(value, dict) and {"schema", "recipe", "metric"} <= value.keys()
    if must_be and not is_result:
        raise UserError(f"{path} is not a result of aurora train")
    return value if is_result else None


def by_learning_rate(results: Sequence[Result], method: str = "aurora") -> dict[float, list[Result]]:
    """The runs of a method by their learning rate, lowest first."""
    groups: dict[float, list[Result]] = {}
    for result in results:
        if result["method"] == method:
            groups.setdefault(float(result["recipe"]["training"]["learning_rate"]), []).append(result)
    return dict(sorted(groups.items()))


def spread(values: Sequence[float], digits: int, scale: float = 1.0) -> str:
    """`mean ± standard deviation`, or the one value."""
    scaled = [scale * value for value in values]
    mean = f"{statistics.fmean(scaled):.{digits}f}"
    return f"{mean} ± {statistics.stdev(scaled):.{digits}f}" if len(scaled) > 1 else mean


def forms_table(results: Sequence[Result]) -> str:
    """Accuracy and negative log-likelihood of each form by learning rate, over the seeds of a classification task."""
    lines = [
        "| learning rate | form | accuracy % | nll | accuracy - dynamic | nll - dynamic |",
        "|---|---|---|---|---|---|",
    ]
    for rate, runs in by_learning_rate(results).items():
        forms = [run["metric"]["by_form"] for run in runs]
        for form in forms[0]:
            cells = [f"{rate:g}", FORM_NAMES.get(form, form)]
            cells.append(spread([scores[form]["accuracy"] for scores in forms], 1, 100))
            cells.append(spread([scores[form]["nll"] for scores in forms], 3))
            if "dynamic" in forms[0] and form != "dynamic":
                for name, digits, scale in (("accuracy", 2, 100), ("nll", 4, 1)):
                    gaps = [scores[form][name] - scores["dynamic"][name] for scores in forms]
                    cells.append(spread(gaps, digits, scale))
            else:
                cells += ["", ""]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def insert(path: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- end name -->` in a document.

    Raises:
        UserError: the document has no such marks.
    """
    document = path.read_text(encoding="utf-8")
    marks = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)", re.DOTALL)
    if not marks.search(document):
        raise UserError(f"{path} has no marks '<!-- {name} -->' and '<!-- end {name} -->'")
    write_text(path, marks.sub(lambda match: f"{match[1]}\n{text.strip()}\n\n{match[2]}", document))
