"""Networks that were scored before: another candidate may be the same one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..evaluators.pool import Outcome
from ..results.trial import Trial
from ..spaces import Candidate, Space

if TYPE_CHECKING:
    from ..evaluators.pool import Scorer

SAME = "same_network_as"  # detail of a trial that was not scored: the number of the one that was


class Known:
    """Outcomes by network (see ``Blueprint.network_key``): candidates that differ in where they are cut, or
    within a block that is not there, are not scored twice.

    Only where all evaluators say that they judge the network alone (``of_network``); else, and for spaces
    without a model, nothing is known.
    """

    def __init__(self, space: Space, scorers: Iterable[Scorer] | None, trials: Sequence[Trial] = ()) -> None:
        key = getattr(space.model, "network_key", None)
        alone = scorers is not None and all(getattr(s, "of_network", False) for s in scorers)
        self._key = key if alone else None
        self._scored: dict[bytes, Outcome] = {}
        if self._key is None or not trials:
            return
        computed = space.cost_arrays([t.candidate for t in trials])
        for i, t in enumerate(trials):
            # The trial's scores hold the candidate's analytic costs too, which are not the network's.
            own = {m: v for m, v in t.scores.items() if m not in computed or v != computed[m][i]}
            self.learn(t.candidate, Outcome(t.number, own or None, t.error, detail=dict(t.detail)))

    def learn(self, candidate: Candidate, outcome: Outcome) -> None:
        """Remember what was scored; failures are tried again."""
        if self._key is not None and outcome.scores is not None and SAME not in outcome.detail:
            self._scored.setdefault(self._key(candidate), outcome)

    def outcome(self, number: int, candidate: Candidate) -> Outcome | None:
        """What is known of a candidate's network, as the outcome of trial ``number``."""
        if self._key is None or (found := self._scored.get(self._key(candidate))) is None:
            return None
        detail = {**found.detail, SAME: found.number}
        return replace(found, number=number, seconds=0.0, worker=f"trial {found.number}", detail=detail)
