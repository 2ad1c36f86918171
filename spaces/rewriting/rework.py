"""Edits that divide or group layers; they touch each other, so that one goes over all of them in order."""

from __future__ import annotations

from ..captured_module import CapturedModule
from ..choice import Option
from ..grouping.build import build
from ..grouping.grouper import Grouper
from ..width.divide import Divider, forget_unread
from .rewrite import Built, Rewrite, rewrites_of


class Rework(Rewrite):
    """An edit that works on layers by their names in the captured graph.

    Whatever the order of the choices: all layers are assigned to groups while they are whole, then units are
    divided into branches, then groups are built, each branch's part of a layer for itself.
    """

    def graph(self, made: CapturedModule, option: Option, built: Built) -> None:
        edits = [(edit, o) for edit, o in rewrites_of(built.candidate) if isinstance(edit, Rework)]
        if edits[0][0] is not self:
            return  # the first of them did all
        reads = [n for n in made.graph.nodes if n.op == "get_attr" and n.users]
        grouper = Grouper(made, built.alive, built.calibration, built.sample)
        for edit, o in edits:
            edit.assign(grouper, o)
        marks = grouper.finish()
        divider = Divider(made, built.surgeon, built.alive, marks)
        for edit, o in edits:
            edit.divide(divider, o)
        standing = set(made.graph.nodes)
        build(made, {n: mark for n, mark in marks.items() if n in standing})
        forget_unread(made, [*reads, *divider.reads])

    def assign(self, grouper: Grouper, option: Option) -> None:
        """Plan layers whose channels form groups; by default none."""

    def divide(self, divider: Divider, option: Option) -> None:
        """Divide units into branches; by default none."""
