"""Pools: the same outcomes everywhere, failures as values, nothing left behind."""

from __future__ import annotations

import importlib.util
import math
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from netcarve import Task
from netcarve.evaluators import (
    InProcessPool,
    Job,
    Measured,
    Outcome,
    Pool,
    PoolError,
    Quality,
    RayPool,
    reestimate_batchnorm,
    resolve_task,
)
from netcarve.evaluators.ray_session import RaySession
from netcarve.results import Proposal
from netcarve.spaces import Candidate, Choice, ModelSide, Space
from threadpoolctl import threadpool_info
from torch import Tensor, nn

DEEDS = ("score", "raise", "nan", "exit", "sleep", "die", "hang", "long error")
SPACE = Space([Choice("deed", DEEDS), Choice("n", tuple(range(100)))])


def deed(task: object, model: object, candidate: Candidate) -> dict[str, float]:
    """An evaluator that does what the candidate says."""
    name, n = candidate.values["deed"], float(candidate.values["n"])
    if name == "raise":
        raise ValueError(f"no luck with {n:.0f}")
    if name == "exit":
        sys.exit(3)
    if name == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "hang":
        time.sleep(1000)
    if name == "sleep":
        time.sleep(n / 100)
    if name == "long error":
        raise RuntimeError("first line\nlast line")
    return {"score": math.nan if name == "nan" else n, "drawn": random.random() + np.random.rand()}


def _job() -> Job:
    return Job(None, SPACE, (deed,))


def _one(name: str, n: int = 0) -> Candidate:
    return SPACE.candidate((DEEDS.index(name), n))


def _drain(pool: Pool, jobs: list[tuple[int, Candidate]], window: int | None = None) -> dict[int, Outcome]:
    """All outcomes by number, with at most ``window`` candidates in flight."""
    outcomes: dict[int, Outcome] = {}
    waiting = list(jobs)
    while len(outcomes) < len(jobs):
        in_flight = len(jobs) - len(waiting) - len(outcomes)
        take = len(waiting) if window is None else window - in_flight
        pool.submit([(n, Proposal(c)) for n, c in waiting[:take]])
        del waiting[:take]
        for outcome in pool.finished(30):
            assert outcome.number not in outcomes
            outcomes[outcome.number] = outcome
    assert pool.finished(0) == []
    return outcomes


def _facts(outcomes: dict[int, Outcome]) -> dict[int, object]:
    """What must not depend on who evaluated."""
    return {n: (o.scores, (o.error or "").strip().splitlines()[-1:]) for n, o in outcomes.items()}


# -- the job


def test_an_outcome_is_scores_or_error() -> None:
    good = _job().evaluate(7, _one("score", 5))
    assert good.scores is not None
    assert (good.number, good.scores["score"], good.error) == (7, 5.0, None)
    assert good.worker.endswith(str(os.getpid()))
    bad = _job().evaluate(8, _one("raise", 5))
    assert bad.scores is None
    assert bad.error is not None
    assert bad.error.startswith("Traceback")
    assert bad.error.strip().splitlines()[-1] == "ValueError: no luck with 5"


@pytest.mark.parametrize(
    ("evaluators", "reason"),
    [
        ([deed], "ValueError: score is nan: evaluator 'deed' gave no finite number"),
        ([lambda t, m, c: 3.0], "TypeError: evaluator .* must return {metric: number}, got float"),
        ([lambda t, m, c: {"a": 1}] * 2, "ValueError: two evaluators give the metric 'a'"),
        ([lambda t, m, c: sys.exit("stop")], "SystemExit: stop"),
    ],
)
def test_wrong_scores_are_errors(evaluators: list, reason: str) -> None:  # type: ignore[type-arg]
    outcome = Job(None, SPACE, evaluators).evaluate(0, _one("nan"))
    assert outcome.error is not None
    assert outcome.scores is None
    assert re.match(reason, outcome.error.strip().splitlines()[-1])


def test_an_interruption_is_not_swallowed() -> None:
    def interrupted(*_: object) -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Job(None, SPACE, (interrupted,)).evaluate(0, SPACE.baseline)


