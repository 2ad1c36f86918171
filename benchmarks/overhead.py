"""What a trial costs beyond its evaluation: ask, dispatch, record, tell; beside Ray Tune, in the same run.

Run ``OMP_NUM_THREADS=1 python benchmarks/overhead.py``; it takes about two minutes. Every round runs every
case once, so that a machine that slows down or speeds up does so for all; the figures are medians over the
rounds. A case is timed from a warm trial to the last: starting Ray, workers and experiments is in no figure,
ours or Tune's. Exits with 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from unittest import mock

import netcarve
import torch  # noqa: F401  # loaded in every real sweep, whose engine then seeds its generator too
from netcarve.engine.progress import Silent
from netcarve.evaluators import ray_pool
from netcarve.evaluators.ray_session import RaySession
from rich.console import Console
from rich.table import Table

WORKERS = 2
CHOICES, OPTIONS = 12, 8
TRIALS, TUNE_TRIALS, FUNCTION_TRIALS = 2000, 24, 8  # of one experiment
OBJECTIVES = ("quality:max", "cost:min")
WARM = 0.25  # share of the trials of a case that passes before its clock starts
IN_PROCESS_GOAL, RAY_GOAL = 0.5, 1.0  # ms per trial
RATIO_GOAL = 30.0  # times less than Tune with reused actors

TUNE = "Tune, actors reused"  # what the ratios refer to


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    run: Callable[[], float]  # ms per trial beyond evaluation
    goal: float | None = None  # at most; ms per trial


def scores(indices: Sequence[int]) -> dict[str, float]:
    """Next to nothing, but a front to search for."""
    return {"quality": -float(sum(i * i for i in indices)), "cost": -float(sum(indices))}


def no_op(task: object, model: object, candidate: netcarve.Candidate) -> dict[str, float]:
    return scores(candidate.indices)


def busy_1ms(task: object, model: object, candidate: netcarve.Candidate) -> dict[str, float]:
    end = time.perf_counter() + 1e-3
    while time.perf_counter() < end:
        pass
    return scores(candidate.indices)


class Clock(Silent):
    """When each trial was told."""

    def __init__(self) -> None:
        self.times: list[float] = []  # seconds

    def told(self, trial: netcarve.Trial, *, replayed: bool) -> None:
        self.times.append(time.perf_counter())


def ms_per_trial(times: Sequence[float]) -> float:
    warm = times[int(WARM * len(times)) :]
    return 1e3 * (warm[-1] - warm[0]) / (len(warm) - 1)


def time_sweep(
    searcher: str,
    *,
    workers: int,
    trials: int = TRIALS,
    evaluator: Callable[..., dict[str, float]] = no_op,
    evaluation_ms: float = 0.0,
    one_per_call: bool = False,
) -> float:
    """Wall time per trial less that of perfectly parallel evaluation, in ms."""
    space = netcarve.Space([netcarve.Choice(f"c{i}", tuple(range(OPTIONS))) for i in range(CHOICES)])
    clock = Clock()
    unbatched = mock.patch.object(ray_pool, "CALL_SECONDS", 0.0) if one_per_call else contextlib.nullcontext()
    with tempfile.TemporaryDirectory() as folder, unbatched:
        run = netcarve.sweep(
            None,
            space,
            searcher,
            OBJECTIVES,
            trials=trials,
            workers=workers,
            out=f"{folder}/run",
            evaluators=[evaluator],
            progress=clock,
        )
    if len(run.trials) != trials or any(t.failed for t in run.trials):
        raise RuntimeError(f"expected {trials} trials without failures, got {run}")
    return ms_per_trial(clock.times) - evaluation_ms / max(workers, 1)


def time_tune(*, trials: int, reuse: bool, loggers: bool = True) -> float:
    """The same space, evaluation and number of workers in ``ray.tune.Tuner``; ms per trial.

    The class Trainable, which lets actors be reused, writes no checkpoint: that is in Tune's favour.
    """
    from ray import tune

    class Reused(tune.Trainable):
        def setup(self, config: dict[str, int]) -> None:
            self.config = config

        def step(self) -> dict[str, float]:
            return {**scores(list(self.config.values())), "done": True}

        def reset_config(self, new_config: dict[str, int]) -> bool:
            self.config = new_config
            return True

    class Completed(tune.Callback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_trial_complete(self, *_: object, **__: object) -> None:
            self.times.append(time.perf_counter())

    def function(config: dict[str, int]) -> dict[str, float]:
        return scores(list(config.values()))

    completed = Completed()
    quiet = {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "0" if loggers else "1"}
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, quiet):
        results = tune.Tuner(
            Reused if reuse else function,
            param_space={f"c{i}": tune.randint(0, OPTIONS) for i in range(CHOICES)},
            tune_config=tune.TuneConfig(
                num_samples=trials, max_concurrent_trials=WORKERS, reuse_actors=reuse
            ),
            run_config=tune.RunConfig(
                name="overhead",
                storage_path=folder,
                verbose=0,
                callbacks=[completed],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False) if reuse else None,
            ),
        ).fit()
    if len(completed.times) != trials or results.num_errors:
        raise RuntimeError(f"expected {trials} trials without failures, got {results}")
    return ms_per_trial(completed.times)


def cases() -> list[Case]:
    inside = partial(time_sweep, workers=0)
    ray = partial(time_sweep, workers=WORKERS)
    slow = partial(ray, "random", evaluator=busy_1ms, evaluation_ms=1.0)
    tune = partial(time_tune, trials=TUNE_TRIALS, reuse=True)
    return [
        Case("in process, random", partial(inside, "random"), IN_PROCESS_GOAL),
        Case("in process, nsga2", partial(inside, "nsga2"), IN_PROCESS_GOAL),
        Case("Ray, random", partial(ray, "random"), RAY_GOAL),
        Case("Ray, nsga2", partial(ray, "nsga2"), RAY_GOAL),
        Case("Ray, random, 1 ms evaluations", slow),  # no goal: cores taken by others count as overhead
        Case("  the same, one candidate a call", partial(slow, one_per_call=True)),
        Case(TUNE, tune),
        Case("  the same, its loggers off", partial(tune, loggers=False)),
        Case("Tune, function (its default)", partial(time_tune, trials=FUNCTION_TRIALS, reuse=False)),
    ]


def show(rows: Sequence[Case], taken: dict[str, list[float]]) -> bool:
    """Print the table; True when every goal is met."""
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("ms per trial beyond evaluation")
    for heading in ("median", "least", "most", "Tune/this", "goal"):
        table.add_column(heading, justify="right", no_wrap=True)
    met_all = True
    for case in rows:
        ms = taken[case.name]
        ratio = median(tune / own for tune, own in zip(taken[TUNE], ms, strict=True))
        goal = ""
        if case.goal is not None:
            met = median(ms) <= case.goal and ratio >= RATIO_GOAL
            met_all &= met
            goal = f"<= {case.goal:g}, >= {RATIO_GOAL:g}x: {'met' if met else 'MISSED'}"
        figures = [f"{ms_:.2f}" if ms_ < 10 else f"{ms_:.0f}" for ms_ in (median(ms), min(ms), max(ms))]
        table.add_row(case.name, *figures, f"{ratio:.2g}x" if ratio < 10 else f"{ratio:.0f}x", goal)
    Console(width=110).print(table)
    return met_all


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often every case is run (3)")
    rounds = parser.parse_args().rounds
    if rounds < 1:
        parser.error(f"--rounds must be at least 1, got {rounds}")
    rows = cases()
    taken: dict[str, list[float]] = {case.name: [] for case in rows}
    with contextlib.closing(RaySession(WORKERS)):  # one Ray for all: ours and Tune's cases find it running
        for _ in range(rounds):
            for case in rows:
                taken[case.name].append(case.run())
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return 0 if show(rows, taken) else 1


if __name__ == "__main__":
    sys.exit(main())
