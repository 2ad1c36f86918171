"""Greedy merge and split of parts: the walk, by its definition."""

import itertools

import numpy as np
import pytest
from netcarve.results.objective import Objective
from netcarve.search.greedy.partition import GreedyMerge, GreedySplit
from netcarve.search.registry import searcher
from netcarve.spaces import Candidate, Choice, ModelSide, Space
from netcarve.testing import OBJECTIVES, SearcherConformance, drive, toy_space


class TestGreedyMerge(SearcherConformance):
    random = False
    learns = False  # scores what it needs, unless it is known

    @staticmethod
    def searcher(space, objectives, *, seed=0):
        return GreedyMerge(space, objectives, seed=seed, cuts=lambda choice: True)


class TestGreedySplit(SearcherConformance):
    random = False
    learns = False  # scores what it needs, unless it is known

    @staticmethod
    def searcher(space, objectives, *, seed=0):
        return GreedySplit(space, objectives, seed=seed, cuts=lambda choice: True)


def cut_space(n):
    return Space([Choice(f"cut:layer{d}", (False, True)) for d in range(n)])


def partition_scores(weights):
    """Parts of a chain: the heaviest part, and traffic that each cut adds."""

    def scores(candidate):
        cuts = [d for d, present in enumerate(candidate.values.values()) if present]
        edges = [0, *(d + 1 for d in cuts), len(weights)]
        parts = [sum(weights[a:b]) for a, b in itertools.pairwise(edges)]
        return {"heaviest": float(max(parts)), "traffic": float(len(cuts))}

    return scores


PARTS = (Objective("heaviest", "min"), Objective("traffic", "min"))


@pytest.mark.parametrize(("kind", "first"), [(GreedyMerge, True), (GreedySplit, False)])
def test_partitions_are_walked_from_end_to_end(kind, first):
    n = 6
    space = cut_space(n)
    trials = drive(kind(space, PARTS), 1000, scores=partition_scores([5, 1, 1, 4, 2, 3, 6]))
    assert len(trials) == 1 + n * (n + 1) // 2
    assert set(trials[0].candidate.values.values()) == {first}
    assert set(trials[-1].candidate.values.values()) == {not first}
    assert {t.scores["traffic"] for t in trials} == set(range(n + 1))


def test_every_round_takes_the_best_flip():
    """The walk again, by the definition, over a table of all partitions."""
    scores = partition_scores([5, 1, 1, 4, 2, 3, 6])
    space = cut_space(6)
    for kind, present in ((GreedyMerge, True), (GreedySplit, False)):
        trials = drive(kind(space, PARTS), 1000, scores=scores)
        here = [present] * 6
        expected = {tuple(here)}
        while present in here:
            flips = [[*here[:d], not present, *here[d + 1 :]] for d in range(6) if here[d] == present]
            expected |= set(map(tuple, flips))
            key = [
                tuple(
                    scores(space.from_values(dict(zip(trials[0].candidate.values, f, strict=True)))).values()
                )
                for f in flips
            ]
            here = flips[key.index(min(key))]
        assert {tuple(t.candidate.values.values()) for t in trials} == expected


def test_partitions_by_name_leave_other_choices_alone():
    space = Space([Choice("prune:a", (0.0, 0.5)), *cut_space(3).choices, Choice("cut:x", ("a", "b"))])
    trials = drive(
        searcher("greedy-merge", space, PARTS), 50, scores=lambda c: {"heaviest": 1.0, "traffic": 1.0}
    )
    assert {(t.candidate["prune:a"], t.candidate["cut:x"]) for t in trials} == {(0.0, "a")}
    assert trials[0].candidate.indices == (0, 1, 1, 1, 0)


def test_partitions_need_cuts():
    with pytest.raises(
        ValueError, match=r"GreedySplit searches partitions and needs choices named 'cut:...'"
    ):
        searcher("greedy-split", toy_space(), OBJECTIVES)


class Modelled(ModelSide):
    """A model side whose costs are the partition's own figures."""

    def __init__(self, weights):
        self.scores = partition_scores(weights)

    def cost_arrays(self, choices, indices):
        found = [self.scores(Candidate(tuple(row), choices)) for row in indices.tolist()]
        return {
            "heaviest": np.array([f["heaviest"] for f in found]),
            "stages": np.array([f["traffic"] + 1 for f in found]),
        }


def test_merging_towards_a_limit_follows_the_costs_and_scores_nothing_that_breaks_it():
    model = Modelled([1, 1, 6, 6, 1, 1])
    space = Space(cut_space(5).choices, model=model)
    trials = drive(searcher("greedy-merge", space, PARTS, limits=["stages<=3"]), 50, scores=model.scores)
    # Without the cuts 0 and 4, which cost nothing, three are left.
    assert [t.candidate.indices for t in trials] == [
        (0, 0, 1, 1, 0),
        (0, 1, 0, 1, 0),
        (0, 1, 1, 0, 0),
        (0, 0, 0, 1, 0),
        (0, 0, 1, 0, 0),
        (0, 0, 0, 0, 0),
    ]
