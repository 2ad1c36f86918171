"""Optuna's samplers as searchers: the contract, and what the adapter adds."""

import itertools
import warnings

import numpy as np
import pytest
from netcarve.results.hypervolume import hypervolume
from netcarve.results.trial import Trial
from netcarve.search.baselines import Random
from netcarve.search.bayesian.optuna_samplers import TPE, OptunaGP
from netcarve.search.evolutionary.evolution import first_population
from netcarve.search.registry import guard
from netcarve.testing import OBJECTIVES, SearcherConformance, drive, toy_scores, toy_space

optuna = pytest.importorskip("optuna")


class QuickGP(OptunaGP):
    """With a shorter search for the next candidate, and past the start soon."""

    def sampler(self, seed):
        made = super().sampler(seed)
        made._n_preliminary_samples, made._n_local_search = 32, 2
        made._n_qmc_samples_ehvi = made._n_qmc_samples_qei = 8
        return made


class TestTPE(SearcherConformance):
    searcher = TPE


@pytest.mark.slow
class TestOptunaGP(SearcherConformance):
    @staticmethod
    def searcher(space, objectives, *, seed=0):
        return QuickGP(space, objectives, seed=seed, population=36)


def windowed(searcher, n, scores, window=8):
    """As a sweep calls a searcher: the baseline first, then one told, one asked."""
    trials, waiting = [], [searcher.space.baseline]
    while len(trials) < n and waiting:
        candidate = waiting.pop(0)
        trials.append(Trial(len(trials), candidate, scores(candidate)))
        searcher.tell(trials[-1:])
        waiting += searcher.ask(window - len(waiting))
    return trials


def zdt1(candidate):
    """Zitzler, Deb and Thiele 2000."""
    x = 1.0 - np.asarray(candidate.indices) / 7.0
    g = 1.0 + 9.0 * x[1:].mean()
    return {"quality": -float(g * (1.0 - np.sqrt(x[0] / g))), "cost": float(x[0])}


def share(trials, space, scores, reference):
    """Of the whole space's hypervolume."""

    def volume(all_scores):
        return hypervolume([[-s["quality"], s["cost"]] for s in all_scores], reference)

    every = (space.candidate(i) for i in itertools.product(*(range(n) for n in space.counts.tolist())))
    return volume([t.scores for t in trials]) / volume([scores(c) for c in every])


@pytest.mark.quick("TPE")
@pytest.mark.parametrize(("kind", "n"), [(TPE, 70), (QuickGP, 30)])
def test_finds_the_front_sooner_than_random(kind, n):
    space = toy_space(5, 4)

    def mean(make):
        runs = (windowed(guard(make(space, OBJECTIVES, seed=s)), n, toy_scores) for s in range(2))
        return np.mean([share(trials, space, toy_scores, (0.0, 1.0)) for trials in runs])

    assert mean(kind) > max(0.94, mean(Random) + 0.02)


@pytest.mark.slow
def test_tpe_beats_random_on_a_large_space():
    space = toy_space(10, 8)

    def mean(make):
        runs = (windowed(guard(make(space, OBJECTIVES, seed=s)), 100, zdt1) for s in range(2))
        return np.mean(
            [hypervolume([[-t.scores["quality"], t.scores["cost"]] for t in r], (10.0, 1.1)) for r in runs]
        )

    assert mean(TPE) > 1.1 * mean(Random)


def test_starts_from_the_first_population():
    space = toy_space(6, 5)
    asked = TPE(space, OBJECTIVES, seed=4).ask(64)
    assert asked == first_population(space, np.random.default_rng(4), 16)


def test_never_asks_for_what_it_knows():
    searcher = TPE(toy_space(3, 4), OBJECTIVES, population=4)  # not guarded: 64 candidates, no repeats
    asked = [t.candidate for t in drive(searcher, 50)]
    assert len(set(asked)) == len(asked) == 50


def test_learns_from_trials_it_never_asked_for():
    """Told where the good ones are, TPE goes there; the same trials with other scores send it elsewhere."""
    space = toy_space(6, 8)
    known = space.sample(np.random.default_rng(0), 60)

    def mean_distance(target):
        def cost(candidate):
            return float(np.abs(np.asarray(candidate.indices) - target).sum())

        searcher = TPE(space, "cost:min")
        searcher.tell([Trial(i, c, {"cost": cost(c)}) for i, c in enumerate(known)])
        return np.mean(
            [[np.abs(np.asarray(c.indices) - t).sum() for t in (1, 6)] for c in searcher.ask(12)], axis=0
        )

    near_one, near_six = mean_distance(1), mean_distance(6)
    assert near_one[0] < 0.7 * near_one[1]
    assert near_six[1] < 0.7 * near_six[0]


@pytest.mark.quick("TPE")
@pytest.mark.parametrize(("kind", "n", "factor"), [(TPE, 80, 2.0), (QuickGP, 32, 1.5)])
def test_prefers_what_keeps_a_measured_limit(kind, n, factor):
    space = toy_space(8, 4)

    def kept(make):
        trials = windowed(guard(make(space, OBJECTIVES, seed=1), ["quality>=0.8"]), n, toy_scores)
        return sum(t.scores["quality"] >= 0.8 for t in trials[17:])

    assert kept(kind) > factor * kept(Random)


def test_avoids_failures():
    def fails(candidate):
        return candidate.indices[0] >= 4 or candidate.indices[1] >= 4

    trials = drive(guard(TPE(toy_space(8, 6), OBJECTIVES)), 100, fail=fails)
    assert np.mean([t.failed for t in trials[50:]]) < 0.5 * (1.0 - (4 / 6) ** 2)


def test_what_is_under_way_is_not_asked_for_again():
    """A batch is spread out: the sampler knows of the others by then."""
    space = toy_space(6, 8)
    searcher = TPE(space, OBJECTIVES)
    drive(searcher, 40)
    batch = searcher.ask(12)
    assert len(set(batch)) == 12

    def running():
        trials = searcher._study.get_trials(states=[optuna.trial.TrialState.RUNNING])
        return {tuple(t.params.values()) for t in trials}

    assert running() == {c.indices for c in batch[:-1]}  # as known when the last was drawn
    searcher.tell([Trial(40 + i, c, toy_scores(c)) for i, c in enumerate(batch[::-1])])
    searcher.ask(1)
    assert running() == set()


def test_history_is_bounded_and_keeps_the_best():
    space = toy_space(6, 6)
    searcher = TPE(space, "cost:min", history=20)
    trials = drive(searcher, 90)
    searcher.ask(1)
    complete = searcher._study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    assert len(complete) <= 30
    assert min(t.value for t in complete) == min(t.scores["cost"] for t in trials)


@pytest.mark.parametrize("kind", [TPE, QuickGP])
def test_globals_are_left_alone(kind):
    torch = pytest.importorskip("torch")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    filters, state = list(warnings.filters), np.random.get_state()[1].copy()
    threads, random = torch.get_num_threads(), torch.random.get_rng_state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drive(kind(toy_space(), OBJECTIVES), 20)
    assert not caught
    assert list(warnings.filters) == filters
    assert (np.random.get_state()[1] == state).all()
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), random)


def test_is_quiet(capfd):
    drive(TPE(toy_space(), OBJECTIVES), 30)
    assert capfd.readouterr() == ("", "")


def test_history_is_checked():
    with pytest.raises(ValueError, match="history must be at least 8"):
        TPE(toy_space(), OBJECTIVES, history=4)
