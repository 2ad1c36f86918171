"""What turns a built model into numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..spaces import Candidate

if TYPE_CHECKING:
    import torch

    from .task import Task


class Measured(dict[str, float]):
    """Scores that come with something to keep beside them, for example the quartiles of a latency.

    ``detail`` holds plain JSON values.
    """

    def __init__(self, scores: Mapping[str, float], *, detail: Mapping[str, Any]) -> None:
        super().__init__(scores)
        self.detail = dict(detail)


class Evaluator(ABC):
    """Scores one candidate. Subclass it, or pass any picklable callable of the same form.

    Attributes:
        name: for messages.
        metrics: the names of the scores it gives.
        lane: ``True`` where a measurement is only right with nothing else running (latency).
        only_runs: ``True`` where it does nothing with the model but call it. Weights may then be views of a
            larger network's, which are had faster than copies and are not contiguous.
        of_network: ``True`` where the scores depend on the network alone, and not on the candidate that it
            was made of: one network is scored once then, however many candidates are that network.

    An instance is sent to every worker: keep only what pickles, and keep no state between candidates.
    Python's, NumPy's and torch's global generators are seeded from the candidate before each call.
    """

    name: str = ""
    metrics: tuple[str, ...] = ()
    lane: bool = False
    only_runs: bool = False
    of_network: bool = False

    @abstractmethod
    def __call__(
        self, task: Task | None, model: torch.nn.Module | None, candidate: Candidate
    ) -> dict[str, float]:
        """Finite scores by metric name; raise for a candidate that cannot be scored.

        Args:
            task: ``None`` for spaces without a model.
            model: the built candidate, in eval mode; must not be changed. ``None`` likewise.
            candidate: what was decided.
        """

    def gives(self, task: Task | None) -> tuple[str, ...]:
        """The names of the scores for this task; by default :attr:`metrics`."""
        return self.metrics
