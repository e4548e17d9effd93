"""Which of the values that were tried a setting of a study, and each form of it, is shown with."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ...errors import UserError
from ...train.results import Result
from .runs_file import RUNS
from .study import Setting, Study
from .study_scores import distinct, validation, validation_of

LOSS = "nll"
"""The validation score that decides between equal ones."""

Chosen: TypeAlias = tuple[dict[str, Any], float]
"""Values, and the validation score that they were chosen by."""


@dataclass(frozen=True)
class Lacking:
    """A finalist that has no score on some seeds, and so is not chosen where another one has them all.

    Args:
        values: the finalist.
        seeds: those without.
        is_replaced: whether what would choose from it, the setting or forms of it, has another one.
    """

    values: dict[str, Any]
    seeds: list[int]
    is_replaced: bool


class Choices:
    """The choices of a study, by validation scores.

    Args:
        study: the study.
        folder: where its logs are.
        trials: gives the tuned values of a setting with their scores, as they were drawn; None where the run failed.
        result: gives the finished run of a setting with some values and a seed, if there is one.
    """

    def __init__(
        self,
        study: Study,
        folder: Path,
        trials: Callable[[Setting], list[tuple[dict[str, Any], float | None]]],
        result: Callable[[Setting, Mapping[str, Any], int], Result | None],
    ) -> None:
        self.study, self.folder, self._trials, self._result = study, folder, trials, result

    def chosen(self, setting: Setting) -> Chosen:
        """The values with the best validation score, and the score.

        Raises:
            UserError: no trial gave a score.
        """
        found = self._best(setting, None)
        if found is None:
            raise UserError(
                f"setting {setting.name}: none of its runs gave a validation score; their logs are in "
                f"{self.folder / RUNS / setting.slug}"
            )
        return found

    def chosen_by_form(self, setting: Setting) -> dict[str, Chosen]:
        """The choice for each form, by its own validation scores in the trials' runs; empty unless the study asks for
        it, and for a method with one form. The deployed form has the setting's choice, and so has one without any
        score."""
        own = self._own_forms(setting)
        if not own:
            return {}
        chosen = self.chosen(setting)
        return {form: (form in own and self._best(setting, form)) or chosen for form in self._method(setting).forms}

    def finalists(self, setting: Setting) -> list[dict[str, Any]]:
        """The values that are run over all seeds, each once: of the setting, and of each form with its own choice."""
        forms = (None, *self._own_forms(setting))
        return distinct(values for form in forms for values, _ in self._ranked(setting, form))

    def lacking(self, setting: Setting) -> list[Lacking]:
        """The finalists that have no score on some seeds, each once."""
        found: list[Lacking] = []
        metric = self.study.tuning.metric
        for form in (None, *self._own_forms(setting)):
            scores = [
                (values, self._by_seed(setting, values, form, metric)) for values, _ in self._ranked(setting, form)
            ]
            is_replaced = any(None not in by_seed.values() for _, by_seed in scores)
            for values, by_seed in scores:
                seeds = {seed for seed, score in by_seed.items() if score is None}
                before = next((one for one in found if one.values == values), Lacking(values, [], True))
                if seeds:
                    merged = Lacking(values, sorted({*before.seeds, *seeds}), before.is_replaced and is_replaced)
                    found = [*(one for one in found if one is not before), merged]
        return found

    def _ranked(self, setting: Setting, form: str | None) -> list[Chosen]:
        """The best values by the tuned seed's scores, best first: `tuning.finalists` of them.

        Args:
            setting: of the study.
            form: the one whose scores they are; the deployed one if None.
        """
        tuning = self.study.tuning
        tried = self._trials(setting)
        if form is not None:
            results = [(values, self._result(setting, values, tuning.seed)) for values, _ in tried]
            tried = [
                (values, self._score(result, form, tuning.metric)) for values, result in results if result is not None
            ]
        scored = [(values, score) for values, score in tried if score is not None]
        sign = self.study.metric.sign
        scored.sort(key=lambda one: -sign * one[1])  # equal ones stay as they are
        best = distinct(values for values, _ in scored)[: tuning.finalists]  # a sampler may draw one twice
        return [next(one for one in scored if one[0] == values) for values in best]

    def _best(self, setting: Setting, form: str | None) -> Chosen | None:
        """The best of a form's finalists: where there are several, the one with the best mean over the seeds.

        Those of other forms are run over the seeds as well, but are none of its own: a method with several forms would
        choose from more values than one with a single form. Of equal ones, that with the lower mean loss, where the
        validation scores have one. None where no trial gave a score.
        """
        found = self._ranked(setting, form)
        if len(found) < 2:
            return next(iter(found), None)
        metric = self.study.tuning.metric
        means = [(one, mean) for one, _ in found if (mean := self._mean(setting, one, form, metric)) is not None]
        if not means:
            return found[0]
        sign = self.study.metric.sign
        has_loss = self._has_loss(setting, means[0][0])

        def order(one: Chosen) -> tuple[float, float]:
            loss = self._mean(setting, one[0], form, LOSS) if has_loss else 0.0
            # a sum's rounding decides no tie; a loss that was not finite is the worst
            return round(-sign * one[1], 12), math.inf if loss is None else loss

        return min(means, key=order)

    def _mean(self, setting: Setting, values: Mapping[str, Any], form: str | None, metric: str | None) -> float | None:
        """The mean of a validation score over the seeds; None where one is missing."""
        scores = self._by_seed(setting, values, form, metric).values()
        known = [score for score in scores if score is not None]
        return statistics.fmean(known) if len(known) == len(scores) else None

    def _by_seed(
        self, setting: Setting, values: Mapping[str, Any], form: str | None, metric: str | None
    ) -> dict[int, float | None]:
        results = {seed: self._result(setting, values, seed) for seed in self.study.seeds}
        return {seed: None if result is None else self._score(result, form, metric) for seed, result in results.items()}

    def _score(self, result: Result, form: str | None, metric: str | None) -> float | None:
        return validation(result, metric) if form is None else validation_of(form, result, metric)

    def _has_loss(self, setting: Setting, values: Mapping[str, Any]) -> bool:
        result = self._result(setting, values, self.study.seeds[0])
        return result is not None and LOSS in result["epochs"][-1]["validation"]

    def _own_forms(self, setting: Setting) -> list[str]:
        """The forms that have a choice of their own beside the deployed one's."""
        if not self.study.tuning.each_form:
            return []
        method = self._method(setting)
        return [form for form in method.forms if form != method.deployed_form]

    def _method(self, setting: Setting) -> Any:
        return self.study.recipe(setting, self._trials(setting)[0][0], self.study.tuning.seed).method
