"""A traced model: what may be changed in it, what that costs, and the changed model itself."""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from .blocks import Block, find_blocks
from .capture import Captured, capture, unlift
from .choice import Candidate, Choice
from .costing.costs import Costs
from .coupling import Coupling, Group, find_coupling
from .decoding import Decoder
from .importance import Criterion
from .importance.measured import Evidence, Measure
from .kinds import make_kinds
from .kinds.base import Making
from .mending import Mending
from .model_copy import plain_copy
from .proving.proof import Proof, own_differs, prove
from .proving.proof_blocks import prove_blocks
from .proving.proof_cache import ProofCache
from .ranking import rank, spanning
from .repair import Calibration
from .repair.gram import Inputs
from .repair.least_squares import RIDGE
from .rewriting.rewrite import Built, is_rewrite, rewrites_of, rewritten
from .space import ModelSide, Repair, Space
from .splitting.cutting import Cutting
from .splitting.splits import plan_of
from .splitting.staged import PlacedStage, Staged, place
from .stages import Cut
from .surgery import Alive, Surgeon
from .switching.elastic import Elastic
from .threads import one_thread


def trace(model: nn.Module, example: Any) -> Blueprint:
    """Capture ``model`` and find what may be changed in it. The model itself is never touched.

    Args:
        example: one batch of real inputs: a tensor, a tuple, a dict of keyword inputs or (args, kwargs).

    Raises:
        CaptureError: the model does not run on its example or cannot be exported.
    """
    return Blueprint(capture(model, example))


