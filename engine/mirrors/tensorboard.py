"""Trials as curves in TensorBoard."""

from __future__ import annotations

from pathlib import Path

from ...results.settings import RunSettings
from ...results.trial import Trial
from .mirroring import Mirror


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
