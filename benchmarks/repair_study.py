"""The study behind ``repair.py --study``: does repair rank candidates as fine-tuning would?

Digits at 8x8 with Gaussian noise on the inputs, 600 images to train on; ResNet-20 (16, 32, 64 channels) and a
ViT of 4 layers. Per seed one network and 24 candidates drawn at random within 1 % of the same MACs, each

- *plain*: order of magnitude, nothing repaired;
- *BN*: the same, BatchNorm re-estimated (not for the ViT, which has none);
- *repaired*: order by reconstruction, repair layer by layer, BatchNorm re-estimated.

Reported per arm: (a) accuracy without training; (b) accuracy after the same fine-tuning (AdamW, one cycle),
at the better of two learning rates, chosen per arm by the mean on validation images; (c) Kendall's tau over
the candidates between the training-free score, on validation images, and (b), on test images; *ceiling* is
tau between two fine-tunings of different seeds, which no score can be expected to pass. *BN* is fine-tuned
as *plain* is: training sees the statistics of its batches, and all are re-estimated at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from netcarve import trace
from netcarve.evaluators.batchnorm import reestimate_batchnorm
from netcarve.spaces import Candidate, Space
from repair_nets import NETS, RATES, fit, noisy, score
from torch import Tensor, nn

NOISE = 0.3  # standard deviation; pixels lie in [0, 1]
MACS = 0.3  # of the unpruned network
CANDIDATES = 24
CALIBRATION = 512  # noisy training images
TRAINING = {"resnet20": 600, "vit": 1200}  # steps of 64 images
STEPS = 30  # of fine-tuning
FINE_RATES = (2e-3, 3e-4)
ARMS = {"plain": ("l1", False, False), "BN": ("l1", False, True), "repaired": ("reconstruction", True, True)}

Calibration = list[tuple[tuple[Tensor, ...], dict[str, Tensor]]]
Figures = dict[str, dict[str, float]]  # arm -> figure -> value


def network(name: str, seed: int) -> tuple[nn.Module, Calibration]:
    """Trained network of one seed, and noisy training images to calibrate on."""
    torch.manual_seed(seed)
    train, _, _ = noisy(seed, NOISE)
    model = fit(
        NETS[name](), train, steps=TRAINING[name], rate=RATES[name], noise=NOISE, seed=seed, smoothing=0.1
    )
    images = train[0][torch.linspace(0, len(train[0]) - 1, CALIBRATION).round().long()]
    images = images + NOISE * torch.randn(images.shape)
    return model, [((part,), {}) for part in images.split(128)]


def at_equal_macs(space: Space, rng: np.random.Generator) -> list[Candidate]:
    base = float(space.cost_arrays([space.baseline])["macs"][0])
    found: list[Candidate] = []
    while len(found) < CANDIDATES:
        drawn = space.sample(rng, 5000)
        left = space.cost_arrays(drawn)["macs"] / base
        found += [c for c, m in zip(drawn, left, strict=True) if abs(m - MACS) < 0.01 * MACS]
    return found[:CANDIDATES]


def tau(a: Sequence[float], b: Sequence[float]) -> float:
    from scipy.stats import kendalltau

    return float(kendalltau(a, b).statistic)


def one_seed(name: str, seed: int) -> Figures:
    train, validation, test = noisy(seed, NOISE)
    model, calibration = network(name, seed)
    batch_norm = any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    figures: Figures = {"unpruned": {"start": score(model, test)[0]}}
    tuned: np.ndarray | None = None
    for arm, (importance, repair, norms) in ARMS.items():
        if norms and not repair and not batch_norm:
            continue
        space = trace(model, validation[0][:2]).space(
            importance=importance, calibration=calibration, repair=repair
        )
        candidates = at_equal_macs(space, np.random.default_rng(seed))
        starts = []
        for candidate in candidates:
            small = space.build(candidate)
            if norms:
                reestimate_batchnorm(small, calibration)
            starts.append((score(small, validation), score(small, test)[0]))

        def tune(candidate: Candidate, rate: float, run: int, space: Space = space) -> tuple[float, float]:
            small = fit(
                space.build(candidate), train, steps=STEPS, rate=rate, noise=NOISE, seed=1000 * run + seed
            )
            reestimate_batchnorm(small, calibration)
            return score(small, validation)[0], score(small, test)[0]

        if arm != "BN":  # [2 rates, candidates, (validation, test)]
            both = np.array([[tune(c, rate, 1) for c in candidates] for rate in FINE_RATES])
            best = int(both[:, :, 0].mean(1).argmax())
            again = [tune(c, FINE_RATES[best], 2)[1] for c in candidates]
            tuned = np.array([both[best, :, 1], again])
            rate = FINE_RATES[best]
        assert tuned is not None
        scores = {"accuracy": [s[0] for s, _ in starts], "-loss": [-s[1] for s, _ in starts]}
        figures[arm] = {
            "start": float(np.mean([t for _, t in starts])),
            "tuned": float(tuned.mean()),
            "spread": float(tuned.mean(0).std()),
            "rate": rate,
            **{f"tau {k}": float(np.mean([tau(s, t) for t in tuned])) for k, s in scores.items()},
            "ceiling": tau(*tuned),
        }
    return figures


def study(names: Sequence[str], seeds: Sequence[int]) -> None:
    """Print one table a network."""
    for name in names:
        each = [one_seed(name, seed) for seed in seeds]
        unpruned = 100 * np.mean([f["unpruned"]["start"] for f in each])
        print(f"{name}: unpruned {unpruned:.1f} %, {CANDIDATES} candidates at {100 * MACS:.0f} % of the MACs")
        print("mean over seeds (smallest to largest)")
        print(
            "arm | (a) no training | (b) fine-tuned | its spread | rates | tau accuracy | tau -loss | ceiling"
        )
        for arm in ARMS:
            if arm not in each[0]:
                continue
            value = {k: np.array([f[arm][k] for f in each]) for k in each[0][arm]}
            percent = [
                f"{100 * v.mean():.1f} % ({100 * v.min():.1f} to {100 * v.max():.1f})"
                for v in (value["start"], value["tuned"], value["spread"])
            ]
            taus = [
                f"{value[k].mean():.2f} ({value[k].min():.2f} to {value[k].max():.2f})"
                for k in ("tau accuracy", "tau -loss", "ceiling")
            ]
            rates = ", ".join(f"{r:g}" for r in value["rate"])
            print(" | ".join([arm, *percent, rates, *taus]), flush=True)
