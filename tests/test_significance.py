"""Intervals and the paired test against closed forms, scipy, and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from netcarve.results.significance import Figure, Paired, bootstrap, mcnemar, sign_test, wilson
from scipy.stats import binom, binomtest


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_is_scipys(case, level):
    right, count = case
    theirs = binomtest(right, count).proportion_ci(level, method="wilson")
    assert wilson(right, count, level) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_wilson_at_the_ends():
    z2 = 1.959963984540054**2
    assert wilson(0, 20) == pytest.approx((0, z2 / (20 + z2)))  # closed form
    assert wilson(20, 20) == pytest.approx((20 / (20 + z2), 1))
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == 1.0


def test_wilson_holds_its_level():
    """How often the interval holds the true share, summed over all outcomes: near 95 % on average."""
    covered = []
    for share in np.linspace(0.8, 0.99, 20):
        chances = binom.pmf(np.arange(101), 100, share)
        inside = [low <= share <= high for low, high in (wilson(k, 100) for k in range(101))]
        covered.append(float(chances[inside].sum()))
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)
    assert min(covered) > 0.9


@pytest.mark.parametrize("case", [(3, 2), (-1, 5), (0, 0)])
def test_wilson_refuses(case):
    with pytest.raises(ValueError, match="need 0 <= right <= count"):
        wilson(*case)


@given(st.integers(0, 60), st.integers(0, 60))
def test_sign_test_is_scipys_binomial_test(a, b):
    theirs = binomtest(a, a + b, 0.5).pvalue if a + b else 1.0
    assert sign_test(a, b) == pytest.approx(theirs, rel=1e-9)
    assert sign_test(a, b) == sign_test(b, a)


def test_mcnemar_counts_what_differs():
    ours = np.array([1, 1, 1, 0, 0, 0, 1], bool)
    theirs = np.array([1, 0, 0, 1, 0, 0, 1], bool)
    assert mcnemar(ours, theirs) == Paired(gained=2, lost=1, p=1.0)
    assert mcnemar(ours, ours) == Paired(0, 0, 1.0)
    # 0 against 8: p = 2 / 2**8
    assert mcnemar(np.ones(8, bool), np.zeros(8, bool)).p == 2 / 2**8
    with pytest.raises(ValueError, match="two vectors of one length"):
        mcnemar(ours, theirs[:3])


def test_mcnemar_under_the_null_is_no_more_often_significant_than_it_says():
    rng = np.random.default_rng(0)
    found = [mcnemar(*(rng.random((2, 200)) < 0.9)).p for _ in range(400)]
    assert np.mean(np.array(found) < 0.05) <= 0.05  # exact tests are conservative


def test_bootstrap_of_a_mean_is_the_normal_interval():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = bootstrap(lambda rows: values[rows].mean(), len(values), resamples=4000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert bootstrap(lambda rows: values[rows].mean(), 400) == bootstrap(
        lambda rows: values[rows].mean(), 400
    )


def test_bootstrap_leaves_out_draws_without_a_metric():
    hit = np.array([True, False, False, False])

    def share(rows):  # of the hits, which a draw may miss
        return float(hit[rows].sum() / hit[rows].any()) if hit[rows].any() else math.nan

    assert bootstrap(share, 4) == (1.0, 3.0)
    with pytest.raises(ValueError, match="finite on no draw"):
        bootstrap(lambda rows: math.nan, 4)
    with pytest.raises(ValueError, match="count >= 1"):
        bootstrap(lambda rows: 0.0, 0)


def test_a_figure_survives_json():
    from dataclasses import asdict

    figure = Figure(0.9, 0.8, 0.95, 100, "wilson", baseline=0.92, paired=Paired(1, 3, 0.625))
    assert Figure.from_json(asdict(figure)) == figure
    plain = Figure(0.9, 0.8, 0.95, 100, "bootstrap")
    assert Figure.from_json(asdict(plain)) == plain
