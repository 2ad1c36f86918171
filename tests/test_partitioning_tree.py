"""The tree of the loss: a known rule is found, told and used; noise is not believed."""

import numpy as np
import pytest
from netcarve.engine.rules import loss_tree
from netcarve.spaces import Choice, Space

SPACE = Space(
    [
        Choice("cut:a", (False, True)),
        Choice("keep:b", (1.0, 0.75, 0.5, 0.25)),
        Choice("idle", (0, 1, 2)),
        Choice("fixed", ("only",)),
    ]
)


def loss(candidate):
    """Bad when b goes beyond a half; else the cut costs a little; 'idle' is idle."""
    return 2.0 if candidate["keep:b"] < 0.6 else 0.3 * candidate["cut:a"]


def trials(n, seed=0):
    return SPACE.sample(np.random.default_rng(seed), n)


def test_finds_which_choices_matter_and_says_so():
    candidates = trials(80)
    tree = loss_tree(candidates, [loss(c) for c in candidates], depth=3)
    assert list(tree.importances)[:2] == ["keep:b", "cut:a"]
    assert tree.importances["keep:b"] > 0.9
    assert max(tree.importances["idle"], tree.importances["fixed"]) < 1e-9
    assert sum(tree.importances.values()) == pytest.approx(1)
    assert tree.trust > 0.99
    texts = str(tree).splitlines()
    counts = [sum(loss(c) == value for c in candidates) for value in (0.0, 0.3, 2.0)]
    assert texts == [
        f"loss 0 ({counts[0]} trials) where cut:a = False and keep:b >= 0.75",
        f"loss 0.3 ({counts[1]} trials) where cut:a = True and keep:b >= 0.75",
        f"loss 2 ({counts[2]} trials) where keep:b <= 0.5",
    ]
    for candidate in trials(50, seed=1):
        assert tree.predict(candidate) == pytest.approx(loss(candidate))


def test_every_candidate_falls_into_exactly_one_rule():
    rng = np.random.default_rng(3)
    candidates = trials(60)
    tree = loss_tree(candidates, rng.random(60), depth=5, least=2)
    assert sum(rule.trials for rule in tree.rules) == 60
    for candidate in trials(100, seed=2):
        assert sum(rule.holds(candidate) for rule in tree.rules) == 1
    for rule in tree.rules:  # what a rule says is what the trials in it lost
        assert rule.trials == sum(rule.holds(c) for c in candidates)


def test_prunes_by_the_rules_in_order():
    candidates = trials(80)
    tree = loss_tree(candidates, [loss(c) for c in candidates])
    fresh = trials(40, seed=4)
    assert tree.prune(fresh, worst=1.0) == [c for c in fresh if loss(c) < 1]
    assert tree.prune(fresh, worst=0.1) == [c for c in fresh if loss(c) < 0.1]
    assert tree.prune(fresh, worst=5.0) == list(fresh)


def test_a_tree_of_noise_prunes_nothing():
    candidates = trials(60)
    tree = loss_tree(candidates, np.random.default_rng(0).random(60))
    assert tree.trust < 0.2
    fresh = trials(20, seed=5)
    assert tree.prune(fresh, worst=-1.0) == list(fresh)


def test_one_loss_for_all_is_one_rule():
    tree = loss_tree(trials(20), np.ones(20))
    assert str(tree) == "loss 1 (20 trials) where anything"
    assert tree.trust == 0


def test_failed_trials_are_left_out():
    candidates = trials(80)
    losses = np.array([loss(c) for c in candidates])
    losses[::7] = np.inf
    tree = loss_tree(candidates, losses, depth=3)
    assert sum(rule.trials for rule in tree.rules) == np.isfinite(losses).sum()
    assert [rule.loss for rule in tree.rules] == pytest.approx([0, 0.3, 2])


def test_bad_arguments():
    candidates = trials(12)
    with pytest.raises(ValueError, match="at least 10 trials with a finite loss, got 9"):
        loss_tree(candidates, [np.nan] * 3 + [1.0] * 9)
    with pytest.raises(ValueError, match="12 candidates, 3 losses"):
        loss_tree(candidates, [1.0] * 3)
    other = Space([Choice("other", (0, 1))])
    with pytest.raises(ValueError, match="different spaces"):
        loss_tree([*candidates, other.baseline], [1.0] * 13)