class Blueprint(ModelSide):
    """What :func:`trace` found: groups and residual blocks with their costs, and the means to cut them.

    Attributes:
        artifact: ``"module"`` when built networks are the user's own module with sliced parameters,
            ``"graph"`` when they are the captured graph; :meth:`prove` and :meth:`prove_blocks` decide it.
        folded: weights computed at each call (by weight norm, say), and by what; parameters once built.
    """

    def __init__(self, captured: Captured) -> None:
        self.coupling: Coupling = find_coupling(captured)
        self._blocks: tuple[Block, ...] = find_blocks(captured, self.coupling)
        costs = Costs(captured, self.coupling, self._blocks)
        self.cutting = Cutting(captured, self.coupling, self._blocks, costs)
        self._decoder = Decoder(self.coupling, self._blocks, costs, self.cutting)
        self._surgeon = Surgeon(captured.graph_module, captured.source, self.coupling, self._blocks)
        self._captured: Captured | None = captured
        self._unreturned, self.folded = captured.unreturned, captured.copied.folded
        self._copies = not (captured.unreturned or captured.copied.bound)  # those of the source equal it
        self._rewrites = False  # whether a space of it has rewriting choices: they need the graph
        self._program: bytes | None = None  # of a copy that has travelled and needs the graph to build
        self._proof: Proof | None = None
        self._drops: Proof | None = None  # of the blocks
        self._cache: ProofCache | None = None  # made with the proof
        self.mending = Mending()
        self.kinds_left_out: dict[str, str] = {}  # "kind:name" -> reason, noted by kinds of choices
        self._example: tuple[tuple[Any, ...], dict[str, Any]] | None = captured.args, captured.kwargs
        self._elastic: tuple[Any, Elastic] | None = None  # with what it depends on

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
    def surgeon(self) -> Surgeon:
        """Slices the network; knows its tensors and nodes."""
        return self._surgeon

    @property
    def groups(self) -> tuple[Group, ...]:
        """Coupled channel groups that may be pruned; after :meth:`prove`, only the proven ones."""
        out = self._proof.left_out if self._proof else {}
        return tuple(g for g in self.coupling.groups if g.name not in out)

    @property
    def blocks(self) -> tuple[Block, ...]:  # type: ignore[override]
        """Residual blocks that may be dropped; after :meth:`prove_blocks`, only the proven ones."""
        out = self._drops.left_out if self._drops else {}
        return tuple(b for b in self._blocks if b.name not in out)

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
            **self.kinds_left_out,
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
        """Execute every group pruned (see :func:`netcarve.spaces.proving.proof.prove`); done once.

        What was proven before, for the same model, example and code, is read from the user's cache folder
        (see :mod:`.proving.proof_cache`).
        """
        if self._proof is None:
            captured, coupling, surgeon = self.captured, self.coupling, self._surgeon
            self._cache = ProofCache(captured)
            found = self._cache.once(
                "proof", lambda: asdict(prove(captured, coupling, surgeon, progress=progress))
            )
            self._proof = Proof(**found)
        return self._proof

    @one_thread()
    def prove_blocks(self, *, progress: Callable[[int, int], None] | None = None) -> Proof:
        """Run the network without each residual block; done once, and kept (:mod:`.proving.proof_blocks`)."""
        if self._drops is None:
            proof = self.prove()
            captured, coupling, surgeon = self.captured, self.coupling, self._surgeon
            assert self._cache is not None
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

        Whatever a removed input gave to a layer is expressed by the kept ones, in the least-squares sense,
        and folded into the layer's weights and bias. Then the smaller network is run once: each layer is
        fitted to give the original's outputs, and statistics of batch-norms move as their inputs do.

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
        return self.mending.calibrate(self.captured, self.coupling, batches, repair=repair, ridge=ridge)

    @one_thread()
    def space(
        self,
        *kinds: str,
        ratios: int | Sequence[float] = 8,
        importance: str | Criterion | Measure | None = None,
        round_to: int = 1,
        calibration: Sequence[Inputs] | None = None,
        repair: Repair = True,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Space:
        """Search space over this model, proven by execution.

        Args:
            kinds: what to search: ``"prune"`` (the default), ``"drop"`` (residual blocks), ``"mask"``
                (weights set to zero in place, after pruning and repair), ``"splits"`` (where the network is
                cut, and which device runs which stage), or several; :data:`.kinds.KINDS` lists all.
            ratios: pruning ratios per group, as a number or a list (see :func:`pruning_choice`).
            importance: which units go first: ``"l1"``, ``"l2"``, ``"batchnorm"``, ``"cluster"``,
                ``"random"``; with calibration ``"reconstruction"``, ``"taylor"``, ``"gradient"``,
                ``"fisher"``, ``"activation_mean"``, ``"zero_fraction"``; a function, or a criterion such
                as ``Taylor(batches=..., loss=...)`` (see :mod:`.importance`). ``None`` takes
                ``"reconstruction"`` where there is calibration and ``"l1"`` where there is none.
            round_to: keep multiples of this many units.
            calibration: real inputs, ``(args, kwargs)`` each; see :meth:`calibrate`, which this calls.
            repair: how built networks are repaired from then on; see :meth:`calibrate`. ``"merge"`` needs no
                calibration but ``importance="cluster"``: a cluster's strongest unit takes over the others'.
            progress: called with (operators checked, operators) in the proof.
            options: of single kinds, such as ``sparsities``: the fields of their classes in :mod:`.kinds`.

        Raises:
            ValueError: an unknown kind, nothing in this model may be changed (with the reasons), or
                an importance that needs calibration without it.
            TypeError: an option that none of these kinds takes.
        """
        kinds = kinds or ("prune",)
        makers = make_kinds(kinds, options)
        least = self.prove(progress=progress).least
        groups = self.groups if "prune" in kinds else ()
        if calibration is not None:
            self.calibrate(calibration, repair=False if repair == "merge" else repair)
        if repair != "merge":
            self.mending.stop_merging()
        if importance is None:
            importance = "l1" if self.mending.calibration is None else "reconstruction"
        evidence = Evidence(self.captured, self.coupling, self.groups, self.mending.batches)
        orders, merge = self._decoder.orders, repair == "merge"
        key = rank(importance, groups, orders, self._surgeon, self.mending, evidence, merge=merge)
        making = Making(key, least, ratios, round_to, progress)
        choices = [choice for maker in makers for choice in maker.choices(self, making)]
        if not choices:
            what = " or ".join(maker.done for maker in makers)
            reasons = "; ".join(f"{k}: {v}" for k, v in list(self.left_out.items())[:3])
            raise ValueError(f"nothing in this model may be {what}" + (f" ({reasons})" if reasons else ""))
        self._rewrites |= any(map(is_rewrite, choices))
        calibrated = self.mending.calibration is not None
        shared = {
            "ratios": ratios if isinstance(ratios, int) else [float(r) for r in ratios],
            "importance": importance,
            "round_to": round_to,
            "repair": self.mending.repair if calibrated else repair,
        }
        own = {name: value for maker in makers for name, value in maker.recorded().items()}
        recipe = {"kinds": list(kinds), "options": {**shared, **own}, "calibrated": calibrated}
        space = Space(
            [c for c in choices if len(c) > 1] or choices,
            model=self,
            recipe=recipe if isinstance(importance, str) else None,
        )
        if self.artifact == "module" and (candidates := spanning(space)):
            self._check_widths(candidates)
        return space

    def _check_widths(self, candidates: Sequence[Candidate]) -> None:
        """Run the user's module at their widths: its forward may branch on them."""
        assert self._cache is not None
        captured, coupling, surgeon = self.captured, self.coupling, self._surgeon
        cuts = [self.alive(c) for c in candidates]
        name = f"widths {hashlib.sha256(np.packbits(cuts).tobytes()).hexdigest()}"
        if reason := self._cache.once(name, lambda: own_differs(captured, coupling, surgeon, cuts)):
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
    def build(self, candidate: Candidate, *, repair: Repair | None = None) -> nn.Module:
        """Independent smaller module in eval mode: the user's class where proven, else the captured graph.

        Repaired where there was calibration; the unchanged candidate is a copy of the given module. One with
        rewriting options is the captured graph, changed by their edits; one that is cut is a :class:`Staged`.

        Args:
            repair: in place of what :meth:`calibrate` was told.
        """
        whole = self._build(candidate, repair)
        if not self._decoder.is_split(candidate):
            return whole
        return Staged(self.cut(whole, candidate))

    @one_thread()
    def stages(self, candidate: Candidate) -> list[PlacedStage]:
        """The stages of a candidate as independent modules, each with the name of its device.

        They are cut from a new capture and compared with the whole at two batch sizes.

        Raises:
            ValueError: the candidate's space has no splits.
            CutError: the built network cannot be cut there, or the comparison fails.
        """
        return self.cut(self._build(candidate), candidate)

    def cut(self, network: nn.Module, candidate: Candidate) -> list[PlacedStage]:
        """:meth:`stages` of a network built of this candidate before, in one piece (and trained, say)."""
        plan = plan_of(candidate.choices)
        if plan is None:
            raise ValueError("this space has no splits; make one by space('prune', 'splits')")
        example = self.captured.args, self.captured.kwargs
        staging = self.cutting.staging(plan.indices)
        return place(network, example, plan, staging, *self._decoder.placed(candidate))

    def _build(self, candidate: Candidate, repair: Repair | None = None) -> nn.Module:
        """The network in one piece."""
        if self._copies and self._surgeon.source is not None and self.unchanged(candidate):
            return plain_copy(self._surgeon.source)
        alive = self.alive(candidate)
        mend = self.mending.of(candidate, self._surgeon, repair)
        if edits := rewrites_of(candidate):
            run = self.mending.sequential
            sample = None if run is None else run.inputs
            built = Built(candidate, alive, self._surgeon, self.mending.calibration, mend, sample)
            return rewritten(self._surgeon.graph(alive, mend), edits, built)
        make = self._surgeon.own if self.artifact == "module" else self._surgeon.graph
        return make(alive, mend)

    def unchanged(self, candidate: Candidate) -> bool:
        """Is it the given network? Where it is cut and runs makes no difference."""
        return self._decoder.unchanged(candidate)

    def network_key(self, candidate: Candidate) -> bytes:
        """Equal for candidates of a space that are the same network, wherever it is cut."""
        return self._decoder.network_key(candidate)

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
                mending=lambda candidate, repair: self.mending.of(candidate, self._surgeon, repair),
                example=self._example,
            )
            self._elastic = key, made
        return self._elastic[1]

    def moves_statistics(self, candidate: Candidate, repair: Repair | None = None) -> bool:
        return self.mending.moves_statistics(candidate, repair)

    def recalibrated(self, batches: Sequence[Inputs]) -> Blueprint:
        known, repair = self.mending.calibration, self.mending.repair
        if known is None or repair == "merge":
            return self
        other = object.__new__(type(self))  # `copy` would leave out the captured graph
        other.__dict__.update(vars(self))
        other.mending = copy.copy(self.mending)
        other.calibrate(batches, repair=repair, ridge=known.ridge)
        return other

    def check_lengths(self, space: Space, data: Mapping[str, Sequence[Inputs]]) -> None:
        from .proving.lengths import check_lengths

        check_lengths(self, space, data)

    def layers(self, choices: tuple[Choice, ...]) -> list[dict[str, Any]]:
        from .costing.layer_widths import layer_widths

        return [asdict(layer) for layer in layer_widths(self, choices)]

    # -- travel to workers ---------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """The captured program travels (serialised, not pickled) only where the graph is needed to build."""
        state = self.__dict__ | {"_captured": None, "_elastic": None}
        if self.mending.repair:
            state["_example"] = None  # only sorted weights are checked on it, and repair copies weights
        needed = self.artifact == "graph" or self.mending.sequential is not None or self._rewrites
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
