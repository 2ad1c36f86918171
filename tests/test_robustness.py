"""Corruptions against closed forms, FGSM against a linear model's gradient, stability of rankings."""

import math

import numpy as np
import pytest
import torch
from netcarve import Task, sweep, trace
from netcarve.evaluators import Robustness, TaskError, ranking_stability
from netcarve.evaluators.heldout import Stability
from netcarve.evaluators.judge import Judge
from netcarve.evaluators.robustness import (
    IMAGES,
    Scale,
    blurred,
    contrast,
    corrupted,
    corrupted_input,
    fgsm,
    replaced,
    shifted,
)
from netcarve.spaces import Candidate
from scipy.ndimage import gaussian_filter
from torch import nn

NONE = Candidate(())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=40, seed=0, size=8):
    return torch.rand(n, 2, size, size, generator=generator(seed))


def image_task(**options):
    torch.manual_seed(0)
    x = images()
    y = (x[:, 0, :4].mean((1, 2)) > x[:, 1, 4:].mean((1, 2))).long()
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 2))
    return Task(model, x[:1], options.pop("validation", (x, y)), **options)


class TestCorruptions:
    def test_scale(self):
        a, b = torch.randn(7, 3, 4, 4), torch.randn(5, 3, 4, 4)
        found = Scale.of([a, b])
        both = torch.cat([a, b]).double()
        assert found.deviation == pytest.approx(float(both.std(correction=0)))
        assert (found.low, found.high) == (float(both.min()), float(both.max()))
        assert Scale.of([torch.ones(3, 2)]).deviation == 1.0

    def test_noise_has_the_deviation_asked_for_and_stays_in_range(self):
        x = torch.full((1, 1, 200, 200), 0.5)
        wide = corrupted("noise", x, 0.1, Scale(2.0, -9.0, 9.0), generator()) - x
        assert float(wide.std()) == pytest.approx(0.2, rel=0.02)
        assert float(wide.mean()) == pytest.approx(0.0, abs=0.005)
        narrow = corrupted("noise", x, 1.0, Scale(2.0, 0.0, 1.0), generator())
        assert (float(narrow.min()), float(narrow.max())) == (0.0, 1.0)

    def test_shift_moves_each_image_by_whole_pixels(self):
        x = images(64, size=16)
        moved = shifted(x, 0.125, generator())  # 2 of 16 pixels
        padded = nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
        ways = [(a, b) for a in (0, 2, 4) for b in (0, 2, 4)]
        found = set()
        for before, after in zip(padded, moved, strict=True):
            (way,) = [w for w in ways if torch.equal(before[:, w[0] : w[0] + 16, w[1] : w[1] + 16], after)]
            found.add(way)
        assert found == set(ways) - {(2, 2)}

    def test_contrast_keeps_the_mean_and_scales_the_rest(self):
        x = images()
        flat = contrast(x, 0.5)
        mean = x.mean((1, 2, 3), keepdim=True)
        torch.testing.assert_close(flat.mean((1, 2, 3), keepdim=True), mean)
        torch.testing.assert_close(flat - mean, (x - mean) / 2)
        assert float((contrast(x, 1.0) - mean).abs().max()) < 1e-6

    def test_blur_is_scipys(self):
        x = images(3, size=12).double()
        ours = blurred(x, 1 / 12)  # one pixel
        theirs = gaussian_filter(x.numpy(), sigma=(0, 0, 1, 1), mode="nearest", radius=(0, 0, 3, 3))
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-12)

    def test_unknown(self):
        with pytest.raises(ValueError, match="unknown corruption 'fog'"):
            corrupted("fog", images(), 1.0, Scale(1, 0, 1), generator())


def test_fgsm_of_a_linear_model_is_its_closed_form():
    """Two classes, logits w x: the loss falls with the margin, so that each x moves against its class."""
    x, w = torch.randn(6, 5), torch.randn(2, 5)
    model = nn.Linear(5, 2, bias=False)
    model.weight.data = w
    y = torch.tensor([0, 1, 0, 1, 1, 0])
    judge = Judge.of("accuracy", None, None, None)
    worse = fgsm(model, ((x,), {}, y), "input", 0.1, judge)
    sign = torch.where(y == 0, -1.0, 1.0)[:, None]
    torch.testing.assert_close(worse, x + 0.1 * sign * (w[0] - w[1]).sign())
    assert model.weight.grad is None
    assert not worse.requires_grad


