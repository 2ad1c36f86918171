"""Prune: how many units of each coupled group stay, the most important ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..choice import Choice, Option
from .base import Found, Keeps, Kind, Making, Taken

if TYPE_CHECKING:
    from ...model.coupling import Group
    from ...model.facts import Facts


@dataclass(frozen=True, kw_only=True)
class PruneKind(Kind):
    """A choice ``prune:<group>`` for every proven group; its options are those that all kinds share.

    About a choice: :class:`Keeps`.
    """

    done: ClassVar[str] = "pruned"
    switches: ClassVar[bool] = True

    def find(self, facts: Facts, making: Making) -> Found:
        return Found([self.choice(group, making) for group in facts.groups])

    def choice(self, group: Group, making: Making) -> Choice:
        """Choice ``prune:<group>`` whose options are pruning ratios, 0.0 first.

        ``making.ratios`` is how many equally spaced ratios from 0 (8 gives 0, 1/8, ..., 7/8), or the ratios
        themselves in [0, 1), starting with 0. Kept units are rounded to a multiple of ``making.round_to``; at
        least one multiple stays, and at least ``making.least``.

        Raises:
            ValueError: ratios out of range or not starting with 0.
        """
        ratios, round_to, least = making.ratios, making.round_to, making.least.get(group.name, 1)
        wanted = [r / ratios for r in range(ratios)] if isinstance(ratios, int) else list(map(float, ratios))
        if not wanted or wanted[0] != 0.0 or any(not 0.0 <= r < 1.0 for r in wanted):
            raise ValueError(f"pruning ratios start with 0 and lie in [0, 1), got {wanted}")
        if round_to < 1:
            raise ValueError(f"round_to must be at least 1, got {round_to}")
        options: dict[int, float] = {group.size: 0.0}
        for ratio in sorted(wanted[1:]):
            kept = round(group.size * (1 - ratio) / round_to) * round_to
            options.setdefault(min(group.size, max(round_to, kept, least)), ratio)
        units: dict[Option, int] = {ratio: kept for kept, ratio in options.items()}
        about = Keeps(group.name, units, making.order(group.name))
        return Choice(f"prune:{group.name}", tuple(units), self, about)

    def keeps(self, choice: Choice) -> Sequence[Keeps]:
        return (choice.about,)

    def falling(self, choices: Sequence[Choice], names: Sequence[str]) -> Sequence[str]:
        return names if all((np.diff(self.kept(c) or ()) <= 0).all() for c in choices) else ()

    def key(self, taken: Taken) -> bytes:
        return b""
