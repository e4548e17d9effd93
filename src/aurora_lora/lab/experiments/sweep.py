"""`aurora sweep`: tune every setting at the same budget on validation data, then run what was chosen over the seeds.

Optuna proposes values and records trials, in a journal file that processes may share. Runs are kept by what they
are, in the folders `runs/<setting>/<values>/seed<N>` and, once finished, in `runs.jsonl`: whatever was killed goes on
where it was, and the tuned run of a seed is also its final one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from ... import files
from ...errors import DIVERGED
from ...locks import held
from ...training.results import Result, chance_of
from ...training.storage import is_locked
from .chosen import Choices
from .engines import POLL_SECONDS, Engine, outcomes
from .jobs import Job, Outcome
from .journal import mark_diverged, open_journal, why_diverged
from .runs_file import RunsFile
from .same_study import SameInputs, base_of, check_same_setting
from .study import SUMMARY, Range, Setting, Study, Value, point
from .study_scores import by_form_and_metric, validation, with_own_forms

JOURNAL = "journal.log"
_LOCK = ".journal.lock"
"""Held while trials are read and then written: Optuna's journal alone does not keep two processes apart there."""
_VALUES = "values"
"""Attribute of a trial: the values of the tuned fields, as the study file writes them."""
_AGAIN = "again"
"""Attribute of a trial: the number of the lost or failed one whose values it has."""
_DIVERGED = "diverged"
"""Attribute of a failed trial: it would fail again."""

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
            study, self.folder, self.trials, lambda setting, values, seed: self.job(setting, values, seed).result()
        )
        self._inputs = SameInputs()
        self._errors: dict[Path, str] = {}
        for folder, result in self.runs.read().items():
            self._inputs.check(result, folder)
        storage = open_journal(self.folder / JOURNAL)
        self.optuna_studies = {setting.name: self._open(setting, storage) for setting in study.settings}

    # ---------------------------------------------------------------- tuning

    def tune(self) -> None:
        """Spend the budget of every setting. What died goes on, what failed is tried again."""
        for setting in self.study.settings:
            self._try_again(setting)
        while True:
            asked: dict[Path, tuple[Setting, optuna.Trial]] = {}
            for outcome in outcomes(self._ask(asked), self.engine):
                setting, trial = asked[outcome.job.folder]
                if self._score(outcome) is None and (outcome.result is not None or DIVERGED in (outcome.error or "")):
                    with suppress(UpdateFinishedTrialError):  # another process took it for lost, and proposed it again
                        trial.set_user_attr(_DIVERGED, True)
                self._tell(setting, trial.number, outcome)
                self.report("tuning", outcome)
            if not any(self._running(setting) for setting in self.study.settings):
                return
            time.sleep(POLL_SECONDS)  # another process is at the last ones
            for setting in self.study.settings:
                self._reclaim(setting)

    def _open(self, setting: Setting, storage: JournalStorage) -> optuna.Study:
        """The setting's study in Optuna. All of a grid is enqueued, so that processes share it without asking twice."""
        tuning = self.study.tuning
        optuna_study = optuna.create_study(
            study_name=f"{self.study.name}/{setting.slug}",
            storage=storage,
            direction="minimize" if self.study.metric.lower_is_better else "maximize",
            load_if_exists=True,
        )
        space = self.study.space(setting)
        described = {
            "method": setting.method,
            "fields": setting.fields,
            # what is tried does not depend on how the best is chosen
            "tuning": tuning.model_copy(update={"space": space}).model_dump(
                mode="json", exclude_none=True, exclude={"each_form", "finalists"}
            ),
        }
        described["base"] = base_of(self.study)
        check_same_setting(optuna_study.user_attrs.get("setting"), described, setting.name, self.folder / JOURNAL)
        optuna_study.set_user_attr("setting", described)
        if tuning.sampler == "grid":
            names, lists = list(space), [values for values in space.values() if isinstance(values, tuple)]
            with held(self.folder / _LOCK):
                for places in product(*(range(len(values)) for values in lists)):
                    optuna_study.enqueue_trial(dict(zip(names, places, strict=True)), skip_if_exists=True)
        return optuna_study

    def _ask(self, asked: dict[Path, tuple[Setting, optuna.Trial]]) -> Iterator[Job]:
        """The next trial of each setting in turn, until all budgets are spent."""
        for setting in self.study.settings:
            self._reclaim(setting)
        open_settings = list(self.study.settings)
        while open_settings:
            for setting in list(open_settings):
                with held(self.folder / _LOCK):
                    if self._spent(setting) >= self.study.tuning.budget:
                        open_settings.remove(setting)
                        continue
                    optuna_study = self.optuna_studies[setting.name]
                    optuna_study.sampler = self._sampler(setting, len(optuna_study.get_trials(deepcopy=False)))
                    trial = optuna_study.ask()
                    space = self.study.space(setting)
                    values = {field: self._suggest(trial, field, space[field]) for field in space}
                    trial.set_user_attr(_VALUES, values)
                job = self.job(setting, values, self.study.tuning.seed)
                asked[job.folder] = setting, trial
                self._inputs.check_before(job)
                yield job

    def _sampler(self, setting: Setting, trials: int) -> optuna.samplers.BaseSampler:
        """Seeded by the number of the draw: a process that goes on, or joins in, draws new values and not the first
        ones again."""
        tuning = self.study.tuning
        drawn = f"{tuning.seed}\n{setting.slug}\n{trials}".encode()
        seed = int.from_bytes(hashlib.sha256(drawn).digest()[:4])
        if tuning.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        return optuna.samplers.RandomSampler(seed=seed)

    @staticmethod
    def _suggest(trial: optuna.Trial, field: str, space: Range | tuple[Value, ...]) -> Any:
        if isinstance(space, Range):
            return trial.suggest_float(field, space.low, space.high, log=space.log)
        # by place: Optuna keeps a value of a list as it is, and 1 and 1.0 would be one
        return space[int(trial.suggest_categorical(field, list(range(len(space)))))]

    def _score(self, outcome: Outcome) -> float | None:
        """The score on validation data; None where the run failed or the score is not a number."""
        return None if outcome.result is None else validation(outcome.result, self.study.tuning.metric)

    def _tell(self, setting: Setting, number: int, outcome: Outcome) -> None:
        self._keep(outcome)
        value = self._score(outcome)
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        self.optuna_studies[setting.name].tell(number, value, state=state, skip_if_finished=True)

    def _keep(self, outcome: Outcome) -> None:
        if outcome.result is not None:
            self.runs.add({outcome.job.folder: outcome.result})
            self._inputs.check(outcome.result, outcome.job.folder)

    def _reclaim(self, setting: Setting) -> None:
        """Trials whose process died: told if their run was finished, else proposed again with the same values."""
        optuna_study = self.optuna_studies[setting.name]
        with held(self.folder / _LOCK):
            for trial in optuna_study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                values = trial.user_attrs.get(_VALUES)
                job = None if values is None else self.job(setting, values, self.study.tuning.seed)
                if job is not None and is_locked(job.folder):
                    continue
                result = None if job is None else job.result()
                if job is not None and result is not None:
                    self._tell(setting, trial.number, Outcome(job, result))
                    continue
                optuna_study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                self._propose_again(optuna_study, trial)

    def _try_again(self, setting: Setting) -> None:
        """Propose again what failed: a full disk or a lost node says nothing of the values. Divergence does."""
        optuna_study = self.optuna_studies[setting.name]
        with held(self.folder / _LOCK):
            failed = optuna_study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
            replaced = {trial.user_attrs.get(_AGAIN) for trial in optuna_study.get_trials(deepcopy=False)}
            for trial in failed:
                if trial.number not in replaced and not trial.user_attrs.get(_DIVERGED):
                    self._propose_again(optuna_study, trial)

    @staticmethod
    def _propose_again(optuna_study: optuna.Study, trial: FrozenTrial) -> None:
        proposed = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        optuna_study.enqueue_trial(proposed, user_attrs={_AGAIN: trial.number})

    def _spent(self, setting: Setting) -> int:
        """Trials asked for; one that was proposed again counts once."""
        trials = self.optuna_studies[setting.name].get_trials(deepcopy=False)
        again = sum(_AGAIN in trial.user_attrs for trial in trials)
        return sum(trial.state != TrialState.WAITING for trial in trials) - again

    def _running(self, setting: Setting) -> list[FrozenTrial]:
        return self.optuna_studies[setting.name].get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def told(self) -> int:
        """Trials that have ended, in earlier calls say, and are not run again."""
        for setting in self.study.settings:
            self._reclaim(setting)
        trials = [trial for each in self.optuna_studies.values() for trial in each.get_trials(deepcopy=False)]
        return sum(trial.state == TrialState.COMPLETE or _DIVERGED in trial.user_attrs for trial in trials)

    # ---------------------------------------------------------------- seeds

    def run_seeds(self) -> None:
        """Run what was chosen over the seeds; a setting none of whose trials gave a score is left out, and what has
        diverged is not run again."""
        final = self._final_jobs()
        for job, _ in final:
            self._inputs.check_before(job)
        settings = {job.folder: setting for job, setting in final}
        for outcome in outcomes(self._not_diverged(final), self.engine):
            self._keep(outcome)
            folder, error = outcome.job.folder, outcome.error
            if error is not None:
                self._errors[folder] = error
                if DIVERGED in error:
                    mark_diverged(self.optuna_studies[settings[folder].name], folder.relative_to(self.folder), error)
            self.report("seeds", outcome)

    def _not_diverged(self, final: list[tuple[Job, Setting]]) -> Iterator[Job]:
        for job, setting in final:
            error = self._why_diverged(job, setting)
            if error is None:
                yield job
            else:
                self.report("seeds", Outcome(job, error=error, was_there=True))

    def _why_diverged(self, job: Job, setting: Setting) -> str | None:
        error = why_diverged(self.optuna_studies[setting.name], job.folder.relative_to(self.folder))
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
        trials = self.optuna_studies[setting.name].get_trials(deepcopy=False)
        lost = {trial.user_attrs.get(_AGAIN) for trial in trials}
        ended = [trial for trial in trials if trial.state.is_finished() and trial.number not in lost]
        found = [(dict(trial.user_attrs[_VALUES]), trial.value) for trial in ended if _VALUES in trial.user_attrs]
        sign = self.study.metric.sign
        return sorted(found, key=lambda one: (one[1] is None, -sign * (one[1] or 0.0)))

    def without_score(self) -> list[Setting]:
        """The settings none of whose trials gave a score."""
        return [setting for setting in self.study.settings if all(score is None for _, score in self.trials(setting))]

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
