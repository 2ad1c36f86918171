"""Trials as an Optuna study, for optuna-dashboard and Optuna's plots."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from ...results.settings import RunSettings
from ...results.trial import Trial
from .mirroring import Mirror

NUMBER = "netcarve_number"  # user attribute: Optuna counts trials itself


class Optuna(Mirror):
    """A study of the run's name, its parameters the choices, its values the objectives.

    A failed trial, and one on a lower rung, is a failed one there; all metrics and the reason of a failure
    are user attributes.

    Args:
        where: a storage URL, such as ``sqlite:///studies.db``; by default ``optuna.db`` in the run's folder.
    """

    needs = "optuna"

    def open(self, folder: Path, settings: RunSettings) -> set[int]:
        import optuna
        from optuna.study import StudyDirection

        optuna.logging.disable_propagation()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._objectives = [o.name for o in settings.objectives]
        self._top = settings.fidelities[0].name
        goals = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
        folder = folder.resolve()
        self._study = optuna.create_study(
            study_name=folder.name,
            storage=self.where or f"sqlite:///{folder / 'optuna.db'}",
            directions=[goals[o.goal] for o in settings.objectives],
            load_if_exists=True,
        )
        fingerprint = [settings.fingerprint, settings.to_json()["choices"], settings.seed]
        kept = self._study.user_attrs.get("netcarve")
        if kept is not None and kept != fingerprint:
            raise ValueError(f"the study {folder.name!r} in this storage is of another run")
        self._study.set_user_attr("netcarve", fingerprint)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.set_metric_names(self._objectives)
        return {
            int(t.user_attrs[NUMBER])
            for t in self._study.get_trials(deepcopy=False)
            if NUMBER in t.user_attrs
        }

    def write(self, trial: Trial, *, front: int, volume: float) -> None:
        import optuna

        in_full = trial.fidelity == self._top
        complete = in_full and all(name in trial.scores for name in self._objectives)
        parameters = {choice.name: option for choice, option in trial.candidate.items()}
        about: dict[str, Any] = {NUMBER: trial.number, "seconds": trial.seconds, **trial.scores}
        if not in_full:
            about["fidelity"] = trial.fidelity
        if trial.failed:
            about["error"] = trial.reason
        self._study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.FAIL,
                params=parameters,
                distributions={
                    choice.name: optuna.distributions.CategoricalDistribution(choice.options)
                    for choice, _ in trial.candidate.items()
                },
                values=[trial.scores[name] for name in self._objectives] if complete else None,
                user_attrs=about,
            )
        )

    def close(self, *, finished: bool) -> None:
        self._study.set_user_attr("finished", finished)
