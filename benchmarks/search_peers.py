"""Other libraries on the same problems, as their users run them: their defaults, one candidate at a time.

A run is kept in the cache by peer, version, problem and seed, since some of them are slow.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from netcarve import Limit
from search_cache import cache_folder, store
from search_problems import Problem

Ask = Callable[[], tuple[Any, list[int]]]


@dataclass(frozen=True)
class Peer:
    """One sampler of another library. ``vectors`` yields option indices and is sent their scores."""

    name: str
    library: str
    vectors: Callable[[Problem, int], Iterator[list[int]]]

    @property
    def version(self) -> str:
        return version(self.library)


@dataclass(frozen=True)
class PeerRun:
    """What one peer proposed on one problem with one seed."""

    indices: np.ndarray  # [evaluations, choices]
    seconds: np.ndarray  # [evaluations], CPU time of proposing each, the outcome before it included


def peer_run(peer: Peer, problem: Problem, seed: int, evaluations: int, *, fresh: bool = False) -> PeerRun:
    """From the cache, else run now."""
    path = _path(peer, problem, seed)
    if path.exists() and not fresh:
        arrays = np.load(path)
        if len(arrays["indices"]) >= evaluations:
            return PeerRun(arrays["indices"][:evaluations], arrays["seconds"][:evaluations])
    run = _run(peer, problem, seed, evaluations)
    path.parent.mkdir(exist_ok=True)
    store(path, indices=run.indices, seconds=run.seconds)
    return run


def cached(peer: Peer, problem: Problem, seed: int, evaluations: int) -> bool:
    """Whether :func:`peer_run` would return at once."""
    path = _path(peer, problem, seed)
    return path.exists() and len(np.load(path)["indices"]) >= evaluations


def _run(peer: Peer, problem: Problem, seed: int, evaluations: int) -> PeerRun:
    indices, seconds = [], []
    source: Any = peer.vectors(problem, seed)
    scores: dict[str, float] | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes on experimental arguments and deprecations
        for _ in range(evaluations):
            start = time.process_time()
            vector = source.send(scores)
            seconds.append(time.process_time() - start)
            indices.append(vector)
            scores = problem.score(problem.space.candidate(vector))
    source.close()
    return PeerRun(np.array(indices), np.array(seconds))


def _path(peer: Peer, problem: Problem, seed: int) -> Path:
    return cache_folder() / "peers" / f"{peer.name}-{peer.version}-{problem.key}-{seed}.npz"


def excesses(problem: Problem, scores: dict[str, float]) -> list[float]:
    """By limit, how far it is broken: at most 0 where it is kept. The form that all libraries want."""
    return [_excess(limit, scores, problem.baseline) for limit in problem.limits]


def _excess(limit: Limit, scores: dict[str, float], baseline: Any) -> float:
    bound = limit.bound(baseline)
    sign = 1.0 if "<=" in limit.text else -1.0
    return sign * (scores[limit.metric] - bound) / abs(bound)


def uniform(problem: Problem, seed: int) -> Iterator[list[int]]:
    """Every option equally likely, repeats not avoided."""
    rng = np.random.default_rng(seed)
    while True:
        yield rng.integers(0, problem.space.counts).tolist()


def optuna_sampler(make: str, **options: Any) -> Callable[[Problem, int], Iterator[list[int]]]:
    """``make``: the name of the sampler's class, made with the seed and ``options`` alone."""

    def vectors(problem: Problem, seed: int) -> Iterator[list[int]]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        directions = ["maximize" if o.goal == "max" else "minimize" for o in problem.objectives]
        sampler = getattr(optuna.samplers, make)(seed=seed, **options)
        study = optuna.create_study(directions=directions, sampler=sampler)
        while True:
            trial = study.ask()
            scores = yield [
                trial.suggest_int(choice.name, 0, len(choice) - 1) for choice in problem.space.choices
            ]
            for limit, excess in zip(problem.limits, excesses(problem, scores), strict=True):
                trial.set_constraint(limit.text, excess)
            study.tell(trial, [scores[o.name] for o in problem.objectives])

    return vectors


def pymoo_nsga2(problem: Problem, seed: int, *, population: int = 100) -> Iterator[list[int]]:
    """NSGA-II with the operators that pymoo's guide gives for integers; 100 is its default population."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.evaluator import Evaluator
    from pymoo.core.problem import Problem as Integers
    from pymoo.core.termination import NoTermination
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling
    from pymoo.problems.static import StaticProblem

    integers = Integers(
        n_var=len(problem.space),
        n_obj=len(problem.objectives),
        n_ieq_constr=len(problem.limits),
        xl=0,
        xu=problem.space.counts - 1,
        vtype=int,
    )
    algorithm = NSGA2(
        pop_size=population,
        sampling=IntegerRandomSampling(),
        crossover=SBX(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
        mutation=PM(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
    )
    algorithm.setup(integers, termination=NoTermination(), seed=seed, verbose=False)
    while True:
        generation = algorithm.ask()
        rows = []
        for vector in np.asarray(generation.get("X"), dtype=int).tolist():
            scores = yield vector
            losses = [o.sign * scores[o.name] for o in problem.objectives]
            rows.append((losses, excesses(problem, scores)))
        known = {"F": np.array([f for f, _ in rows])}
        if problem.limits:
            known["G"] = np.array([g for _, g in rows])
        Evaluator().eval(StaticProblem(integers, **known), generation)
        algorithm.tell(infills=generation)


PEERS = (
    Peer("uniform random", "numpy", uniform),
    Peer("optuna TPE", "optuna", optuna_sampler("TPESampler")),
    Peer("optuna NSGA-II", "optuna", optuna_sampler("NSGAIISampler")),
    Peer("optuna NSGA-II, population 20", "optuna", optuna_sampler("NSGAIISampler", population_size=20)),
    Peer("pymoo NSGA-II", "pymoo", pymoo_nsga2),
    Peer("pymoo NSGA-II, population 20", "pymoo", partial(pymoo_nsga2, population=20)),
    Peer("optuna GP", "optuna", optuna_sampler("GPSampler")),
)
