"""Blueprint: a traced model, which makes search spaces over itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from torch import nn

from ..model.capture import capture
from ..model.facts import Facts
from ..model.importance import Criterion, criterion, order
from ..model.importance.cluster import Cluster
from ..model.importance.measured import Evidence, Measure
from ..model.repair.gram import Inputs
from ..model.repair.least_squares import RIDGE
from ..model.repair.merging import Merging
from ..model.surgery import Alive
from ..model.threads import one_thread
from .builder import Builder
from .choice import Candidate
from .decoding import Decoder
from .kinds import make_kinds
from .kinds.base import Kind, Making
from .mending import Calibrated, Mending
from .space import Repair, Space

Order = Callable[[str], np.ndarray]  # units of a group by its name, the most important first


def trace(model: nn.Module, example: Any) -> Blueprint:
    """Capture ``model`` and find what may be changed in it. The model itself is never touched.

    Args:
        example: one batch of real inputs: a tensor, a tuple, a dict of keyword inputs or (args, kwargs).

    Raises:
        CaptureError: the model does not run on its example or cannot be exported.
    """
    return Blueprint(capture(model, example))


class Blueprint(Facts):
    """What :func:`trace` found: groups and residual blocks with their costs, and the spaces over them.

    Spaces share these facts and nothing else: calibration, orders of units, repair and what its kinds were
    asked for belong to each space (see :class:`.builder.Builder`).
    """

    @one_thread()
    def calibrate(
        self, batches: Sequence[Inputs], *, repair: bool | Literal["once"] = True, ridge: float = RIDGE
    ) -> Calibrated:
        """Measure on real inputs what the layers read; give it to ``space(calibration=...)``, to several too.

        The networks of such a space are repaired: whatever a removed input gave to a layer is expressed by
        the kept ones, in the least-squares sense, and folded into the layer's weights and bias. Then the
        smaller network is run once: each layer is fitted to give the original's outputs, and statistics of
        batch-norms move as their inputs do.

        Args:
            batches: ``(args, kwargs)`` each, a few hundred samples in all.
            repair: ``True``; ``"once"`` leaves out the run, which is several times faster and worth less the
                deeper the cut; ``False`` measures for ``importance="reconstruction"`` alone.
            ridge: damping, relative to the mean variance of a layer's inputs.

        Raises:
            ValueError: no batches, an unknown ``repair``, or a negative ridge.
        """
        return Calibrated.of(self, batches, repair=repair, ridge=ridge)

    @one_thread()
    def space(
        self,
        *kinds: str,
        ratios: int | Sequence[float] = 8,
        importance: str | Criterion | Measure | None = None,
        round_to: int = 1,
        calibration: Sequence[Inputs] | Calibrated | None = None,
        repair: Repair | None = None,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Space:
        """Search space over this model, proven by execution.

        Args:
            kinds: what to search: ``"prune"`` (the default), ``"drop"`` (residual blocks), ``"mask"``
                (weights set to zero in place, after pruning and repair), ``"splits"`` (where the network is
                cut, and which device runs which stage), or several; :func:`.kinds.known_kinds` lists all.
            ratios: pruning ratios per group, as a number or a list (see :mod:`.kinds.prune`).
            importance: which units go first: ``"l1"``, ``"l2"``, ``"batchnorm"``, ``"cluster"``,
                ``"random"``; with calibration ``"reconstruction"``, ``"taylor"``, ``"gradient"``,
                ``"fisher"``, ``"activation_mean"``, ``"zero_fraction"``; a function, or a criterion such
                as ``Taylor(batches=..., loss=...)`` (see :mod:`.importance`). ``None`` takes
                ``"reconstruction"`` where there is calibration and ``"l1"`` where there is none.
            round_to: keep multiples of this many units.
            calibration: real inputs, ``(args, kwargs)`` each, or what :meth:`calibrate` has given; this calls
                it otherwise.
            repair: how this space's networks are repaired; see :meth:`calibrate`, of which ``None`` takes
                what that was asked for. ``"merge"`` needs no calibration but ``importance="cluster"``: a
                cluster's strongest unit takes over the others'.
            progress: called with (operators checked, operators) in the proof.
            options: of single kinds, such as ``sparsities``: the fields of their classes in :mod:`.kinds`.

        Raises:
            ValueError: an unknown kind, nothing in this model may be changed (with the reasons), or
                an importance or a repair that needs calibration without it.
            TypeError: an option that none of these kinds takes.
        """
        kinds = kinds or ("prune",)
        makers = make_kinds(kinds, options)
        least = self.prove(progress=progress).least
        data = self._calibrated(calibration, repair)
        if importance is None:
            importance = "l1" if data is None else "reconstruction"
        ranked, merging = self._ranked(importance, data, merge=repair == "merge", pruned="prune" in kinds)
        moments, batches = (None, ()) if data is None else (data.moments, data.batches)
        run = None if data is None or data.sequential is None else data.sequential.inputs
        making = Making(ranked, least, ratios, round_to, moments, batches, progress, run)
        found = [maker.find(self, making) for maker in makers]
        refusals = {name: why for one in found for name, why in one.refusals.items()}
        choices = [choice for one in found for choice in one.choices]
        if not choices:
            what = " or ".join(maker.done for maker in makers)
            reasons = "; ".join(f"{k}: {v}" for k, v in list({**self.left_out, **refusals}.items())[:3])
            raise ValueError(f"nothing in this model may be {what}" + (f" ({reasons})" if reasons else ""))
        wanted: Repair = repair if repair is not None else data.repair if data is not None else True
        mending = Mending(wanted if data is not None or merging is not None else False, data, merging)
        side = Builder(self, mending, graph=any(m.rewrites for m in makers), refusals=refusals)
        space = Space([c for c in choices if len(c) > 1] or choices, model=side)
        side.own_reason = self.own_reason(drops=bool(side.decoder.read(space.choices).dropped))
        if side.artifact == "module" and (candidates := side.decoder.spanning(space)):
            side.own_reason = self.differs([side.alive(c) for c in candidates])
        if isinstance(importance, str):
            shared = {
                "ratios": ratios if isinstance(ratios, int) else [float(r) for r in ratios],
                "importance": importance,
                "round_to": round_to,
                "repair": wanted,
            }
            space.recipe = recipe(kinds, makers, shared, calibrated=data is not None)
        return space

    def _calibrated(
        self, given: Sequence[Inputs] | Calibrated | None, repair: Repair | None
    ) -> Calibrated | None:
        if given is None or isinstance(given, Calibrated):
            if repair is True and given is not None and given.sequential is None:
                raise ValueError(
                    f"these data were calibrated with repair={given.repair!r}; repair=True needs "
                    "calibrate(batches, repair=True)"
                )
            return given
        return self.calibrate(
            given, repair=False if repair == "merge" else True if repair is None else repair
        )

    def _ranked(
        self, importance: str | Criterion | Measure, data: Calibrated | None, *, merge: bool, pruned: bool
    ) -> tuple[Order, Merging | None]:
        """The order of the units of each proven group, found when asked for; how clusters are merged.

        Raises:
            ValueError: an unknown importance, one that needs calibration without it, or one that has no
                clusters to merge.
        """
        groups = {g.name: g for g in self.groups}
        batches = () if data is None else data.batches
        evidence = Evidence(self.captured, self.coupling, tuple(groups.values()), batches)
        by = criterion(importance, None if data is None else data.moments, evidence)
        if merge:
            if not isinstance(by, Cluster):
                raise ValueError(
                    "repair='merge' lets one unit of a cluster stand for the others, so importance must be "
                    f"'cluster' or Cluster(...), got {importance!r}"
                )
            by = by.keeping_one()
        ranked = cache(lambda name: order(groups[name], self.surgeon.tensors, by))
        if not merge:
            return ranked, None
        assert isinstance(by, Cluster)
        clusters = {n: by.clusters(g, self.surgeon.tensors) for n, g in groups.items()} if pruned else {}
        orders = {name: ranked(name) for name in clusters}
        return ranked, Merging(
            self.captured.graph_module.graph, self.coupling, orders=orders, clusters=clusters
        )

    # -- what a candidate keeps, whichever of the blueprint's spaces it is of --------------------------

    def kept(self, candidate: Candidate) -> dict[str, np.ndarray]:
        """Units kept in each pruned group, ascending, by group name."""
        return Decoder(self).kept(candidate)

    def alive(self, candidate: Candidate) -> Alive:
        """What stays; see :meth:`Decoder.alive`."""
        return Decoder(self).alive(candidate)


def recipe(
    kinds: Sequence[str], makers: Sequence[Kind], shared: Mapping[str, Any], *, calibrated: bool
) -> dict[str, Any]:
    """How a space was made, as plain data: what ``Blueprint.space`` makes an equal one from."""
    own = {name: value for maker in makers for name, value in maker.recorded().items()}
    return {"kinds": list(kinds), "options": {**shared, **own}, "calibrated": calibrated}
