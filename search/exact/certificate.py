"""Certificate of branch and bound, as plain data, and a check of it that does not trust the search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ...results.objective import Limit, Objective, total_violation
from ...results.trial import Trial
from ...spaces import Candidate, Space

CLOSE = 1e-9  # relative: how near stored values must be to recomputed ones
CHUNK = 1024


class CertificateError(ValueError):
    """A certificate that does not hold: what it claims that is not so."""


@dataclass(frozen=True)
class Certificate:
    """The claim: no candidate of the space that keeps the limits is better than some of ``front`` by more
    than ``gap`` in every objective. ``gap`` 0: the front is complete (one candidate for every non-dominated
    vector of objectives); with one objective: optimal.
    """

    objectives: list[str]  # "name:goal"
    limits: list[str]
    front: list[dict[str, Any]]  # {"candidate": {choice: option}, "scores": {metric: value}}
    gap: float | None  # in units of `scale`; None: nothing is proven about what is not in the front
    scale: list[float]  # of each objective: the unchanged model's value, or 1
    origin: dict[str, str]  # metric -> interval, assumed, exact, none: see Bounds; "monotone": by trials
    assumed: dict[str, str]  # metric -> "falls" or "rises" with compression, by the user's word
    order: list[int]  # of the choices in the tree
    # The search's own account of its work, which no check can verify.
    nodes: int  # boxes and candidates visited
    leaves: int  # of them candidates
    cuts: dict[str, int]  # boxes closed by: limit, dominance, monotone (with the help of an assumption)
    failed: list[dict[str, Any]] = field(default_factory=list)  # candidates that failed: left out
    scored: int = 0  # trials that the proof rests on; 0 where everything is analytic
    contradicted: dict[str, int] = field(default_factory=dict)  # metric -> trials against its assumption

    @property
    def optimal(self) -> bool:
        return self.gap == 0.0

    def line(self) -> str:
        """In one line, for people."""
        count = len(self.front)
        if self.optimal:
            one = len(self.objectives) == 1
            what = "optimum" if one else f"complete front of {count}"
            text = f"certified: {what}" if count else "certified: nothing keeps the limits"
        elif self.gap is None:
            text = f"not proven: front of {count} so far"
        else:
            text = f"not proven: front of {count} within {self.gap:.3g} of the unchanged model's values"
        cuts = ", ".join(f"{n:,} by {why}" for why, n in self.cuts.items() if n) or "none"
        text += f"; {self.nodes:,} nodes, cut: {cuts}"
        if unbounded := [m for m, origin in self.origin.items() if origin in ("exact", "none")]:
            text += f"; no bound on {', '.join(unbounded)}: enumerated"
        if self.assumed:
            text += "; assuming that " + ", ".join(f"{m} {how}" for m, how in sorted(self.assumed.items()))
            text += " with compression"
        if against := {m: n for m, n in self.contradicted.items() if n}:
            counts = ", ".join(f"{n} of {self.scored} trials ({m})" for m, n in against.items())
            text += f", which {counts} contradict"
        return text

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Certificate:
        """
        Raises:
            CertificateError: not a certificate.
        """
        try:
            made = cls(**data)
            for name in ("objectives", "limits", "front", "scale", "order", "failed"):
                if not isinstance(getattr(made, name), list):
                    raise TypeError(f"{name} is not a list")
            made.line()  # says all the rest, and cannot where a part is of another kind
            return made
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise CertificateError(f"this is no certificate: {error}") from None


def check_certificate(
    space: Space,
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    certificate: Certificate,
    *,
    trials: Iterable[Trial] = (),
    baseline: Mapping[str, float] | None = None,
    exhaustive: int = 20_000,
    nodes: int = 10_000_000,
    samples: int = 1_000,
) -> None:
    """Verify a certificate without the search that made it.

    The front is computed again and compared. Then every candidate has to be accounted for: by brute force
    where the space has at most ``exhaustive`` candidates; else by splitting boxes until each is closed by a
    bound, with the certificate's front in place of the search, and on ``samples`` random candidates without
    any bound. What a candidate is worth comes from ``space.cost_arrays`` and ``trials`` alone. The model's
    ``cost_bounds`` and the certificate's assumptions are the only things believed.

    Args:
        space, objectives, limits: of the search.
        trials: of the run; needed where something was measured.
        baseline: scores of the unchanged model, by default its costs and its trial.
        nodes: boxes split at most.

    Raises:
        CertificateError: what does not hold.
    """
    checker = _Checker(space, objectives, limits, certificate, list(trials), baseline)
    checker.front()
    if certificate.gap is None:
        return
    if space.size <= exhaustive:
        counts = space.counts.tolist()
        for start in range(0, space.size, CHUNK):
            flat = np.arange(start, min(start + CHUNK, space.size))
            checker.account(np.stack(np.unravel_index(flat, counts), axis=1))
        return
    drawn = space.sample(np.random.default_rng(0), samples)
    rows = np.array([c.indices for c in drawn])
    checker.account(rows[: samples if not checker.measured else 0])
    checker.cover(nodes)


def contradictions(trials: Iterable[Trial], assumed: Mapping[str, str]) -> dict[str, int]:
    """Metric -> how many trials another one contradicts: less compressed in no choice, and yet better (or,
    for a metric that is assumed to rise with compression, smaller)."""
    good = [t for t in trials if not t.failed]
    out = {}
    for metric, how in assumed.items():
        having = [t for t in good if metric in t.scores]
        rows = np.array([t.candidate.indices for t in having])
        values = np.array([t.scores[metric] for t in having]) * (1.0 if how == "falls" else -1.0)
        slack = CLOSE * np.maximum(1.0, np.abs(values))
        out[metric] = sum(
            bool(((rows >= row).all(axis=1) & (values > value + slack)).any())
            for row, value in zip(rows, values, strict=True)
        )
    return out


class _Checker:
    """The steps of :func:`check_certificate`."""

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        limits: Sequence[Limit],
        certificate: Certificate,
        trials: list[Trial],
        baseline: Mapping[str, float] | None,
    ) -> None:
        self.space, self.objectives, self.limits = space, list(objectives), list(limits)
        self.claim = certificate
        if certificate.objectives != [f"{o.name}:{o.goal}" for o in objectives]:
            raise CertificateError(f"the certificate is for the objectives {certificate.objectives}")
        if certificate.limits != [m.text for m in limits]:
            raise CertificateError(f"the certificate is for the limits {certificate.limits}")
        if sorted(certificate.order) != list(range(len(space))):
            raise CertificateError(f"the order {certificate.order} is not one of the space's choices")
        if certificate.gap is not None and not certificate.gap >= 0.0:
            raise CertificateError(f"the gap is {certificate.gap}")
        self.trials = {t.candidate.indices: t for t in trials}
        self.analytic = {m for m, o in certificate.origin.items() if o in ("interval", "assumed", "exact")}
        costs = space.cost_arrays([space.baseline])
        if missing := sorted(self.analytic - set(costs)):
            raise CertificateError(f"the space computes no {missing}")
        self.measured = {o.name for o in objectives} | {m.metric for m in limits}
        self.measured -= self.analytic
        if baseline is None:
            first = self.trials.get((0,) * len(space))
            baseline = {m: float(v[0]) for m, v in costs.items()} | dict(first.scores if first else {})
        self.baseline = baseline
        self.known = [m for m in self.limits if not m.relative or m.metric in baseline]
        units = [abs(baseline.get(o.name, 1.0)) or 1.0 for o in objectives]
        if len(certificate.scale) != len(units) or not np.allclose(
            certificate.scale, units, rtol=CLOSE, atol=0
        ):
            raise CertificateError(
                f"the scale is {certificate.scale}, the unchanged model's values are {units}"
            )
        if certificate.gap is not None and len(self.known) < len(self.limits):
            raise CertificateError("a limit refers to what is not known of the unchanged model")
        for metric, origin in certificate.origin.items():
            if origin == "assumed" and certificate.assumed.get(metric) != "falls":
                raise CertificateError(f"the bounds on {metric} assume what the certificate does not state")
        self.failed = {self._indices(values) for values in certificate.failed}
        for row in self.failed:
            if row not in self.trials or not self.trials[row].failed:
                raise CertificateError(f"candidate {row} is said to have failed, and no trial says so")
        if certificate.contradicted != contradictions(trials, self._by_trials()):
            raise CertificateError(f"the trials contradict other than the claimed {certificate.contradicted}")
        self.points = np.empty((0, len(self.objectives)))

    def _by_trials(self) -> dict[str, str]:
        return {m: how for m, how in self.claim.assumed.items() if m in self.measured}

    # The front.

    def front(self) -> None:
        rows = [self._indices(entry["candidate"]) for entry in self.claim.front]
        if len(set(rows)) != len(rows):
            raise CertificateError("the front lists a candidate twice")
        points = []
        for row, entry in zip(rows, self.claim.front, strict=True):
            scores = self._scores(row)
            if scores is None:
                raise CertificateError(f"candidate {row} of the front has no trial that succeeded")
            if missing := [o.name for o in self.objectives if o.name not in entry["scores"]]:
                raise CertificateError(f"candidate {row} of the front comes without its {missing}")
            for name, value in entry["scores"].items():
                if name not in scores or abs(scores[name] - value) > CLOSE * max(1.0, abs(scores[name])):
                    raise CertificateError(
                        f"candidate {row} of the front has {name} {scores.get(name)}, the certificate "
                        f"says {value}"
                    )
            if total_violation(self.known, scores, self.baseline) > 0.0:
                raise CertificateError(f"candidate {row} of the front breaks a limit")
            points.append([o.sign * scores[o.name] for o in self.objectives])
        self.points = np.array(points).reshape(-1, len(self.objectives))
        for i, p in enumerate(self.points):
            others = np.delete(self.points, i, axis=0)
            if ((others <= p).all(axis=1) & (others < p).any(axis=1)).any():
                raise CertificateError(f"candidate {rows[i]} of the front is dominated by another")

    # The rest.

    def account(self, rows: np.ndarray) -> None:
        """Every one of the candidates [n, choices] must be excused."""
        values = np.full((len(rows), len(self.objectives)), -np.inf)
        costs = self.space.cost_arrays([Candidate(tuple(row), self.space.choices) for row in rows.tolist()])
        bad = np.zeros(len(rows), dtype=bool)
        for i, row in enumerate(map(tuple, rows.tolist())):
            scores = {m: float(costs[m][i]) for m in self.analytic}
            trial = self.trials.get(row)
            if row in self.failed or (self.measured and trial is not None and trial.failed):
                bad[i] = True
            elif trial is not None:
                scores = {**{m: trial.scores[m] for m in self.measured if m in trial.scores}, **scores}
            if total_violation(self.known, scores, self.baseline) > 0.0:
                bad[i] = True
            values[i] = [o.sign * scores.get(o.name, -np.inf) for o in self.objectives]
        left = np.flatnonzero(~bad & ~self._covered(values))
        if len(left) and self.claim.assumed:
            lower, possible = self._envelope(rows[left], rows[left], values[left])
            left = left[possible & ~self._covered(lower)]
        if len(left):
            raise CertificateError(
                f"candidate {tuple(rows[left[0]].tolist())} is neither on the front nor worse than it by the "
                f"claimed gap of {self.claim.gap}, keeps the limits as far as known, and is not accounted for"
            )

    def cover(self, nodes: int) -> None:
        """Split boxes until each is closed: the last ones are candidates."""
        order, counts = self.claim.order, self.space.counts
        stack = [(0, np.zeros((1, len(counts)), dtype=np.int64))]
        seen = 0
        while stack:
            depth, low = stack.pop()
            if len(low) > CHUNK:
                stack.append((depth, low[CHUNK:]))
                low = low[:CHUNK]
            if depth == len(order):
                self.account(low)
                continue
            free = order[depth:]
            high = low.copy()
            high[:, free] = counts[free] - 1
            lower, possible = self._box(low, high)
            low = low[possible & ~self._covered(lower)]
            children = np.repeat(low, counts[free[0]], axis=0)
            children[:, free[0]] = np.tile(np.arange(counts[free[0]]), len(low))
            seen += len(children)
            if seen > nodes:
                raise CertificateError(f"could not be verified within {nodes:,} boxes; allow more")
            if len(children):
                stack.append((depth + 1, children))

    def _box(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower bounds of the objectives over boxes, and which boxes may hold what keeps the limits."""
        ranges: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        found = self.space.side.cost_bounds(self.space.choices, low, high)
        corners = [
            self.space.cost_arrays([Candidate(tuple(r), self.space.choices) for r in rows.tolist()])
            if "assumed" in self.claim.origin.values()
            else {}
            for rows in (high, low)
        ]
        for metric, origin in self.claim.origin.items():
            if origin == "interval" and metric in found:
                ranges[metric] = found[metric]
            elif origin == "assumed":
                ranges[metric] = corners[0][metric], corners[1][metric]
        lower = np.full((len(low), len(self.objectives)), -np.inf)
        for j, o in enumerate(self.objectives):
            if o.name in ranges:
                lower[:, j] = ranges[o.name][0] if o.goal == "min" else -ranges[o.name][1]
        possible = np.ones(len(low), dtype=bool)
        for m in self.known:
            if m.metric in ranges:
                bound = m.bound(self.baseline)
                slack = 1e-12 * abs(bound)
                least, most = ranges[m.metric]
                possible &= least <= bound + slack if "<=" in m.text else most >= bound - slack
        lower, open_ = self._envelope(low, high, lower)
        return lower, possible & open_

    def _envelope(
        self, low: np.ndarray, high: np.ndarray, lower: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the assumptions say of measured metrics, box by box: trials on either side of it."""
        lower, possible = lower.copy(), np.ones(len(low), dtype=bool)
        for metric, how in self._by_trials().items():
            trials = [t for t in self.trials.values() if metric in t.scores]
            rows = np.array([t.candidate.indices for t in trials]).reshape(-1, len(self.space))
            values = np.array([t.scores[metric] for t in trials])
            for i in range(len(low)) if trials else ():
                less, more = (rows <= low[i]).all(axis=1), (rows >= high[i]).all(axis=1)
                above, below = (less, more) if how == "falls" else (more, less)
                most = values[above].min(initial=np.inf)
                least = values[below].max(initial=-np.inf)
                for j, o in enumerate(self.objectives):
                    if o.name == metric:
                        lower[i, j] = max(lower[i, j], least if o.goal == "min" else -most)
                for m in self.known:
                    if m.metric == metric:
                        bound = m.bound(self.baseline)
                        possible[i] &= least <= bound if "<=" in m.text else most >= bound
        return lower, possible

    def _covered(self, lower: np.ndarray) -> np.ndarray:
        """Whether some point of the front is no worse than each bound, up to the gap; bool [n]."""
        gap = (self.claim.gap or 0.0) * np.array(self.claim.scale)
        # Rounding only: the gap itself is exact to as much.
        finite = np.where(np.isfinite(lower), np.abs(lower), 0.0)
        reach = lower + gap + 1e-11 * np.maximum(finite, gap)
        out = np.zeros(len(lower), dtype=bool)
        for p in self.points:
            out |= (p <= reach).all(axis=1)
        return out

    def _scores(self, row: tuple[int, ...]) -> dict[str, float] | None:
        """What a candidate is worth, from the space and the trials; None where that cannot be told."""
        costs = self.space.cost_arrays([Candidate(row, self.space.choices)])
        scores = {m: float(costs[m][0]) for m in self.analytic}
        trial = self.trials.get(row)
        if row in self.failed or (self.measured and (trial is None or trial.failed)):
            return None
        if trial is not None:
            scores |= {m: trial.scores[m] for m in self.measured if m in trial.scores}
        return scores if all(o.name in scores for o in self.objectives) else None

    def _indices(self, values: Mapping[str, Any]) -> tuple[int, ...]:
        try:
            return self.space.from_values(values).indices
        except ValueError as error:
            raise CertificateError(f"the certificate is for another space: {error}") from None
