"""Attribution: the part of an input that the answer rests on, before and after, by captum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .section import Section, SectionFigure, Skipped, clipped
from .subject import BUDGET, Subject


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of each pair of rows, in [-1, 1]; NaN where a row is constant.

    Args:
        a, b: [samples, ...], equal shapes.
    """
    from scipy.stats import rankdata

    x, y = (rankdata(v.reshape(len(v), -1), axis=1) for v in (a, b))
    x, y = (v - v.mean(axis=1, keepdims=True) for v in (x, y))
    size = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(size > 0, (x * y).sum(axis=1) / size, np.nan)


def top_overlap(a: np.ndarray, b: np.ndarray, share: float = 0.2) -> np.ndarray:
    """Share of the places with the largest absolute values that two rows have in common, in [0, 1].

    Args:
        a, b: [samples, ...], equal shapes.
        share: of the places that count as large; at least one.
    """
    x, y = (np.abs(v.reshape(len(v), -1)) for v in (a, b))
    count = max(1, round(share * x.shape[1]))
    tops = [np.argsort(-v, axis=1, kind="stable")[:, :count] for v in (x, y)]
    return np.array([len(np.intersect1d(p, q)) / count for p, q in zip(*tops, strict=True)])


# -- Which part of an input the answer rests on, before and after, by captum ----------------------------

SAMPLES = 24  # whose attributions are compared
PICTURES = 4  # of these are shown
STEPS = (64, 256, 1024, 4096)  # of the integral; more where the sum is not complete
PASS = 3  # forward passes that a gradient costs
TOLERANCE = 0.01  # of f(x) - f(baseline)
HELD = 4_000_000  # numbers of the inputs that are run together, with gradients
WINDOWS = 8  # occluded places along an axis
FINEST = 32  # pixels on a side of a picture


def attribution_section(subject: Subject) -> Section:
    """Integrated gradients and occlusion of both networks on the same inputs, and how far they agree.

    Raises:
        Skipped: captum is not installed, the inputs are no single tensor of floats, or outputs are not
            [batch, scores].
    """
    try:
        import captum.attr  # noqa: F401
    except ImportError:
        raise Skipped('captum is not installed: pip install "netcarve[explain]"') from None
    x = _some(subject.only_input(), int(BUDGET / (2 * PASS * STEPS[0] * subject.macs)))
    models = subject.original, subject.network
    with torch.no_grad():
        outputs = subject.call(subject.original, x)
    if outputs.dim() != 2:
        raise Skipped(f"outputs are {list(outputs.shape)}, not [batch, scores]")
    targets = outputs.argmax(dim=1)  # what the original answers: one question put to both
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    gaps: list[np.ndarray] = []
    for name, method in (("integrated gradients", _integrated), ("occlusion", _occluded)):
        pair = []
        for which, model in zip(("original", "subnetwork"), models, strict=True):
            subject.say(f"{name} of the {which}")
            attributions, gap = method(subject, model, x, targets)
            pair.append(attributions)
            gaps += [gap] if gap is not None else []
        found[name] = (pair[0], pair[1])
    agreement = {
        name: {
            "rank_correlation": float(np.nanmean(rank_correlation(a, b))),
            "top_overlap": float(np.mean(top_overlap(a, b))),
        }
        for name, (a, b) in found.items()
    }
    gap = np.concatenate(gaps)
    figures = _pictures(x, found) if x.dim() == 4 or x.dim() == 2 else []
    figures.append(
        SectionFigure(
            "table",
            "Agreement",
            "1 is full agreement; the rank correlation of unrelated attributions is 0, their overlap 0.2.",
            {
                "head": ["method", "rank correlation", "overlap of the strongest fifth"],
                "rows": [
                    [n, f"{a['rank_correlation']:.2f}", f"{a['top_overlap']:.2f}"]
                    for n, a in agreement.items()
                ],
            },
        )
    )
    scores = ", ".join(f"{n} {a['rank_correlation']:.2f}" for n, a in agreement.items())
    return Section(
        "attribution",
        "What the answer rests on",
        f"attributions agree (rank correlation): {scores}",
        f"{len(x)} validation samples, for the class that the original answers, by captum; the sum of "
        "integrated "
        f"gradients, from an input of zeros, misses f(x) - f(zeros) by {np.median(gap):.2%} in the median, "
        f"{gap.max():.2%} at most",
        tuple(figures),
        {
            "samples": len(x),
            "agreement": agreement,
            "completeness_gap": {"median": float(np.median(gap)), "largest": float(gap.max())},
        },
    )


