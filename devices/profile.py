"""Profile of a machine: the time that each operator takes there, as a function of its work."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..standalone import Json

if TYPE_CHECKING:
    from torch import fx


def operator_of(node: Any) -> str:
    """The name under which a profile holds a call of a functional graph: operator, then what it works on.

    ``"conv2d 3x3/2 28x28"`` (kernel, stride, output), ``"conv2d 3x3/1 28x28 depthwise"``, ``"linear 1"``
    (rows for one sample), ``"relu"``. Channels are no part of it, since pruning changes them.

    Args:
        node: an ``fx`` call whose ``meta["val"]``, and that of its arguments, are there.
    """
    name = _plain_name(node.target)
    if name.startswith("conv") and len(node.args) > 1:
        weight = list(_shape(node.args[1]))
        if len(weight) < 3:
            return name
        stride = node.args[3] if len(node.args) > 3 else (1,)
        steps = stride if isinstance(stride, list | tuple) else (stride,)
        groups = node.args[-1] if len(node.args) > 6 and isinstance(node.args[-1], int) else 1
        apart = "" if groups == 1 else " depthwise" if weight[1] == 1 else " grouped"
        return f"{name} {_by(weight[2:])}/{_by(steps[:1])} {_by(_shape(node)[2:])}{apart}"
    if name in ("linear", "addmm", "mm", "matmul", "bmm"):
        rows = _numel(_shape(node)[1:-1])
        return f"{name} {rows}"
    return name


def moved_bytes(node: fx.Node, samples: int = 1, constant: Container[Any] = ()) -> float:
    """Bytes of all tensors that a call reads and writes, weights included; activations for one sample.

    Args:
        samples: that the graph's values are for; what depends on no input is not divided.
        constant: nodes that depend on no input beside those that read parameters (``get_attr``).
    """
    values = [*node.all_input_nodes, node]
    return sum(_bytes(n) / (1 if n.op == "get_attr" or n in constant else samples) for n in values)


def _plain_name(target: object) -> str:
    """``"conv2d"`` of ``aten.conv2d.default``, without the underscores of functions that write in place."""
    schema = getattr(target, "_schema", None)
    name = schema.name.partition("::")[2] if schema is not None else getattr(target, "__name__", str(target))
    return name.strip("_")


def _shape(node: fx.Node) -> tuple[Any, ...]:
    value = getattr(node, "meta", {}).get("val")
    return tuple(getattr(value, "shape", ()))


def _bytes(node: Any) -> float:
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return float(sum(_hint(_numel(v.shape)) * v.element_size() for v in values if hasattr(v, "element_size")))


def _numel(sizes: Sequence[Any]) -> Any:
    out: Any = 1
    for size in sizes:
        out = out * _hint(size)
    return out


def _hint(size: Any) -> int:
    """A size as a number; a symbolic one as its value on the example, 1 where the data decide it."""
    node = getattr(size, "node", None)
    if node is None:
        return int(size)
    return 1 if node.hint is None else int(node.hint)


def _by(sizes: Sequence[Any]) -> str:
    return "x".join(str(_hint(s)) for s in sizes)


# -- A curve through measured times of one operator: a line in its work, bent to follow the measurements

NEAR = 0.1  # points whose lines differ by less, relatively, are one knot


@dataclass(frozen=True)
class Law:
    """``line = a + b x macs + c x bytes`` (none negative), then piecewise linear in logarithms, rising.

    So time never falls as work grows. Beyond the measured range it is proportional to the line.
    """

    line: np.ndarray  # float64 [3]: a, b, c; ms, ms per MAC, ms per byte
    log_line: np.ndarray  # float64 [knots], rising
    log_ms: np.ndarray  # float64 [knots], rising

    def milliseconds(self, macs: np.ndarray, moved: np.ndarray) -> np.ndarray:
        a, b, c = self.line
        x = np.log(np.maximum(a + b * macs + c * moved, 1e-12))
        inside = np.interp(x, self.log_line, self.log_ms)
        beyond = np.minimum(x - self.log_line[0], 0) + np.maximum(x - self.log_line[-1], 0)
        return np.exp(inside + beyond)


def fit_law(points: np.ndarray) -> Law:
    """The curve through ``points``, float64 [points, 3]: macs, bytes, ms > 0; relative errors count."""
    macs, moved, ms = points.T
    terms = np.stack([np.ones_like(macs), macs, moved], axis=1) / ms[:, None]
    line = _positive_least_squares(terms, np.ones(len(points)))
    x = np.log(np.maximum(line[0] + line[1] * macs + line[2] * moved, 1e-12))
    order = np.argsort(x, kind="stable")
    x, y = x[order], np.log(ms[order])
    starts = [0]
    for i in range(1, len(x)):
        if x[i] - x[starts[-1]] > NEAR:
            starts.append(i)
    groups = np.split(np.arange(len(x)), starts[1:])
    knots = np.array([x[g].mean() for g in groups])
    values = knots + np.array([np.median(y[g] - x[g]) for g in groups])
    return Law(line, knots, _rising(values, np.array([len(g) for g in groups], dtype=np.float64)))


def fit_affine(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """``scale, start``, none negative, for ``y = scale x + start``: least mean absolute relative error.

    By reweighted least squares, so that single odd measurements count little.
    """
    terms = np.stack([x, np.ones_like(x)], axis=1) / y[:, None]
    weights = np.ones(len(y))
    for _ in range(50):
        scale, start = _positive_least_squares(terms * weights[:, None], weights)
        weights = 1 / np.sqrt(np.maximum(np.abs(scale * terms[:, 0] + start * terms[:, 1] - 1), 1e-4))
    return float(scale), float(start)


def _positive_least_squares(terms: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Coefficients >= 0 [terms] for ``terms @ x = wanted``: the best of all supports."""
    scale = np.maximum(np.abs(terms).max(axis=0), 1e-300)
    best, least = np.zeros(terms.shape[1]), np.inf
    for size in range(1, terms.shape[1] + 1):
        for support in combinations(range(terms.shape[1]), size):
            part = list(support)
            x, *_ = np.linalg.lstsq(terms[:, part] / scale[part], wanted, rcond=None)
            loss = float(((terms[:, part] / scale[part] @ x - wanted) ** 2).sum())
            if (x >= 0).all() and loss < least - 1e-12:
                best, least = np.zeros(terms.shape[1]), loss
                best[part] = x / scale[part]
    return best


