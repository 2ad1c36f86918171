"""Edits that change a built network beyond its widths and blocks: other operators, heads, branches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import nn

from ..captured_module import CapturedModule, switchable
from ..choice import Candidate, Choice, Option

if TYPE_CHECKING:
    from ..costing.cost_tables import Tables
    from ..repair import Calibration
    from ..surgery import Alive, Mend, Surgeon


@dataclass(frozen=True, slots=True)
class Built:
    """What an edit may know of the network that it changes."""

    candidate: Candidate
    alive: Alive  # [units + 1 + blocks] bool: labels, then blocks, that stay
    surgeon: Surgeon  # of the unchanged network: .coupling, .tensors, .dead(alive), .module (captured graph)
    calibration: Calibration | None  # moments of what the unchanged network's layers read
    mend: Mend | None = None  # how the candidate's sliced parameters are repaired, whatever units they keep
    sample: Sequence[Any] | None = None  # placeholders' values of a batch, where repair runs the network


class Rewrite(ABC):
    """The edit of a choice whose options but the first change the built network.

    The first option leaves the network as it is; it never calls anything here. A candidate that takes
    another is always built, as the captured graph, and never switched (:meth:`Elastic.switches`). Order: the
    network is pruned, blocks are dropped, weights are repaired and masked; then :meth:`graph` of every such
    choice in the space's order; then :meth:`wrap` of every such choice in that order. Instances must be
    picklable and hold no tensors that the surgeon has.
    """

    #: Analytic costs that a space with such a choice does not have, since they depend on data; evaluators may
    #: measure them (see ``evaluators/reach.py``).
    measured: ClassVar[tuple[str, ...]] = ()

    def graph(self, made: CapturedModule, option: Option, built: Built) -> None:  # noqa: B027
        """Change the pruned captured graph in place; by default nothing.

        Nodes have the names of the captured graph (``built.surgeon.module.graph``); those of dropped blocks
        (``built.surgeon.dead(built.alive)``) are not there. Parameters lie under their canonical names,
        already sliced and repaired; new ones are put on ``made`` (``register_parameter``,
        ``add_submodule``) and read by ``get_attr``. The caller afterwards removes what is not read any more,
        and recompiles; batch-norm and dropout calls with the train flag ``False`` are made to follow
        ``train()``.
        """

    def wrap(self, network: nn.Module, option: Option, built: Built) -> nn.Module:
        """A network that holds ``network``; by default ``network`` itself.

        It is called as ``network`` is. Where it needs data (heads to be fitted), it has a method
        ``refit(batches)`` with ``batches`` a sequence of ``(args, kwargs)``: ``Job`` calls that of the
        outermost module with the task's calibration batches, after batch norms were re-estimated.
        """
        return network

    @abstractmethod
    def adjust(
        self, costs: Mapping[str, np.ndarray], option: Option, rows: np.ndarray, tables: Tables
    ) -> None:
        """Correct analytic costs in place where candidates take ``option``.

        Args:
            costs: float64 [n] by metric (``macs``, ``flops``, ``params``, ``size_mb``, ``activation_mb``,
                ``memory_mb``, ...), of n candidates, as if none took a rewriting option before this choice.
            rows: bool [n], which candidates take ``option``.
            tables: what each candidate keeps, [n] arrays as well.
        """


def is_rewrite(choice: Choice) -> bool:
    return isinstance(choice.edit, Rewrite)


def rewrites_of(candidate: Candidate) -> list[tuple[Rewrite, Option]]:
    """The edits that a candidate takes with their options, in the space's order."""
    return [
        (choice.edit, choice.options[index])
        for choice, index in zip(candidate.choices, candidate.indices, strict=True)
        if index and is_rewrite(choice)
    ]


def rewritten(made: CapturedModule, edits: Sequence[tuple[Rewrite, Option]], built: Built) -> nn.Module:
    """The network after all edits, in eval mode."""
    unread = {n for n in made.graph.nodes if not n.users}  # guards; state that only goes with the rest
    for edit, option in edits:
        edit.graph(made, option, built)
    switchable(made.graph)
    for n in reversed(made.graph.nodes):
        if not n.users and n not in unread and not n.is_impure():
            made.graph.erase_node(n)
    made.delete_all_unused_submodules()
    made.recompile()
    network: nn.Module = made
    for edit, option in edits:
        network = edit.wrap(network, option, built)
    return network.eval()
