"""Means, intervals and cells of tables over the seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from ...files import NOT_FINITE


def finite(values: Iterable[float | None]) -> list[float]:
    """The values that are finite numbers; in JSON null stands for the others."""
    return [value for value in values if value is not None and math.isfinite(value)]


def mean(values: Iterable[float | None]) -> float:
    """The mean of those that are finite; not a number where none is."""
    return statistics.fmean(numbers) if (numbers := finite(values)) else math.nan


def spread(values: Sequence[float | None], digits: int, scale: float = 1.0) -> str:
    """`mean ± standard deviation`, or the one value; of those that are finite, and of how many where some are not."""
    return mean_and_std(values, lambda value: f"{scale * value:.{digits}f}")


def mean_and_std(values: Sequence[float | None], show: Callable[[float], str], wanted: int = 0) -> str:
    """`83.1 ± 0.4`, of the finite ones; of how many where some are not, or where there are fewer than were wanted."""
    numbers = finite(values)
    if not numbers:
        return NOT_FINITE
    parts = [show(statistics.fmean(numbers)), *([f"± {show(statistics.stdev(numbers))}"] if len(numbers) > 1 else [])]
    parts += [f"({len(numbers)} of {len(values)} finite)"] if len(numbers) < len(values) else []
    return " ".join(filter(None, [*parts, of_seeds(len(values), wanted)]))


def of_seeds(there: int, wanted: int) -> str:
    """`(3 of 5 seeds)`, where there are fewer runs than were wanted."""
    return f"({there} of {wanted} seeds)" if there < wanted else ""


def count(least: float, most: float) -> str:
    """A number of parameters; both ends where runs differ, as those of LoRA-drop do."""
    return f"{least:,.0f}" if least == most else f"{least:,.0f} to {most:,.0f}"


def half_interval(values: Sequence[float]) -> float:
    """Half the width of Student's 95% interval of the mean; not a number below two values."""
    from scipy.stats import t

    if len(values) < 2:
        return math.nan
    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95% interval of the mean; not numbers below two values."""
    mean, half = statistics.fmean(values), half_interval(values)
    return mean - half, mean + half


def p_value(values: Sequence[float]) -> float:
    """The p-value of Student's t for a mean of 0, two-sided; not a number below two values."""
    from scipy.stats import t

    if len(values) < 2:
        return math.nan
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    return float(2 * t.sf(abs(mean) / error, len(values) - 1)) if error else float(mean == 0)


def plain(value: object) -> str:
    """A recipe's value for people."""
    return f"{value:g}" if isinstance(value, float) else str(value)