def _integrated(
    subject: Subject, model: nn.Module, x: Tensor, targets: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Attributions [samples, ...], and how far their sums miss f(x) - f(0), relative [samples]."""
    from captum.attr import IntegratedGradients

    forward = _forward(subject, model)
    method, baseline = IntegratedGradients(forward), torch.zeros_like(x)
    with torch.no_grad():
        rows = torch.arange(len(x))
        whole = (forward(x) - forward(baseline))[rows, targets]
    together = max(32, min(4096, HELD // x[0].numel()))
    attributions, gap = torch.zeros_like(x), torch.full((len(x),), math.inf)
    for steps in STEPS:
        todo = torch.nonzero(gap > TOLERANCE).flatten()
        if not len(todo) or (steps > STEPS[0] and len(todo) * steps * PASS * subject.macs > BUDGET):
            break
        got = method.attribute(
            x[todo],
            baselines=baseline[todo],
            target=targets[todo],
            n_steps=steps,
            # Gauss-Legendre's nodes take 14 s for 4096 steps, and kinks (ReLU) leave it no advantage.
            method="riemann_middle",
            internal_batch_size=together,
        ).detach()
        missed = (got.flatten(1).sum(dim=1) - whole[todo]).abs()
        attributions[todo] = got.to(attributions.dtype)
        gap[todo] = (missed / whole[todo].abs().clamp_min(1e-12)).to(gap.dtype)
    return attributions.double().numpy(), gap.double().numpy()


def _occluded(subject: Subject, model: nn.Module, x: Tensor, targets: Tensor) -> tuple[np.ndarray, None]:
    """Fall of the score when a window is set to zero, spread over the window: [samples, ...]."""
    from captum.attr import Occlusion

    if x.dim() > 2:  # all channels at once; windows half overlap
        sides = [max(1, math.ceil(2 * n / WINDOWS)) for n in x.shape[2:]]
        window = (x.shape[1], *sides)
        strides = (x.shape[1], *(max(1, side // 2) for side in sides))
    else:
        window = strides = (max(1, math.ceil(x.shape[1] / 64)),)
    with torch.no_grad():
        got = Occlusion(_forward(subject, model)).attribute(
            x, sliding_window_shapes=window, strides=strides, target=targets, baselines=0
        )
    return got.double().numpy(), None


def _forward(subject: Subject, model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: subject.call(model, x)


def _some(x: Tensor, affordable: int) -> Tensor:
    rows = torch.linspace(0, len(x) - 1, min(max(2, affordable), SAMPLES, len(x))).round().long()
    return x[rows]


def _pictures(x: Tensor, found: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[SectionFigure]:
    if x.dim() == 2 and x.shape[1] > 256:
        return []
    rows = []
    for sample in range(min(PICTURES, len(x))):
        pictures: list[dict[str, Any]] = [
            {"name": "input", "pixels": _plane(x[sample].double().numpy(), spread=True), "signed": False}
        ]
        for name, pair in found.items():
            for which, values in zip(("original", "subnetwork"), pair, strict=True):
                pictures.append(
                    {"name": f"{name}, {which}", "pixels": _plane(values[sample]), "signed": True}
                )
        rows.append({"name": f"sample {sample + 1}", "pictures": pictures})
    return [
        SectionFigure(
            "images",
            "Attributions",
            "Blue places speak for the class, orange ones against it; original and subnetwork should look "
            "alike.",
            {"rows": rows},
        )
    ]


def _plane(values: np.ndarray, *, spread: bool = False) -> list[Any]:
    """A picture: channels summed (or averaged), at most :data:`FINEST` pixels on a side, scaled to 1."""
    plane = (
        values.reshape(1, -1) if values.ndim == 1 else values.mean(axis=0) if spread else values.sum(axis=0)
    )
    steps = [max(1, math.ceil(n / FINEST)) for n in plane.shape] if values.ndim > 1 else [1, 1]
    plane = plane[:: steps[0], :: steps[1]]
    if spread:
        plane = (plane - plane.min()) / max(float(np.ptp(plane)), 1e-30)
    return clipped(plane / max(float(np.abs(plane).max()), 1e-30), 3)
