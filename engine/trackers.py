"""Mirrors of TensorBoard, MLflow and Optuna's storage: trials in other tools' words."""

from __future__ import annotations

import os
import re
import time
import warnings
from pathlib import Path
from typing import Any

from ..results.settings import RunSettings
from ..results.trial import Trial
from .mirrors import Mirror

# -- Trials as curves in TensorBoard --------------------------------------------------------------------


class TensorBoard(Mirror):
    """Event files: every metric, the hypervolume and the size of the front, against the trial's number.

    Metrics on lower rungs are curves of their own.

    Args:
        where: the folder for ``tensorboard --logdir``; a folder of the run's name is made in it. By default
            ``tensorboard`` in the folder of the run.
    """

    needs = "tensorboardX"

    def open(self, folder: Path, settings: RunSettings) -> set[int]:
        from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

        target = folder / "tensorboard"
        if self.where:
            target = Path(self.where).expanduser() / folder.resolve().name
        # What an earlier session wrote is hidden (purged from step 0) and written again, whole.
        self._writer = SummaryWriter(str(target), purge_step=0)
        self._top = settings.fidelities[0].name
        goals = "\n".join(f"    {o.name}: {o.goal}" for o in settings.objectives)
        self._writer.add_text("run", f"    searcher {settings.searcher}, seed {settings.seed}\n{goals}")
        return set()

    def write(self, trial: Trial, *, front: int, volume: float) -> None:
        step = trial.number
        group = "metrics" if trial.fidelity == self._top else f"metrics on {trial.fidelity}"
        for name, value in trial.scores.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)
        self._writer.add_scalar("front/hypervolume", volume, step)
        self._writer.add_scalar("front/size", front, step)
        self._writer.add_scalar("seconds", trial.seconds, step)
        if trial.failed:
            self._writer.add_text("failures", f"    trial {step}: {trial.reason}", step)

    def close(self, *, finished: bool) -> None:
        self._writer.close()


# -- Trials as runs of MLflow ---------------------------------------------------------------------------

EXPERIMENT = "netcarve"
RUN = "netcarve.run"  # tag of the parent: tells a resumed run from another of the same name
MLFLOW_NUMBER = "netcarve.trial"  # tag of a child
FIDELITY = "netcarve.fidelity"  # tag of a child
PARAMS = 100  # that MLflow takes in one call
# Of a server: MLflow itself asks seven times, longer each time, and waits two minutes for each answer.
DEADLINES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
FORBIDDEN = re.compile(r"[^\w\-. /]")  # in names of metrics and parameters


class MLflow(Mirror):
    """A run of the run's name in the experiment ``netcarve``, and in it one run for each trial.

    A trial's run has its choices as parameters and its scores as metrics; the parent follows the hypervolume
    and the size of the front against the trial's number.

    Args:
        where: tracking URI; by default the environment's ``MLFLOW_TRACKING_URI``, else
            ``sqlite:///mlflow.db`` in the working directory.
    """

    needs = "mlflow"

    def open(self, folder: Path, settings: RunSettings) -> set[int]:
        for name, value in DEADLINES.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        uri = self.where or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
        self._client = MlflowClient(uri)
        found = self._client.get_experiment_by_name(EXPERIMENT)
        self._home = found.experiment_id if found else self._client.create_experiment(EXPERIMENT)
        key = str(folder.resolve())
        parents = self._client.search_runs([self._home], f"tags.`{RUN}` = '{_quoted(key)}'")
        if parents:
            self._parent = parents[0].info.run_id
            self._client.update_run(self._parent, status="RUNNING")
        else:
            self._parent = self._begin(folder.resolve().name, {RUN: key})
            for name in ("task", "searcher", "seed", "version"):
                self._client.log_param(self._parent, name, getattr(settings, name))
        return self._held()

    def write(self, trial: Trial, *, front: int, volume: float) -> None:
        from mlflow.entities import Metric, Param

        now = time.time_ns() // 1_000_000
        tags = {
            MLFLOW_NUMBER: str(trial.number),
            "mlflow.parentRunId": self._parent,
            FIDELITY: trial.fidelity,
        }
        run = self._begin(f"trial {trial.number}", tags)
        chosen = [Param(_named(name), str(option)) for name, option in trial.candidate.values.items()]
        for at in range(0, len(chosen), PARAMS):
            self._client.log_batch(run, params=chosen[at : at + PARAMS])
        scores = {**trial.scores, "seconds": trial.seconds}
        self._client.log_batch(run, metrics=[Metric(_named(k), v, now, 0) for k, v in scores.items()])
        if trial.failed:
            self._client.set_tag(run, "error", trial.reason)
        self._client.set_terminated(run, "FAILED" if trial.failed else "FINISHED")
        curves = {"hypervolume": volume, "front": float(front)}
        self._client.log_batch(
            self._parent, metrics=[Metric(k, v, now, trial.number) for k, v in curves.items()]
        )

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._parent, "FINISHED" if finished else "KILLED")

    def _begin(self, name: str, tags: dict[str, str]) -> str:
        return str(self._client.create_run(self._home, run_name=name, tags=tags).info.run_id)

    def _held(self) -> set[int]:
        """Numbers of the trials whose runs are whole; the others are deleted."""
        held: set[int] = set()
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._home], f"tags.`mlflow.parentRunId` = '{self._parent}'", page_token=token
            )
            for run in page:
                if run.info.status == "RUNNING":  # half written when an earlier session was killed
                    self._client.delete_run(run.info.run_id)
                else:
                    held.add(int(run.data.tags[MLFLOW_NUMBER]))
            token = page.token
            if not token:
                return held


def _named(name: str) -> str:
    return FORBIDDEN.sub("_", name.replace(":", "/"))


def _quoted(text: str) -> str:
    return text.replace("'", "\\'")


# -- Trials as an Optuna study, for optuna-dashboard and Optuna's plots ---------------------------------

OPTUNA_NUMBER = "netcarve_number"  # user attribute: Optuna counts trials itself


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
            int(t.user_attrs[OPTUNA_NUMBER])
            for t in self._study.get_trials(deepcopy=False)
            if OPTUNA_NUMBER in t.user_attrs
        }

    def write(self, trial: Trial, *, front: int, volume: float) -> None:
        import optuna

        in_full = trial.fidelity == self._top
        complete = in_full and all(name in trial.scores for name in self._objectives)
        parameters = {choice.name: option for choice, option in trial.candidate.items()}
        about: dict[str, Any] = {OPTUNA_NUMBER: trial.number, "seconds": trial.seconds, **trial.scores}
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
