"""Sweep: one search from its checks to its run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from ..results.fidelity import Fidelity
from ..results.ledger import Ledger
from ..results.objective import Limit, Objective
from ..search.base import Searcher
from ..spaces import Space
from .budget import Budget, watched
from .known import Driver
from .lane_pool import make_pool
from .measured_front import confirm_front, measure_front
from .mirrors import Mirror, Mirroring, mirror
from .plan import SweepPlan, prepare
from .progress import Progress, Silent
from .read_settings import SweepSettings
from .rebuild import write_recipe
from .run import Run
from .settings import close_run, note_environment, open_run, read_settings
from .warm_start import Source

if TYPE_CHECKING:
    from ..evaluators.base import Scorer
    from ..evaluators.task import Task


log = logging.getLogger(__name__)
TRIALS = 100  # where neither trials nor minutes are given


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a sweep: the run is kept whole, and can be resumed."""

    def __init__(self, path: Path, trials: int) -> None:
        count = "1 trial is" if trials == 1 else f"{trials} trials are"
        kept = f"{count} kept in {path}, resume it to go on"
        super().__init__(f"stopped; {kept if trials else 'nothing was scored yet'}")
        self.path = path


class SweepOptions(TypedDict, total=False):
    """Further options of :func:`sweep`."""

    trial_timeout: float | None  # seconds after which a candidate fails; needs workers
    evaluators: Sequence[Scorer] | None  # in place of the task's quality; latency_ms is added where wanted
    address: str | None  # of a Ray cluster; by default this machine
    progress: Progress | None  # told of every trial
    window: int  # candidates under way at a time, whatever the number of workers; part of the result. 16
    # What to begin with: candidates, earlier runs, JSON files (see `warm_start`). Trials taken over from
    # a run are not scored again and do not count towards `trials`.
    seed_from: Iterable[Source]
    # Other tools that are shown the trials as they come: "tensorboard", "mlflow", "optuna", each also as
    # "name:where" (see `.mirrors`).
    mirrors: Iterable[Mirror | str]
    # How often each candidate is scored, for models or metrics that draw at random: its scores are the means,
    # their standard deviations in detail["spread"]. 1
    repeats: int
    # The latency of the front at the end (see `.measured_front.measure_front`); without it a latency
    # objective stands as the search has seen it. True
    measure: bool
    # On which "progressive" judges candidates, the most thorough first: "tuned", "full", "quick", or
    # `netcarve.results.Fidelity`; by default full and quick.
    rungs: Iterable[Fidelity | str] | None


def sweep(
    task: Task | None,
    space: Space,
    searcher: str | Searcher = "auto",
    objectives: Iterable[Objective | str] | None = None,
    limits: Iterable[Limit | str] = (),
    trials: int | None = None,
    minutes: float | None = None,
    workers: int = 2,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    **options: Unpack[SweepOptions],
) -> Run:
    """Search ``space`` for the best subnetworks of ``task``, and keep every outcome.

    The same seed gives the same trials whatever the number of workers and whenever it was interrupted
    (measured times excepted, and what a search for short latency makes of them). Every sweep of a model opens
    with a few uniform cuts (see :mod:`.uniform`), whatever the searcher: the line that it has to beat.

    Args:
        task: ``None`` for a space without a model, scored by ``evaluators``.
        space: the candidates.
        searcher: a name (see :func:`known_searchers`), or a fresh instance; ``docs/searchers.md`` says which.
        objectives: what to trade off; by default the task's metric and ``"macs"``.
        limits: what every wanted candidate keeps (``"macs<=0.5x"``). Those on analytic costs are checked
            before anything is built.
        trials: how many in all, the unchanged model (trial 0) included. A search over rungs promotes up to
            three more at the end where fewer have come to the top.
        minutes: no new trial after this time, earlier sessions included. With neither: 100 trials.
        workers: processes, one thread each; 0 scores in this process.
        seed: of the search.
        out: folder of the run; by default ``runs/<task>-<searcher>-<n>``.
        resume: go on with the run in ``out`` (by default the latest of this task and searcher). Nothing is
            scored again; only trials, minutes and what concerns the workers may differ.
        options: see :class:`SweepOptions`.

    Raises:
        TypeError: a model in place of its task, or an option that there is not.
        ValueError: anything in the arguments that cannot work, before any work: unknown searcher, metric or
            unreachable limit, a folder with another run, other settings than those of the run to resume.
        LedgerError: the run cannot be written or read.
        Interrupted: Ctrl-C.
    """
    if unknown := set(options) - set(SweepOptions.__annotations__):
        known = ", ".join(SweepOptions.__annotations__)
        raise TypeError(f"sweep() has no option {unknown.pop()!r}; known are {known}")
    seeds = options.get("seed_from", ())
    mirrors = list(options.get("mirrors", ()))
    asked = SweepSettings(
        trials=TRIALS if trials is None and minutes is None else trials,
        minutes=minutes,
        workers=workers,
        seed=seed,
        out=None if out is None else str(out),
        resume=resume,
        trial_timeout=options.get("trial_timeout"),
        address=options.get("address"),
        window=options.get("window", SweepSettings.window),
        repeats=options.get("repeats", SweepSettings.repeats),
        measure=options.get("measure", SweepSettings.measure),
        mirrors=tuple(m for m in mirrors if isinstance(m, str)),
    )
    followers = [mirror(m) if isinstance(m, str) else m for m in mirrors]
    scorers, rungs = options.get("evaluators"), options.get("rungs")
    plan = prepare(task, space, searcher, objectives, limits, asked, scorers, seeds, rungs)
    return _run(plan, options.get("progress") or Silent(), followers)