class TestRobustness:
    def test_each_figure_is_the_metric_on_these_inputs(self):
        task = image_task()
        found = Robustness()(task, task.model, NONE)
        figures = found.detail["robustness"]
        assert set(figures) == {"clean", *IMAGES}
        assert figures["clean"] == task.measure(task.model(*a) for a, _, _ in task.batches)["accuracy"]
        assert found["robust_accuracy"] == pytest.approx(np.mean([figures[name] for name in IMAGES]))
        x, y = task.batches[0][0][0], task.batches[0][2]
        right = (task.model(contrast(x, 0.5)).argmax(1) == y).double().mean()
        assert figures["contrast"] == pytest.approx(float(right))

    def test_stronger_is_worse(self):
        """A network that is right about everything can only lose; the more, the stronger the attack."""
        x, y = images(200), torch.arange(200) % 2
        x[:, 0] += y[:, None, None] * 0.3
        model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
        model[2].weight.data = torch.tensor([[-1.0, 0], [1.0, 0]])
        model[2].bias.data = torch.tensor([0.65, -0.65])
        task = Task(model, x[:1], (x, y))
        scores = [
            Robustness(strengths={"fgsm": s})(task, task.model, NONE)["robust_accuracy"]
            for s in (0.01, 0.4, 0.6, 2)
        ]
        assert scores[0] > 0.95
        assert scores == sorted(scores, reverse=True)
        assert scores[-1] < 0.1

    def test_same_seed_same_figures(self):
        task = image_task()
        first = Robustness()(task, task.model, NONE)
        torch.manual_seed(77)
        again = Robustness()(task, task.model, NONE)
        assert (first, first.detail) == (again, again.detail)
        strong = [Robustness(strengths={"noise": 2.0}, seed=s)(task, task.model, NONE) for s in range(6)]
        assert len({s["robust_accuracy"] for s in strong}) > 1

    def test_the_model_and_the_data_are_left_as_they_were(self):
        task = image_task()
        before = [p.clone() for p in task.model.parameters()], [a[0].clone() for a, _, _ in task.batches]
        Robustness()(task, task.model, NONE)
        assert all(torch.equal(a, b) for a, b in zip(before[0], task.model.parameters(), strict=True))
        assert all(torch.equal(a, b[0][0]) for a, b in zip(before[1], task.batches, strict=True))
        assert all(p.grad is None for p in task.model.parameters())

    def test_vectors_and_sequences_get_noise_and_fgsm(self):
        x = torch.randn(30, 7, 4)
        model = nn.Sequential(nn.Flatten(), nn.Linear(28, 3))
        task = Task(model, x[:1], (x, torch.arange(30) % 3))
        assert set(Robustness()(task, model, NONE).detail["robustness"]) == {"clean", "noise", "fgsm"}
        with pytest.raises(TaskError, match=r"blur does not fit this task, .* fitting are noise, fgsm"):
            Robustness(strengths={"blur": 0.1}).applied(task)

    def test_a_metric_of_ones_own_goes_without_fgsm(self):
        def closeness(outputs, targets):
            return -float((outputs[:, 0] - targets).abs().mean())

        x = torch.randn(30, 4)
        task = Task(nn.Linear(4, 1), x[:1], (x, x[:, 0]), metric=closeness)
        found = Robustness()(task, task.model, NONE)
        assert set(found.detail["robustness"]) == {"clean", "noise"}
        assert found["robust_accuracy"] == found.detail["robustness"]["noise"] < 0

    def test_a_task_that_is_scored_by_its_loss_gives_accuracies(self):
        x, y = images(), torch.arange(40) % 2
        by_loss, by_accuracy = (image_task(validation=(x, y), metric=m) for m in ("loss", "accuracy"))
        assert Robustness()(by_loss, by_loss.model, NONE) == Robustness()(
            by_accuracy, by_accuracy.model, NONE
        )

    def test_other_inputs_stay_as_they_are(self):
        class Masked(nn.Module):
            def forward(self, x, mask):
                return (x * mask[:, None]).sum((2, 3)) if mask.dim() > 1 else x.mean((2, 3)) * mask[:, None]

        x, mask = images(), torch.arange(40) % 3
        task = Task(
            Masked(), {"x": x[:1], "mask": mask[:1]}, [({"x": x, "mask": mask}, torch.arange(40) % 2)]
        )
        key, value = corrupted_input(task)
        assert value.dim() == 4
        changed = replaced(task.batches[0], key, value * 0)
        assert torch.equal(changed[1]["mask"], task.batches[0][1]["mask"])
        assert not changed[1]["x"].any()
        assert 0 <= Robustness()(task, task.model, NONE)["robust_accuracy"] <= 1

    def test_refusals(self):
        tokens = torch.randint(0, 9, (20, 5))
        model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 2))
        task = Task(model, tokens[:1], (tokens, torch.arange(20) % 2))
        with pytest.raises(TaskError, match=r"the model takes no floating-point input: input int64\[1, 5\]"):
            Robustness().applied(task)
        space = trace(task.model, task.example).space()
        with pytest.raises(TaskError, match="no floating-point input"):
            sweep(task, space, "random", ["robust_accuracy", "macs"], trials=3, workers=0)
        with pytest.raises(ValueError, match="unknown corruption 'fog': known are noise, shift"):
            Robustness(strengths={"fog": 1.0})
        with pytest.raises(ValueError, match="strength of noise must be more than 0, got -1"):
            Robustness(strengths={"noise": -1})
        with pytest.raises(ValueError, match="names no corruption"):
            Robustness(strengths={})


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    task = image_task()
    x, y = task.batches[0][0][0], task.batches[0][2]
    optimizer = torch.optim.Adam(task.model.parameters(), 0.02)
    for _ in range(12):  # a network that knows something, so that candidates differ
        nn.functional.cross_entropy(task.model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    space = trace(task.model, task.example).space(calibration=task.calibration_batches)
    out = tmp_path_factory.mktemp("runs") / "run"
    return (
        task,
        space,
        sweep(task, space, "random", ["robust_accuracy", "macs"], trials=7, workers=0, out=out),
    )


def test_it_works_as_an_objective(searched):
    task, _, run = searched
    assert [o.goal for o in run.objectives] == ["max", "min"]
    for trial in run.trials:
        assert not trial.failed, trial.error
        detail = trial.detail["robustness"]
        assert detail["clean"] == trial.scores["accuracy"]
        assert trial.scores["robust_accuracy"] == pytest.approx(np.mean([detail[name] for name in IMAGES]))
    chosen = run.trials[-1]
    built = run.model(chosen.number)
    assert Robustness()(task, built, NONE)["robust_accuracy"] == chosen.scores["robust_accuracy"]


class TestStability:
    def test_of_a_run(self, searched):
        task, space, run = searched
        candidates = [t.candidate for t in run.trials]
        told = []
        found = ranking_stability(
            task, space, candidates, halves=20, seeds=2, progress=lambda *n: told.append(n)
        )
        assert found == ranking_stability(task, space, candidates, halves=20, seeds=2)
        count = len(candidates)
        assert told[-1] == (3 * count, 3 * count)
        assert all(-1 <= tau <= 1 for tau in found.data + found.seeds)
        assert len(found.seeds) <= 1  # one pair of two draws
        mean, low, high = found.across_data
        assert low <= mean <= high
        assert f"Order of {count} candidates: tau" in found.line()

    def test_a_clear_order_is_stable_and_no_order_is_none(self):
        """Networks that are right on 95, 75, 50 and 25 of 100 samples keep that order on any half."""
        rights = np.array([95, 75, 50, 25])
        hit = np.array(
            [np.random.default_rng(k).permutation(np.arange(200) < 2 * n) for k, n in enumerate(rights)]
        )
        from netcarve.evaluators.heldout import _on_halves, _taus

        metrics = [lambda rows, h=h: float(h[rows].mean()) for h in hit]
        assert min(_taus(_on_halves(metrics, 200, 30, np.random.default_rng(0)))) == pytest.approx(1.0)
        coins = [np.random.default_rng(k).random(400) < 0.5 for k in range(8)]
        metrics = [lambda rows, h=h: float(h[rows].mean()) for h in coins]
        assert abs(np.mean(_taus(_on_halves(metrics, 400, 100, np.random.default_rng(0))))) < 0.35
        alike = [lambda rows: 0.5] * 4
        assert _taus(_on_halves(alike, 400, 5, np.random.default_rng(0))) == ()
        assert "the same metric" in Stability(4, (), ()).line()
        assert Stability(4, (), ()).across_data is None

    def test_refusals(self, searched):
        task, space, run = searched
        with pytest.raises(ValueError, match=r"at least 3 candidates, .* got 2 candidates"):
            ranking_stability(task, space, [t.candidate for t in run.trials[:2]])
        assert math.isfinite(run.trials[0].scores["robust_accuracy"])
