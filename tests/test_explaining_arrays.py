"""Identities of the explanations' arithmetic: ANOVA, Shapley values, CKA, localisation, paired intervals."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netcarve import Objective
from netcarve.explain.anova import Anova, Boxes, average, factorial, tree_boxes
from netcarve.explain.attribution import rank_correlation, top_overlap
from netcarve.explain.classes import class_change, paired_interval
from netcarve.explain.localisation import area_holding, energy, energy_entropy
from netcarve.explain.section import Skipped, plain_json
from netcarve.explain.sensitivity import importance, sensitivity, sensitivity_section
from netcarve.explain.shapley import exact_values, interaction_index, shapley
from netcarve.explain.similarity import gram, linear_cka, probe_accuracy
from netcarve.results import Trial
from netcarve.spaces import Choice, Space

COUNTS = (4, 3, 2)
TABLES = st.integers(0, 2**32 - 1).map(lambda s: np.random.default_rng(s).normal(size=COUNTS))


def cells(table):
    """A table as boxes of one cell each."""
    where = np.argwhere(np.ones(table.shape))
    inside = tuple(np.eye(n, dtype=bool)[where[:, d]] for d, n in enumerate(table.shape))
    return Boxes(table.ravel(), inside)


def grown(table, seed=0):
    """A regression tree that knows the whole table."""
    from sklearn.tree import DecisionTreeRegressor

    x = np.argwhere(np.ones(table.shape))
    tree = DecisionTreeRegressor(random_state=seed).fit(x, table.ravel()).tree_
    parts = (tree.children_left, tree.children_right, tree.feature, tree.threshold, tree.value[:, 0, 0])
    return tree_boxes(*parts, table.shape)


# functional ANOVA


@settings(deadline=None, max_examples=25)
@given(TABLES)
def test_all_parts_of_a_full_factorial_share_out_its_variance(table):
    parts = factorial(table)
    assert len(parts) == 7
    assert sum(parts.values()) == pytest.approx(table.var(), rel=1e-10)


@settings(deadline=None, max_examples=25)
@given(TABLES)
def test_boxes_of_a_tree_give_what_the_whole_table_gives(table):
    parts, boxes = factorial(table), grown(table)
    assert boxes.shares.prod(axis=1).sum() == pytest.approx(1)
    for found in (Anova(boxes), Anova(cells(table))):
        assert found.mean == pytest.approx(table.mean(), abs=1e-12)
        assert found.variance == pytest.approx(table.var())
        assert found.main == pytest.approx([parts[(d,)] for d in range(3)], abs=1e-12)
        for d, e in itertools.combinations(range(3), 2):
            assert np.mean(found.pair(d, e) ** 2) == pytest.approx(parts[(d, e)], abs=1e-12)
            assert found.pair(e, d) == pytest.approx(found.pair(d, e).T)


def test_an_additive_function_has_main_effects_alone():
    a, b, c = np.array([0.0, 1.0, 4.0, 9.0]), np.array([1.0, -1.0, 0.5]), np.array([0.0, 2.0])
    table = a[:, None, None] + b[:, None] + c
    parts = factorial(table)
    assert [parts[(d,)] for d in range(3)] == pytest.approx([a.var(), b.var(), c.var()])
    assert max(v for k, v in parts.items() if len(k) > 1) < 1e-25
    found = Anova(grown(table))
    assert found.main == pytest.approx([a.var(), b.var(), c.var()])
    assert found.effects[0] == pytest.approx(a - a.mean())
    assert np.abs(found.pair(0, 1)).max() < 1e-12


def test_a_product_has_the_interactions_of_its_closed_form():
    a, b = np.array([1.0, 2.0, 6.0]), np.array([-1.0, 3.0, 5.0, 0.5])
    # f = ab: f_a = (a - E a) E b, f_ab = (a - E a)(b - E b).
    table = a[:, None] * b
    parts = factorial(table)
    closed = [a.var() * b.mean() ** 2, b.var() * a.mean() ** 2, a.var() * b.var()]
    assert [parts[(0,)], parts[(1,)], parts[(0, 1)]] == pytest.approx(closed)
    found = Anova(grown(table))
    assert np.mean(found.pair(0, 1) ** 2) == pytest.approx(closed[2])
    shares = average([found], [(0, 1)])
    assert shares.main.sum() + shares.pairs[(0, 1)] == pytest.approx(1)


def test_a_constant_has_nothing_to_share_out():
    with pytest.raises(ValueError, match="constant"):
        average([Anova(cells(np.full(COUNTS, 0.3)))], [])


# the sensitivity of a run

SPACE = Space([Choice(f"c{i}", tuple(range(n))) for i, n in enumerate((4, 4, 3, 2, 5))])


def trials_of(space, worth, candidates):
    return [Trial(i, c, {"accuracy": worth(c.indices), "macs": 1.0}) for i, c in enumerate(candidates)]


def sampled(worth, n=300, seed=0):
    return trials_of(SPACE, worth, SPACE.sample(np.random.default_rng(seed), n))


def test_a_forest_finds_the_choices_that_matter():
    found = sensitivity(sampled(lambda i: 3.0 * i[0] + i[1] * i[3]), "accuracy")
    table = np.fromfunction(lambda a, b, c: 3.0 * a + b * c, (4, 4, 2))
    truth, whole = factorial(table), table.var()
    assert not found.exact
    assert found.fit > 0.95
    assert found.main[[0, 1, 3]] == pytest.approx([truth[(d,)] / whole for d in range(3)], abs=0.05)
    assert found.main[[2, 4]].max() < 0.01
    assert max(found.pairs, key=found.pairs.get) == (1, 3)
    assert found.pairs[(1, 3)] == pytest.approx(truth[(1, 2)] / whole, abs=0.02)
    again = sensitivity(sampled(lambda i: 3.0 * i[0] + i[1] * i[3]), "accuracy")
    assert again.main.tolist() == found.main.tolist()


def test_a_space_that_was_scored_whole_is_decomposed_exactly():
    space = Space([Choice("a", (0, 1, 2)), Choice("b", (0, 1))])
    every = [space.candidate(i) for i in itertools.product(range(3), range(2))]
    found = sensitivity(trials_of(space, lambda i: i[0] * (1.0 + i[1]), every), "accuracy")
    assert found.exact
    assert found.main.sum() + found.pairs[(0, 1)] == pytest.approx(1)
    assert (
        "all 6 candidates"
        in sensitivity_section(
            trials_of(space, lambda i: i[0] * (1.0 + i[1]), every), [Objective("accuracy")]
        ).basis
    )


@pytest.mark.parametrize(
    ("trials", "reason"),
    [
        ([], "no trial has accuracy"),
        (sampled(lambda i: 0.5), "the same in all"),
        (sampled(lambda i: float(i[0]), n=9), "at least 12"),
        ([Trial(0, SPACE.baseline, error="failed")], "no trial has"),
    ],
)
def test_what_says_nothing_is_skipped_with_the_reason(trials, reason):
    with pytest.raises(Skipped, match=reason) as told:
        sensitivity(trials, "accuracy")
    assert importance(trials, [Objective("accuracy")])["skipped"] == str(told.value)


@pytest.mark.parametrize("scale", [2.0**-1000, 2.0**460])
def test_shares_do_not_depend_on_the_unit_of_the_metric(scale):
    was = sensitivity(sampled(lambda i: 0.5 + i[0] + 0.2 * i[1], n=100), "accuracy")
    now = sensitivity(sampled(lambda i: scale * (0.5 + i[0] + 0.2 * i[1]), n=100), "accuracy")
    assert now.main == pytest.approx(was.main)
    for one, other in zip(was.effects, now.effects, strict=True):
        assert other / scale == pytest.approx(one)


def test_a_greedy_walk_in_a_large_space_is_analysed_or_left_out_with_the_reason():
    """60 trials of 100 choices fill next to nothing of the space; it once ended in an exception."""
    space = Space([Choice(f"c{i}", tuple(range(8))) for i in range(100)])
    walk = [space.candidate([1] * n + [0] * (100 - n)) for n in range(60)]
    trials = trials_of(space, lambda i: 1.0 - 0.001 * sum(i), walk)
    found = importance(trials, [Objective("accuracy")])
    assert found.get("skipped", "").startswith("the 60 trials lie too close together") or sum(
        found["shares"]
    ) == pytest.approx(1, abs=0.5)


def test_the_section_of_a_run_is_plain_and_says_how_to_read_it():
    section = sensitivity_section(
        sampled(lambda i: -i[0] - 0.2 * i[4]), [Objective("macs"), Objective("accuracy")]
    )
    assert section.summary.startswith("accuracy is moved most by c0 ")
    assert all(figure.read.endswith(".") for figure in section.figures)
    assert section.data["main"]["c0"] > section.data["main"]["c4"] > section.data["main"]["c1"]
    assert section.to_json()["figures"][0]["content"]["labels"][:2] == ["c0", "c4"]


# Shapley values


def game(n, seed):
    return np.random.default_rng(seed).normal(size=2**n)


def by_orders(table):
    """Shapley values as they are defined: the mean gain over all orders of arrival."""
    n = len(table).bit_length() - 1
    total, orders = np.zeros(n), list(itertools.permutations(range(n)))
    for order in orders:
        members = 0
        for i in order:
            total[i] += table[members | 1 << i] - table[members]
            members |= 1 << i
    return total / len(orders)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_shapley_values_are_mean_gains_over_all_orders(n):
    table = game(n, n)
    assert exact_values(table) == pytest.approx(by_orders(table))
    assert exact_values(table).sum() == pytest.approx(table[-1] - table[0])  # efficiency


def test_equals_get_the_same_and_dummies_nothing():
    # Players 0 and 1 count alike, 2 adds nothing.
    table = np.array([((m & 1) + (m >> 1 & 1)) ** 2.0 for m in range(8)])
    assert exact_values(table) == pytest.approx([2.0, 2.0, 0.0])
    index = interaction_index(table)
    assert index[0, 1] == index[1, 0] == pytest.approx(2.0)
    assert index[2] == pytest.approx([0, 0, 0])
    additive = np.array([3.0 * (m & 1) - (m >> 1 & 1) + 0.5 * (m >> 2) for m in range(8)])
    assert np.abs(interaction_index(additive)).max() < 1e-12


def test_pairwise_interaction_by_definition():
    table, n = game(4, 3), 4
    expected = 0.0
    for size in range(n - 1):
        for others in itertools.combinations((2, 3), size):
            s = sum(1 << p for p in others)
            weight = math.factorial(size) * math.factorial(n - size - 2) / math.factorial(n - 1)
            expected += weight * (table[s | 3] - table[s | 1] - table[s | 2] + table[s])
    assert interaction_index(table)[0, 1] == pytest.approx(expected)


def worth_of(members):
    """13 players: two alike, a dummy, and a pair that counts only together."""
    gains = np.array([2.0, 2.0, 0.0, 1.0, -1.0, 0.5, 0.25, 3.0, -2.0, 1.5, 0.0, 0.0, 0.75])
    return float(gains[members].sum() + 4.0 * (members[10] and members[11]))


def test_sampled_values_keep_efficiency_and_come_close():
    asked = []
    found = shapley(lambda m: asked.append(tuple(m)) or worth_of(m), 13, permutations=40, seed=1)
    assert not found.exact
    assert found.interactions is None
    assert found.evaluations == len(asked) == len(set(asked))
    assert found.values.sum() == pytest.approx(found.all - found.none)
    # Antithetic pairs are exact for a worth of pairs: each of two comes first in one order or the other.
    truth = [2, 2, 0, 1, -1, 0.5, 0.25, 3, -2, 1.5, 2, 2, 0.75]
    assert found.values == pytest.approx(truth)
    again = shapley(worth_of, 13, permutations=40, seed=1)
    assert again.values.tolist() == found.values.tolist()


def test_exact_values_ask_each_coalition_once_and_tell_how_far_they_are():
    asked, told = [], []
    table = game(4, 9)
    found = shapley(
        lambda m: asked.append(tuple(m)) or table[int(m @ (1 << np.arange(4)))],
        4,
        progress=lambda done, total: told.append((done, total)),
    )
    assert found.exact
    assert len(asked) == len(set(asked)) == 16
    assert told[-1] == (16, 16)
    assert found.values == pytest.approx(by_orders(table))
    assert found.alone == pytest.approx([table[1 << i] - table[0] for i in range(4)])
    assert found.last == pytest.approx([table[15] - table[15 ^ 1 << i] for i in range(4)])
    with pytest.raises(ValueError, match="at least one player"):
        shapley(worth_of, 0)


# representations


def test_cka_is_one_for_itself_and_keeps_under_rotation_and_scale():
    rng = np.random.default_rng(0)
    x, other = rng.normal(size=(40, 12)), rng.normal(size=(40, 30))
    rotation = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    assert linear_cka(gram(x), gram(x)) == pytest.approx(1)
    assert linear_cka(gram(x), gram(7.5 * x @ rotation)) == pytest.approx(1)
    mixed = x @ rng.normal(size=(12, 5)) + 0.5 * other[:, :5]
    here = linear_cka(gram(mixed), gram(x))
    assert linear_cka(gram(x @ rotation), gram(1e-4 * mixed)) == pytest.approx(here)
    assert linear_cka(gram(x + 3.0), gram(mixed - 1.0)) == pytest.approx(here)  # centred
    assert 0.05 < here < 0.95
    assert np.isnan(linear_cka(gram(x), gram(np.full((40, 3), 2.0))))


def test_debiased_cka_of_unrelated_representations_is_about_zero():
    rng = np.random.default_rng(1)
    found = [
        linear_cka(gram(rng.normal(size=(50, 500))), gram(rng.normal(size=(50, 500)))) for _ in range(40)
    ]
    assert abs(np.mean(found)) < 0.01  # the biased estimate is above 0.9 here
    with pytest.raises(ValueError, match="4 samples"):
        linear_cka(np.eye(3), np.eye(3))


def test_probes_read_off_what_is_there():
    rng = np.random.default_rng(2)
    classes = np.repeat(np.arange(4), 30)
    told = np.eye(4)[classes] + 0.05 * rng.normal(size=(120, 4))
    assert probe_accuracy(gram(told), classes) == 1.0
    assert probe_accuracy(gram(told + 100.0), classes) == 1.0
    assert probe_accuracy(gram(rng.normal(size=(120, 4))), classes) < 0.45
    assert probe_accuracy(gram(np.ones((120, 4))), classes) <= 0.3
    # By hand: primal ridge regression with the same folds.
    x, hits = rng.normal(size=(60, 3)) + 0.8 * np.eye(3)[np.arange(60) % 3], 0
    fold = np.random.default_rng(0).permutation(60) % 5
    labels = np.arange(60) % 3
    for k in range(5):
        train, test = fold != k, fold == k
        c = x[train] - x[train].mean(axis=0)
        t = np.eye(3)[labels[train]]
        penalty = 1e-2 * np.sum(c**2) / len(c)
        weights = np.linalg.solve(c.T @ c + penalty * np.eye(3), c.T @ (t - t.mean(axis=0)))
        guess = (x[test] - x[train].mean(axis=0)) @ weights + t.mean(axis=0)
        hits += int((guess.argmax(axis=1) == labels[test]).sum())
    assert probe_accuracy(gram(x), labels) == pytest.approx(hits / 60)


# feature maps


def test_localisation_of_maps_whose_answer_is_known():
    point, flat = np.zeros((1, 2, 4, 5)), np.ones((1, 2, 4, 5))
    point[0, 1, 2, 3] = -3.0
    maps = energy(np.concatenate([point, flat, np.zeros((1, 2, 4, 5))]))
    assert maps[0].sum() == 9.0
    assert energy_entropy(maps)[:2] == pytest.approx([0.0, 1.0])
    assert area_holding(maps)[:2] == pytest.approx([1 / 20, 16 / 20])
    assert np.isnan(energy_entropy(maps)[2])
    assert np.isnan(area_holding(maps)[2])
    half = np.array([[4.0, 4.0, 1.0, 1.0]])
    assert area_holding(half, 0.8)[0] == 0.5
    assert area_holding(half, 0.81)[0] == 0.75
    assert area_holding(half, 1.0)[0] == 1.0
    assert energy_entropy(np.array([[2.0, 2.0, 0.0, 0.0]]))[0] == pytest.approx(0.5)


def test_places_that_cannot_be_localised_are_refused():
    with pytest.raises(ValueError, match="two places"):
        energy_entropy(np.ones((3, 1)))
    with pytest.raises(ValueError, match="part must be"):
        area_holding(np.ones((3, 4)), 0.0)


# classes and attributions


def test_class_changes_add_up_to_the_change_of_accuracy():
    rng = np.random.default_rng(4)
    targets, before = rng.integers(0, 5, 200), rng.random(200) < 0.9
    after = before & (rng.random(200) < 0.8) | (rng.random(200) < 0.02)
    found = class_change(targets, before, after)
    assert found.samples.sum() == 200
    assert (found.samples * found.change).sum() == pytest.approx(after.sum() - before.sum())
    assert (found.low <= found.change).all()
    assert (found.change <= found.high).all()
    unchanged = class_change(targets, before, before)
    assert (unchanged.high > 0).all()
    assert (unchanged.change == 0).all()


def test_paired_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(5)
    lost, won, n = 0.12, 0.05, 60
    drawn = rng.multinomial(n, [lost, won, 1 - lost - won], size=4000)
    low, high = paired_interval(drawn[:, 0], drawn[:, 1], np.full(4000, n))
    covered = np.mean((low <= won - lost) & (won - lost <= high))
    assert 0.93 < covered < 0.985


def test_agreement_of_attributions():
    rng = np.random.default_rng(6)
    a = rng.normal(size=(5, 4, 5))
    assert rank_correlation(a, np.exp(a)) == pytest.approx(np.ones(5))
    assert rank_correlation(a, -a) == pytest.approx(-np.ones(5))
    assert np.isnan(rank_correlation(a, np.zeros_like(a))).all()
    assert top_overlap(a, -2 * a) == pytest.approx(np.ones(5))
    near = np.zeros((1, 10))
    near[0, :4] = [4, 3, 2, 1]
    assert top_overlap(near, near[:, ::-1], share=0.2)[0] == 0.0
    assert abs(np.mean(top_overlap(rng.normal(size=(200, 100)), rng.normal(size=(200, 100)))) - 0.2) < 0.02


def test_json_values_are_plain_and_finite():
    value = {"a": np.float32(1.5), "b": [np.nan, np.int64(3), np.array([1.0, np.inf])], "c": np.bool_(True)}
    assert plain_json(value) == {"a": 1.5, "b": [None, 3, [1.0, None]], "c": True}
