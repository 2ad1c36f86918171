"""How long operators take on one machine, as a function of their work."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .law import Law, fit_law

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
    def from_json(cls, made: Any) -> Profile:
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