def _run(plan: SweepPlan, progress: Progress, followers: Sequence[Mirror]) -> Run:
    """A sweep whose arguments are sound: open the ledger, search, confirm and measure the front, close."""
    asked = plan.asked
    ledger = open_run(asked.out, plan.settings, resume=asked.resume, given=plan.given, scored=plan.scored)
    if plan.recipe is not None:
        write_recipe(ledger.path.parent, plan.recipe)
    settings = read_settings(ledger.settings, ledger.path.parent)
    trials = None if asked.trials is None else asked.trials + settings.imported
    budget = Budget(trials, asked.minutes, spent=ledger.info.get("seconds", 0.0))
    mirrored = Mirroring(progress, followers, folder=ledger.path.parent, settings=settings)
    status = "interrupted"
    try:
        with watched(ledger):
            ledger.note("status", "running")
            note_environment(ledger)
            note_misfit(ledger, plan.task)
            mirrored.started(budget, plan.search.objectives, plan.search.limits)
            _search(plan, ledger, budget, mirrored)
            _judge_front(plan, ledger, budget, mirrored)
        status = "finished"
        mirrored.completed = True
    except KeyboardInterrupt:
        raise Interrupted(ledger.path.parent, len(ledger.trials())) from None
    finally:
        mirrored.finished()
        close_run(ledger, status, budget.seconds)
    return Run(ledger.path, task=plan.task, space=plan.space)


def _search(plan: SweepPlan, ledger: Ledger, budget: Budget, progress: Progress) -> None:
    """Everything that the searcher asks for, as far as the ledger does not have it."""
    scored = ledger.trials(plan.space)
    if scored and ledger.info.get("complete") == len(scored):  # nothing is proven or asked for twice
        for trial in scored:
            progress.told(trial, replayed=True)
        return
    known = next((t.scores.get("latency_ms") for t in scored if t.number == 0), None)
    with make_pool(plan.task, plan.space, plan.scorers, plan.asked, known, plan.search.rungs) as pool:
        driver = Driver(
            plan.search,
            pool,
            ledger,
            budget=budget,
            progress=progress,
            window=plan.asked.window,
            scorers=plan.scorers,
        )
        driver.run()
    if plan.search.certificate is not None:
        ledger.note("certificate", plan.search.certificate.to_json())
    ledger.note("complete", driver.told if plan.search.finished and not driver.cut_short else 0)


def _judge_front(plan: SweepPlan, ledger: Ledger, budget: Budget, progress: Mirroring) -> None:
    """What is done with the front once the search is over: confirmed on fresh data, measured in turns."""
    if plan.task is None:
        return
    confirm_front(ledger, plan.task, plan.space, plan.scorers, progress.says, plan.search.rungs)
    if plan.asked.measure:
        progress.says("measuring latency")
        progress.settle()
        measure_front(ledger, plan.task, plan.space, seconds=budget.seconds)


def note_misfit(ledger: Ledger, task: Task | None) -> None:
    """Say once in a run, on screen and in ``info["misfit"]``, that calibration data and model do not fit."""
    if task is None or "misfit" in ledger.info:
        return
    from ..evaluators.batchnorm import misfit
    from ..model.threads import one_thread

    with one_thread():
        text = misfit(task)
    ledger.note("misfit", text)
    if text:
        log.warning(text)
