"""One search from beginning to end, and the only loop: ask, evaluate, record, tell."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..evaluators.pool import Outcome, Pool
from ..results.fidelity import Fidelity, Proposal, proposals
from ..results.ledger import Ledger
from ..results.objective import Limit, Objective
from ..results.trial import Trial
from ..spaces import Space
from .base import Searcher, innermost, parse_limits
from .budget import Budget
from .clock import Clock
from .combined.progressive import warn_of_few
from .confirming import confirm_front
from .devices import memory_limits
from .known import Known
from .lane_pool import make_pool
from .measured_front import measure_front
from .mirrors import Mirror, Mirroring, mirror
from .plan import (
    check_baseline,
    check_inputs,
    check_metrics,
    check_numbers,
    check_types,
    choose_evaluators,
    choose_objectives,
    choose_rungs,
    metrics_of,
    note_limits,
    note_misfit,
    with_measured_costs,
)
from .progress import Progress, Silent
from .registry import guard
from .registry import searcher as searcher_by_name
from .run import Run
from .settings import RunError, close_run, describe, note_environment, open_run
from .uniform import opening
from .warm_start import Source, warm_start
from .watch import watched

if TYPE_CHECKING:
    from ..evaluators.base import Evaluator, Scorer
    from ..evaluators.task import Task

TRIALS = 100  # where neither trials nor minutes are given
WINDOW = 16
METRICS_OF_A_PLACE = ("latency_ms",)  # measured; of no meaning for another time or machine
NOTE_EVERY = 1.0  # seconds between two notes of the time spent; a killed session loses at most this


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a sweep: the run is kept whole, and can be resumed."""

    def __init__(self, path: Path, trials: int) -> None:
        count = "1 trial is" if trials == 1 else f"{trials} trials are"
        kept = f"{count} kept in {path}, resume it to go on"
        super().__init__(f"stopped; {kept if trials else 'nothing was scored yet'}")
        self.path = path


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
    trial_timeout: float | None = None,
    evaluators: Sequence[Scorer] | None = None,
    address: str | None = None,
    progress: Progress | None = None,
    window: int = WINDOW,
    seed_from: Iterable[Source] = (),
    mirrors: Iterable[Mirror | str] = (),
    repeats: int = 1,
    measure: bool = True,
    rungs: Iterable[Fidelity | str] | None = None,
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
        trial_timeout: seconds after which a candidate fails; needs workers.
        evaluators: in place of the task's quality; ``latency_ms`` is added where it is wanted.
        address: of a Ray cluster; by default this machine.
        progress: told of every trial.
        window: candidates under way at a time, whatever the number of workers; part of the result.
        seed_from: what to begin with: candidates, earlier runs, JSON files (see :func:`warm_start`).
            Trials taken over from a run are not scored again and do not count towards ``trials``.
        mirrors: other tools that are shown the trials as they come: ``"tensorboard"``, ``"mlflow"``,
            ``"optuna"``, each also as ``"name:where"`` (see :mod:`.mirrors`).
        repeats: how often each candidate is scored, for models or metrics that draw at random: its scores are
            the means, their standard deviations in ``detail["spread"]``.
        measure: the latency of the front at the end (see :func:`.measured_front.measure_front`); without it
            a latency objective stands as the search has seen it.
        rungs: on which ``"progressive"`` judges candidates, the most thorough first: ``"tuned"``, ``"full"``,
            ``"quick"``, or :class:`netcarve.results.Fidelity`; by default full and quick.

    Raises:
        ValueError: anything in the arguments that cannot work, before any work: unknown searcher, metric or
            unreachable limit, a folder with another run, other settings than those of the run to resume.
        LedgerError: the run cannot be written or read.
        Interrupted: Ctrl-C.
    """
    check_types(task, space)
    check_inputs(task, space)
    levels = choose_rungs(rungs, searcher, task)
    goals = choose_objectives(objectives, searcher, task, space)
    bounds = parse_limits([*limits, *memory_limits(space)])
    chosen = choose_evaluators(task, evaluators, goals, bounds, space, rungs=bool(levels))
    scorers = with_measured_costs(space, chosen)
    check_numbers(
        trials=trials,
        minutes=minutes,
        trial_timeout=trial_timeout,
        workers=workers,
        seed=seed,
        window=window,
        repeats=repeats,
    )
    check_metrics(space, scorers, task, goals, bounds)
    if isinstance(searcher, Searcher):
        search = guard(searcher, bounds)
    else:
        search = searcher_by_name(searcher, space, goals, seed=seed, limits=bounds, rungs=levels)
    settings = describe(
        task=task,
        space=space,
        searcher=searcher if isinstance(searcher, str) else type(innermost(searcher)).__name__.lower(),
        seed=search.seed,
        window=window,
        objectives=goals,
        limits=search.limits,
        metrics=metrics_of(scorers, task),
        repeats=repeats,
        rungs=levels,
    )
    if trials is None and minutes is None:
        trials = TRIALS
    if trials is not None and levels:
        warn_of_few(trials, levels)
    progress = progress or Silent()
    followers = [mirror(m) if isinstance(m, str) else m for m in mirrors]
    begin = warm_start(() if resume else seed_from, space, settings, measured=METRICS_OF_A_PLACE)
    given = dict.fromkeys([*begin.candidates, *opening(space, search.limits, trials)])
    ledger = open_run(out, settings, resume=resume, given=tuple(given), scored=begin.scored)
    if trials is not None:
        trials += ledger.settings.get("imported", 0)
    budget = Budget(trials, minutes, spent=ledger.info.get("seconds", 0.0))
    status = "interrupted"
    try:
        with watched(ledger):
            ledger.note("status", "running")
            note_environment(ledger)
            note_misfit(ledger, task)
            if followers:
                progress = Mirroring(progress, followers, folder=ledger.path.parent, settings=ledger.settings)
            progress.started(budget, goals, search.limits)
            scored = ledger.trials(space)
            known = next((t.scores.get("latency_ms") for t in scored if t.number == 0), None)
            if scored and ledger.info.get("complete") == len(scored):  # nothing is proven or asked for twice
                for trial in scored:
                    progress.told(trial, replayed=True)
            else:
                with make_pool(
                    task, space, scorers, workers, address, trial_timeout, known, repeats, search.rungs
                ) as pool:
                    driver = Driver(
                        search, pool, ledger, budget=budget, progress=progress, window=window, scorers=scorers
                    )
                    driver.run()
                if search.certificate is not None:
                    ledger.note("certificate", search.certificate.to_json())
                ledger.note("complete", driver.told if search.finished and not driver.cut_short else 0)
            if task is not None:
                confirm_front(ledger, task, space, scorers, progress.says, search.rungs)
            if task is not None and measure:
                progress.says("measuring latency")
                if isinstance(progress, Mirroring):
                    progress.settle()
                measure_front(ledger, task, space, seconds=budget.seconds)
        status = "finished"
        if isinstance(progress, Mirroring):
            progress.completed = True
    except KeyboardInterrupt:
        raise Interrupted(ledger.path.parent, len(ledger.trials())) from None
    finally:
        progress.finished()
        close_run(ledger, status, budget.seconds)
    return Run(ledger.path, task=task, space=space)


class Driver:
    """Runs a search to the end of its budget, or of the space.

    The searcher sees one fixed sequence of calls, whatever finishes first and however many workers there
    are: trials are told one by one in number order, and after each it is asked for as many candidates as
    make ``window`` of them under way. Trial 0 is the unchanged model, alone, since limits refer to it; then
    come the candidates that the run was given (``seed_from``) and the uniform cuts of its opening, if any.

    That is also how a run is resumed: the same calls, with the ledger's outcomes in place of evaluations.

    Args:
        window: candidates that are under way logically; at least 1. More workers than this stay idle.
        scorers: the evaluators, where all of them judge networks alone: equal ones are scored once then.
    """

    def __init__(
        self,
        searcher: Searcher,
        pool: Pool,
        ledger: Ledger,
        *,
        budget: Budget,
        progress: Progress,
        window: int,
        scorers: Sequence[Evaluator] | None = None,
    ) -> None:
        self.searcher, self.space = searcher, searcher.space
        self.pool, self.ledger = pool, ledger
        self.budget, self.progress, self.window = budget, progress, window
        self.cut_short = False  # whether the budget left out candidates that the searcher proposed
        self.asked = self.told = 0  # how many candidates, and the number of the next
        self._proposed = ledger.proposals(self.space)  # by number: what earlier sessions asked for
        # Numbers that an earlier session gave to candidates of `Searcher.closing`.
        self._closing = {n for n in ledger.info.get("closing", ()) if n in self._proposed}
        self._recorded = {t.number: t for t in ledger.trials(self.space, measured=False)}
        self._known = Known(self.space, scorers, list(self._recorded.values()))
        self._new: list[tuple[int, Proposal]] = []  # not in the ledger yet
        self._todo: deque[tuple[int, Proposal]] = deque()  # not submitted yet
        self._in_flight: dict[int, Proposal] = {}
        self._ready: dict[int, Trial] = {}  # known outcomes that wait for their turn
        self._given = ledger.settings.get("given", 0)  # first trials that the searcher was not asked for
        self._noted = 0.0
        self._clock = Clock(ledger.info.get("clock", ()))

    def run(self) -> None:
        """Everything, to the end.

        Raises:
            RunError: the unchanged model cannot be scored, or a replayed search proposes something else.
            LedgerError: an outcome cannot be kept.
        """
        self._ask()
        while True:
            while (trial := self._ready.pop(self.told, None)) is not None:
                self.searcher.tell([trial])
                self.progress.told(trial, replayed=trial.number in self._recorded)
                self.told += 1
                self._ask()
            self._dispatch()
            if not self._in_flight:
                if self.told in self._ready:
                    continue
                self.ledger.note("clock", self._clock.points)
                return
            self._collect()

    def _ask(self) -> None:
        self._pass_closing()
        wanted = self.window - (self.asked - self.told)
        closed = sum(number < self.asked for number in self._closing)
        allowed = self.budget.allows(len(self._proposed) - len(self._closing)) - (self.asked - closed)
        if allowed <= 0 and self.told == self.asked > self._given and self.asked - 1 not in self._closing:
            self._close()
            return
        if self.asked == 0:
            asked = proposals([self.space.baseline], self.searcher.rungs)
        elif self.told == 0 or wanted <= 0 or allowed <= 0:
            return
        elif self.asked <= self._given:
            last = min(self._given, self.asked + wanted - 1)
            asked = [self._proposed[number] for number in range(self.asked, last + 1)]
        elif self.told <= self._given or self.searcher.finished:
            return  # the search begins when it knows all that it was given
        else:
            # All that is wanted, even where less is allowed: a longer run then starts with the same calls.
            proposed = proposals(self.searcher.ask(wanted), self.searcher.rungs)
            asked = proposed[: int(min(wanted, allowed))]
            self.cut_short |= len(asked) < len(proposed)
        for proposal in asked:
            self._pass_closing()
            self._take(proposal)

    def _take(self, proposal: Proposal) -> None:
        """Give the next number to a proposal, whose outcome may be in the ledger already."""
        number = self.asked
        if self._proposed.setdefault(number, proposal) != proposal:
            raise RunError(
                f"cannot resume: trial {number} was {self._proposed[number].to_json()}, the search now "
                f"proposes {proposal.to_json()}; resume with the netcarve that started the run "
                f"({self.ledger.settings.get('version', 'unknown')}), or start a new one"
            )
        if number in self._recorded:
            self._ready[number] = self._recorded[number]
        else:
            self._new.append((number, proposal))
        self.asked += 1

    def _close(self) -> None:
        """The budget is spent: score what the searcher would have judged in full next."""
        last = proposals(self.searcher.closing(self.window), self.searcher.rungs)
        if last:
            self._closing |= set(range(self.asked, self.asked + len(last)))
            self.ledger.note("closing", sorted(self._closing))
        for proposal in last:
            self._take(proposal)

    def _pass_closing(self) -> None:
        """Take up what an earlier session has scored beyond its budget: its numbers are gone."""
        while self.asked in self._closing:
            self._take(self._proposed[self.asked])

    def _dispatch(self) -> None:
        """Hand to the pool what it has room for; first of all, make the proposals durable."""
        if self._new:
            self.ledger.propose(self._new)
            self._todo.extend(self._new)
            self._new = []
        room = self.pool.room() if self._todo else 0
        jobs: list[tuple[int, Proposal]] = []
        known: list[Outcome] = []
        while self._todo and len(jobs) < room:
            number, proposal = self._todo.popleft()
            if outcome := self._known.outcome(number, proposal):
                self._in_flight[number] = proposal
                known.append(outcome)
            else:
                jobs.append((number, proposal))
        if known:
            self._keep(known)
        if jobs:
            self._in_flight.update(jobs)
            self.pool.submit(jobs)

    def _collect(self) -> None:
        outcomes = self.pool.finished()
        for o in outcomes:
            self._known.learn(self._in_flight[o.number], o)
        self._keep(outcomes)

    def _keep(self, outcomes: list[Outcome]) -> None:
        """Make outcomes durable before the searcher hears of them."""
        trials = self._trials(outcomes)
        self.ledger.record(trials)
        self._ready.update((t.number, t) for t in trials)
        self._clock.add(self.told + len(self._ready), self.budget.seconds)
        if self.budget.seconds - self._noted > NOTE_EVERY:
            self._noted = self.budget.seconds
            self.ledger.note("seconds", self._noted)
            self.ledger.note("clock", self._clock.points)

    def _trials(self, outcomes: list[Outcome]) -> list[Trial]:
        """Outcomes with the analytic costs of their candidates; the measured wins over the computed."""
        asked = [self._in_flight.pop(o.number) for o in outcomes]
        costs = self.space.cost_arrays([one.candidate for one in asked]) if asked else {}
        trials = []
        for i, (o, one) in enumerate(zip(outcomes, asked, strict=True)):
            computed = {metric: float(values[i]) for metric, values in costs.items()}
            scores = {**computed, **(o.scores or {})} if o.error is None else {}
            trials.append(
                Trial(o.number, one.candidate, scores, o.error, o.seconds, o.worker, o.detail, one.fidelity)
            )
            if o.number == 0:
                check_baseline(trials[-1], self.searcher.objectives, self.searcher.limits)
                note_limits(trials[-1], self.searcher.limits)
        return trials
