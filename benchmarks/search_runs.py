"""netcarve's searchers on a problem, driven as a sweep drives them; and what a run is worth."""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import netcarve
import numpy as np
from netcarve import Candidate, Trial
from netcarve.engine.budget import Budget
from netcarve.engine.known import Driver
from netcarve.engine.progress import Silent
from netcarve.engine.read_settings import SweepSettings
from netcarve.engine.uniform import opening
from netcarve.evaluators.pool import Outcome, Pool
from netcarve.results import Proposal
from netcarve.results.hypervolume import hypervolume
from netcarve.results.ledger import Ledger
from search_problems import Problem

TIMED = 50  # candidates over which the time of a proposal is averaged
PATIENCE = 120.0  # CPU seconds after which a slow searcher is not timed any further


class Lookup(Pool):
    """Scores by the problem, in this process, when asked for."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._queue: deque[tuple[int, Proposal]] = deque()

    def room(self) -> int:
        return SweepSettings.window

    def submit(self, jobs: Sequence[tuple[int, Proposal]]) -> None:
        self._queue.extend(jobs)

    def finished(self, timeout: float | None = None) -> list[Outcome]:
        done = [Outcome(number, self.problem.score(asked.candidate)) for number, asked in self._queue]
        self._queue.clear()
        return done

    def close(self) -> None:
        self._queue.clear()


def own_run(name: str, problem: Problem, seed: int, evaluations: int) -> list[Trial]:
    """A sweep in small: the unchanged network, the uniform opening, then the search, with 16 under way that
    are told one by one in number order.

    Raises:
        ValueError: the searcher cannot do this problem.
    """
    searcher = netcarve.searcher(name, problem.space, problem.objectives, seed=seed, limits=problem.limits)
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger", write=True) as ledger:
        budget = Budget(evaluations)
        first = [problem.space.baseline, *opening(problem.space, problem.limits, evaluations)]
        ledger.propose(list(enumerate(map(Proposal, first))))
        ledger.save_settings({"given": len(first) - 1})
        Driver(
            searcher, Lookup(problem), ledger, budget=budget, progress=Silent(), window=SweepSettings.window
        ).run()
        return ledger.trials(problem.space)


def curve(problem: Problem, scores: Sequence[dict[str, float]], evaluations: int) -> np.ndarray:
    """Hypervolume after 1, 2, ... evaluations [evaluations]; it stays where the searcher has ended."""
    reference = np.ones(len(problem.objectives))
    front = np.empty((0, len(reference)))
    volume, out = 0.0, np.zeros(evaluations)
    for i, found in enumerate(scores[:evaluations]):
        point = np.array(problem.point(found))
        if (point < 1.0).all() and problem.feasible(found) and not (front <= point).all(axis=1).any():
            front = np.vstack([front[~(point <= front).all(axis=1)], point])
            volume = hypervolume(front, reference) / (problem.truth or 1.0)
        out[i:] = volume
    return out


@dataclass(frozen=True)
class Timing:
    """CPU milliseconds per candidate proposed."""

    at: tuple[float | None, ...]  # by trials told before; None where there were not so many
    last: float  # of the last candidates
    told: int  # trials in all
    given_up: bool  # too slow to go on


def proposal_times(name: str, problem: Problem, marks: Sequence[int], seed: int = 0) -> Timing:
    """Time ``ask(1)`` and ``tell([trial])`` with 16 under way, over the 50 candidates up to each mark.

    The scores are made up: only the time counts here, and real ones would take an hour.
    """
    searcher = netcarve.searcher(name, problem.space, problem.objectives, seed=seed)
    rng = np.random.default_rng(seed)
    weight = rng.uniform(0.2, 1.0, len(problem.space))

    def scored(number: int, candidate: Candidate) -> Trial:
        costs = problem.space.cost_arrays([candidate])
        harm = float(weight @ problem.space.encode(candidate) ** 2) / len(weight)
        return Trial(
            number, candidate, {"accuracy": 1.0 - harm, **{k: float(v[0]) for k, v in costs.items()}}
        )

    waiting = deque([problem.space.baseline])
    told, seconds = 0, []
    begun = time.process_time()
    while told < max(marks) and waiting and time.process_time() - begun < PATIENCE:
        trial = scored(told, waiting.popleft())
        start = time.process_time()
        searcher.tell([trial])
        told += 1
        while len(waiting) < SweepSettings.window and (asked := searcher.ask(1)):
            waiting.extend(asked)
        seconds.append(time.process_time() - start)
    at = [1e3 * float(np.mean(seconds[m - TIMED : m])) if told >= m else None for m in marks]
    given_up = told < max(marks) and bool(waiting)
    return Timing(tuple(at), 1e3 * float(np.mean(seconds[-TIMED:])), told, given_up)
