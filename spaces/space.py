"""A space of candidates. Knows numbers only; what candidates do to a model is the model side's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from .choice import Candidate, Choice, Option, indices_of

if TYPE_CHECKING:
    import pandas as pd
    import torch


Repair = bool | Literal["once", "merge"]  # how built networks are mended without training


class ModelSide(Protocol):
    """What a space asks of the model behind it (implemented by :class:`Blueprint`)."""

    def cost_arrays(self, choices: tuple[Choice, ...], indices: np.ndarray) -> dict[str, np.ndarray]: ...

    def build(self, candidate: Candidate, *, repair: Repair | None = None) -> torch.nn.Module: ...


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
    def neutral(self) -> np.ndarray:
        """[choices] bool: those that decide where a network runs, and nothing about what it computes."""
        return np.array([getattr(c.edit, "neutral", False) for c in self.choices], dtype=bool)

    def __len__(self) -> int:
        return len(self.choices)

    def __repr__(self) -> str:
        return f"Space({len(self)} choices, {self.size:,} candidates)"

    def __add__(self, other: Space) -> Space:
        """Join two spaces; at most one model between them."""
        if not isinstance(other, Space):
            return NotImplemented
        if self.model is not None and other.model is not None and self.model is not other.model:
            raise ValueError(
                "cannot join spaces of two different models; make both from one `trace(model, example)`"
            )
        return Space(
            self.choices + other.choices, model=self.model if self.model is not None else other.model
        )

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
        if self.model is None:
            return {}
        indices = np.array([c.indices for c in candidates], dtype=np.int64).reshape(-1, len(self))
        return self.model.cost_arrays(self.choices, indices)

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
        return self.model.build(candidate, repair=repair)  # type: ignore[union-attr]

    def _need_model(self, what: str) -> Any:
        if self.model is None:
            raise ValueError(
                f"{what} needs a space of a model; make one by `trace(model, example).space(...)`"
            )
