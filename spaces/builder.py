"""Builder: the model side of one space. Costs, builds, cuts and switches its candidates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import fx, nn

from ..model.blocks import Block
from ..model.captured_module import CapturedModule, switchable
from ..model.elastic import Elastic
from ..model.facts import Facts
from ..model.layer_widths import layer_widths
from ..model.model_copy import plain_copy
from ..model.operators.place import Place, Substitution
from ..model.operators.substitution import Planting, Substitutions
from ..model.repair.gram import Inputs
from ..model.surgery import Alive, Mend
from ..model.threads import one_thread
from .choice import Candidate, Choice
from .decoding import Decoder
from .kinds.base import Context, Part, parts_of
from .kinds.splits.staged import PlacedStage
from .lengths import check_lengths
from .mending import Mending, in_turn
from .space import ModelSide, Repair, Space


class Builder(ModelSide):
    """What a space was made with, beside the facts about its network, which many spaces share.

    Args:
        facts: about the traced network; nothing here changes them.
        mending: how built networks are repaired.
        own_reason: why the user's module may not be sliced for this space; empty where it may.
        graph: networks need the captured graph to be built, whatever the artifact.
        refusals: ``"kind:name"`` -> why that may not be decided about.
    """

    def __init__(
        self,
        facts: Facts,
        mending: Mending | None = None,
        *,
        own_reason: str = "",
        graph: bool = False,
        refusals: Mapping[str, str] | None = None,
    ) -> None:
        self.facts, self.mending, self.own_reason, self.graph = facts, mending or Mending(), own_reason, graph
        self.refusals = dict(refusals or {})
        self.decoder = Decoder(facts)
        self._switch: Switch | None = None
        self._substitutions: Substitutions | None = None

    @property
    def blocks(self) -> tuple[Block, ...]:  # type: ignore[override]
        return self.facts.blocks

    @property
    def artifact(self) -> str:
        """``"module"`` when built networks are the user's own module with sliced parameters, ``"graph"`` when
        they are the captured graph.
        """
        return "graph" if self.own_reason else "module"

    @property
    def left_out(self) -> dict[str, str]:
        return {**self.facts.left_out, **self.refusals}

    def joined(self, other: ModelSide) -> Builder:
        if not isinstance(other, Builder) or other.facts is not self.facts:
            raise ValueError(
                "cannot join spaces of two different models; make both from one `trace(model, example)`"
            )
        if other is self:
            return self
        return Builder(
            self.facts,
            self.mending.joined(other.mending),
            own_reason=self.own_reason or other.own_reason,
            graph=self.graph or other.graph,
            refusals={**self.refusals, **other.refusals},
        )

    # -- many candidates -----------------------------------------------------------------------------

    def cost_arrays(self, choices: tuple[Choice, ...], indices: np.ndarray) -> dict[str, np.ndarray]:
        return self.decoder.cost_arrays(choices, indices)

    def cost_bounds(
        self, choices: tuple[Choice, ...], low: np.ndarray, high: np.ndarray
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return self.decoder.cost_bounds(choices, low, high)

    def layers(self, choices: tuple[Choice, ...]) -> list[dict[str, Any]]:
        graph = self.facts.captured.graph_module.graph
        pruned, dropped = self.decoder.decides(choices)
        found = layer_widths(graph, self.facts.coupling, self.facts.all_blocks, pruned, dropped)
        return [asdict(layer) for layer in found]

    # -- one candidate -------------------------------------------------------------------------------

    def alive(self, candidate: Candidate) -> Alive:
        """What stays; see :meth:`Decoder.alive`."""
        return self.decoder.alive(candidate)

    def unchanged(self, candidate: Candidate) -> bool:
        return self.decoder.unchanged(candidate)

    def network_key(self, candidate: Candidate) -> bytes:
        return self.decoder.network_key(candidate)

    def moves_statistics(self, candidate: Candidate, repair: Repair | None = None) -> bool:
        # The layer-by-layer pass moves them on its way, past substitutes too; what kinds do behind it shifts
        # them again.
        if not self.mending.runs(repair):
            return False
        behind = [p for p in self._parts(candidate) if p.kind.key(p.of(candidate))]
        return all(p.kind.replaces(c, i) for p in behind for c, i in p.of(candidate) if i)

    @one_thread()
    def build(self, candidate: Candidate, *, repair: Repair | None = None) -> nn.Module:
        """Independent smaller module in eval mode: the user's class where proven, else the captured graph.

        Repaired as the space was asked for; the unchanged candidate is a copy of the given module. Where a
        kind rewrites networks it is the captured graph, edited; cut, it is a :class:`Staged`.
        """
        parts, context = self._parts(candidate), self._context(candidate, repair)
        network = self._network(candidate, parts, context)
        for part in parts:
            network = part.kind.wrap(network, part.of(candidate), context)
        return network.eval() if _rewriting(parts, candidate) else network

    @one_thread()
    def stages(self, candidate: Candidate) -> list[PlacedStage]:
        """The stages of a candidate as independent modules, each with the name of its device.

        They are cut from a new capture and compared with the whole at two batch sizes.

        Raises:
            ValueError: the candidate's space has no splits.
            CutError: the built network cannot be cut there, or the comparison fails.
        """
        context = self._context(candidate)
        return self.cut(self._network(candidate, self._parts(candidate), context), candidate)

    def cut(self, network: nn.Module, candidate: Candidate) -> list[PlacedStage]:
        context = self._context(candidate)
        for part in self._parts(candidate):
            if (stages := part.kind.stages(network, part.of(candidate), context)) is not None:
                return stages
        raise ValueError("this space has no splits; make one by space('prune', 'splits')")

    def _parts(self, candidate: Candidate) -> tuple[Part, ...]:
        return self.decoder.read(candidate.choices).parts

    def _context(self, candidate: Candidate, repair: Repair | None = None) -> Context:
        run = self.mending.sequential
        mend, planting = self.mend(candidate, repair)
        return Context(
            self.facts,
            self.alive(candidate),
            *self.decoder.widths(candidate.choices, np.array([candidate.indices], dtype=np.int64)),
            calibration=self.mending.calibration,
            mend=mend,
            sample=None if run is None else run.inputs,
            planting=planting,
        )

    def mend(self, candidate: Candidate, repair: Repair | None = None) -> tuple[Mend | None, Planting]:
        """All that is done to sliced parameters, and what stands for layers once that is done."""
        planting = self._planting(candidate, repair)
        steps = [self.mending.step(self.facts.surgeon, repair, planting)]
        if planting.wanted:
            steps.append(planting.finish)
        for part in self._parts(candidate):
            steps.append(part.kind.mend(part.of(candidate), self.mending.calibration, planting))
        return in_turn(steps), planting

    def _planting(self, candidate: Candidate, repair: Repair | None) -> Planting:
        """What stands for layers of the candidate's network."""
        wanted: dict[str, Substitution] = {}
        for part in self._parts(candidate):
            for choice, index in part.of(candidate):
                wanted |= part.kind.replaces(choice, index)
        if self._substitutions is None or not self._substitutions.covers(wanted):
            places = replaceable(candidate.choices)
            run = self.mending.sequential
            inputs = None if run is None or not places else run.inputs
            self._substitutions = Substitutions(self.facts.surgeon, places, inputs)
        return Planting(self._substitutions, wanted, self.mending.repair if repair is None else repair)

    def _network(self, candidate: Candidate, parts: Sequence[Part], context: Context) -> nn.Module:
        """The network in one piece."""
        surgeon = self.facts.surgeon
        if self.facts.copies and surgeon.source is not None and self.unchanged(candidate):
            return plain_copy(surgeon.source)
        editing = _rewriting(parts, candidate)
        if editing or context.planting.wanted:
            network = surgeon.graph(context.alive, context.mend, context.planting.wanted)
            _edit(network, editing, candidate, context)
            return network
        make = surgeon.own if self.artifact == "module" else surgeon.graph
        return make(context.alive, context.mend)

    def check_lengths(self, space: Space, data: Mapping[str, Sequence[Inputs]]) -> None:
        parts = self.decoder.read(space.choices).parts
        alone = [p.choices[0].name for p in parts if p.kind.neutral or p.kind.rewrites]
        reason = ""
        if alone:
            reason = f"the choice {alone[0]!r} changes the captured graph, in which lengths are fixed"
        elif self.artifact == "graph":
            reason = (
                "they are captured graphs, in which lengths are fixed, since of the model's own module "
                f"{self.own_reason}"
            )
        cuts = [self.alive(c) for c in self.decoder.spanning(space) or [space.baseline]]
        check_lengths(self.facts, cuts, data, graph_alone=reason)

    def recalibrated(self, batches: Sequence[Inputs]) -> Builder:
        mending = self.mending.recalibrated(self.facts, batches)
        if mending is self.mending:
            return self
        return Builder(
            self.facts, mending, own_reason=self.own_reason, graph=self.graph, refusals=self.refusals
        )

    # -- one resident network ------------------------------------------------------------------------

    def elastic(self, choices: tuple[Choice, ...]) -> Switch:
        """One network that switches between the candidates of a space with these ``choices``.

        Made at the first call, and kept for the next; it does not travel.
        """
        if self._switch is None or self._switch.choices is not choices:
            self._switch = Switch(self, choices)
        return self._switch

    # -- travel to workers ---------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """The captured program travels (serialised, not pickled) only where the graph is needed to build."""
        own = self.artifact == "module"
        needed = not own or self.mending.sequential is not None or self.graph
        # Only sorted weights are checked on the example, and repair copies weights.
        light = self.facts.light(graph=needed, own=own, example=not self.mending.repair)
        return self.__dict__ | {"facts": light, "decoder": None, "_switch": None, "_substitutions": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.decoder = Decoder(self.facts)


class Switch:
    """The resident network of one space, by candidates: those for which no graph is edited."""

    def __init__(self, builder: Builder, choices: tuple[Choice, ...]) -> None:
        self.choices, self._builder = choices, builder
        facts, reading = builder.facts, builder.decoder.read(choices)
        switching = [c for part in reading.parts if part.kind.switches for c in part.choices]
        places = [place.node for place in replaceable(switching)]
        self.network = Elastic(
            facts.surgeon,
            {p.group: p.order for p in reading.pruned},
            own=builder.artifact == "module" and not places,
            example=facts.example,
            places=places,
        )
        at = {name: i for i, name in enumerate(self.network.groups)}
        self._cuts = [(p.column, at[p.group], p.units.tolist()) for p in reading.pruned]
        able = {i for part in reading.parts if part.kind.switches or part.kind.neutral for i in part.columns}
        self._foreign = [i for i, c in enumerate(choices) if c.kind is not None and i not in able]

    @property
    def free(self) -> bool:
        """Whether nobody has it from :meth:`lend`."""
        return self.network.free

    def switches(self, candidate: Candidate) -> bool:
        """Whether :meth:`switch` can make it: it is of this space, and its kinds do no more than keep units,
        replace layers and mend weights.
        """
        return candidate.choices == self.choices and not any(candidate.indices[i] for i in self._foreign)

    def switch(
        self, candidate: Candidate, *, copies: bool = False, repair: Repair | None = None
    ) -> nn.Module:
        """The network of ``candidate`` in eval mode, until the next switch; see :meth:`Elastic.switch`.

        Args:
            copies: give parameters of its own, which may be changed in place.
            repair: in place of the space's own; where there is one, parameters are copied.

        Raises:
            ValueError: the candidate is not among those that :meth:`switches` tells.
        """
        if not self.switches(candidate):
            raise ValueError(f"{candidate} does more than keep, replace and mend; build it instead")
        kept = self.network.sizes.copy()
        for column, group, units in self._cuts:
            kept[group] = units[candidate.indices[column]]
        mend, planting = self._builder.mend(candidate, repair)
        return self.network.switch(kept, mend, copies=copies, planted=planting.made)

    @contextmanager
    def lend(
        self, candidate: Candidate, *, copies: bool = False, repair: Repair | None = None
    ) -> Iterator[nn.Module]:
        """:meth:`switch`, and afterwards put everything back that the borrower has changed.

        Raises:
            RuntimeError: the network is lent already.
        """
        with self.network.lent():
            yield self.switch(candidate, copies=copies, repair=repair)

    def reset(self) -> None:
        """Put everything back but the sizes, which the next switch sets."""
        self.network.reset()


def replaceable(choices: Sequence[Choice]) -> list[Place]:
    """Where any option of any choice puts a substitute, by node, in order."""
    found: dict[str, Place] = {}
    for part in parts_of(choices):
        for choice in part.choices:
            for index in range(len(choice.options)):
                found |= {node: s.place for node, s in part.kind.replaces(choice, index).items()}
    return list(found.values())


def _rewriting(parts: Sequence[Part], candidate: Candidate) -> list[Part]:
    """Those whose kinds edit the candidate's graph."""
    return [part for part in parts if part.kind.rewrites and part.changes(candidate)]


def _edit(network: CapturedModule, parts: Sequence[Part], candidate: Candidate, context: Context) -> None:
    """Put substitutes in their places, let kinds edit the graph, then tidy it up."""
    unread = {n for n in network.graph.nodes if not n.users}  # guards; state that only goes with the rest
    reads = [n for n in network.graph.nodes if n.op == "get_attr" and n.users]
    context.planting.install(network)
    for part in parts:
        part.kind.edit(network, part.of(candidate), context)
    for step in context.last:
        step()
    _forget_unread(network, [*reads, *context.reads])
    switchable(network.graph)
    for n in reversed(network.graph.nodes):
        if not n.users and n not in unread and not n.is_impure():
            network.graph.erase_node(n)
    network.delete_all_unused_submodules()
    network.recompile()


def _forget_unread(made: CapturedModule, reads: Sequence[fx.Node]) -> None:
    """Take away those of ``reads`` (``get_attr``) that nothing uses any more, and what they read."""
    gone = [n for n in reads if not n.users]
    targets = dict.fromkeys(str(n.target) for n in gone)
    for n in gone:
        made.graph.erase_node(n)
    still = {str(n.target) for n in made.graph.nodes if n.op == "get_attr"}
    for target in targets:
        if target not in still:
            prefix, _, leaf = target.rpartition(".")
            try:
                delattr(made.get_submodule(prefix), leaf)
            except AttributeError:  # a second name of something that has gone
                continue
