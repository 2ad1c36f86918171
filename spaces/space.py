"""Search space: a finite product of choices. Numbers only; the model side does what candidates mean."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from .choice import Candidate, Choice, Option, indices_of

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from ..model.repair.gram import Inputs
    from .kinds.splits.staged import PlacedStage

Repair = bool | Literal["once", "merge"]  # how built networks are mended without training


class Switching(Protocol):
    """One resident network that takes the place of many built ones."""

    @property
    def free(self) -> bool:
        """Whether nobody has it from :meth:`lend`."""

    def switches(self, candidate: Candidate) -> bool:
        """Can it become this candidate's network?"""

    def lend(
        self, candidate: Candidate, *, copies: bool = False, repair: Repair | None = None
    ) -> AbstractContextManager[torch.nn.Module]:
        """The candidate's network in eval mode; what is done to it is undone afterwards.

        Args:
            copies: give parameters of its own, which may be changed in place.
            repair: in place of the space's own.
        """


class ModelSide:
    """All that a space asks of the model behind it; this one answers for a space that has none.

    ``trace(...).space(...)`` gives a space the real one. A subclass answers what it can: searchers need
    :meth:`cost_arrays` alone.
    """

    blocks: tuple[Any, ...] = ()  # residual blocks that may be dropped

    @property
    def left_out(self) -> dict[str, str]:
        """What may not be decided about: name -> reason."""
        return {}

    def joined(self, other: ModelSide) -> ModelSide:
        """The model side of both spaces' choices together.

        Raises:
            ValueError: they are of two models, or were calibrated or repaired differently.
        """
        if other is not self:
            raise ValueError(
                "cannot join spaces of two different models; make both from one `trace(model, example)`"
            )
        return self

    def cost_arrays(self, choices: tuple[Choice, ...], indices: np.ndarray) -> dict[str, np.ndarray]:
        """Analytic costs, float64 [n] each by metric, of candidates given as option indices [n, choices]."""
        return {}

    def cost_bounds(
        self, choices: tuple[Choice, ...], low: np.ndarray, high: np.ndarray
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Bounds (least, most) [n] on some costs over boxes ``low <= indices <= high`` [n, choices]."""
        return {}

    def build(self, candidate: Candidate, *, repair: Repair | None = None) -> torch.nn.Module:
        """An independent network in eval mode, really smaller.

        Args:
            repair: in place of the space's own.

        Raises:
            ValueError: there is no model.
        """
        raise ValueError("this needs a space of a model; make one by `trace(model, example).space(...)`")

    def cut(self, network: torch.nn.Module, candidate: Candidate) -> list[PlacedStage]:
        """The stages of a network that was built of this candidate in one piece, with their devices.

        Raises:
            ValueError: the candidate's space has no splits.
        """
        raise ValueError("stages need a space of a model, with splits: space('prune', 'splits')")

    def stages(self, candidate: Candidate) -> list[PlacedStage]:
        """:meth:`cut` of the candidate's network, which is built for it."""
        return self.cut(self.build(candidate), candidate)

    def unchanged(self, candidate: Candidate) -> bool:
        """Is it the network that was given, wherever it is cut and runs?"""
        return not any(candidate.indices)

    def network_key(self, candidate: Candidate) -> bytes | None:
        """Equal for candidates that are the same network; ``None`` where that is not known."""
        return None

    def elastic(self, choices: tuple[Choice, ...]) -> Switching | None:
        """One network that switches between the candidates of a space with these choices; None without."""
        return None

    def moves_statistics(self, candidate: Candidate, repair: Repair | None = None) -> bool:
        """Do built networks come with running statistics that fit their activations?"""
        return False

    def recalibrated(self, batches: Sequence[Inputs]) -> ModelSide:
        """The same with other calibration data; itself where none are used."""
        return self

    def check_lengths(self, space: Space, data: Mapping[str, Sequence[Inputs]]) -> None:
        """Refuse inputs of lengths that the networks of ``space`` do not take.

        Args:
            data: ``(args, kwargs)`` each, by what they are (``"validation"``).

        Raises:
            ValueError: names the input and the length, with the cure.
        """

    def layers(self, choices: tuple[Choice, ...]) -> list[dict[str, Any]]:
        """What decides the width of each layer, in network order; see :class:`.layer_widths.LayerWidth`."""
        return []


class Space:
    """A finite product of choices: one :class:`Candidate` takes one option of each.

    ``Space([Choice(...), ...])`` is complete for searching. A space made by ``Blueprint.space`` also
    knows the model, so that :meth:`costs` and :meth:`build` work.

    Args:
        choices: at least one, with distinct names.
        model: the model side, shared by spaces that are joined with ``+``.
        recipe: how ``Blueprint.space`` was called, as plain data, so that a run can make the space again:
            ``{"kinds": [...], "options": {...}, "calibrated": bool}``; ``None`` when that cannot be told.

    Raises:
        ValueError: no choices, or two of the same name.
    """

    def __init__(
        self,
        choices: Sequence[Choice],
        *,
        model: ModelSide | None = None,
        recipe: dict[str, Any] | None = None,
    ) -> None:
        self.choices: tuple[Choice, ...] = tuple(choices)
        self.model = model
        self.recipe = recipe
        if not self.choices:
            raise ValueError("a space needs at least one choice, got none")
        names = [c.name for c in self.choices]
        twice = sorted(n for n, count in Counter(names).items() if count > 1)
        if twice:
            raise ValueError(f"choices must have distinct names; given more than once: {twice}")
        self.counts = np.array([len(c) for c in self.choices], dtype=np.int64)  # [choices], options each

    @property
    def left_out(self) -> dict[str, str]:
        """What its kinds and proofs leave alone (groups, ``"drop:<block>"``, ...), with the reason."""
        return self.side.left_out

    @property
    def neutral(self) -> np.ndarray:
        """[choices] bool: those that decide where a network runs, and nothing about what it computes."""
        return np.array([c.neutral for c in self.choices], dtype=bool)

    def __len__(self) -> int:
        return len(self.choices)

    def __repr__(self) -> str:
        return f"Space({len(self)} choices, {self.size:,} candidates)"

    def __add__(self, other: Space) -> Space:
        """Join two spaces, of one model at most.

        Raises:
            ValueError: they are of two models, or were calibrated or repaired differently.
        """
        if not isinstance(other, Space):
            return NotImplemented
        if self.model is not None and other.model is not None:
            return Space(self.choices + other.choices, model=self.model.joined(other.model))
        return Space(self.choices + other.choices, model=self.model or other.model)

    @property
    def size(self) -> int:
        """Number of candidates (exact, arbitrary precision)."""
        return math.prod(len(c) for c in self.choices)

    @property
    def baseline(self) -> Candidate:
        """The unchanged model: the first option of every choice."""
        return Candidate((0,) * len(self), self.choices)

    def candidate(self, indices: Sequence[int] | np.ndarray) -> Candidate:
        """Candidate from option indices, checked.

        Raises:
            ValueError: wrong length, or an index out of range.
        """
        got = tuple(int(i) for i in indices)
        if len(got) != len(self):
            raise ValueError(f"a candidate of this space has {len(self)} indices, got {len(got)}")
        for choice, i in zip(self.choices, got, strict=True):
            if not 0 <= i < len(choice):
                raise ValueError(f"choice {choice.name!r} has options 0..{len(choice) - 1}, got index {i}")
        return Candidate(got, self.choices)

    def from_values(self, values: Mapping[str, Option]) -> Candidate:
        """Candidate from ``{choice name: option}`` (the inverse of ``candidate.values``).

        Raises:
            ValueError: names or values that do not fit the space.
        """
        try:
            if len(values) == len(self):
                found = [positions[values[name]] for name, positions in self._positions]
                return Candidate(tuple(found), self.choices)
        except (KeyError, TypeError):
            pass  # indices_of says what does not fit
        return Candidate(indices_of(self.choices, values), self.choices)

    @cached_property
    def _positions(self) -> list[tuple[str, dict[Option, int]]]:
        """Of each choice its name, and the position of each option."""
        return [(c.name, {option: i for i, option in enumerate(c.options)}) for c in self.choices]

    def sample(self, rng: np.random.Generator, n: int) -> list[Candidate]:
        """``n`` candidates drawn uniformly, independently (repeats possible)."""
        drawn = rng.integers(0, self.counts, size=(n, len(self)))
        return [Candidate(tuple(row), self.choices) for row in drawn.tolist()]

    def neighbours(self, candidate: Candidate) -> list[Candidate]:
        """All candidates one option step (up or down) away in exactly one choice."""
        base = candidate.indices
        return [
            Candidate((*base[:d], i, *base[d + 1 :]), self.choices)
            for d, choice in enumerate(self.choices)
            for i in (base[d] - 1, base[d] + 1)
            if 0 <= i < len(choice)
        ]

    def encode(self, candidate: Candidate) -> np.ndarray:
        """Point in [0, 1]^choices, float64: 0 is unchanged, 1 the most compressed option."""
        return np.asarray(candidate.indices, dtype=np.float64) / np.maximum(self.counts - 1, 1)

    def decode(self, x: np.ndarray) -> Candidate:
        """Nearest candidate to ``x`` [choices]; values outside [0, 1] are clipped.

        Raises:
            ValueError: wrong shape, or not finite.
        """
        x = np.asarray(x, dtype=np.float64)
        if x.shape != (len(self),) or not np.isfinite(x).all():
            raise ValueError(f"decode needs {len(self)} finite numbers, got shape {x.shape}")
        nearest = np.floor(np.clip(x, 0.0, 1.0) * (self.counts - 1) + 0.5).astype(np.int64)
        return Candidate(tuple(nearest.tolist()), self.choices)

    def cost_arrays(self, candidates: Sequence[Candidate]) -> dict[str, np.ndarray]:
        """:meth:`costs` as plain float64 arrays [n]; empty for a space without a model."""
        indices = np.array([c.indices for c in candidates], dtype=np.int64).reshape(-1, len(self))
        return self.side.cost_arrays(self.choices, indices)

    @property
    def side(self) -> ModelSide:
        """The model, or where there is none one that says so."""
        return _NONE if self.model is None else self.model

    def costs(self, candidates: Sequence[Candidate]) -> pd.DataFrame:
        """Analytic costs, one row per candidate, nothing built.

        Columns: ``macs`` and ``flops`` (per sample; flops = 2 x macs), ``params``, ``size_mb``,
        ``activation_mb``, ``memory_mb`` (weights + peak activations, per sample); see :class:`Costs`. Spaces
        of splits also have ``traffic_kb``, ``stages``, ``memory_mb:<device>`` and, where devices have
        profiles, ``latency_ms``, ``throughput_per_s`` and ``energy_mj``: modelled, of the pipeline.

        Raises:
            ValueError: the space has no model.
        """
        import pandas as pd

        self._need_model("costs")
        return pd.DataFrame(self.cost_arrays(candidates))

    def build(self, candidate: Candidate, *, repair: Repair | None = None) -> torch.nn.Module:
        """A real, smaller, independent, trainable module; the traced model is never touched.

        Args:
            repair: in place of the space's own; see :meth:`Blueprint.calibrate`.

        Raises:
            ValueError: the space has no model, or the candidate is of another space.
        """
        self._need_model("build")
        if candidate.choices != self.choices:
            candidate = self.from_values(candidate.values)
        return self.side.build(candidate, repair=repair)

    def _need_model(self, what: str) -> None:
        if self.model is None:
            raise ValueError(
                f"{what} needs a space of a model; make one by `trace(model, example).space(...)`"
            )


_NONE = ModelSide()