def _rising(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The closest values that never fall (pool adjacent violators)."""
    pools: list[list[float]] = []  # value, weight, length
    for value, weight in zip(values, weights, strict=True):
        pools.append([value, weight, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            v, w, k = pools.pop()
            u, t, m = pools.pop()
            pools.append([(u * t + v * w) / (t + w), t + w, m + k])
    return np.repeat([p[0] for p in pools], [int(p[2]) for p in pools])


# -- How long operators take on one machine, as a function of their work --------------------------------

FORMAT = "netcarve-profile-1"


class ProfileError(ValueError):
    """A profile that cannot be read or used; the message says why and how to make one."""


@dataclass(frozen=True, eq=False)
class Profile:
    """Times of operator calls, measured on one thread, and a curve through them for each operator.

    An operator that was not measured with its geometry (``conv2d 3x3/1 56x56``) takes the curve of all
    measured calls of its class (``conv2d``), one of a class that was not measured that of all calls.

    Args:
        operators: operator -> float64 [points, 3]: multiply-accumulates and bytes moved of one call, for
            one sample, and its milliseconds.
        scale, per_stage_ms: how long a stage takes beyond what its calls took when they were measured:
            sum of milliseconds x scale + per_stage_ms.
        machine: processor's name.
        runtime: what ran the operators, ``"eager"``.
        threads: that it used.
        versions: of the packages that decide times.
        error: median and 90 % relative error on networks that the profile was not fitted on.

    Raises:
        ProfileError: no operators, or figures that are not finite or negative.
    """

    operators: Mapping[str, np.ndarray]
    scale: float = 1.0
    per_stage_ms: float = 0.0
    machine: str = ""
    runtime: str = "eager"
    threads: int = 1
    versions: Mapping[str, str] = field(default_factory=dict)
    error: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.operators:
            raise ProfileError("a profile needs measured operators, got none")
        for name, points in self.operators.items():
            points = np.asarray(points, dtype=np.float64)
            if points.ndim != 2 or points.shape[1] != 3 or not len(points):
                raise ProfileError(f"operator {name!r} needs rows of [macs, bytes, ms], got {points.shape}")
            if not (np.isfinite(points).all() and (points >= 0).all() and (points[:, 2] > 0).all()):
                raise ProfileError(
                    f"operator {name!r} has figures that are negative, not finite, or take 0 ms"
                )
        if not (self.scale > 0 and self.per_stage_ms >= 0):
            raise ProfileError(
                f"scale must be above 0 and per_stage_ms 0 or more, got {self.scale}, {self.per_stage_ms}"
            )

    def milliseconds(self, operators: Sequence[str], macs: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """Time of each call, for one sample.

        Args:
            operators: name of each of the ``c`` calls (see :func:`operator_of`).
            macs, moved: float64 [n, c], multiply-accumulates and bytes of all tensors that the call reads
                and writes; a call that moves nothing is not there.

        Returns:
            float64 [n, c], ``scale`` counted: 0 for a call that is not there.
        """
        macs, moved = np.asarray(macs, dtype=np.float64), np.asarray(moved, dtype=np.float64)
        out = np.empty(moved.shape)
        columns: dict[str, list[int]] = {}
        for column, name in enumerate(operators):
            columns.setdefault(name, []).append(column)
        for name, at in columns.items():
            where = at if len(at) > 1 else slice(at[0], at[0] + 1)
            out[:, where] = self._law(name).milliseconds(macs[:, where], moved[:, where])
        return np.where(moved > 0, self.scale * out, 0.0)

    def source(self, operator: str) -> str:
        """From what the time of an operator is taken: ``"measured"``, ``"class"`` or ``"machine"``."""
        if operator in self.operators:
            return "measured"
        return "class" if class_of(operator) in self._classes else "machine"

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "machine": self.machine,
            "runtime": self.runtime,
            "threads": self.threads,
            "versions": dict(self.versions),
            "unit": ["macs", "bytes", "ms"],
            "scale": self.scale,
            "per_stage_ms": self.per_stage_ms,
            "error": list(self.error) if self.error else None,
            "operators": {name: np.asarray(points).tolist() for name, points in self.operators.items()},
        }

    @classmethod
    def from_json(cls, made: Json) -> Profile:
        """
        Raises:
            ProfileError: it is no profile, or one of another version.
        """
        if not isinstance(made, dict) or made.get("format") != FORMAT:
            got = made.get("format") if isinstance(made, dict) else type(made).__name__
            raise ProfileError(
                f"this is no profile of this version ({FORMAT}), got {got!r}; "
                "make one with `netcarve profile TASK`"
            )
        try:
            return cls(
                operators={k: np.array(v, dtype=np.float64) for k, v in made["operators"].items()},
                scale=float(made["scale"]),
                per_stage_ms=float(made["per_stage_ms"]),
                machine=str(made["machine"]),
                runtime=str(made["runtime"]),
                threads=int(made["threads"]),
                versions=dict(made["versions"]),
                error=tuple(made["error"]) if made.get("error") else None,
            )
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ProfileError(f"the profile is damaged: {error!r}; make it again") from None

    def save(self, path: str | Path) -> None:
        rounded = self.to_json()
        Path(path).write_text(json.dumps(rounded) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """
        Raises:
            ProfileError: there is no file, or it is no profile.
        """
        try:
            made = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ProfileError(
                f"cannot read the profile {str(path)!r}: {error.strerror}; make one on the device itself: "
                "`netcarve profile TASK -o profile.json`; or give a speed relative to this machine, as 0.2x"
            ) from None
        except ValueError:
            raise ProfileError(
                f"{str(path)!r} is no JSON file; make a profile with `netcarve profile`"
            ) from None
        return cls.from_json(made)

    @cached_property
    def _laws(self) -> dict[str, Law]:
        return {}

    @cached_property
    def _classes(self) -> dict[str, np.ndarray]:
        of: dict[str, list[np.ndarray]] = {}
        for name, points in self.operators.items():
            of.setdefault(class_of(name), []).append(np.asarray(points, dtype=np.float64))
        return {name: np.concatenate(points) for name, points in of.items()}

    def _law(self, operator: str) -> Law:
        if operator not in self._laws:
            points = self.operators.get(operator)
            if points is None:
                points = self._classes.get(class_of(operator))
            if points is None:
                points = np.concatenate(list(self._classes.values()))
            self._laws[operator] = fit_law(np.asarray(points, dtype=np.float64))
        return self._laws[operator]


def class_of(operator: str) -> str:
    """``"conv2d"`` of ``"conv2d 3x3/1 56x56"``."""
    return operator.partition(" ")[0]
