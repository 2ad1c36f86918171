"""Graphs, devices and links: what they compute by definition, and what they refuse."""

import math

import numpy as np
import pytest
from netcarve.deployment.partitioners import CostedDevice, Graph, Link, Node, Plan, Tensor, traffic
from netcarve.deployment.partitioners.graph import check_memory, parts_of
from netcarve.deployment.partitioners.oracles import random_graph, sent

A, B, C = Node("a", 1.0, 10.0), Node("b", 2.0, 20.0), Node("c", 3.0, 30.0)


def test_traffic_counts_each_tensor_once_per_receiving_part():
    graph = Graph((A, B, C), (Tensor("x", 5.0, None, ("a", "c")), Tensor("y", 7.0, "a", ("b", "c"))))
    assert traffic(graph, (0, 1, 1)) == 7  # b and c share one copy
    assert traffic(graph, (0, 1, 2)) == 14
    assert traffic(graph, (0, 1, 1), origin=0) == 12  # c's part is sent the input
    assert traffic(graph, (0, 1, 1), origin=2) == 17
    assert traffic(graph, (1, 1, 1), origin=1) == 0


@pytest.mark.parametrize("seed", range(30))
def test_traffic_and_crossing_by_definition(seed):
    rng = np.random.default_rng(seed)
    graph = random_graph(seed, 9)
    for _ in range(10):
        parts = rng.integers(0, 3, 9)
        for origin in (None, 0, 2):
            assert traffic(graph, parts, origin=origin) == sent(graph, parts.tolist(), origin)
    for at in range(10):
        live = [
            t.bytes
            for t in graph.tensors
            if (t.source is None or graph.position(t.source) < at)
            and any(graph.position(name) >= at for name in t.targets)
        ]
        assert graph.crossing[at] == sum(live)


def test_edges_of_one_node_are_one_tensor():
    graph = Graph.of_edges([A, B, C], [("a", "b", 4.0), ("a", "c", 4.0)], [("a", 9.0)])
    assert traffic(graph, (0, 1, 1)) == 4
    assert graph.crossing.tolist() == [9, 4, 4, 0]
    with pytest.raises(ValueError, match="carry 4 and 5 bytes"):
        Graph.of_edges([A, B, C], [("a", "b", 4.0), ("a", "c", 5.0)])


@pytest.mark.parametrize(
    ("nodes", "tensors", "says"),
    [
        ((), (), "at least one node"),
        ((A, A), (), "two nodes are called 'a'"),
        ((A, B), (Tensor("t", 1.0, "b", ("a",)),), "topological order: 'a' reads what 'b' makes"),
        ((A, B), (Tensor("t", 1.0, "a", ("a",)),), "topological order"),
        ((A, B), (Tensor("t", 1.0, "a", ()),), "nobody reads tensor 't'"),
        ((A, B), (Tensor("t", 1.0, "a", ("b", "b")),), "names a reader twice"),
        ((A, B), (Tensor("t", 1.0, "z", ("b",)),), "no node 'z'"),
        ((A, B), (Tensor("t", -1.0, "a", ("b",)),), "bytes of tensor 't' must be"),
        ((A, B), (Tensor("t", 1.0, "a", ("b",)), Tensor("t", 1.0, None, ("b",))), "two tensors are called"),
        ((Node("a", math.nan),), (), "work of node 'a' must be"),
        ((Node("a", 1.0, math.inf),), (), "memory of node 'a' must be"),
    ],
)
def test_bad_graphs(nodes, tensors, says):
    with pytest.raises(ValueError, match=says):
        Graph(nodes, tensors)


@pytest.mark.parametrize("options", [{"speed": 0.0}, {"speed": math.inf}, {"memory_limit": -1.0}])
def test_bad_devices(options):
    with pytest.raises(ValueError, match="device 'board'"):
        CostedDevice("board", **options)


def test_links():
    assert Link(20, 5).milliseconds(25_000) == pytest.approx(5 + 10)  # 200 kbit at 20 Mbit/s
    assert Link().milliseconds(1e9) == 0
    for bandwidth in (0, -1, math.nan):
        with pytest.raises(ValueError, match="bandwidth above 0"):
            Link(bandwidth)
    for latency in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="latency must be a finite number"):
            Link(1, latency)


def test_profiles_replace_speed_and_must_be_complete():
    graph = Graph((A, B), ())
    assert CostedDevice("d", speed=2.0).milliseconds(graph).tolist() == [0.5, 1.0]
    assert CostedDevice("d", speed=2.0, profile={"a": 3.0, "b": 4.0}).milliseconds(graph).tolist() == [3, 4]
    with pytest.raises(ValueError, match=r"lacks 1 of 2 nodes: b;"):
        CostedDevice("d", profile={"a": 3.0}).milliseconds(graph)
    with pytest.raises(ValueError, match="nan ms for 'b'"):
        CostedDevice("d", profile={"a": 3.0, "b": math.nan}).milliseconds(graph)


def test_memory_that_nothing_meets_is_refused_with_what_is_missing():
    graph = Graph((A, B, C), ())
    with pytest.raises(ValueError, match="15 are missing"):
        check_memory(graph, [CostedDevice("x", memory_limit=25), CostedDevice("y", memory_limit=20)])
    with pytest.raises(
        ValueError, match=r"'c' needs 30 bytes, the largest device 'x' holds 25: 5 are missing"
    ):
        check_memory(
            graph,
            [
                CostedDevice("x", memory_limit=25),
                CostedDevice("y", memory_limit=25),
                CostedDevice("z", 1, 25),
            ],
        )
    with pytest.raises(ValueError, match="distinct names"):
        check_memory(graph, [CostedDevice("x"), CostedDevice("x")])
    with pytest.raises(ValueError, match="at least one device"):
        check_memory(graph, [])


def test_plans_say_how_far_they_may_be_from_the_best():
    plan = Plan((0, 0, 1), 10.0, 8.0, "by hand")
    assert not plan.optimal
    assert plan.gap == pytest.approx(0.2)
    assert Plan((0,), 0.0, 0.0, "by hand").optimal
    assert Plan((0,), 10.0, 10.0, "by hand").gap == 0
    assert plan.names(Graph((A, B, C), ()), 0) == ("a", "b")
    assert parts_of([1, 1, 2], 4).tolist() == [0, 2, 3, 3]
