"""Evaluator: the contract of what scores a built model, and the wrapper of functions given as one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..spaces import Candidate

if TYPE_CHECKING:
    import torch

    from .task import Task


Scorer = Callable[[Any, Any, Candidate], Mapping[str, float]]  # an Evaluator, or a function of its form


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
        declared: whether :attr:`metrics` says all; of a plain function only its first scores do.
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
    declared: bool = True

    @abstractmethod
    def __call__(
        self, task: Task | None, model: torch.nn.Module | None, candidate: Candidate
    ) -> Mapping[str, float]:
        """Finite scores by metric name; raise for a candidate that cannot be scored.

        Args:
            task: ``None`` for spaces without a model.
            model: the built candidate, in eval mode; must not be changed. ``None`` likewise.
            candidate: what was decided.
        """

    def gives(self, task: Task | None) -> tuple[str, ...]:
        """The names of the scores for this task; by default :attr:`metrics`."""
        return self.metrics


class GivenFunction(Evaluator):
    """A function, or an object of an evaluator's form, as an evaluator; defaults for what it does not say."""

    def __init__(self, function: Scorer) -> None:
        def said(attribute: str, otherwise: object) -> Any:
            return getattr(function, attribute, otherwise)

        self.function = function
        self.name = said("name", "") or said("__name__", type(function).__name__)
        self.declared = hasattr(function, "metrics")
        self.metrics = tuple(said("metrics", ()))
        self.lane, self.only_runs = said("lane", False), said("only_runs", False)
        self.of_network = said("of_network", False)

    def __call__(
        self, task: Task | None, model: torch.nn.Module | None, candidate: Candidate
    ) -> Mapping[str, float]:
        return self.function(task, model, candidate)

    def gives(self, task: Task | None) -> tuple[str, ...]:
        gives = getattr(self.function, "gives", None)
        return self.metrics if gives is None else tuple(gives(task))


def as_evaluators(given: Iterable[Scorer]) -> tuple[Evaluator, ...]:
    """Evaluators as they are, everything else wrapped once: the door of sweeps and jobs."""
    return tuple(one if isinstance(one, Evaluator) else GivenFunction(one) for one in given)


def detail_of(scores: Mapping[str, float]) -> dict[str, Any]:
    """What an evaluator keeps beside its scores; nothing for plain ones."""
    return scores.detail if isinstance(scores, Measured) else {}
