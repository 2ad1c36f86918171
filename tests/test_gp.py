"""The Gaussian process, its scale and the exact expected improvement, against direct computation."""

import numpy as np
import pytest
from netcarve.results.hypervolume import hypervolume
from netcarve.search.bayesian.acquisition import ImprovementMeasure, cells, expected_improvement
from netcarve.search.bayesian.gp import GP
from netcarve.search.bayesian.kernel import JITTER, MEAN, TREND, Covariance, OptionKernel, Posterior
from netcarve.search.bayesian.metric import Metric, Warp, standardised
from netcarve.search.evolutionary.evolution import kept, scattered, vary
from netcarve.spaces import Choice, Space
from netcarve.testing import SearcherConformance


class TestGP(SearcherConformance):
    searcher = GP


MIXED = Space(
    [Choice("a", (0.0, 0.25, 0.5, 0.75)), Choice("b", ("conv", "shift", "none")), Choice("c", (1, 2))]
)


def random_theta(kernel, seed=0):
    return kernel.prior_mean + np.random.default_rng(seed).normal(0, 0.4, len(kernel.prior_mean))


def direct(theta, x, y, space=MIXED):
    """The kernel's definition, one pair at a time."""
    d = len(space)
    total, joint, mean_x, mean_y = MEAN**2, np.exp(2 * theta[-2]), 0.0, 0.0
    for k, choice in enumerate(space.choices):
        last = max(len(choice) - 1, 1)
        gap = abs(x[k] - y[k]) / last if isinstance(choice.options[0], int | float) else float(x[k] != y[k])
        r = np.sqrt(3) * gap / np.exp(theta[k])
        m = (1 + r) * np.exp(-r)
        total += np.exp(2 * theta[d + k]) * m
        joint *= m
        mean_x, mean_y = mean_x + x[k] / last / d, mean_y + y[k] / last / d
    return total + joint + TREND**2 * mean_x * mean_y


def rows_of(space, n, seed=0):
    return np.random.default_rng(seed).integers(0, space.counts, size=(n, len(space)))


# kernel and process


def test_covariance_is_the_definition():
    kernel = OptionKernel(MIXED)
    theta = random_theta(kernel)
    a, b = rows_of(MIXED, 9), rows_of(MIXED, 7, seed=1)
    covariance = Covariance(kernel, theta)
    expected = [[direct(theta, x, y) for y in b] for x in a]
    np.testing.assert_allclose(covariance(kernel.one_hot(a), kernel.one_hot(b)), expected, rtol=1e-12)
    np.testing.assert_allclose(covariance.diagonal(kernel.one_hot(a)), [direct(theta, x, x) for x in a])


def test_gradient_of_the_density_is_its_slope():
    kernel = OptionKernel(MIXED)
    theta, a = random_theta(kernel), kernel.one_hot(rows_of(MIXED, 15))
    values = np.random.default_rng(2).normal(size=15)
    _, gradient = kernel.loss_and_gradient(theta, a, values)
    for k in range(len(theta)):
        step = np.zeros_like(theta)
        step[k] = 1e-4
        up, down = (kernel.loss_and_gradient(theta + s, a, values)[0] for s in (step, -step))
        assert gradient[k] == pytest.approx((up - down) / 2e-4, rel=1e-4, abs=1e-5)


def test_density_is_that_of_the_normal_distribution():
    kernel = OptionKernel(MIXED)
    theta, rows = kernel.prior_mean, rows_of(MIXED, 10)
    values = np.random.default_rng(2).normal(size=10)
    k = np.array([[direct(theta, x, y) for y in rows] for x in rows])
    k += (np.exp(2 * theta[-1]) + JITTER) * np.eye(10)
    expected = 0.5 * values @ np.linalg.solve(k, values) + 0.5 * np.linalg.slogdet(k)[1]
    assert kernel.loss_and_gradient(theta, kernel.one_hot(rows), values)[0] == pytest.approx(expected)


def test_fit_reaches_a_point_where_the_density_is_flat():
    kernel = OptionKernel(MIXED)
    rows = rows_of(MIXED, 20)
    values = np.sin(rows.sum(axis=1))
    theta, density = kernel.fit(rows, values, steps=200)
    assert density < kernel.loss_and_gradient(kernel.prior_mean, kernel.one_hot(rows), values)[0]
    assert np.abs(kernel.loss_and_gradient(theta, kernel.one_hot(rows), values)[1]).max() < 0.05


def dense(theta, rows, values, at):
    """Mean and variance by the textbook (Rasmussen and Williams 2006, equations 2.25 and 2.26)."""
    k = np.array([[direct(theta, x, y) for y in rows] for x in rows])
    k += (np.exp(2 * theta[-1]) + JITTER) * np.eye(len(rows))
    cross = np.array([[direct(theta, x, y) for y in rows] for x in at])
    prior = np.array([direct(theta, x, x) for x in at])
    return cross @ np.linalg.solve(k, values), prior - np.diag(cross @ np.linalg.solve(k, cross.T))


