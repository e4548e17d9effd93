"""The scores of a study's runs: those that values are chosen by, and those that its summary holds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from ...errors import UserError
from ...train.results import Result, validation_score


def with_own_forms(result: Mapping[str, Any], own: Mapping[str, Mapping[int, Mapping[str, Any]]], seed: int) -> Result:
    """A result whose forms have the scores of the runs of their own choice.

    Args:
        result: of the run of the setting's choice.
        own: by form and seed, the results of the runs of that form's choice; a form that is not there stays. Where its
            run of this seed is not finished, the form is not there.
        seed: of the result.
    """
    by_form = result["metric"]["by_form"]
    taken = {
        form: own[form][seed]["metric"]["by_form"][form] if form in own else by_form[form]
        for form in by_form
        if form not in own or seed in own[form]
    }
    return {**result, "metric": {**result["metric"], "by_form": taken}}


def distinct(choices: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices, each once, in their order."""
    found = list(choices)
    return [values for place, values in enumerate(found) if values not in found[:place]]


def validation_of(form: str, result: Result, metric: str | None) -> float | None:
    """A validation score of a form, in the epoch that was chosen by the deployed one."""
    name = metric or result["metric"]["selected_by"]["name"]
    score: float | None = result["metric"].get("validation_by_form", {}).get(form, {}).get(name)
    return score


def validation(result: Result, metric: str | None) -> float | None:
    """The validation score of a run by a metric; see `validation_score`.

    Raises:
        UserError: the run has no such score.
    """
    epochs = [name for epoch in result["epochs"] for name in epoch["validation"]]
    there = dict.fromkeys([result["metric"]["selected_by"]["name"], *epochs])
    if metric is not None and metric not in there:
        raise UserError(f"tuning.metric: the validation scores have no {metric} (they have {', '.join(there)})")
    return validation_score(result, metric)


def by_form_and_metric(results: list[Result]) -> dict[str, dict[str, dict[str, Any]]]:
    """For each form and metric: the scores seed by seed (None where there is none), their mean, and their standard
    deviation; and, where a form has no run of some, which places of the scores these are."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    by_form = [result["metric"]["by_form"] for result in results]
    for form in dict.fromkeys(form for one in by_form for form in one):
        # runs of an earlier version may lack some
        missing = [place for place, one in enumerate(by_form) if form not in one]
        for metric in dict.fromkeys(metric for one in by_form for metric in one.get(form, {})):
            scores = [one.get(form, {}).get(metric) for one in by_form]
            numbers = [score for score in scores if score is not None]
            table.setdefault(form, {})[metric] = {
                "scores": scores,
                "mean": statistics.fmean(numbers) if numbers else None,
                "std": statistics.stdev(numbers) if len(numbers) > 1 else None,
                **({"missing": missing} if missing else {}),
            }
    return table
