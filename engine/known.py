"""Driver: the loop of a sweep. Ask, evaluate, record, tell."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..evaluators.errors import their_part
from ..evaluators.pool import Outcome, Pool
from ..results.fidelity import Proposal, proposals
from ..results.ledger import Ledger
from ..results.objective import FRACTIONS, METRICS, Limit, Objective
from ..results.table import metric_text
from ..results.trial import Trial
from ..search.base import Searcher
from ..spaces import Space
from .budget import Budget, Clock
from .progress import Progress
from .settings import RunError

if TYPE_CHECKING:
    from ..evaluators.base import Evaluator

log = logging.getLogger(__name__)
SAME = "same_network_as"  # detail of a trial that was not scored: the number of the one that was
NOTE_EVERY = 1.0  # seconds between two notes of the time spent; a killed session loses at most this


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
                f"({self.ledger.settings.get('version', 'unknown')}) on a processor of the same kind, "
                "or start a new one"
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


def note_limits(trial: Trial, limits: Sequence[Limit]) -> None:
    """Say so where not even the unchanged model keeps a limit on quality, which compressing rarely raises."""
    for limit in limits:
        own = limit.metric not in METRICS
        value = trial.scores.get(limit.metric)
        quality = own or limit.metric in (*FRACTIONS, "loss")
        if value is not None and quality and limit.violation(trial.scores, trial.scores) > 0:
            log.warning(
                f"the unchanged model itself does not keep {limit.text}: its {limit.metric} is "
                f"{metric_text(limit.metric, value)}; expect few candidates that do, or none"
            )


def check_baseline(trial: Trial, objectives: Sequence[Objective], limits: Sequence[Limit] = ()) -> None:
    """A search makes no sense where the unchanged model cannot be scored, or scores otherwise the next time.

    Raises:
        RunError: why not; ``detail`` is the traceback.
    """
    if trial.failed:
        raise RunError(
            f"the unchanged model cannot be scored: {trial.reason}", detail=their_part(trial.error or "")
        )
    if missing := [o.name for o in objectives if o.name not in trial.scores]:
        raise RunError(
            f"nothing measures the objective {missing[0]!r}; on the unchanged model the evaluators gave "
            f"{', '.join(trial.scores)}"
        )
    wanted = [o.name for o in objectives] + [m.metric for m in limits] + ["loss"]
    differs = trial.detail.get("differs", {})
    if name := next((name for name in wanted if name in differs), None):
        first, second = differs[name]
        raise RunError(
            f"the unchanged model's {name} differs between two runs on the same data: {first:.6g}, then "
            f"{second:.6g}; candidates would win by chance. Make model and metric deterministic, score each "
            f"candidate several times (--repeats 5), or say what is tolerable: "
            f"Task(tolerance={float(f'{abs(second - first):.1g}'):g})"
        )


class Known:
    """Outcomes by network (see ``ModelSide.network_key``): candidates that differ in where they are cut, or
    within a block that is not there, are not scored twice on one fidelity.

    Only where all evaluators say that they judge the network alone (``of_network``); else, and for spaces
    without a model, nothing is known.
    """

    def __init__(
        self, space: Space, scorers: Iterable[Evaluator] | None, trials: Sequence[Trial] = ()
    ) -> None:
        self._side = space.side
        self._alone = scorers is not None and all(s.of_network for s in scorers)
        self._scored: dict[tuple[bytes, str], Outcome] = {}
        if not self._alone or not trials:
            return
        computed = space.cost_arrays([t.candidate for t in trials])
        for i, t in enumerate(trials):
            # The trial's scores hold the candidate's analytic costs too, which are not the network's.
            own = {m: v for m, v in t.scores.items() if m not in computed or v != computed[m][i]}
            self.learn(t.proposal, Outcome(t.number, own or None, t.error, detail=dict(t.detail)))

    def learn(self, asked: Proposal, outcome: Outcome) -> None:
        """Remember what was scored; failures are tried again."""
        key = self._key(asked)
        if key is not None and outcome.scores is not None and SAME not in outcome.detail:
            self._scored.setdefault(key, outcome)

    def outcome(self, number: int, asked: Proposal) -> Outcome | None:
        """What is known of a candidate's network on this fidelity, as the outcome of trial ``number``."""
        key = self._key(asked)
        if key is None or (found := self._scored.get(key)) is None:
            return None
        detail = {**found.detail, SAME: found.number}
        return replace(found, number=number, seconds=0.0, worker=f"trial {found.number}", detail=detail)

    def _key(self, asked: Proposal) -> tuple[bytes, str] | None:
        network = self._side.network_key(asked.candidate) if self._alone else None
        return None if network is None else (network, asked.fidelity)
