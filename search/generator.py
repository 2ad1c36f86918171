"""Algorithms written as generator functions, made searchers."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Sequence

from ..results.objective import Objective
from ..results.trial import Trial
from ..spaces import Candidate, Space
from .base import Searcher

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
