"""The policy's gradients, its masks, and that it learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import netcarve
import numpy as np
import pytest
from netcarve.results.objective import Limit, Objective
from netcarve.results.trial import Trial
from netcarve.search.policy import Episodes, Policy, entropy_gradient, log_gradient
from netcarve.search.registry import guard
from netcarve.search.reinforce import PPO, Reinforce
from netcarve.spaces import Candidate, Choice, ModelSide, Space
from netcarve.testing import OBJECTIVES, SearcherConformance, drive, toy_scores, toy_space


class TestReinforce(SearcherConformance):
    searcher = Reinforce


class TestPPO(SearcherConformance):
    searcher = PPO


class _Costs(ModelSide):
    def cost_arrays(self, choices: Any, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"macs": (10.0 - indices).prod(axis=1), "params": (10.0 - indices).sum(axis=1)}

    def build(self, candidate: Candidate) -> Any:
        raise NotImplementedError


def _space(choices: int = 5, options: int = 4) -> Space:
    return Space(toy_space(choices, options).choices, model=_Costs())  # type: ignore[arg-type]


def _numerical(f: Callable[[np.ndarray], float], x: np.ndarray) -> np.ndarray:
    out = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = 1e-6
        out[i] = (f(x + step) - f(x - step)) / 2e-6
    return out


def test_gradients_are_those_of_the_log_probability_and_the_entropy() -> None:
    rng = np.random.default_rng(0)
    policy = Policy(3, 4, 6, rng=rng, hidden=5)
    for w in policy.weights.values():
        w += rng.normal(size=w.shape)
    x, steps, taken = rng.normal(size=(7, 6)), rng.integers(3, size=7), rng.integers(2, size=7)
    allowed = rng.random((7, 4)) < 0.6
    allowed[:, :2] = True

    def value(table: np.ndarray, w: np.ndarray) -> float:
        policy.weights["table"], policy.weights["W"] = table, w
        log_p = policy.log_probabilities(policy.hidden(x), steps, allowed)
        p = np.exp(log_p)
        entropy = -(p * np.where(p > 0, log_p, 0.0)).sum()
        return float(log_p[np.arange(7), taken].sum() + 0.3 * entropy)

    table, w = policy.weights["table"].copy(), policy.weights["W"].copy()
    expected = _numerical(lambda t: value(t, w), table), _numerical(lambda v: value(table, v), w)
    policy.weights["table"], policy.weights["W"] = table.copy(), w.copy()
    h = policy.hidden(x)
    log_p = policy.log_probabilities(h, steps, allowed)
    push = log_gradient(log_p, taken) + 0.3 * entropy_gradient(log_p)
    assert not np.exp(log_p)[~allowed].any()
    # Adam's first step goes along the sign of every derivative.
    policy.update(x, h, steps, -push, np.zeros(7), rate=1e-3)
    for name, before, g in zip(("table", "W"), (table, w), expected, strict=True):
        moved = policy.weights[name] - before
        clear = np.abs(g) > 1e-4
        assert clear.sum() > 5
        np.testing.assert_allclose(moved[clear], 1e-3 * np.sign(g[clear]), rtol=1e-3)
    summed = np.zeros_like(table)
    np.add.at(summed, steps, push)
    np.testing.assert_allclose(summed, expected[0], atol=1e-6)


class _Cuts(_Costs):
    """Traffic rises along the options."""

    def cost_arrays(self, choices: Any, indices: np.ndarray) -> dict[str, np.ndarray]:
        return super().cost_arrays(choices, indices) | {"traffic_kb": indices @ np.array([3.0, 1.0, 2.0])}


@pytest.mark.parametrize(
    "texts",
    [
        ("macs<=0.45x", "params<=25"),
        ("macs>=0.6x",),
        ("params>=24", "params<=27"),
        ("traffic_kb<=4",),
        ("traffic_kb<=9", "macs<=0.8x"),
    ],
)
def test_only_options_from_which_the_limits_can_still_be_kept_are_allowed(texts: tuple[str, ...]) -> None:
    """By each limit alone, as brute force says; in every way that a walk can begin."""
    space = Space(toy_space(3, 4).choices, model=_Cuts())  # type: ignore[arg-type]
    limits = tuple(map(Limit, texts))
    whole = {"macs": 1000.0, "params": 30.0}
    episodes = Episodes(space, OBJECTIVES, limits, whole)
    every = np.array(list(np.ndindex(4, 4, 4)))
    costs = _Cuts().cost_arrays(None, every)
    kept = [
        [tuple(r) for r, v in zip(every.tolist(), costs[m.metric], strict=True)
         if m.violation({m.metric: v}, whole) == 0]
        for m in limits
    ]  # fmt: skip
    preferences = np.full((1, 2), 0.5)
    some = 0
    for prefix in [p for n in range(3) for p in np.ndindex(*[4] * n)]:
        taken = np.array([[*prefix, *[0] * (3 - len(prefix))]])
        _, allowed = episodes.states(np.array([len(prefix)]), taken, preferences)
        n = len(prefix) + 1
        expected = [all((*prefix, a) in {k[:n] for k in keeps} for keeps in kept) for a in range(4)]
        assert allowed[0].any()
        if any(expected):
            some += not all(expected)
            assert allowed[0].tolist() == expected
    assert some > 3


def test_all_decisions_at_once_are_seen_as_one_by_one() -> None:
    space = _space(4, 3)
    episodes = Episodes(space, [Objective("macs")], (Limit("macs<=0.5x"),), {"macs": 1e4})
    rng = np.random.default_rng(0)
    taken, preferences = rng.integers(0, 3, (12, 4)), rng.random((12, 1))
    steps = rng.integers(0, 4, 12)
    together = episodes.states(steps, taken, preferences)
    for k in range(12):
        alone = episodes.states(steps[k : k + 1], taken[k : k + 1], preferences[k : k + 1])
        for a, b in zip(together, alone, strict=True):
            assert np.array_equal(a[k], b[0])


def test_a_state_tells_what_is_left_and_nothing_of_the_future() -> None:
    space = _space(4, 3)
    episodes = Episodes(space, [Objective("quality", "max"), Objective("macs")], (), {})
    preferences = np.array([[0.2, 0.8]])
    past = episodes.states(np.array([2]), np.array([[1, 2, 0, 0]]), preferences)[0]
    same = episodes.states(np.array([2]), np.array([[1, 2, 2, 1]]), preferences)[0]
    other = episodes.states(np.array([2]), np.array([[2, 2, 0, 0]]), preferences)[0]
    assert past.shape == (1, episodes.features)
    assert np.array_equal(past, same)
    assert not np.array_equal(past, other)
    assert past[0, -2:].tolist() == [0.2, 0.8]
    assert past[0, -4] == pytest.approx(9 * 8 * 10 * 10 / 1e4)  # macs so far
    assert past[0, -3] == pytest.approx(9 * 8 * 8 * 8 / 1e4)  # and at least


@pytest.mark.quick("Reinforce")
@pytest.mark.parametrize("kind", [Reinforce, PPO])
def test_it_learns_a_single_objective(kind: type[Reinforce]) -> None:
    """Right options score, the others do not: the policy ends far from uniform, on the right ones."""
    space = toy_space(6, 4)
    right = np.array([1, 3, 0, 2, 2, 1])
    shares = []
    for seed in range(4):
        searcher = kind(space, [Objective("reward", "max")], seed=seed, imitation=0.0)
        for k in range(60):
            asked = searcher.ask(8)
            searcher.tell(
                [
                    Trial(8 * k + i, c, {"reward": float((c.indices == right).mean())})
                    for i, c in enumerate(asked)
                ]
            )
        shares.append(np.mean([(e.taken == right).mean() for e in _walks(searcher)]))
    assert np.mean(shares) > 0.7  # uniform: 0.25


def _walks(searcher: Reinforce) -> list[Any]:
    searcher._queue.clear()
    searcher._done, searcher._pending = [], {}
    for _ in range(4):
        searcher._sample()
    return [e for e, _ in searcher._done] + [e for es in searcher._pending.values() for e in es]


@pytest.mark.parametrize("kind", [Reinforce, PPO])
def test_one_policy_serves_the_whole_front(kind: type[Reinforce]) -> None:
    """A preference for cost compresses more than one for quality."""
    searcher = kind(toy_space(6, 5), OBJECTIVES, seed=0)
    drive(guard(searcher), 240, batch=8)
    cuts = {}
    for name, weights in (("quality", [0.95, 0.05]), ("cost", [0.05, 0.95])):
        searcher._draw = lambda n, w=weights: np.tile(w, (n, 1))  # type: ignore[method-assign]
        cuts[name] = np.mean([e.taken.mean() for e in _walks(searcher)])
    assert cuts["cost"] > cuts["quality"] + 0.8


@pytest.mark.parametrize("kind", [Reinforce, PPO])
def test_better_than_random(kind: type[Reinforce]) -> None:
    space = toy_space(8, 6)

    def volume(name: str | type[Reinforce], seed: int) -> float:
        made = netcarve.searcher(name, space, OBJECTIVES, seed=seed) if isinstance(name, str) else None
        searcher = made or guard(name(space, OBJECTIVES, seed=seed))  # type: ignore[operator]
        trials = [Trial(-1, space.baseline, toy_scores(space.baseline)), *drive(searcher, 120)]
        return netcarve.Front(trials, OBJECTIVES).hypervolume({"quality": 0.0, "cost": 1.0})

    ours = [volume(kind, s) for s in range(4)]
    random = [volume("random", s) for s in range(4)]
    assert min(ours) > max(random)


def test_earlier_trials_teach_it() -> None:
    """Told of good candidates that it never asked for, it goes where they are."""
    space = Space([Choice(f"c{d}", (0, 1, 2, 3)) for d in range(6)])
    target = np.array([3, 3, 0, 3, 0, 3])

    def score(c: Candidate) -> dict[str, float]:
        return {"reward": float((c.indices == target).mean() ** 2)}

    near = [np.where(np.arange(6) == d, (target + 1) % 4, target) for d in range(6)]
    found = {}
    for told in (False, True):
        searcher = Reinforce(space, [Objective("reward", "max")], seed=0)
        if told:
            searcher.tell([Trial(-1, c, score(c)) for c in map(space.candidate, near)])
        trials = drive(guard(searcher), 80, batch=8, scores=score)
        found[told] = np.mean([t.scores["reward"] for t in trials[-40:]])
    assert found[True] > found[False]


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="rate must be positive"):
        Reinforce(toy_space(), OBJECTIVES, rate=0.0)
