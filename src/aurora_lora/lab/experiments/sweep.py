"""`aurora sweep`: tune every setting at the same budget on validation data, then run what was chosen over the seeds.

Optuna proposes values and records trials, in a journal file that processes may share. Runs are kept by what they
are, in the folders `runs/<setting>/<values>/seed<N>` and, once finished, in `runs.jsonl`: whatever was killed goes on
where it was, and the tuned run of a seed is also its final one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from ... import files
from ...errors import DIVERGED
from ...train.publish import is_locked
from ...train.results import Result, chance_of
from .chosen import Choices
from .engines import POLL_SECONDS, Engine, outcomes
from .jobs import Job, Outcome
from .journal import JOURNAL, open_journal
from .runs_file import RunsFile
from .same_study import SameInputs
from .study import SUMMARY, Setting, Study
from .study_scores import by_form_and_metric, validation, with_own_forms
from .trials import Trials
from .tuning import point

Report = Callable[[str, Outcome], Any]


class Sweep:
    """A study in its folder.

    Args:
        study: what to compare.
        output: the folder; several processes may work in it.
        engine: where the runs are done.
        report: called with the stage (`tuning` or `seeds`) and each outcome as it comes.

    Attributes:
        choices: what each setting is shown with.
        runs: the finished runs.
        taken_in: how many of them were in their folders only, as after a kill, or in a study of an earlier version.
    """

    def __init__(
        self, study: Study, output: Path | str, engine: Engine, report: Report = lambda stage, outcome: None
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study, self.folder, self.engine, self.report = study, Path(output), engine, report
        files.check_writable(self.folder)
        self.runs = RunsFile(self.folder)
        self.taken_in = self.runs.collect()
        self.choices = Choices(
            study,
            self.folder,
            lambda setting: self._trials[setting.name].drawn(),
            lambda setting, values, seed: self.job(setting, values, seed).result(),
        )
        self._inputs = SameInputs()
        self._errors: dict[Path, str] = {}
        for folder, result in self.runs.read().items():
            self._inputs.check(result, folder)
        storage = open_journal(self.folder / JOURNAL)
        self._trials = {setting.name: Trials(study, setting, self.folder, storage) for setting in study.settings}

    # ---------------------------------------------------------------- tuning

    def tune(self) -> None:
        """Spend the budget of every setting. What died goes on, what failed is tried again."""
        for trials in self._trials.values():
            trials.try_again()
        while True:
            asked: dict[Path, tuple[Setting, optuna.Trial]] = {}
            for outcome in outcomes(self._ask(asked), self.engine):
                setting, trial = asked[outcome.job.folder]
                if self._score(outcome) is None and (outcome.result is not None or DIVERGED in (outcome.error or "")):
                    self._trials[setting.name].mark_diverged(trial)
                self._tell(setting, trial.number, outcome)
                self.report("tuning", outcome)
            if not any(trials.running() for trials in self._trials.values()):
                return
            time.sleep(POLL_SECONDS)  # another process is at the last ones
            for setting in self.study.settings:
                self._reclaim(setting)

    def _ask(self, asked: dict[Path, tuple[Setting, optuna.Trial]]) -> Iterator[Job]:
        """The next trial of each setting in turn, until all budgets are spent."""
        for setting in self.study.settings:
            self._reclaim(setting)
        open_settings = list(self.study.settings)
        while open_settings:
            for setting in list(open_settings):
                drawn = self._trials[setting.name].ask()
                if drawn is None:
                    open_settings.remove(setting)
                    continue
                trial, values = drawn
                job = self.job(setting, values, self.study.tuning.seed)
                asked[job.folder] = setting, trial
                self._inputs.check_before(job)
                yield job

    def _score(self, outcome: Outcome) -> float | None:
        """The score on validation data; None where the run failed or the score is not a number."""
        return None if outcome.result is None else validation(outcome.result, self.study.tuning.metric)

    def _tell(self, setting: Setting, number: int, outcome: Outcome) -> None:
        self._keep(outcome)
        self._trials[setting.name].tell(number, self._score(outcome))

    def _keep(self, outcome: Outcome) -> None:
        if outcome.result is not None:
            self.runs.add({outcome.job.folder: outcome.result})
            self._inputs.check(outcome.result, outcome.job.folder)

    def _reclaim(self, setting: Setting) -> None:
        """Trials whose process died: see `Trials.reclaim`."""

        def job(values: Mapping[str, Any]) -> Job:
            return self.job(setting, values, self.study.tuning.seed)

        def tell_if_run(trial: FrozenTrial, values: Mapping[str, Any]) -> bool:
            its = job(values)
            result = its.result()
            if result is not None:
                self._tell(setting, trial.number, Outcome(its, result))
            return result is not None

        self._trials[setting.name].reclaim(lambda values: is_locked(job(values).folder), tell_if_run)

    def told(self) -> int:
        """Trials that have ended, in earlier calls say, and are not run again."""
        for setting in self.study.settings:
            self._reclaim(setting)
        return sum(trials.told() for trials in self._trials.values())

    # ---------------------------------------------------------------- seeds

    def run_seeds(self) -> None:
        """Run what was chosen over the seeds; a setting none of whose trials gave a score is left out, and what has
        diverged is not run again."""
        final = self._final_jobs()
        self._inputs.check_before(*(job for job, _ in final))
        settings = {job.folder: setting for job, setting in final}
        for outcome in outcomes(self._not_diverged(final), self.engine):
            self._keep(outcome)
            folder, error = outcome.job.folder, outcome.error
            if error is not None:
                self._errors[folder] = error
                if DIVERGED in error:
                    of_setting = self._trials[settings[folder].name]
                    of_setting.mark_run_diverged(folder.relative_to(self.folder), error)
            self.report("seeds", outcome)

    def _not_diverged(self, final: list[tuple[Job, Setting]]) -> Iterator[Job]:
        for job, setting in final:
            error = self._why_diverged(job, setting)
            if error is None:
                yield job
            else:
                self.report("seeds", Outcome(job, error=error, was_there=True))

    def _why_diverged(self, job: Job, setting: Setting) -> str | None:
        error = self._trials[setting.name].why_run_diverged(job.folder.relative_to(self.folder))
        return error if error is not None and job.finished() is None else None

    def final_jobs(self) -> list[Job]:
        """The runs over the seeds of each choice, and of what it is chosen from; of settings that have one."""
        return [job for job, _ in self._final_jobs()]

    def _final_jobs(self) -> list[tuple[Job, Setting]]:
        left_out = self.without_score()
        wanted = [
            (one, values)
            for one in self.study.settings
            if one not in left_out
            for values in self.choices.finalists(one)
        ]
        return [(self.job(setting, values, seed), setting) for seed in self.study.seeds for setting, values in wanted]

    def diverged(self) -> list[Outcome]:
        """The runs over the seeds that diverged, but for those of finalists in whose place another one is chosen."""
        left_out = self.without_score()
        return [
            Outcome(job, error=error)
            for setting in self.study.settings
            if setting not in left_out
            for one in self.choices.lacking(setting)
            if not one.is_replaced
            for job in (self.job(setting, one.values, seed) for seed in one.seeds)
            if (error := self._why_diverged(job, setting)) is not None
        ]

    def _excluded(self, setting: Setting) -> list[dict[str, Any]]:
        """The finalists in whose place another one is chosen, with why."""
        excluded = []
        for one in self.choices.lacking(setting):
            if one.is_replaced:
                jobs = {seed: self.job(setting, one.values, seed) for seed in one.seeds}
                why = "; ".join(f"seed {seed}: {self._why_no_score(job, setting)}" for seed, job in jobs.items())
                excluded.append({"values": one.values, "why": why})
        return excluded

    def _why_no_score(self, job: Job, setting: Setting) -> str:
        if job.finished() is not None:
            return "its validation score is not a number"
        return self._why_diverged(job, setting) or self._errors.get(job.folder) or "not finished"

    def job(self, setting: Setting, values: Mapping[str, Any], seed: int) -> Job:
        """A run of a setting."""
        recipe = self.study.recipe(setting, values, seed)
        folder = self.folder / self.study.run_folder(setting, values, seed)
        return Job(f"{setting.name}, {point(values)}, seed {seed}", recipe, folder, self.runs)

    def trials(self, setting: Setting) -> list[tuple[dict[str, Any], float | None]]:
        """The tuned values of a setting with their validation scores, best first; None where the run failed."""
        return self._trials[setting.name].ranked()

    def without_score(self) -> list[Setting]:
        """The settings none of whose trials gave a score."""
        return [setting for setting in self.study.settings if all(score is None for _, score in self.trials(setting))]

    def has_diverged(self, setting: Setting) -> bool:
        """Whether every trial of a setting diverged, and would do so again."""
        return self._trials[setting.name].has_diverged

    # ---------------------------------------------------------------- what came out

    def summary(self) -> dict[str, Any]:
        """The budget, what was tried and chosen, and the chosen runs' test scores: also written to `study.json`.

        Raises:
            UserError: there is no score at all.
        """
        left_out = self.without_score()
        described = [setting for setting in self.study.settings if setting not in left_out] or self.study.settings
        summary = {
            "study": self.study.model_dump(mode="json"),
            "settings": [self._describe(setting) for setting in described],
        }
        files.write_json(self.folder / SUMMARY, summary)
        return summary

    def _describe(self, setting: Setting) -> dict[str, Any]:
        values, score = self.choices.chosen(setting)
        by_form = self.choices.chosen_by_form(setting)
        results = self._results(setting, values)
        own = {form: self._results(setting, chosen) for form, (chosen, _) in by_form.items()}
        params = sorted((result["params"] for result in results.values()), key=lambda counts: counts["adapter"])
        each = {
            "chosen_by_form": {form: chosen for form, (chosen, _) in by_form.items()},
            "validation_by_form": {form: found for form, (_, found) in by_form.items()},
            "by_choice": {
                form: by_form_and_metric(
                    [with_own_forms(result, dict.fromkeys(own, chosen), seed) for seed, result in results.items()]
                )
                for form, chosen in own.items()
            },
        }
        return {
            "name": setting.name,
            "chosen": values,
            "validation": score,
            **(each if by_form else {}),
            "deployed": next((result["metric"]["selected_by"]["form"] for result in results.values()), None),
            "metric": next((result["metric"]["name"] for result in results.values()), None),
            "split": next((result["metric"].get("split") for result in results.values()), None),
            "chance": next((chance_of(result) for result in results.values()), {}),
            **({"excluded": excluded} if (excluded := self._excluded(setting)) else {}),
            "trials": [{"values": tried, "validation": found} for tried, found in self.trials(setting)],
            "seeds": list(results),
            "by_form": by_form_and_metric([with_own_forms(result, own, seed) for seed, result in results.items()]),
            "params": params[0] if params else None,
            "most_params": params[-1]["adapter"] if params else None,  # LoRA-drop's differ by seed
            "train_s": [result["time"]["train_s"] for result in results.values()],
        }

    def _results(self, setting: Setting, values: Mapping[str, Any]) -> dict[int, Result]:
        """The results of the finished runs with these values, by seed."""
        jobs = {seed: self.job(setting, values, seed) for seed in self.study.seeds}
        return {seed: result for seed, job in jobs.items() if (result := job.result()) is not None}
