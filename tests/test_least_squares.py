"""The arithmetic of repair and of the reconstruction order, against closed forms and brute force."""

import numpy as np
import pytest
import torch
from netcarve.model.importance import reconstruction
from netcarve.model.importance.reconstruction import Quadratic, backward_elimination
from netcarve.model.repair import mixing
from netcarve.model.repair.least_squares import ColumnSplit, moments
from netcarve.model.repair.sequential import fitted_layer


def with_one(x):
    z = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    return z.T @ z


# -- least squares ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("intercept", [True, False])
def test_mixing_equals_lstsq(intercept):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 7)) @ rng.normal(size=(7, 7)) + rng.normal(size=7)
    kept, removed = np.array([0, 2, 3, 6]), np.array([1, 4, 5])
    a, b = mixing(with_one(x), kept, removed, ridge=0.0, intercept=intercept)
    design = np.concatenate([x[:, kept], np.ones((200, int(intercept)))], axis=1)
    expected = np.linalg.lstsq(design, x[:, removed], rcond=None)[0]
    np.testing.assert_allclose(a, expected[:4], atol=1e-10)
    np.testing.assert_allclose(b, expected[4] if intercept else np.zeros(3), atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_damped_mixing_is_never_worse_than_none(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(12, 9)) + 1  # hardly more samples than columns
    kept, removed = np.arange(5), np.arange(5, 9)
    for ridge in (0.0, 1e-3, 1.0, 1e3):
        a, b = mixing(with_one(x), kept, removed, ridge=ridge)
        error = np.square(x[:, removed] - x[:, kept] @ a - b).sum()
        assert error <= np.square(x[:, removed] - x[:, removed].mean(0)).sum() * (1 + 1e-12)


def test_nothing_kept_leaves_the_mean():
    x = np.random.default_rng(0).normal(size=(50, 3))
    a, b = mixing(with_one(x), np.arange(0), np.arange(3))
    assert a.shape == (0, 3)
    np.testing.assert_allclose(b, x.mean(0))


def test_fitted_layer_equals_lstsq_and_stays_at_its_prior_when_damped():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(60, n, generator=generator, dtype=torch.float64) + 1 for n in (5, 2))
    prior = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    w, c = fitted_layer(x, y, prior, True, 0.0)
    expected = torch.linalg.lstsq(torch.cat([x, torch.ones(60, 1, dtype=torch.float64)], 1), y).solution
    torch.testing.assert_close(w, expected[:5].T)
    torch.testing.assert_close(c, expected[5])
    w, c = fitted_layer(x, y, prior, False, 1e12)
    torch.testing.assert_close(w, prior)
    assert not c.any()


# -- the order -------------------------------------------------------------------------------------------


def quadratic(rng, units, p, outputs=3):
    n = units * p
    root = rng.normal(size=(n, 2 * n))
    second = root @ root.T / n
    w = rng.normal(size=(n, outputs))
    return second, w, Quadratic(np.arange(units), np.linalg.inv(second), w @ w.T)


def constrained_loss(second, w, gone, p):
    """min tr((V - W)^T S (V - W)) with the rows of the units ``gone`` zero."""
    rows = np.concatenate([np.arange(u * p, (u + 1) * p) for u in gone])
    rest = np.setdiff1d(np.arange(len(w)), rows)
    schur = second[np.ix_(rows, rows)]
    if len(rest):
        cross = second[np.ix_(rows, rest)]
        schur = schur - cross @ np.linalg.solve(second[np.ix_(rest, rest)], cross.T)
    return float(np.trace(w[rows].T @ schur @ w[rows]))


@pytest.mark.parametrize(("units", "p", "pending"), [(12, 1, 64), (12, 1, 3), (6, 3, 4), (9, 2, 64)])
def test_saliency_is_the_increase_of_the_constrained_loss(monkeypatch, units, p, pending):
    monkeypatch.setattr(reconstruction, "PENDING", pending)
    rng = np.random.default_rng(0)
    problems = [quadratic(rng, units, p) for _ in range(2)]
    order, increase = backward_elimination(units, [q for _, _, q in problems])
    assert sorted(order) == list(range(units))

    def total(gone):
        return sum(constrained_loss(second, w, gone, p) for second, w, _ in problems)

    before = 0.0
    for step in range(units - 1):
        gone = order[: step + 1].tolist()
        after = total(gone)
        assert increase[step] == pytest.approx(after - before, rel=1e-8)
        others = [total([*gone[:-1], u]) for u in range(units) if u not in gone[:-1]]
        assert after == pytest.approx(min(others))  # the greedy choice
        before = after
    assert np.isinf(increase[-1])


def test_a_loss_over_some_units_leaves_the_others_alone():
    rng = np.random.default_rng(1)
    _, _, q = quadratic(rng, 4, 1)
    part = Quadratic(np.array([0, 2, 5, 6]), q.inverse, q.products)
    order, _ = backward_elimination(8, [part])
    assert set(order[:4]) == {1, 3, 4, 7}  # nothing is lost with them


# -- splits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [2, 9])  # fewer and more than what is removed
@pytest.mark.parametrize("intercept", [True, False])
def test_absorbing_outputs_is_mixing_times_outgoing_weights(outputs, intercept):
    rng = np.random.default_rng(2)
    gram = with_one(rng.normal(size=(80, 8)) + 1)
    kept, removed = np.array([1, 4, 5, 7]), np.array([0, 2, 3, 6])
    outgoing = torch.from_numpy(rng.normal(size=(4, outputs)))
    a, b = mixing(gram, kept, removed, ridge=0.1, intercept=intercept)
    taken, constant = ColumnSplit(gram, kept, removed, ridge=0.1, intercept=intercept).absorb(outgoing)
    np.testing.assert_allclose(taken, a @ outgoing.numpy(), atol=1e-12)
    np.testing.assert_allclose(constant, b @ outgoing.numpy(), atol=1e-12)
    second = moments(gram, intercept=intercept, ridge=0.1)
    expected = np.linalg.solve(second[np.ix_(kept, kept)], second[np.ix_(kept, removed)])
    np.testing.assert_allclose(a, expected, atol=1e-12)


def test_singular_moments_are_damped_until_they_can_be_solved():
    x = np.random.default_rng(0).normal(size=(50, 3))
    x = np.concatenate([x, x, np.zeros((50, 1))], axis=1)  # equal columns, and a dead one
    kept, removed = np.array([0, 3, 1, 6]), np.array([2, 4, 5])
    a, b = mixing(with_one(x), kept, removed, ridge=0.0)
    assert np.isfinite(a).all()
    np.testing.assert_allclose((x[:, kept] @ a + b)[:, 1], x[:, 4], atol=1e-4)  # column 4 is column 1
    dead, _ = mixing(with_one(np.zeros((50, 4))), np.array([0, 1]), np.array([2, 3]), ridge=0.0)
    assert not dead.any()
