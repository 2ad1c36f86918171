"""Networks that were scored before: another candidate may be the same one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..evaluators.pool import Outcome
from ..results.fidelity import Proposal
from ..results.trial import Trial
from ..spaces import Space

if TYPE_CHECKING:
    from ..evaluators.base import Evaluator

SAME = "same_network_as"  # detail of a trial that was not scored: the number of the one that was


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