def test_randomness_is_seeded_by_the_candidate_and_the_callers_is_left_alone() -> None:
    state = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    drawn = [_job().evaluate(i, _one("score", n)).scores["drawn"] for i, n in enumerate((1, 1, 2))]  # type: ignore[index]
    assert drawn[0] == drawn[1] != drawn[2]
    assert random.getstate() == state[0]
    assert (np.random.get_state()[1] == state[1]).all()
    assert torch.equal(torch.get_rng_state(), state[2])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Side(ModelSide):
    """A model side whose candidates scale one layer."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def build(self, candidate: Candidate, *, repair: object = None) -> nn.Module:
        import copy

        model = copy.deepcopy(self.model)
        model.layers[0].weight.data *= candidate.values["scale"]
        return model

    def cost_arrays(self, choices: object, indices: object) -> dict[str, object]:
        return {}


def _model_job() -> Job:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 4, generator=generator), torch.arange(300) % 3
    task = Task(Net(), torch.zeros(1, 4), (x, y), metric=lambda o, t: (o.argmax(1) == t).float().mean())
    space = Space([Choice("scale", (1.0, 0.5, 0.25, -1.0))], model=Side(task.model))  # type: ignore[arg-type]
    return Job(task, space, (Quality(),))


def test_models_are_built_repaired_and_scored_on_one_thread() -> None:
    job = _model_job()
    threads: list[int] = []

    def blas() -> list[int]:
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    before = blas()

    def look(model: nn.Module, batches: list) -> None:  # type: ignore[type-arg]
        threads.append(torch.get_num_threads())
        assert set(blas()) == {1}
        assert not model.training
        assert batches == job.task.calibration_batches  # type: ignore[union-attr]

    torch.set_num_threads(2)
    try:
        Job(job.task, job.space, job.evaluators, repair=(look,)).evaluate(0, job.space.candidate([1]))
        assert threads == [1]
        assert torch.get_num_threads() == 2
        assert blas() == before
    finally:
        torch.set_num_threads(1)
    # Scaling before BatchNorm changes nothing once its statistics are re-estimated.
    settled = Job(job.task, job.space, job.evaluators, repair=(reestimate_batchnorm,))
    half, quarter = (settled.evaluate(0, job.space.candidate([i])).scores for i in (1, 2))
    assert half == pytest.approx(quarter, rel=1e-3)


# -- in process


def test_in_process_pool() -> None:
    with InProcessPool(_job()) as pool:
        assert pool.room() == 1
        outcomes = _drain(pool, [(i, _one("score", i)) for i in range(5)])
        assert [o.scores["score"] for _, o in sorted(outcomes.items())] == [0, 1, 2, 3, 4]  # type: ignore[index]
        pool.submit([(9, Proposal(_one("score")))])
        assert pool.room() == 0
    assert pool.finished() == []


# -- Ray, one session for all of these tests

MIXED = [
    (i, _one(("score", "raise", "nan", "exit", "sleep", "long error")[i % 6], i % 10)) for i in range(120)
]


@pytest.fixture(scope="module")
def session() -> Iterator[RaySession]:
    session = RaySession(3)
    yield session
    session.close()


@pytest.mark.quick("1-4")
@pytest.mark.ray
@pytest.mark.parametrize(("workers", "window"), [(1, 4), (3, None)])
def test_outcomes_do_not_depend_on_the_workers(session: RaySession, workers: int, window: int | None) -> None:
    expected = _facts(_drain(InProcessPool(_job()), MIXED))
    with RayPool(_job(), workers=workers) as pool:
        outcomes = _drain(pool, MIXED, window)
        assert pool.room() >= workers
    assert _facts(outcomes) == expected
    assert len({o.worker for o in outcomes.values()}) <= workers


@pytest.mark.ray
def test_only_the_guilty_candidate_fails_when_a_worker_dies(session: RaySession) -> None:
    jobs = [(i, _one("score", i % 100)) for i in range(150)]
    jobs[90] = (90, _one("die"))
    with RayPool(_job(), workers=2) as pool:
        outcomes = _drain(pool, jobs)
        again = _drain(pool, jobs[:10])  # the replaced worker works
    failed = {n: o.error for n, o in outcomes.items() if o.error}
    assert list(failed) == [90]
    assert failed[90].splitlines()[-1].startswith("worker died (")
    assert outcomes[149].scores["score"] == 49  # type: ignore[index]
    assert len(again) == 10


@pytest.mark.ray
def test_an_outcome_that_cannot_be_kept_is_a_failure_of_its_candidate(session: RaySession) -> None:
    def locked(task: object, model: object, candidate: Candidate) -> dict[str, float]:
        detail = {"lock": threading.Lock()} if candidate["n"] == 3 else {}
        return Measured({"score": 1.0}, detail=detail)

    with RayPool(Job(None, SPACE, (locked,)), workers=1) as pool:
        outcomes = _drain(pool, [(i, _one("score", i)) for i in range(6)])
    failed = {n: o.error for n, o in outcomes.items() if o.error}
    assert list(failed) == [3]
    assert "must be plain JSON" in failed[3].splitlines()[-1]


@pytest.mark.quick("6")
@pytest.mark.ray
@pytest.mark.parametrize("count", [6, 60])
def test_only_the_guilty_candidate_runs_out_of_time(session: RaySession, count: int) -> None:
    jobs = [(i, _one("score", i % 100)) for i in range(count)]
    guilty = count // 2
    jobs[guilty] = (guilty, _one("hang"))
    start = time.monotonic()
    with RayPool(_job(), workers=2, trial_timeout=1.0) as pool:
        outcomes = _drain(pool, jobs)
    assert time.monotonic() - start < 30
    assert {n: o.error for n, o in outcomes.items() if o.error} == {
        guilty: "TimeoutError: took longer than 1 s; stopped with its worker"
    }


@pytest.mark.ray
def test_the_job_arrives_whole_and_its_data_shared(session: RaySession) -> None:
    job = _model_job()
    x = job.task.batches[0][0][0]  # type: ignore[union-attr]

    def shared(task: Task, model: nn.Module, candidate: Candidate) -> dict[str, float]:
        same = torch.equal(task.batches[0][0][0], x)
        return {
            "same": float(same),
            "threads": float(torch.get_num_threads()),
            "light": float(task.train is None),
        }

    jobs = [(i, job.space.candidate([i])) for i in range(4)]
    with RayPool(Job(job.task, job.space, (*job.evaluators, shared)), workers=2) as pool:
        outcomes = _drain(pool, jobs)
    for number, candidate in jobs:
        scores = outcomes[number].scores
        assert scores is not None, outcomes[number].error
        assert (scores.pop("same"), scores.pop("threads"), scores.pop("light")) == (1, 1, 1)
        assert scores == job.evaluate(number, candidate).scores


@pytest.mark.ray
def test_a_task_file_and_modules_of_odd_names_arrive(session: RaySession, tmp_path: Path) -> None:
    path = tmp_path / "my task.py"
    path.write_text(
        "import torch\nfrom netcarve import Task\n"
        "class Mine(torch.nn.Linear):\n    pass\n"
        "def metric_of_mine(o, t):\n    return float((o.argmax(1) == t).float().mean())\n"
        "def build():\n    data = torch.ones(9, 4), torch.arange(9) % 3\n"
        "    return Task(Mine(4, 3), torch.zeros(1, 4), data, metric=metric_of_mine)\n"
    )
    odd = tmp_path / "odd.py"
    odd.write_text(
        "K = 4.0\ndef helper(c):\n    return K\ndef evaluate(t, m, c):\n    return {'k': helper(c)}\n"
    )
    spec = importlib.util.spec_from_file_location("a_name_nobody_finds", odd)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["a_name_nobody_finds"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    task = resolve_task(f"{path}:build")
    job = Job(task, SPACE, (module.evaluate, lambda t, m, c: t.measure(t.model(*a) for a, _, _ in t.batches)))
    with RayPool(job, workers=1) as pool:
        (outcome,) = _drain(pool, [(0, SPACE.baseline)]).values()
    assert outcome.scores is not None, outcome.error
    assert set(outcome.scores) == {"k", "metric_of_mine"}


class Unloadable:
    def __reduce__(self) -> tuple:  # type: ignore[type-arg]
        return _refuse, ()


def _refuse() -> None:
    raise OSError("no such disk here")


class Unsendable:
    def __reduce__(self) -> tuple:  # type: ignore[type-arg]
        raise TypeError("cannot pickle a lock")


@pytest.mark.slow
@pytest.mark.ray
def test_a_job_that_cannot_be_loaded_or_sent_is_one_clear_error(session: RaySession) -> None:
    with (
        RayPool(Job(None, SPACE, (Unloadable(),)), workers=2) as pool,  # type: ignore[arg-type]
        pytest.raises(PoolError, match=r"workers cannot load the task: .*no such disk here"),
    ):
        _drain(pool, MIXED)
    with pytest.raises(PoolError, match=r"cannot be sent to workers: .*a lock"):
        RayPool(Job(None, SPACE, (Unsendable(),)), workers=2)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.ray
def test_workers_that_die_at_the_start_do_not_loop_for_ever(session: RaySession) -> None:
    class Deadly:
        def __reduce__(self) -> tuple:  # type: ignore[type-arg]
            return os._exit, (1,)

    with (
        RayPool(Job(None, SPACE, (Deadly(),)), workers=1) as pool,  # type: ignore[arg-type]
        pytest.raises(PoolError, match="workers die while they start"),
    ):
        _drain(pool, MIXED)


@pytest.mark.ray
def test_requests_that_cannot_be_met_are_refused(session: RaySession) -> None:
    with pytest.raises(PoolError, match="50 workers need 50 cores, but this Ray cluster has 3"):
        RayPool(_job(), workers=50)
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        RayPool(_job(), workers=0)
    with pytest.raises(ValueError, match="trial_timeout must be positive"):
        RayPool(_job(), workers=1, trial_timeout=0)


@pytest.mark.slow
@pytest.mark.ray
def test_finished_returns_when_time_is_up(session: RaySession) -> None:
    with RayPool(_job(), workers=1) as pool:
        _drain(pool, [(0, _one("score"))])
        pool.submit([(1, Proposal(_one("sleep", 99)))])
        start = time.monotonic()
        assert pool.finished(0.2) == []
        assert 0.1 < time.monotonic() - start < 0.8
        assert [o.number for o in pool.finished()] == [1]
