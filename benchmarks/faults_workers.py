"""Workers that die, hang, run out of memory or talk nonsense, at random over a sweep."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from netcarve import Candidate, Choice, Front, Run, Space, sweep

SPACE = Space([Choice(f"c{i}", tuple(range(6))) for i in range(8)])
GOALS = ("accuracy", "macs")
FAULTS = ("SIGKILL", "SIGSTOP", "memory", "NaN", "garbage", "exit")


@dataclass(frozen=True)
class Faulty:
    """A sweep with faults beside the quiet one."""

    trials: int
    asked: Counter[str]  # candidates that were to fail, by fault
    failed: Counter[str]  # trials that failed, by the fault they were to fail with; "" is none
    spared: int  # that were to fail and have scores
    differing: int  # trials without a fault whose scores are not those of the quiet run
    same_front: bool  # as the quiet run's, of the trials that did not fail
    seconds: float
    quiet_seconds: float


def fault_of(candidate: Candidate, share: float) -> str:
    """What is to happen to a candidate; the same in every process. Never to the unchanged model."""
    rng = np.random.default_rng([*candidate.indices, 7])
    if not any(candidate.indices) or rng.random() >= share:
        return ""
    return FAULTS[int(rng.integers(len(FAULTS)))]


class Scored:
    """A smooth score; with ``share`` of the candidates something goes wrong first."""

    metrics = GOALS

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, task: object, model: object, candidate: Candidate) -> dict[str, object]:
        time.sleep(0.01)
        fault = fault_of(candidate, self.share)
        if fault in ("SIGKILL", "SIGSTOP"):
            os.kill(os.getpid(), getattr(signal, fault))
        if fault == "memory":
            _exhaust()
        if fault == "exit":
            os._exit(3)
        if fault == "garbage":
            return {"accuracy": "high", "macs": object()}
        x = np.asarray(candidate.indices) / 5
        accuracy = float(1 - 0.3 * x @ np.linspace(0.1, 1, 8) / 8)
        return {"accuracy": float("nan") if fault == "NaN" else accuracy, "macs": float((1 - x / 2).prod())}


def _exhaust() -> None:
    """Ask for memory until the system says no: the limit stands in for a machine of that size."""
    held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + 200_000_000, before[1]))
    try:
        blocks = []
        while True:
            blocks.append(bytearray(20_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def fault_workers(folder: Path, *, trials: int, share: float = 0.08, timeout: float = 4.0) -> Faulty:
    """The same random sweep twice, quiet and with faults, on two Ray workers."""

    def run(name: str, with_faults: float) -> tuple[Run, float]:
        start = time.perf_counter()
        made = sweep(
            None, SPACE, "random", GOALS, trials=trials, workers=2, seed=1, out=folder / name,
            evaluators=[Scored(with_faults)], trial_timeout=timeout,
        )  # fmt: skip
        return made, time.perf_counter() - start

    quiet, quiet_seconds = run("quiet", 0.0)
    noisy, seconds = run("noisy", share)
    known = {t.number: t for t in quiet.trials}
    faults = {t.number: fault_of(t.candidate, share) for t in noisy.trials}
    sound = [t for t in noisy.trials if not t.failed]
    kept = Front([known[t.number] for t in sound], quiet.objectives)
    return Faulty(
        len(noisy.trials),
        Counter(f for f in faults.values() if f),
        Counter(faults[t.number] for t in noisy.trials if t.failed),
        sum(bool(faults[t.number]) for t in sound),
        sum(dict(t.scores) != dict(known[t.number].scores) for t in sound),
        [(t.number, dict(t.scores)) for t in noisy.front] == [(t.number, dict(t.scores)) for t in kept],
        seconds,
        quiet_seconds,
    )
