"""A traced model: what may be changed in it, what that costs, and the changed model itself."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from .blocks import Block, find_blocks
from .capture import Captured, capture, unlift
from .choice import Candidate, Choice
from .costs import Costs
from .coupling import Coupling, Group, find_coupling
from .decoding import Decoder
from .drop import Drop, dropping_choice
from .elastic import Elastic
from .importance import CALIBRATED, Criterion, criterion, order
from .importance.cluster import Cluster
from .importance.measured import Evidence, Measure
from .masks.choice import SPARSITIES, maskable, masking_choice
from .mending import Mending, Repair
from .proof import Proof, own_differs, prove, separating
from .proof_blocks import prove_blocks
from .proof_cache import ProofCache
from .prune import pruning_choice
from .repair import Calibration
from .repair.gram import Inputs
from .repair.least_squares import RIDGE
from .repair.merging import Merging
from .space import Space
from .surgery import Alive, Surgeon
from .threads import one_thread

KINDS = ("prune", "drop", "mask")
DONE = {"prune": "pruned", "drop": "dropped", "mask": "masked"}


def trace(model: nn.Module, example: Any) -> Blueprint:
    """Capture ``model`` and find what may be changed in it. The model itself is never touched.

    Args:
        example: one batch of real inputs: a tensor, a tuple, a dict of keyword inputs or (args, kwargs).

    Raises:
        CaptureError: the model does not run on its example or cannot be exported.
    """
    return Blueprint(capture(model, example))


class Blueprint:
    """What :func:`trace` found: groups and residual blocks with their costs, and the means to cut them.

    Attributes:
        artifact: ``"module"`` when built networks are the user's own module with sliced parameters,
            ``"graph"`` when they are the captured graph (known after :meth:`prove`; blocks that are no
            modules of their own can only be dropped from the graph, so :meth:`prove_blocks` may change it).
    """

    def __init__(self, captured: Captured) -> None:
        self.coupling: Coupling = find_coupling(captured)
        self._blocks: tuple[Block, ...] = find_blocks(captured, self.coupling)
        self._decoder = Decoder(self.coupling, self._blocks, Costs(captured, self.coupling, self._blocks))
        self._surgeon = Surgeon(captured.graph_module, captured.source, self.coupling, self._blocks)
        self._captured: Captured | None = captured
        self._unreturned = captured.unreturned
        self._program: bytes | None = None  # of a copy that has travelled and needs the graph to build
        self._proof: Proof | None = None
        self._drops: Proof | None = None  # of the blocks
        self._cache: ProofCache | None = None  # made with the proof
        self.mending = Mending()
        self._example: tuple[tuple[Any, ...], dict[str, Any]] | None = captured.args, captured.kwargs
        self._elastic: tuple[Any, Elastic] | None = None  # with what it depends on

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
        return "module" if all(p is None or p.own for p in (self._proof, self._drops)) else "graph"

    @property
    def artifact_reasons(self) -> dict[str, str]:
        """Why built networks are the captured graph, by proven kind of space (``"prune"``, ``"drop"``)."""
        proofs = {"prune": self._proof, "drop": self._drops}
        return {kind: p.own_reason for kind, p in proofs.items() if p is not None and not p.own}

    @one_thread()
    def prove(self, *, progress: Callable[[int, int], None] | None = None) -> Proof:
        """Execute every group pruned (see :func:`netcarve.spaces.proof.prove`); done once.

        What was proven before, for the same model, example and code, is read from the user's cache folder
        (see :mod:`.proof_cache`).
        """
        if self._proof is None:
            if self._captured is None:
                raise RuntimeError("this copy of the blueprint holds no captured graph; prove the original")
            captured, coupling, surgeon = self._captured, self.coupling, self._surgeon
            self._cache = ProofCache(captured)
            found = self._cache.once(
                "proof", lambda: asdict(prove(captured, coupling, surgeon, progress=progress))
            )
            self._proof = Proof(**found)
        return self._proof

    @one_thread()
    def prove_blocks(self, *, progress: Callable[[int, int], None] | None = None) -> Proof:
        """Execute the network without each residual block (see :mod:`.proof_blocks`); done once, and kept."""
        if self._drops is None:
            proof = self.prove()
            if self._captured is None or self._cache is None:
                raise RuntimeError("this copy of the blueprint holds no captured graph; prove the original")
            captured, coupling, surgeon = self._captured, self.coupling, self._surgeon
            found = self._cache.once(
                "blocks",
                lambda: asdict(prove_blocks(captured, coupling, surgeon, proof, progress=progress)),
            )
            self._drops = Proof(**found)
        return self._drops

    @one_thread()
    def calibrate(
        self, batches: Sequence[Inputs], *, repair: bool | Literal["once"] = True, ridge: float = RIDGE
    ) -> Calibration:
        """Measure on real inputs what the layers read; from then on built networks are repaired.

        Repair needs no training: whatever a removed input gave to a layer is expressed by the kept ones, in
        the least-squares sense, and folded into the layer's weights and bias. Then the smaller network is
        run once, and each layer on the way is fitted to give the original's outputs from what it now gets.
        Re-estimating BatchNorm on all calibration data is up to the caller.

        Args:
            batches: ``(args, kwargs)`` each, a few hundred samples in all.
            repair: ``True``; ``"once"`` leaves out the run, which is several times faster and worth less the
                deeper the cut; ``False`` measures for ``importance="reconstruction"`` alone.
            ridge: damping, relative to the mean variance of a layer's inputs.

        Raises:
            ValueError: no batches, an unknown ``repair``, or a negative ridge.
        """
        if ridge < 0:
            raise ValueError(f"ridge must not be negative, got {ridge}")
        if repair not in (True, False, "once"):
            raise ValueError(f"repair is True, False or 'once', got {repair!r}")
        if self._captured is None:
            raise RuntimeError("this copy of the blueprint holds no captured graph; calibrate the original")
        return self.mending.calibrate(self._captured, self.coupling, batches, repair=repair, ridge=ridge)

    @one_thread()
    def space(
        self,
        *kinds: str,
        ratios: int | Sequence[float] = 8,
        importance: str | Criterion | Measure | None = None,
        round_to: int = 1,
        calibration: Sequence[Inputs] | None = None,
        repair: Repair = True,
        sparsities: Sequence[float] = SPARSITIES,
        granularity: str = "element",
        norm: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> Space:
        """Search space over this model, proven by execution.

        Args:
            kinds: what to search: ``"prune"`` (the default), ``"drop"`` (residual blocks), ``"mask"``
                (weights set to zero in place, after pruning and repair), or several.
            ratios: pruning ratios per group, as a number or a list (see :func:`pruning_choice`).
            importance: which units go first: ``"l1"``, ``"l2"``, ``"batchnorm"``, ``"cluster"``,
                ``"random"``; with calibration ``"reconstruction"``, ``"taylor"``, ``"gradient"``,
                ``"fisher"``, ``"activation_mean"``, ``"zero_fraction"``; a function, or a criterion such
                as ``Taylor(batches=..., loss=...)`` (see :mod:`.importance`). ``None`` takes
                ``"reconstruction"`` where there is calibration and ``"l1"`` where there is none.
            round_to: keep multiples of this many units.
            calibration: real inputs, ``(args, kwargs)`` each; see :meth:`calibrate`, which this calls.
            repair: how built networks are repaired from then on; see :meth:`calibrate`. ``"merge"`` needs no
                calibration but ``importance="cluster"``: a cluster's strongest unit outlives the others and
                takes over their outgoing weights.
            sparsities: shares of each weight that masks set to zero, 0 first.
            granularity, norm: of the masks; see :class:`.masks.Sparsify`.
            progress: called with (operators checked, operators) during the proof.

        Raises:
            ValueError: an unknown kind, nothing in this model may be changed (with the reasons), or
                an importance that needs calibration without it.
        """
        if self._captured is None:
            raise RuntimeError("this copy of the blueprint holds no captured graph; use the original")
        unknown = [k for k in kinds if k not in KINDS]
        if unknown:
            raise ValueError(f"unknown kind of space {unknown[0]!r}; this version knows {', '.join(KINDS)}")
        kinds = kinds or KINDS[:1]
        least = self.prove(progress=progress).least
        groups = self.groups if "prune" in kinds else ()
        if "drop" in kinds:
            self.prove_blocks(progress=progress)
        blocks = self.blocks if "drop" in kinds else ()
        weights = maskable(self._captured.graph_module.graph, self.coupling) if "mask" in kinds else []
        if not groups and not blocks and not weights:
            what = " or ".join(DONE[k] for k in kinds)
            reasons = "; ".join(f"{k}: {v}" for k, v in list(self.left_out.items())[:3])
            raise ValueError(f"nothing in this model may be {what}" + (f" ({reasons})" if reasons else ""))
        if calibration is not None:
            self.calibrate(calibration, repair=False if repair == "merge" else repair)
        if repair != "merge":
            self.mending.stop_merging()
        if importance is None:
            importance = "l1" if self.mending.calibration is None else "reconstruction"
        key = self._order(importance, groups, merge=repair == "merge")
        widths: dict[str, Any] = {"ratios": ratios, "round_to": round_to, "order": key}
        choices = [pruning_choice(g, least=least.get(g.name, 1), **widths) for g in groups]
        choices += [dropping_choice(b) for b in blocks]
        masks: dict[str, Any] = {"sparsities": sparsities, "granularity": granularity, "norm": norm}
        choices += [masking_choice(w, **masks) for w in weights]
        calibrated = self.mending.calibration is not None
        options = {
            "ratios": ratios if isinstance(ratios, int) else [float(r) for r in ratios],
            "importance": importance,
            "round_to": round_to,
            "repair": self.mending.repair if calibrated else repair,
            **({**masks, "sparsities": [float(s) for s in sparsities]} if weights else {}),
        }
        recipe: dict[str, Any] | None = None
        if isinstance(importance, str):
            recipe = {"kinds": list(kinds), "options": options, "calibrated": calibrated}
        space = Space([c for c in choices if len(c) > 1] or choices, model=self, recipe=recipe)
        self._check_widths(space)
        return space

    def _order(self, importance: str | Criterion | Measure, groups: Sequence[Group], *, merge: bool) -> str:
        """Rank the units of all groups; the name under which the order is kept."""
        by = criterion(importance, self.mending.calibration, self._evidence())
        orders = self._decoder.orders
        key = importance if isinstance(importance, str) else f"{type(by).__name__}-{len(orders)}"
        if isinstance(importance, str) and importance in CALIBRATED:
            key = f"{importance}-{self.mending.count}"  # another calibration gives another order
        if merge:
            if not isinstance(by, Cluster):
                raise ValueError(
                    "repair='merge' lets one unit of a cluster stand for the others, so importance must be "
                    f"'cluster' or Cluster(...), got {importance!r}"
                )
            by, key = by.keeping_one(), f"{key}-merged"
        if groups and key not in orders:
            orders[key] = {g.name: order(g, self._surgeon.tensors, by) for g in self.groups}
        if isinstance(by, Cluster) and merge and self._captured is not None:
            clusters = {g.name: by.clusters(g, self._surgeon.tensors) for g in groups}
            graph = self._captured.graph_module.graph
            self.mending.merge(Merging(graph, self.coupling, orders=orders.get(key, {}), clusters=clusters))
        return key

    def _evidence(self) -> Evidence | None:
        if self._captured is None:
            return None
        return Evidence(self._captured, self.coupling, self.groups, self.mending.batches)

    def _check_widths(self, space: Space) -> None:
        """Run the user's module at the widths that ``space`` offers: its forward may branch on them.

        Every option of every choice is taken once, with all blocks in place and, compressed most, without;
        of every two choices each is once compressed most while the other is unchanged.
        """
        if self._captured is None or self._cache is None or self.artifact == "graph":
            return
        last = space.counts - 1
        drops = np.array([isinstance(c.edit, Drop) for c in space.choices])
        steps = [np.where(drops, 0, np.minimum(k, last)) for k in range(1, last.max() + 1)]
        steps += [last] if drops.any() else []
        steps += [np.where(np.isin(np.arange(len(space)), part), last, 0) for part in separating(len(space))]
        cuts = [self.alive(space.candidate(indices)) for indices in steps]
        captured, coupling, surgeon = self._captured, self.coupling, self._surgeon
        name = f"widths {hashlib.sha256(np.packbits(cuts).tobytes()).hexdigest()}"
        reason = self._cache.once(name, lambda: own_differs(captured, coupling, surgeon, cuts))
        if reason:
            self._proof = replace(self.prove(), own=False, own_reason=reason)

    # -- the model side of a space -------------------------------------------------------------------

    def cost_arrays(self, choices: tuple[Choice, ...], indices: np.ndarray) -> dict[str, np.ndarray]:
        """Analytic costs of candidates; see :meth:`Decoder.cost_arrays`."""
        return self._decoder.cost_arrays(choices, indices)

    def cost_bounds(
        self, choices: tuple[Choice, ...], low: np.ndarray, high: np.ndarray
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Certain bounds on costs over boxes of candidates; see :meth:`Decoder.cost_bounds`."""
        return self._decoder.cost_bounds(choices, low, high)

    def kept(self, candidate: Candidate) -> dict[str, np.ndarray]:
        """Units kept in each pruned group, ascending, by group name."""
        return self._decoder.kept(candidate)

    def alive(self, candidate: Candidate) -> Alive:
        """What stays; see :meth:`Decoder.alive`."""
        return self._decoder.alive(candidate)

    @one_thread()
    def build(self, candidate: Candidate) -> nn.Module:
        """Independent smaller module in eval mode: the user's class where proven, else the captured graph.

        Repaired where there was calibration (see :meth:`calibrate`).
        """
        alive = self.alive(candidate)
        mend = self.mending.of(candidate, self._surgeon)
        make = self._surgeon.own if self.artifact == "module" else self._surgeon.graph
        return make(alive, mend)

    def elastic(self, choices: tuple[Choice, ...]) -> Elastic:
        """One network that switches between the candidates of a space with these ``choices``.

        Made at the first call, and kept for the next; it does not travel.
        """
        key = choices, self.artifact, self.mending.repair, self.mending.count
        if self._elastic is None or self._elastic[0] != key:
            made = Elastic(
                self._surgeon,
                choices,
                self._decoder.orders,
                own=self.artifact == "module",
                alive=self.alive,
                mending=lambda candidate: self.mending.of(candidate, self._surgeon),
                example=self._example,
            )
            self._elastic = key, made
        return self._elastic[1]

    # -- travel to workers ---------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """The captured program travels (serialised, not pickled) only where the graph is needed to build."""
        state = self.__dict__ | {"_captured": None, "_elastic": None}
        if self.mending.repair:
            state["_example"] = None  # only sorted weights are checked on it, and repair copies weights
        needed = self.artifact == "graph" or self.mending.sequential is not None
        if needed and self._captured is not None:
            buffer = io.BytesIO()
            torch.export.save(self._captured.program, buffer)
            state["_program"] = buffer.getvalue()
        elif not needed:
            state["_program"] = None
        # The graph alone needs nothing of the surgeon: it is made again from the program.
        state["_surgeon"] = self._surgeon.without_graph() if self.artifact == "module" else None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._program is not None:
            module = unlift(torch.export.load(io.BytesIO(self._program)))
            if self._surgeon is None:
                self._surgeon = Surgeon(module, None, self.coupling, self._blocks)
            else:
                self._surgeon.module = module
