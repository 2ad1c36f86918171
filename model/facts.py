"""Facts about one traced network: what was captured, found and proven. Making a space changes none."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from .blocks import Block, find_blocks
from .capture import Captured, unlift
from .costs import Costs
from .coupling import Coupling, Group, find_coupling
from .proof import Proof, own_differs, prove
from .proof_blocks import prove_blocks
from .proof_cache import ProofCache
from .stages import Cut
from .stages.cutting import Cutting
from .surgery import Alive, Surgeon
from .threads import one_thread


class Facts:
    """A captured network with its coupling, blocks, costs, legal cuts and proofs, and the means to cut it.

    What takes long is found when it is first asked for, and never changes afterwards.

    Attributes:
        coupling: which channels belong together.
        costs: cost polynomials.
        surgeon: slices the network; knows its tensors and nodes.
        cutting: where it may be cut into stages.
        example: ``(args, kwargs)`` that it was captured with.
        folded: weights computed at each call (by weight norm, say), and by what; parameters once built.
        copies: whether copies of the given module equal it, so that they may stand for the unchanged network.
    """

    def __init__(self, captured: Captured) -> None:
        self._captured: Captured | None = captured
        self.coupling: Coupling = find_coupling(captured)
        self._blocks: tuple[Block, ...] = find_blocks(captured, self.coupling)
        self.costs = Costs(captured, self.coupling, self._blocks)
        self.cutting = Cutting(captured, self.coupling, self._blocks, self.costs)
        self.surgeon = Surgeon(captured.graph_module, captured.source, self.coupling, self._blocks)
        self.example = captured.args, captured.kwargs
        self._unreturned, self.folded = captured.unreturned, captured.copied.folded
        self.copies = not (captured.unreturned or captured.copied.bound)
        self._proof: Proof | None = None
        self._drops: Proof | None = None  # of the blocks
        self._cache: ProofCache | None = None  # made with the proof
        self._program: bytes | None = None  # of a copy that has travelled and needs the graph to build

    @property
    def captured(self) -> Captured:
        """The unchanged network as captured.

        Raises:
            RuntimeError: this is a copy that has travelled to a worker, which holds none.
        """
        if self._captured is None:
            raise RuntimeError("this copy of the blueprint holds no captured graph; use the original")
        return self._captured

    @property
    def groups(self) -> tuple[Group, ...]:
        """Coupled channel groups that may be pruned; after :meth:`prove`, only the proven ones."""
        out = self._proof.left_out if self._proof else {}
        return tuple(g for g in self.coupling.groups if g.name not in out)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Residual blocks that may be dropped; after :meth:`prove_blocks`, only the proven ones."""
        out = self._drops.left_out if self._drops else {}
        return tuple(b for b in self._blocks if b.name not in out)

    @property
    def all_blocks(self) -> tuple[Block, ...]:
        """Those that may not be dropped too, in the order of :data:`.surgery.Alive`."""
        return self._blocks

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """Legal cuts of the unchanged network, in its order; found at the first call.

        Raises:
            CutError: the model has state between calls, or effects whose order matters.
        """
        return self.cutting.cuts

    @property
    def left_out(self) -> dict[str, str]:
        """Modules and groups that may not be pruned, and blocks (``drop:<name>``), with the reason."""
        drops = self._drops.left_out if self._drops else {}
        return {
            **self.coupling.frozen,
            **(self._proof.left_out if self._proof else {}),
            **{f"drop:{name}": reason for name, reason in drops.items()},
            **{f"output {kind}": "is no tensor: the captured graph gives None" for kind in self._unreturned},
        }

    @property
    def artifact(self) -> str:
        """What proofs allow built networks to be: ``"module"``, the user's own with sliced parameters, or
        else ``"graph"``, the captured one. What a space builds follows from its own choices, see
        :attr:`Builder.artifact`.
        """
        return "module" if all(p is None or p.own for p in (self._proof, self._drops)) else "graph"

    def own_reason(self, *, drops: bool) -> str:
        """Why built networks are the captured graph; empty where they are the user's own module.

        Args:
            drops: whether blocks may be dropped; their proof counts then.
        """
        proofs = [self.prove(), self.prove_blocks()] if drops else [self.prove()]
        return next((p.own_reason or "it differs" for p in proofs if not p.own), "")

    @property
    def artifact_reasons(self) -> dict[str, str]:
        """Why built networks are the captured graph, by proven kind of space (``"prune"``, ``"drop"``)."""
        proofs = {"prune": self._proof, "drop": self._drops}
        return {kind: p.own_reason for kind, p in proofs.items() if p is not None and not p.own}

    @one_thread()
    def prove(self, *, progress: Callable[[int, int], None] | None = None) -> Proof:
        """Execute every group pruned (see :func:`netcarve.model.proof.prove`); done once.

        What was proven before, for the same model, example and code, is read from the user's cache folder
        (see :mod:`.proving.proof_cache`).
        """
        if self._proof is None:
            captured, coupling, surgeon = self.captured, self.coupling, self.surgeon
            found = self.cache.once(
                "proof", lambda: asdict(prove(captured, coupling, surgeon, progress=progress))
            )
            self._proof = Proof(**found)
        return self._proof

    @one_thread()
    def prove_blocks(self, *, progress: Callable[[int, int], None] | None = None) -> Proof:
        """Run the network without each residual block; done once, and kept (:mod:`.proving.proof_blocks`)."""
        if self._drops is None:
            proof = self.prove()
            captured, coupling, surgeon = self.captured, self.coupling, self.surgeon
            found = self.cache.once(
                "blocks",
                lambda: asdict(prove_blocks(captured, coupling, surgeon, proof, progress=progress)),
            )
            self._drops = Proof(**found)
        return self._drops

    @property
    def cache(self) -> ProofCache:
        """Findings about this network that outlive the process."""
        if self._cache is None:
            self._cache = ProofCache(self.captured)
        return self._cache

    @one_thread()
    def differs(self, cuts: Sequence[Alive]) -> str:
        """Why the user's module may not stand for the graph at these cuts (its forward may branch on widths);
        empty where it may. Kept like the proofs.
        """
        captured, coupling, surgeon = self.captured, self.coupling, self.surgeon
        name = f"widths {hashlib.sha256(np.packbits(cuts).tobytes()).hexdigest()}"
        return self.cache.once(name, lambda: own_differs(captured, coupling, surgeon, list(cuts)))

    # -- travel to workers ---------------------------------------------------------------------------

    def light(self, *, graph: bool, own: bool, example: bool = True) -> Facts:
        """A copy to pickle.

        Args:
            graph: it must build the captured graph: the program travels, serialised and not pickled.
            own: it must slice the user's module.
            example: it must check sorted weights on the example.
        """
        other = object.__new__(Facts)
        other.__dict__.update(self.__dict__ | {"_captured": None, "_cache": None, "_program": self._program})
        if not example:
            other.example = None  # type: ignore[assignment]
        if graph and self._captured is not None:
            buffer = io.BytesIO()
            torch.export.save(self._captured.program, buffer)
            other._program = buffer.getvalue()
        elif not graph:
            other._program = None
        # The graph alone needs nothing of the surgeon: it is made again from the program.
        other.surgeon = self.surgeon.without_graph() if own else None  # type: ignore[assignment]
        return other

    def __getstate__(self) -> dict[str, Any]:
        if self._captured is None:
            return self.__dict__
        return self.light(graph=self.artifact == "graph", own=self.artifact == "module").__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._program is not None:
            module = unlift(torch.export.load(io.BytesIO(self._program)))
            if self.surgeon is None:
                self.surgeon = Surgeon(module, None, self.coupling, self._blocks)
            else:
                self.surgeon.module = module

    @property
    def source(self) -> nn.Module | None:
        """The given module; ``None`` in a copy that only builds graphs."""
        return self.surgeon.source
