"""Trials as runs of MLflow."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from ...results.settings import RunSettings
from ...results.trial import Trial
from .mirroring import Mirror

EXPERIMENT = "netcarve"
RUN = "netcarve.run"  # tag of the parent: tells a resumed run from another of the same name
NUMBER = "netcarve.trial"  # tag of a child
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
        tags = {NUMBER: str(trial.number), "mlflow.parentRunId": self._parent, FIDELITY: trial.fidelity}
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
                    held.add(int(run.data.tags[NUMBER]))
            token = page.token
            if not token:
                return held


def _named(name: str) -> str:
    return FORBIDDEN.sub("_", name.replace(":", "/"))


def _quoted(text: str) -> str:
    return text.replace("'", "\\'")
