"""The trials of a setting: which values were drawn, by whichever process, and what became of each, in Optuna."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from ...locks import held
from .journal import JOURNAL
from .same_study import base_of, check_same_setting
from .study import Setting, Study
from .tuning import Range, Value

_LOCK = ".journal.lock"
"""Held while trials are read and then written: Optuna's journal alone does not keep two processes apart there."""
_VALUES = "values"
"""Attribute of a trial: the values of the tuned fields, as the study file writes them."""
_AGAIN = "again"
"""Attribute of a trial: the number of the lost or failed one whose values it has."""
_DIVERGED = "diverged"
"""Attribute of a failed trial: it would fail again."""


class Trials:
    """The trials of one setting of a study, which several processes may draw.

    All of a grid is enqueued at once, so that they share it without asking twice.

    Args:
        study: with its budget and space.
        setting: of the study.
        folder: of the study.
        storage: of its journal.

    Attributes:
        optuna_study: what Optuna keeps.
    """

    def __init__(self, study: Study, setting: Setting, folder: Path, storage: JournalStorage) -> None:
        self.tuning, self.setting, self.sign = study.tuning, setting, study.metric.sign
        self.space = study.space(setting)
        self.lock = folder / _LOCK
        self.optuna_study = optuna.create_study(
            study_name=f"{study.name}/{setting.slug}",
            storage=storage,
            direction="minimize" if study.metric.lower_is_better else "maximize",
            load_if_exists=True,
        )
        described = {
            "method": setting.method,
            "fields": setting.fields,
            # what is tried does not depend on how the best is chosen
            "tuning": self.tuning.model_copy(update={"space": self.space}).model_dump(
                mode="json", exclude_none=True, exclude={"each_form", "finalists"}
            ),
            "base": base_of(study),
        }
        check_same_setting(self.optuna_study.user_attrs.get("setting"), described, setting.name, folder / JOURNAL)
        self.optuna_study.set_user_attr("setting", described)
        if self.tuning.sampler == "grid":
            names, lists = list(self.space), [values for values in self.space.values() if isinstance(values, tuple)]
            with held(self.lock):
                for places in product(*(range(len(values)) for values in lists)):
                    self.optuna_study.enqueue_trial(dict(zip(names, places, strict=True)), skip_if_exists=True)

    def ask(self) -> tuple[optuna.Trial, dict[str, Any]] | None:
        """The next trial and its values; None where the budget is spent."""
        with held(self.lock):
            if self._spent() >= self.tuning.budget:
                return None
            self.optuna_study.sampler = self._sampler(len(self._all()))
            trial = self.optuna_study.ask()
            values = {field: self._suggest(trial, field, self.space[field]) for field in self.space}
            trial.set_user_attr(_VALUES, values)
        return trial, values

    def tell(self, number: int, value: float | None) -> None:
        """The score of a trial; None where it has failed."""
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        self.optuna_study.tell(number, value, state=state, skip_if_finished=True)

    def reclaim(
        self, is_running: Callable[[dict[str, Any]], bool], tell_if_run: Callable[[FrozenTrial, dict[str, Any]], bool]
    ) -> None:
        """Trials whose process died: told if their run was finished, else proposed again with the same values.

        Args:
            is_running: whether some process is at the run of such values.
            tell_if_run: tells a trial whose run is finished, and says whether it was.
        """
        with held(self.lock):
            for trial in self.running():
                values = trial.user_attrs.get(_VALUES)
                if values is not None and (is_running(values) or tell_if_run(trial, values)):
                    continue
                self.optuna_study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                self._propose_again(trial)

    def try_again(self) -> None:
        """Propose again what failed: a full disk or a lost node says nothing of the values. Divergence does."""
        with held(self.lock):
            for trial in self._ended():
                if trial.state == TrialState.FAIL and not trial.user_attrs.get(_DIVERGED):
                    self._propose_again(trial)

    def running(self) -> list[FrozenTrial]:
        """The trials that were drawn, and not told."""
        return self.optuna_study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def told(self) -> int:
        """How many have ended, in earlier calls say, and are not run again."""
        return sum(trial.state == TrialState.COMPLETE or _DIVERGED in trial.user_attrs for trial in self._all())

    def ranked(self) -> list[tuple[dict[str, Any], float | None]]:
        """The values that were tried with their scores, best first, equal ones as they were drawn; None where the run
        failed."""
        return sorted(self.drawn(), key=lambda one: (one[1] is None, -self.sign * (one[1] or 0.0)))

    def drawn(self) -> list[tuple[dict[str, Any], float | None]]:
        """The values that were tried with their scores, as they were drawn; None where the run failed.

        What was tried again has the place of the first time.
        """
        again = {each.number: int(each.user_attrs[_AGAIN]) for each in self._all() if _AGAIN in each.user_attrs}

        def first(number: int) -> int:
            return first(again[number]) if number in again else number

        ended = sorted(self._ended(), key=lambda trial: first(trial.number))
        return [(dict(trial.user_attrs[_VALUES]), trial.value) for trial in ended if _VALUES in trial.user_attrs]

    # ---------------------------------------------------------------- divergence

    def mark_diverged(self, trial: optuna.Trial) -> None:
        """Keep that a trial diverged, and would do so again."""
        with suppress(UpdateFinishedTrialError):  # another process took it for lost, and proposed it again
            trial.set_user_attr(_DIVERGED, True)

    @property
    def has_diverged(self) -> bool:
        """Whether every trial that has ended diverged."""
        ended = self._ended()
        return bool(ended) and all(trial.user_attrs.get(_DIVERGED) for trial in ended)

    def mark_run_diverged(self, run: Path, why: str) -> None:
        """Keep that a run over the seeds diverged.

        Args:
            run: its folder in that of the study.
            why: its error.
        """
        self.optuna_study.set_user_attr(_of_run(run), why)  # one for each: several processes may write at once

    def why_run_diverged(self, run: Path) -> str | None:
        """The error of a run over the seeds that diverged, if it did; see `mark_run_diverged`."""
        why: str | None = self.optuna_study.user_attrs.get(_of_run(run))
        return why

    # ----------------------------------------------------------------

    def _all(self) -> list[FrozenTrial]:
        return self.optuna_study.get_trials(deepcopy=False)

    def _ended(self) -> list[FrozenTrial]:
        """The trials that have ended, and were not proposed again."""
        replaced = {trial.user_attrs.get(_AGAIN) for trial in self._all()}
        return [trial for trial in self._all() if trial.state.is_finished() and trial.number not in replaced]

    def _spent(self) -> int:
        """Trials asked for; one that was proposed again counts once."""
        again = sum(_AGAIN in trial.user_attrs for trial in self._all())
        return sum(trial.state != TrialState.WAITING for trial in self._all()) - again

    def _propose_again(self, trial: FrozenTrial) -> None:
        proposed = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        self.optuna_study.enqueue_trial(proposed, user_attrs={_AGAIN: trial.number})

    def _sampler(self, trials: int) -> optuna.samplers.BaseSampler:
        """Seeded by the number of the draw: a process that goes on, or joins in, draws new values and not the first
        ones again."""
        drawn = f"{self.tuning.seed}\n{self.setting.slug}\n{trials}".encode()
        seed = int.from_bytes(hashlib.sha256(drawn).digest()[:4])
        if self.tuning.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        return optuna.samplers.RandomSampler(seed=seed)

    @staticmethod
    def _suggest(trial: optuna.Trial, field: str, space: Range | tuple[Value, ...]) -> Any:
        if isinstance(space, Range):
            return trial.suggest_float(field, space.low, space.high, log=space.log)
        # by place: Optuna keeps a value of a list as it is, and 1 and 1.0 would be one
        return space[int(trial.suggest_categorical(field, list(range(len(space)))))]


def _of_run(run: Path) -> str:
    return f"diverged {run.as_posix()}"
