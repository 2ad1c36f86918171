"""Drop: which residual blocks are there. y = x + f(x) becomes y = x (Huang et al. 2016, arXiv 1603.09382)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..choice import Choice
from .base import Drops, Found, Kind, Making, Taken

if TYPE_CHECKING:
    from ...model.facts import Facts


@dataclass(frozen=True, kw_only=True)
class DropKind(Kind):
    """A choice ``drop:<block>`` for every proven residual block: False, True. About it: :class:`Drops`."""

    done: ClassVar[str] = "dropped"

    def find(self, facts: Facts, making: Making) -> Found:
        facts.prove_blocks(progress=making.progress)
        return Found(
            [
                Choice(f"drop:{b.name}", (False, True), self, Drops(b.name, frozenset({True})))
                for b in facts.blocks
            ]
        )

    def keeps(self, choice: Choice) -> Sequence[Drops]:
        return (choice.about,)

    def falling(self, choices: Sequence[Choice], names: Sequence[str]) -> Sequence[str]:
        # What is alive together is a maximum of sums, of which dropping changes the members.
        return [name for name in names if name not in ("activation_mb", "memory_mb")]

    def key(self, taken: Taken) -> bytes:
        return b""
