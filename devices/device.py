"""Device: what runs parts of a network."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

from .profile import Profile


def number(value: object, what: str) -> float:
    """
    Raises:
        ValueError: it is no number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{what} must be a number, got {value!r}")
    return float(value)


# -- A device that runs parts of a network --------------------------------------------------------------

_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_FACTOR = re.compile(r"\s*(-?\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)\s*x?\s*")


@dataclass(frozen=True, init=False)
class Device:
    """What runs stages.

    Args:
        name: letters, digits, ``_``, ``.`` and ``-``.
        profile: how long operators take: a :class:`Profile`, the path of one, or a speed relative to this
            machine, ``0.2`` or ``"0.2x"``, whose profile is then measured (see :meth:`on`).
        speed: divides the times of the profile.
        relative: the profile is that of the machine that the speed refers to (see :meth:`on`).
        memory_limit_mb: what weights and activations of its stages may take, 10^6 bytes.
        power_w: while it computes; ``None``: not known, and then no energy is computed.

    Raises:
        ValueError: a name or a number that cannot be, or a profile that cannot be read.
    """

    name: str
    profile: Profile | None = None
    speed: float = 1.0
    memory_limit_mb: float = math.inf
    power_w: float | None = None
    relative: bool = True

    def __init__(
        self,
        name: str,
        profile: Profile | str | Path | float | None = None,
        *,
        speed: float = 1.0,
        memory_limit_mb: float = math.inf,
        power_w: float | None = None,
        relative: bool = False,
    ) -> None:
        if isinstance(profile, str) and (factor := _FACTOR.fullmatch(profile)):
            profile = float(factor[1])
        known: Profile | None = None
        speed = number(speed, f"device {name!r}: speed")
        if profile is None or isinstance(profile, Profile):
            known = profile
        elif isinstance(profile, str | Path):
            known = Profile.load(profile)
        else:
            speed *= number(profile, f"device {name!r}: a profile that is no file")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"a device needs a name of letters, digits, '_', '.' and '-', such as 'edge', got {name!r}"
            )
        if not (math.isfinite(speed) and speed > 0):
            raise ValueError(f"device {name!r}: speed must be above 0, got {speed!r}")
        memory_limit_mb = number(memory_limit_mb, f"device {name!r}: memory limit in MB")
        if not memory_limit_mb > 0:
            raise ValueError(f"device {name!r}: memory limit must be above 0 MB, got {memory_limit_mb!r}")
        if power_w is not None and not 0 <= number(power_w, f"device {name!r}: power in W") < math.inf:
            raise ValueError(f"device {name!r}: power must be 0 W or more, got {power_w!r}")
        for field, value in (
            ("name", name),
            ("profile", known),
            ("speed", speed),
            ("memory_limit_mb", memory_limit_mb),
            ("power_w", power_w),
            ("relative", relative or known is None),
        ):
            object.__setattr__(self, field, value)

    def on(self, reference: Profile) -> Device:
        """This device with the profile of the machine that its speed refers to, where it has none yet."""
        return self if self.profile is not None else replace(self, profile=reference, relative=True)

    def asked(self) -> Device:
        """This device as it was asked for: without a profile where its speed is relative to this machine."""
        return replace(self, profile=None) if self.relative else self

    @property
    def per_stage_ms(self) -> float:
        """What every stage takes beside its calls; 0 without a profile."""
        return self.profile.per_stage_ms / self.speed if self.profile is not None else 0.0

    def known_profile(self) -> Profile:
        """
        Raises:
            ValueError: it has none yet.
        """
        if self.profile is None:
            raise ValueError(
                f"device {self.name!r} has no profile yet: it is {self.speed:g}x of this machine; measure "
                "this machine with `netcarve profile TASK -o profile.json` and give that file, or let "
                "`netcarve sweep` measure it"
            )
        return self.profile

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"name": self.name, "speed": self.speed}
        if not math.isinf(self.memory_limit_mb):
            out["memory_limit_mb"] = self.memory_limit_mb
        if self.power_w is not None:
            out["power_w"] = self.power_w
        if self.profile is not None:
            out["profile"] = self.profile.to_json()
            out["relative"] = self.relative
        return out

    @classmethod
    def from_json(cls, made: dict[str, Any]) -> Device:
        given = dict(made)
        if given.get("profile") is not None:
            given["profile"] = Profile.from_json(given["profile"])
        return cls(**given)