def test_posterior_is_the_direct_one():
    kernel = OptionKernel(MIXED)
    theta, rows, at = random_theta(kernel), rows_of(MIXED, 12), rows_of(MIXED, 8, seed=1)
    values = np.random.default_rng(2).normal(size=12)
    posterior = Posterior(Covariance(kernel, theta), rows, values)
    mean, variance = dense(theta, rows, values, at)
    field = posterior.at(at)
    np.testing.assert_allclose(field.mean, mean, rtol=1e-8)
    np.testing.assert_allclose(field.variance, variance, rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(posterior.mean(at), mean, rtol=1e-8)


def test_believing_is_observing_the_mean():
    kernel = OptionKernel(MIXED)
    theta, rows, at = random_theta(kernel), rows_of(MIXED, 12), rows_of(MIXED, 8, seed=1)
    posterior = Posterior(Covariance(kernel, theta), rows, np.random.default_rng(2).normal(size=12))
    field = posterior.at(at)
    before = field.variance.copy()
    for i in (3, 0):
        field.believe(i)
    told = posterior.given(at[[3, 0]], field.mean[[3, 0]]).at(at)
    np.testing.assert_allclose(told.mean, field.mean, rtol=1e-7)
    np.testing.assert_allclose(told.variance, field.variance, rtol=1e-6, atol=1e-10)
    assert field.variance[3] < before[3]


# scale


def test_warp_and_back():
    losses = np.array([-0.99, -0.98, -0.5, -0.1, -1.0])
    warp = standardised(losses, anchor=-0.99, share=0.01)
    np.testing.assert_allclose(warp.inverse(warp(losses)), losses)
    assert warp(losses).mean() == pytest.approx(0, abs=1e-12)
    assert warp(losses).std() == pytest.approx(1)
    slopes = [(warp(v + 1e-7) - warp(v - 1e-7)) / 2e-7 for v in losses + 1e-4]
    assert warp.log_slope(losses + 1e-4) == pytest.approx(np.log(slopes).sum(), rel=1e-5)
    assert standardised(np.full(4, 0.3), anchor=0.3, share=0.5)(np.full(4, 0.3)).tolist() == [0.0] * 4


def test_scale_is_learnt():
    """Damages that multiply want a fine scale, damages that add a coarse one."""
    space = Space([Choice(f"c{d}", (0, 1, 2, 3)) for d in range(4)])
    rows = rows_of(space, 60)
    shares = {}
    for name, losses in {
        "multiply": np.exp(0.9 * rows.sum(axis=1)) / np.exp(0.9 * 12),
        "add": rows @ np.array([0.1, 0.2, 0.3, 0.4]),
    }.items():
        metric = Metric(name, 1.0)
        metric.fit(OptionKernel(space), rows, losses, anchor=0.0)
        shares[name] = metric.warp.share
    assert shares["multiply"] < 0.05 < 0.3 < shares["add"]


def test_scale_does_not_collapse_on_values_that_repeat():
    space = Space([Choice(f"c{d}", (0, 1, 2, 3)) for d in range(4)])
    rows = rows_of(space, 40)
    losses = np.round(np.maximum(rows.sum(axis=1) - 5, 0) / 7, 2)  # a third of them exactly at the anchor
    metric = Metric("steps", 1.0)
    for _ in range(6):
        metric.fit(OptionKernel(space), rows, losses, anchor=0.0)
    assert metric.warp.share >= 0.05


# improvement


def staircase(rng, n, m):
    points = rng.random((n, m))
    return points / points.sum(axis=1, keepdims=True) + 0.1 * rng.random((n, m))


@pytest.mark.parametrize("m", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_cells_partition_what_is_not_dominated(m, n):
    rng = np.random.default_rng(m * 10 + n)
    front, reference = staircase(rng, n, m), np.full(m, 0.9)
    lower, upper = cells(front, reference)
    low = np.maximum(lower, -0.5)
    at = rng.uniform(-0.5, 1.0, (2000, m))
    inside = ((at[:, None] > low) & (at[:, None] <= upper)).all(axis=2).sum(axis=1)
    dominated = (front[None] <= at[:, None]).all(axis=2).any(axis=1) | (at > reference).any(axis=1)
    np.testing.assert_array_equal(inside, ~dominated)
    volume = (upper - low).prod(axis=1).sum()
    assert volume == pytest.approx(1.4**m - hypervolume(front, reference))


@pytest.mark.parametrize("m", [1, 2, 3])
def test_improvement_of_known_points_is_the_difference_of_hypervolumes(m):
    rng = np.random.default_rng(m)
    front, reference = staircase(rng, 6, m), np.full(m, 0.8)
    points = rng.random((40, m)) * 1.1
    got = expected_improvement(points, np.zeros_like(points), *cells(front, reference))
    before = hypervolume(front, reference)
    expected = [hypervolume(np.vstack([front, p]), reference) - before for p in points]
    np.testing.assert_allclose(got, expected, atol=1e-12)
    assert (got > 0).any()


@pytest.mark.parametrize("unknown", [(0,), (1,), (0, 1), (2,), (0, 2)])
def test_expected_improvement_is_that_of_samples(unknown):
    m = max(2, max(unknown) + 1)
    rng = np.random.default_rng(sum(unknown))
    front, reference = staircase(rng, 5, m), np.full(m, 0.9)
    mean = rng.random((6, m)) * 0.6
    std = np.zeros((6, m))
    std[:, unknown] = rng.uniform(0.05, 0.4, (6, len(unknown)))
    lower, upper = cells(front, reference)
    got = expected_improvement(mean, std, lower, upper)
    drawn = mean[None] + std[None] * rng.standard_normal((20000, 6, m))
    flat = drawn.reshape(-1, m)
    sampled = expected_improvement(flat, np.zeros_like(flat), lower, upper).reshape(20000, 6)
    error = sampled.std(axis=0) / np.sqrt(20000)
    assert (np.abs(got - sampled.mean(axis=0)) < 4.5 * error + 1e-9).all()


def test_weighted_improvement_is_that_of_samples():
    """Worth as a function of the value, integrated along the drawn improvement."""
    rng = np.random.default_rng(0)
    front, reference = staircase(rng, 5, 2), np.array([0.9, 0.9])
    measure = ImprovementMeasure(np.array([-0.2, 0.1, 0.5, 1.0]), np.array([0.0, 0.6, 0.8, 0.81]))
    mean = np.column_stack([rng.random(6), rng.random(6) * 0.6])
    std = np.column_stack([np.full(6, 0.3), np.zeros(6)])
    got = expected_improvement(mean, std, *cells(front, reference), {0: measure})

    def worth(x):
        inner = np.interp(x, measure.knots, measure.worth)
        low, high = measure.slopes()[[0, -1]]
        return inner + low * np.minimum(x + 0.2, 0) + high * np.maximum(x - 1.0, 0)

    def mapped(points):
        return np.column_stack([worth(points[:, 0]), points[:, 1]])

    boxes = cells(mapped(front), mapped(reference[None])[0])
    drawn = mean[None] + std[None] * rng.standard_normal((20000, 6, 2))
    flat = mapped(drawn.reshape(-1, 2))
    sampled = expected_improvement(flat, np.zeros_like(flat), *boxes).reshape(20000, 6)
    error = sampled.std(axis=0) / np.sqrt(20000)
    assert (np.abs(got - sampled.mean(axis=0)) < 4.5 * error + 1e-9).all()


def test_an_even_measure_changes_nothing():
    rng = np.random.default_rng(0)
    boxes = cells(staircase(rng, 5, 2), np.array([0.9, 0.9]))
    mean, std = rng.random((9, 2)), rng.random((9, 2))
    even = ImprovementMeasure(np.array([-0.3, 0.2, 1.4]), np.array([-0.3, 0.2, 1.4]))
    plain = expected_improvement(mean, std, *boxes)
    np.testing.assert_allclose(expected_improvement(mean, std, *boxes, {0: even}), plain)


# rows


def test_rows_stay_within_the_space():
    rng, counts = np.random.default_rng(0), np.array([4, 1, 8, 2])
    rows = np.vstack([vary(rng, scattered(rng, counts, 5), counts, 300), scattered(rng, counts, 300)])
    assert ((rows >= 0) & (rows < counts)).all()
    assert len(np.unique(rows, axis=0)) > 30


def test_rows_are_brought_within_limits():
    rng, counts = np.random.default_rng(0), np.full(6, 8)
    rows = rng.integers(0, 8, (200, 6))

    def narrow(x):  # 2 % of the space, between both ends
        return np.maximum(0, 31 - x.sum(axis=1)) + np.maximum(0, x.sum(axis=1) - 33)

    assert (narrow(kept(rows, counts, narrow)) == 0).all()
    assert len(kept(rows, counts, narrow)) > 100
    inside = np.full((1, 6), 5)
    inside[0, :2] = 6
    np.testing.assert_array_equal(kept(inside, counts, narrow), inside)
    assert len(kept(rows, counts, lambda x: np.ones(len(x)))) == 0


def test_warp_of_one_scale_is_fine_near_the_anchor():
    warp = Warp(anchor=0.0, share=0.01)
    assert warp(np.array(0.01)) - warp(np.array(0.0)) > 10 * (warp(np.array(0.91)) - warp(np.array(0.9)))
