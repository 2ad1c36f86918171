"""Dropping: which residual blocks are there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..choice import Choice
from ..drop import dropping_choice
from .base import Kind, Making

if TYPE_CHECKING:
    from ..blueprint import Blueprint


@dataclass(frozen=True, kw_only=True)
class Dropping(Kind):
    """A choice ``drop:<block>`` for every proven residual block."""

    done: ClassVar[str] = "dropped"

    def choices(self, blueprint: Blueprint, making: Making) -> list[Choice]:
        blueprint.prove_blocks(progress=making.progress)
        return [dropping_choice(b) for b in blueprint.blocks]
