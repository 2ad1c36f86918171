"""Greedy merge and split: every step by its definition, with objectives of the user's choice."""

import itertools

import numpy as np
import pytest
from netcarve.deployment.partitioners import Graph, Node, chain, greedy_merge, greedy_split, traffic
from netcarve.deployment.partitioners.graph import CostedDevice, per_part
from netcarve.deployment.partitioners.oracles import random_graph


def cuts_of(parts):
    return {i for i in range(1, len(parts)) if parts[i] != parts[i - 1]}


def slowest(graph):
    return lambda parts: per_part(graph.work, parts, int(parts[-1]) + 1).max() + 0.01 * traffic(graph, parts)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("walk", [greedy_merge, greedy_split])
def test_every_step_is_the_best_one(walk, seed):
    graph = random_graph(seed, 9)
    objective = slowest(graph)
    forbidden = ["n3"]
    target = 2 if walk is greedy_merge else 6
    steps = walk(graph, objective, parts=target, forbidden=forbidden)
    places = set(range(1, 9)) - {4}
    assert cuts_of(steps[0].parts) == (places if walk is greedy_merge else set())
    assert steps[0].at is None
    assert steps[-1].count == target
    for before, after in itertools.pairwise(steps):
        old, new = cuts_of(before.parts), cuts_of(after.parts)
        options = [old - {c} for c in old] if walk is greedy_merge else [old | {c} for c in places - old]
        assert new in options
        assert graph.position(after.at) + 1 == (old ^ new).pop()
        values = [objective(np.array([sum(c <= i for c in cuts) for i in range(9)])) for cuts in options]
        assert after.value == min(values)


def test_greedy_meets_the_optimum_on_even_chains_and_is_never_better():
    graph = Graph(tuple(Node(f"n{i}", 1.0) for i in range(8)), ())

    def slowest_part(parts):
        return per_part(graph.work, parts, int(parts[-1]) + 1).max()

    assert greedy_split(graph, slowest_part, parts=2)[-1].parts == (0, 0, 0, 0, 1, 1, 1, 1)
    for seed in range(50):
        graph = random_graph(seed, 8)
        optimum = chain(graph, [CostedDevice(f"d{k}") for k in range(3)]).value
        for walk in (greedy_merge, greedy_split):
            found = walk(graph, slowest_part, parts=3)[-1]
            assert found.value == per_part(graph.work, found.parts, 3).max() >= optimum


def test_impossible_parts_are_avoided():
    graph = Graph(tuple(Node(f"n{i}", 1.0) for i in range(5)), ())

    def never_after_n1(parts):
        return np.inf if parts[1] != parts[2] else float(parts[0] == parts[2])

    assert greedy_split(graph, never_after_n1, parts=2)[-1].at == "n0"


@pytest.mark.parametrize("parts", [0, 5])
def test_bad_arguments(parts):
    graph = Graph(tuple(Node(f"n{i}", 1.0) for i in range(5)), ())
    with pytest.raises(ValueError, match=f"1 to 4 parts; asked for {parts}"):
        greedy_split(graph, lambda p: 0.0, parts=parts, forbidden=["n2"])
    with pytest.raises(ValueError, match="no node 'nowhere'"):
        greedy_merge(graph, lambda p: 0.0, forbidden=["nowhere"])
