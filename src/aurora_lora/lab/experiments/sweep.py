"""`aurora sweep`: tune every setting at the same budget on validation data, then run what was chosen over the seeds.

Optuna proposes values and keeps the trials in a journal in the study's folder. Runs are folders of `aurora train`,
`runs/<setting>/<values>/seed<N>`: whatever was killed goes on where it was, and the tuned run of a seed is also its
final one. What comes out is `study.json` and, of the runs over the seeds, `runs.jsonl`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from ... import files
from ...errors import DIVERGED, UserError
from ...train.finished_run import Result, chance_of, validation_score
from ...train.publish import hold
from ...train.recipe import CHANGE_NOTHING, differences, flatten
from .jobs import Job, Outcome, Runner
from .runs_file import RUNS, write_runs
from .study import SUMMARY, Range, Setting, Study, point

JOURNAL = "journal.log"
"""Optuna's journal of the trials, in a study's folder."""
LOSS = "nll"
"""The validation score that decides between equal ones."""
NO_SCORE = "none of its runs gave a validation score"
Values = dict[str, Any]
Scored = tuple[Values, float]
_SETTING = "setting"
"""The attribute of Optuna's study that says what the setting is."""


class Sweep:
    """A study in its folder.

    Args:
        study: what to compare.
        output: the folder.
        run: does the runs.
        report: called with each outcome as it comes.

    Raises:
        UserError: the folder holds another study, cannot be written, or its runs had other data or another base model.
    """

    def __init__(
        self, study: Study, output: Path | str, run: Runner, report: Callable[[Outcome], Any] = lambda _: None
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study, self.folder, self.run, self.report = study, Path(output), run, report
        self.sign, self.metric = study.metric.sign, study.tuning.metric
        self._errors: dict[Path, Outcome] = {}
        self._inputs: dict[str, tuple[Any, Path]] = {}
        files.check_writable(self.folder)
        with self._held():
            path = self.folder / JOURNAL
            if path.exists() and not (whole := path.read_bytes()).endswith(b"\n"):  # a full disk, or a kill
                path.write_bytes(whole[: whole.rfind(b"\n") + 1])
            storage = JournalStorage(JournalFileBackend(str(path)))
            self._trials = {setting.name: self._open(setting, storage) for setting in study.settings}
        for setting in study.settings:
            for values, score in self._drawn(setting):
                job = self.job(setting, values, study.tuning.seed)
                if score is not None and (result := job.finished()) is not None:
                    self._check_inputs(job, result)

    def _held(self) -> AbstractContextManager[None]:
        return hold(self.folder / ".sweep.lock", f"{self.folder}: another aurora sweep is at this study")

    def _open(self, setting: Setting, storage: JournalStorage) -> optuna.Study:
        """The trials of a setting: all of a grid is enqueued at once; what was lost or failed is proposed again."""
        found = optuna.create_study(
            study_name=f"{self.study.name}/{setting.slug}",
            storage=storage,
            direction="minimize" if self.study.metric.lower_is_better else "maximize",
            load_if_exists=True,
        )
        tuning = self.study.tuning.model_copy(update={"space": self.study.space(setting)})
        described = {
            "method": setting.method,
            "fields": setting.fields,
            # what is tried does not depend on how the best is chosen
            "tuning": tuning.model_dump(mode="json", exclude_none=True, exclude={"each_form", "finalists"}),
            "base": {name: value for name, value in flatten(self.study.base).items() if name not in CHANGE_NOTHING},
        }
        there = found.user_attrs.get(_SETTING, described)
        if differing := differences(flatten(there), flatten(described), missing=None):
            raise UserError(
                f"{self.folder} holds a study whose setting '{setting.name}' was another; they differ in "
                f"{', '.join(differing)}: choose another output folder, or delete {self.folder / JOURNAL}; finished "
                "runs are taken as they are"
            )
        found.set_user_attr(_SETTING, described)
        if tuning.sampler == "grid":
            places = [range(len(values)) for values in tuning.space.values() if isinstance(values, tuple)]
            for chosen in product(*places):
                found.enqueue_trial(dict(zip(tuning.space, chosen, strict=True)), skip_if_exists=True)
        trials = found.get_trials()
        done = [trial.params for trial in trials if self._is_done(setting, trial) or trial.state == TrialState.WAITING]
        for trial in trials:
            if trial.state == TrialState.RUNNING:  # of a process that is gone; its run may be finished
                found.tell(trial.number, state=TrialState.FAIL)
            if trial.state in (TrialState.RUNNING, TrialState.FAIL) and trial.params not in done:
                found.enqueue_trial(trial.params)
                done.append(trial.params)
        return found

    def job(self, setting: Setting, values: Mapping[str, Any], seed: int) -> Job:
        """A run of a setting."""
        folder = self.folder / self.study.run_folder(setting, values, seed)
        return Job(f"{setting.name}, {point(values)}, seed {seed}", self.study.recipe(setting, values, seed), folder)

    def _jobs(self, setting: Setting, values: Values) -> dict[int, Job]:
        return {seed: self.job(setting, values, seed) for seed in self.study.seeds}

    # ---------------------------------------------------------------- tuning

    def tune(self) -> None:
        """Spend the budget of every setting."""
        asked: dict[Path, tuple[optuna.Study, optuna.Trial]] = {}
        with self._held():
            for outcome in self.run(self._ask(asked)):
                trials, trial = asked[outcome.job.folder]
                score = None if outcome.result is None else self._score(outcome.result, None)
                trials.tell(trial, score, state=TrialState.FAIL if score is None else TrialState.COMPLETE)
                self._take(outcome)

    def _ask(self, asked: dict[Path, tuple[optuna.Study, optuna.Trial]]) -> Iterator[Job]:
        """The next trial of each setting in turn, until all budgets are spent."""
        left = {setting.name: self.study.tuning.budget - self._spent(setting) for setting in self.study.settings}
        while any(count > 0 for count in left.values()):
            for setting in self.study.settings:
                if left[setting.name] <= 0:
                    continue
                left[setting.name] -= 1
                trials, space = self._trials[setting.name], self.study.space(setting)
                trials.sampler = self._sampler(len(trials.trials))
                trial = trials.ask()
                for field, among in space.items():
                    _suggest(trial, field, among)
                job = self.job(setting, self._values(setting, trial.params), self.study.tuning.seed)
                asked[job.folder] = trials, trial
                yield job

    def _sampler(self, drawn: int) -> optuna.samplers.BaseSampler:
        """Seeded by the number of the draw: a study that goes on draws new values and not the first ones again."""
        seed = int(np.random.SeedSequence([self.study.tuning.seed, drawn]).generate_state(1)[0])
        if self.study.tuning.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        return optuna.samplers.RandomSampler(seed=seed)

    def _values(self, setting: Setting, params: Mapping[str, Any]) -> Values:
        """The values of a trial, as the study file writes them."""
        space = self.study.space(setting).items()
        return {field: among[params[field]] if isinstance(among, tuple) else params[field] for field, among in space}

    def _spent(self, setting: Setting) -> int:
        return sum(self._is_done(setting, trial) for trial in self._trials[setting.name].get_trials(deepcopy=False))

    def _is_done(self, setting: Setting, trial: optuna.trial.FrozenTrial) -> bool:
        """Whether a trial has a score, or diverged and would again."""
        if trial.state != TrialState.FAIL or len(trial.params) < len(self.study.space(setting)):
            return trial.state == TrialState.COMPLETE
        job = self.job(setting, self._values(setting, trial.params), self.study.tuning.seed)
        return job.diverged() is not None

    def _take(self, outcome: Outcome) -> None:
        self._errors.pop(outcome.job.folder, None)
        if outcome.result is None:
            self._errors[outcome.job.folder] = outcome
        else:
            self._check_inputs(outcome.job, outcome.result)
        self.report(outcome)

    def _check_inputs(self, job: Job, result: Result) -> None:
        """Check that a run had the data and the base model of those before it: else their scores are not compared."""
        revision = job.recipe.model_dump().get("base", {}).get("revision")
        had = {f"file {file}": sha for file, sha in ((result.get("data") or {}).get("files") or {}).items()}
        had[f"base model, {result['model']}, revision {revision}"] = result.get("model_commit")
        for what, value in had.items():
            first, other = self._inputs.setdefault(what, (value, job.folder))
            if first != value:
                raise UserError(
                    f"the {what} has changed: {job.folder} and {other} differ: choose another output folder"
                )

    def told(self) -> int:
        """Trials that have ended in earlier calls, and are not run again."""
        return sum(self._spent(setting) for setting in self.study.settings)

    def trials(self, setting: Setting) -> list[tuple[Values, float | None]]:
        """The tuned values of a setting with their validation scores, best first; None where the run failed."""
        return sorted(self._drawn(setting), key=lambda one: (one[1] is None, -self.sign * (one[1] or 0.0)))

    def _drawn(self, setting: Setting) -> list[tuple[Values, float | None]]:
        """Each of the values that were tried, in the order of the first draw."""
        found: dict[str, tuple[Values, float | None]] = {}
        for trial in self._trials[setting.name].get_trials(deepcopy=False):
            if trial.state.is_finished() and len(trial.params) == len(self.study.space(setting)):
                values = self._values(setting, trial.params)
                before = found.get(repr(values), (values, None))
                found[repr(values)] = before if trial.value is None else (values, trial.value)
        return list(found.values())

    # ---------------------------------------------------------------- seeds

    def run_seeds(self) -> None:
        """Run what was chosen over the seeds; a setting none of whose trials gave a score is left out."""
        with self._held():
            for outcome in self.run(self.final_jobs()):
                self._take(outcome)

    def final_jobs(self) -> list[Job]:
        """The runs over the seeds of each choice, and of what it is chosen from; of settings that have one."""
        wanted = [(setting, values) for setting in self._scored() for values in self.finalists(setting)]
        return [self.job(setting, values, seed) for seed in self.study.seeds for setting, values in wanted]

    def _scored(self) -> list[Setting]:
        left_out = self.without_score()
        return [setting for setting in self.study.settings if setting not in left_out]

    def without_score(self) -> list[Setting]:
        """The settings none of whose trials gave a score."""
        return [setting for setting in self.study.settings if all(score is None for _, score in self._drawn(setting))]

    def failures(self) -> list[dict[str, str]]:
        """Run, error and folder of what failed in this call; of what was chosen and diverged; and of settings without
        any score. A divergence in tuning is none: these values are not chosen."""
        failed = [one for one in self._errors.values() if DIVERGED not in (one.error or "")]
        for setting in self._scored():
            jobs = [job for values in self._shown(setting) for job in self._jobs(setting, values).values()]
            failed += [Outcome(job, error=job.diverged()) for job in jobs if job.finished() is None and job.diverged()]
        return [
            *(one.failure() for one in failed),
            *(
                {"run": setting.name, "error": NO_SCORE, "folder": str(self.folder / RUNS / setting.slug)}
                for setting in self.without_score()
            ),
        ]

    # ---------------------------------------------------------------- choosing, on validation data

    def chosen(self, setting: Setting) -> Scored:
        """The values with the best validation score, and the score.

        Raises:
            UserError: no trial gave a score.
        """
        if (found := self._best(setting, None)) is None:
            logs = self.folder / RUNS / setting.slug
            raise UserError(f"setting {setting.name}: {NO_SCORE}; their logs are in {logs}")
        return found

    def chosen_by_form(self, setting: Setting) -> dict[str, Scored]:
        """The choice for each form, by its own validation scores; empty unless the study asks for it, and for a method
        with one form. The deployed form has the setting's choice, and so has one without any score."""
        if not (own := self._own_forms(setting)):
            return {}
        chosen, forms = self.chosen(setting), self.study.recipes(setting)[0].method.forms
        return {form: (form in own and self._best(setting, form)) or chosen for form in forms}

    def finalists(self, setting: Setting) -> list[Values]:
        """The values that are run over all seeds, each once: of the setting, and of each form with its own choice."""
        forms = (None, *self._own_forms(setting))
        return _distinct([values for form in forms for values, _ in self._ranked(setting, form)])

    def _shown(self, setting: Setting) -> list[Values]:
        """The values that are chosen, for the setting or for a form."""
        every = [self.chosen(setting), *self.chosen_by_form(setting).values()]
        return _distinct([values for values, _ in every])

    def _own_forms(self, setting: Setting) -> list[str]:
        method = self.study.recipes(setting)[0].method
        return [form for form in method.forms if form != method.deployed_form] if self.study.tuning.each_form else []

    def _ranked(self, setting: Setting, form: str | None) -> list[Scored]:
        """The `tuning.finalists` best values by the tuned seed's scores of a form, the deployed one if None."""
        tried = self._drawn(setting)
        if form is not None:
            tried = [(values, self._scores(setting, values, form, [self.study.tuning.seed])[0]) for values, _ in tried]
        scored = [(values, score) for values, score in tried if score is not None]
        scored.sort(key=lambda one: -self.sign * one[1])  # equal ones stay as they were drawn
        return scored[: self.study.tuning.finalists]

    def _best(self, setting: Setting, form: str | None) -> Scored | None:
        """The best of a form's finalists: of several, the one with the best mean over the seeds, where it has them all.
        Of equal ones, that with the lower mean loss, where the validation scores have one."""
        found = self._ranked(setting, form)
        if len(found) < 2:
            return next(iter(found), None)

        def mean(values: Values, metric: str | None) -> float | None:
            scores = self._scores(setting, values, form, self.study.seeds, metric)
            return None if None in scores else statistics.fmean(score for score in scores if score is not None)

        def order(one: Scored) -> tuple[float, float]:
            loss = mean(one[0], LOSS)
            return round(-self.sign * one[1], 12), math.inf if loss is None else loss  # a sum's rounding decides no tie

        means = [(values, score) for values, _ in found if (score := mean(values, self.metric)) is not None]
        return min(means, key=order) if means else found[0]

    def _scores(
        self, setting: Setting, values: Values, form: str | None, seeds: Sequence[int], metric: str | None = None
    ) -> list[float | None]:
        results = [self.job(setting, values, seed).finished() for seed in seeds]
        return [None if result is None else self._score(result, form, metric or self.metric) for result in results]

    def _score(self, result: Result, form: str | None, metric: str | None = None) -> float | None:
        """A validation score of a run, in the epoch that was chosen by the deployed form."""
        wanted = metric or self.metric
        if form is None:
            return validation_score(result, wanted)
        scores = result["metric"].get("validation_by_form", {}).get(form, {})
        found: float | None = scores.get(wanted or result["metric"]["selected_by"]["name"])
        return found

    # ---------------------------------------------------------------- what came out

    def summary(self) -> dict[str, Any]:
        """The budget, what was tried and chosen, and the chosen runs' test scores.

        It is written to `study.json`, and the runs over the seeds to `runs.jsonl`.

        Raises:
            UserError: there is no score at all.
        """
        settings = [self._describe(setting) for setting in self._scored() or self.study.settings]
        summary = {"study": self.study.model_dump(mode="json"), "settings": settings}
        results = {job.folder: result for job in self.final_jobs() if (result := job.finished()) is not None}
        write_runs(self.folder, results)
        files.write_json(self.folder / SUMMARY, summary)
        return summary

    def _describe(self, setting: Setting) -> dict[str, Any]:
        values, score = self.chosen(setting)
        by_form = self.chosen_by_form(setting)
        results = self._results(setting, values)
        own = {form: self._results(setting, chosen) for form, (chosen, _) in by_form.items()}
        params = sorted((result["params"] for result in results.values()), key=lambda counts: counts["adapter"])
        each = {
            "chosen_by_form": {form: chosen for form, (chosen, _) in by_form.items()},
            "validation_by_form": {form: found for form, (_, found) in by_form.items()},
            "by_choice": {form: _by_form(results, dict.fromkeys(own, chosen)) for form, chosen in own.items()},
        }
        first: Result = next(iter(results.values()), {"metric": {"selected_by": {}}})
        return {
            "name": setting.name,
            "chosen": values,
            "validation": score,
            **(each if by_form else {}),
            "deployed": first["metric"]["selected_by"].get("form"),
            "metric": first["metric"].get("name"),
            "split": first["metric"].get("split"),
            "chance": chance_of(first) if results else {},
            **({"excluded": excluded} if (excluded := self._excluded(setting)) else {}),
            "trials": [{"values": tried, "validation": found} for tried, found in self.trials(setting)],
            "seeds": list(results),
            "by_form": _by_form(results, own),
            "params": params[0] if params else None,
            "most_params": params[-1]["adapter"] if params else None,  # LoRA-drop's differ by seed
            "train_s": [result["time"]["train_s"] for result in results.values()],
        }

    def _excluded(self, setting: Setting) -> list[dict[str, Any]]:
        """The finalists that have no score on some seed, and in whose place others are chosen, with why."""
        excluded, shown = [], self._shown(setting)
        for values in self.finalists(setting):
            left = {seed: job for seed, job in self._jobs(setting, values).items() if job.finished() is None}
            if left and values not in shown:
                failed = {seed: self._errors.get(job.folder, Outcome(job)).error for seed, job in left.items()}
                reasons = (f"seed {seed}: {error or 'not finished'}" for seed, error in failed.items())
                excluded.append({"values": values, "why": "; ".join(reasons)})
        return excluded

    def _results(self, setting: Setting, values: Values) -> dict[int, Result]:
        """The results of the finished runs with these values, by seed."""
        jobs = self._jobs(setting, values)
        return {seed: result for seed, job in jobs.items() if (result := job.finished()) is not None}


def _distinct(choices: Sequence[Values]) -> list[Values]:
    return [values for place, values in enumerate(choices) if values not in choices[:place]]


def _suggest(trial: optuna.Trial, field: str, among: Range | tuple[Any, ...]) -> None:
    if isinstance(among, Range):
        trial.suggest_float(field, among.low, among.high, log=among.log)
    else:  # by place: Optuna keeps a value of a list as it is, and 1 and 1.0 would be one
        trial.suggest_categorical(field, range(len(among)))


def _by_form(results: Mapping[int, Result], own: Mapping[str, Mapping[int, Result]]) -> dict[str, dict[str, Any]]:
    """For each form and metric: the scores seed by seed (None where there is none), their mean and standard deviation.

    Args:
        results: the runs of the setting's choice by seed.
        own: of each form with a choice of its own, the runs of that choice; a form that is not there stays.
    """
    table: dict[str, dict[str, Any]] = {}
    by_form: list[dict[str, Any]] = []
    for seed, result in results.items():
        runs = {form: own.get(form, results).get(seed) for form in result["metric"]["by_form"]}
        by_form.append({form: run["metric"]["by_form"][form] for form, run in runs.items() if run is not None})
    for form in dict.fromkeys(form for one in by_form for form in one):
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
