"""Generator searchers: algorithms written as generator functions, which remember what is known."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Sequence

import numpy as np

from ..results.objective import Objective
from ..results.trial import Trial
from ..spaces import Candidate, Space
from .base import Searcher
from .wrappers import violations

# Yields candidates to score; is sent their trials, in the order asked, once all of them are known.
Steps = Generator[list[Candidate], list[Trial], None]


class GeneratorSearcher(Searcher):
    """A searcher whose algorithm is one generator, :meth:`search`, read from top to bottom::

        class Climb(GeneratorSearcher):
            def search(self):
                best = self.space.baseline
                while True:
                    trials = yield self.space.neighbours(best)
                    best = min(trials, key=lambda t: self.loss(t)[0]).candidate

    Loops and recursion stay what they are, and replaying the same trials restores the same state. A batch may
    be of any size; ``ask`` hands it out piecemeal. An empty batch is answered with ``[]`` at once.
    """

    @abstractmethod
    def search(self) -> Steps:
        """The algorithm: ``trials = yield candidates``. Returning ends the search."""

    def __init__(self, space: Space, objectives: Iterable[Objective | str], *, seed: int = 0) -> None:
        super().__init__(space, objectives, seed=seed)
        self._steps: Steps | None = None  # not started, so that it knows what is told before the first ask
        self._batch: list[Candidate] = []  # what the generator waits for, in its order
        self._answers: dict[Candidate, Trial | None] = {}  # of the batch; None: not told yet
        self._queue: deque[Candidate] = deque()  # of the batch, not handed out yet
        self._missing = 0
        self._finished = False

    def ask(self, n: int) -> list[Candidate]:
        if self._steps is None:
            self._steps = self.search()
            self._advance(None)
        asked: list[Candidate] = []
        while self._queue and len(asked) < n:
            candidate = self._queue.popleft()
            if self._answers[candidate] is None:
                asked.append(candidate)
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        super().tell(trials)
        for trial in trials:
            if self._answers.get(trial.candidate, trial) is None:
                self._answers[trial.candidate] = trial
                self._missing -= 1
        if self._batch and not self._missing:
            self._advance([t for c in self._batch if (t := self._answers[c]) is not None])

    @property
    def finished(self) -> bool:
        return self._finished

    def _advance(self, trials: list[Trial] | None) -> None:
        """Run the generator to its next batch that holds something, or to its end."""
        assert self._steps is not None
        try:
            batch = next(self._steps) if trials is None else self._steps.send(trials)
            while not batch:
                batch = self._steps.send([])
        except StopIteration:
            self._finished, batch = True, []
        self._batch = list(batch)
        self._answers = dict.fromkeys(self._batch)
        self._queue = deque(self._answers)
        self._missing = len(self._answers)


# -- Generator searchers that remember: no trial is asked for that is known, whoever asked for it -------

Scored = Generator[list[Candidate], list[Trial], list[Trial]]


class Remembering(GeneratorSearcher):
    """Keeps every trial that it is told of: earlier runs, the user's candidates, repairs of refused ones.

    Attributes:
        known: the latest trial of every candidate told so far, in the order of the first.
    """

    def __init__(self, space: Space, objectives: Iterable[Objective | str], *, seed: int = 0) -> None:
        super().__init__(space, objectives, seed=seed)
        self.known: dict[Candidate, Trial] = {}

    def tell(self, trials: Sequence[Trial]) -> None:
        self.known.update((t.candidate, t) for t in trials)  # first: `super` may run the algorithm on
        super().tell(trials)

    def score(self, candidates: Iterable[Candidate]) -> Scored:
        """``trials = yield from self.score(candidates)``: their trials, asking only for the unknown."""
        wanted = list(candidates)
        missing = [c for c in dict.fromkeys(wanted) if c not in self.known]
        if missing:
            yield missing
        return [self.known[c] for c in wanted]

    def allowed(self, candidates: list[Candidate]) -> list[Candidate]:
        """Those that keep the limits on analytic costs."""
        kept = violations(self.space, self.limits, self.baseline, candidates) <= 0.0
        return [c for c, ok in zip(candidates, kept, strict=True) if ok]

    def good(self) -> list[Trial]:
        """The known trials that succeeded and keep all limits, in the order told."""
        return [t for t in self.known.values() if self.violation(t) == 0.0]

    def start(self) -> Generator[list[Candidate], list[Trial], Trial | None]:
        """The unchanged model, or what is nearest to it: the first candidate on the diagonal that limits
        allow, relaxed as far as they allow, and that succeeds."""
        for candidate in self.allowed(diagonal(self.space)):
            trial = (yield from self.score([self.relaxed(candidate)]))[0]
            if np.isfinite(self.loss(trial)).any():
                return trial
        return None

    def relaxed(self, candidate: Candidate) -> Candidate:
        """Choices compressed less, one option at a time and in turn, as long as analytic limits are kept."""
        here = list(candidate.indices)
        open_ = [d for d, i in enumerate(here) if i]
        while open_:
            for d in open_.copy():
                less = Candidate((*here[:d], here[d] - 1, *here[d + 1 :]), self.space.choices)
                may = bool(self.allowed([less]))
                here[d] -= may
                if not may or not here[d]:
                    open_.remove(d)
        return Candidate(tuple(here), self.space.choices)


def diagonal(space: Space) -> list[Candidate]:
    """All choices compressed together, by the finest steps that the space has: unchanged model first.

    The nearest candidate to every share of compression at which some choice has an option.
    """
    counts = sorted(set(space.counts.tolist()))
    shares = sorted({i / max(count - 1, 1) for count in counts for i in range(count)})
    return list(dict.fromkeys(space.decode(np.full(len(space), share)) for share in shares))
