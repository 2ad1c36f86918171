"""Rules of a run: which choices matter for its loss, as text and as a narrower space."""

import numpy as np
import pytest
from netcarve.engine.rules import loss_tree, narrowed, run_rules, run_tree
from netcarve.spaces import Choice, Space
from netcarve.testing import toy_space, toy_sweep


def test_a_run_says_which_choices_matter(tmp_path):
    run = toy_sweep(tmp_path / "run", trials=120, searcher="random")
    first, *rules = run_rules(run)
    assert first.startswith("what decides the lost quality (120 trials, R2 0.")
    # c0 weighs most in the toy's quality, c3 least.
    assert first.index("c0") < first.index("c1")
    assert all(rule.startswith("lost quality ") for rule in rules)
    assert rules[0].startswith("lost quality 0.1167 (24 trials) where c0 <= ")
    tree = run_tree(run)
    assert rules == str(tree).splitlines()
    best = run.baseline.scores["quality"]
    assert tree.rules[0].loss == pytest.approx(
        np.mean([best - t.scores["quality"] for t in run.trials if tree.rules[0].holds(t.candidate)])
    )


def test_too_few_trials_have_no_rules(tmp_path):
    run = toy_sweep(tmp_path / "run", trials=4)
    assert run_rules(run) == []
    with pytest.raises(ValueError, match="at least 10 trials"):
        run_tree(run)


def noisy(space, values, count=150):
    candidates = space.sample(np.random.default_rng(0), count)
    return loss_tree(candidates, [values(c) for c in candidates], depth=3)


def test_a_space_loses_what_every_good_rule_excludes():
    space = toy_space(3, 4)
    tree = noisy(space, lambda c: float(c["c0"] >= 2) + 2.0 * (c["c1"] == 3))
    less = narrowed(space, tree, worst=0.5)
    assert {c.name: c.options for c in less.choices} == {"c0": (0, 1), "c1": (0, 1, 2), "c2": (0, 1, 2, 3)}
    assert narrowed(space, tree, worst=9.0).choices == space.choices
    for candidate in less.sample(np.random.default_rng(1), 50):
        assert tree.predict(space.from_values(candidate.values)) <= 0.5


def test_the_unchanged_option_stays_and_noise_narrows_nothing():
    space = Space([Choice("a", ("none", "x", "y")), Choice("b", (0, 1))])
    tree = noisy(space, lambda c: float(c["a"] == "none"))
    assert narrowed(space, tree, worst=0.5).choices[0].options == ("none", "x", "y")
    rng = np.random.default_rng(2)
    noise = noisy(space, lambda c: float(rng.random()))
    assert narrowed(space, noise, worst=-1.0) is space


def test_a_tree_of_another_space_is_refused():
    tree = noisy(toy_space(2), lambda c: float(c["c0"]))
    with pytest.raises(ValueError, match="trials of another space"):
        narrowed(toy_space(3), tree, worst=1.0)
