"""The driver of a sweep killed at random moments: is all kept that the searcher was told of?"""

from __future__ import annotations

import os
import signal
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from netcarve import Choice, Ledger, Space, sweep
from netcarve.engine.progress import Silent
from netcarve.results import LedgerError
from netcarve.results.trial import Trial

SPACE = Space([Choice(f"c{i}", tuple(range(6))) for i in range(8)])
GOALS = ("accuracy", "macs")
RECORD = struct.Struct("<id")


@dataclass(frozen=True)
class Killed:
    """What was found after the kills."""

    kills: int  # that hit a driver at work
    sessions: int
    told: int  # outcomes that some session's searcher was told of
    missing: int  # of these, not in the ledger, or there with other scores
    unreadable: int  # times the ledger could not be opened after a kill
    same_front: bool  # as a run that nobody killed


def scored(task: object, model: object, candidate: object) -> dict[str, float]:
    """Smooth, with a failure now and then, and a moment of work."""
    x = np.asarray(candidate.indices) / 5  # type: ignore[attr-defined]
    if x[0] == 1 and x[1] == 1:
        raise ArithmeticError("a corner that fails")
    end = time.perf_counter() + 5e-4
    while time.perf_counter() < end:
        pass
    return {"accuracy": float(1 - 0.3 * x @ np.linspace(0.1, 1, 8) / 8), "macs": float((1 - x / 2).prod())}


class Telling(Silent):
    """Writes down what the searcher was told, past all buffers."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def told(self, trial: Trial, *, replayed: bool) -> None:
        os.write(self._file, RECORD.pack(trial.number, trial.scores.get("accuracy", -1.0)))


def kill_drivers(folder: Path, *, kills: int, trials: int, seed: int = 0) -> Killed:
    """Runs of ``trials`` each, killed again and again until ``kills`` have hit, resumed in between."""
    rng = np.random.default_rng(seed)
    quiet = _sweep(folder / "quiet", trials, None)
    wanted = [(t.candidate, dict(t.scores)) for t in quiet.front]
    hit = sessions = told = missing = unreadable = run = 0
    same = True
    while hit < kills:
        out, log = folder / f"run-{run}", folder / f"told-{run}"
        run += 1
        finished = False
        while not finished and hit < kills:
            sessions += 1
            finished = _session(out, trials, log, delay=float(rng.uniform(0.0, 0.25)))
            hit += not finished
            if not (out / "ledger.sqlite").exists():
                continue
            try:
                with Ledger(out / "ledger.sqlite") as ledger:
                    kept = {t.number: t.scores.get("accuracy", -1.0) for t in ledger.trials()}
            except Exception:
                unreadable += 1
                continue
            records = set(RECORD.iter_unpack(log.read_bytes())) if log.exists() else set()
            missing += sum(kept.get(number) != accuracy for number, accuracy in records)
            told += len(records)
        done = _sweep(out, trials, None, resume=_begun(out))
        same &= [(t.candidate, dict(t.scores)) for t in done.front] == wanted
    return Killed(hit, sessions, told, missing, unreadable, same)


def _sweep(out: Path, trials: int, log: Path | None, *, resume: bool = False):  # type: ignore[no-untyped-def]
    progress = Telling(log) if log is not None else None
    return sweep(
        None, SPACE, "nsga2", GOALS, trials=trials, workers=0, seed=3, out=out, resume=resume,
        evaluators=[scored], progress=progress,
    )  # fmt: skip


def _session(out: Path, trials: int, log: Path, *, delay: float) -> bool:
    """One driver, killed after ``delay`` seconds; True where it had finished by then."""
    started = _begun(out)
    child = os.fork()
    if child == 0:
        try:
            _sweep(out, trials, log, resume=started)
        finally:
            os._exit(0)
    end = time.perf_counter() + delay
    while time.perf_counter() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _begun(out: Path) -> bool:
    """Is there a run? One that was killed before it was one is removed, as its message asks for."""
    with suppress(LedgerError), Ledger(out / "ledger.sqlite") as ledger:
        if ledger.settings:
            return True
    (out / "ledger.sqlite").unlink(missing_ok=True)
    return False
