"""Dropping residual blocks as choices: y = x + f(x) becomes y = x (Huang et al. 2016, arXiv 1603.09382)."""

from __future__ import annotations

from dataclasses import dataclass

from .blocks import Block
from .choice import Choice


@dataclass(frozen=True, slots=True)
class Drop:
    """What a dropping choice does to a model: from option 1 on the block is not there."""

    block: str


def dropping_choice(block: Block) -> Choice:
    """Choice ``drop:<block>`` with options False (unchanged) and True."""
    return Choice(f"drop:{block.name}", (False, True), edit=Drop(block.name))
