"""Two devices: minimum cuts against every placement there is."""

import itertools
import re

import numpy as np
import pytest
from netcarve.deployment.partitioners import CostedDevice, Graph, Link, Node, Tensor, best_prefix, edge_cloud
from netcarve.deployment.partitioners.edge_cloud import latency
from netcarve.deployment.partitioners.max_flow import FlowNetwork
from netcarve.deployment.partitioners.oracles import assignments, forward, random_graph


@pytest.mark.parametrize("block", range(4))
def test_flow_is_the_cheapest_of_all_cuts(block):
    for seed in range(50 * block, 50 * block + 50):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 8))
        arcs = [
            (a, b, int(rng.integers(0, 10)))
            for a, b in itertools.permutations(range(n), 2)
            if rng.random() < 0.5
        ]
        network = FlowNetwork(n)
        for a, b, capacity in arcs:
            network.add(a, b, capacity)
        flow = network.maximum_flow(0, n - 1)

        def crossing(side, arcs=arcs):
            return sum(capacity for a, b, capacity in arcs if side[a] and not side[b])

        assert flow == min(
            crossing((True, *inner, False)) for inner in itertools.product((True, False), repeat=n - 2)
        )
        side = network.source_side(0)
        assert side[0]
        assert not side[n - 1]
        assert crossing(side) == flow


def test_flow_uses_both_directions_and_any_size():
    network = FlowNetwork(4)
    network.add(0, 1, 10**30)
    network.add(2, 1, 0, backward=7)  # carries from 1 to 2 alone
    network.add(2, 3, 10**30)
    assert network.maximum_flow(0, 3) == 7


def milliseconds(graph, parts, edge, cloud, link, two_way):
    """By definition."""
    at = {node.name: part for node, part in zip(graph.nodes, parts, strict=True)}
    total = sum(node.work / (cloud if at[node.name] else edge).speed for node in graph.nodes)
    up, down = [], []
    for tensor in graph.tensors:
        home = 0 if tensor.source is None else at[tensor.source]
        if any(at[name] != home for name in tensor.targets):
            (down if home else up).append(tensor.bytes)
    if two_way:
        return total + sum(link.latency_ms + b * 8e-3 / link.bandwidth_mbps for b in up + down)
    assert not down
    return total + (link.latency_ms + sum(up) * 8e-3 / link.bandwidth_mbps if any(parts) else 0)


def case(seed):
    rng = np.random.default_rng(seed)
    graph = random_graph(seed, int(rng.integers(3, 9)), input_bytes=500)  # so that the edge is worth its time
    edge, cloud = CostedDevice("edge"), CostedDevice("cloud", float(rng.integers(2, 20)))
    return rng, graph, edge, cloud, Link(float(rng.choice([0.02, 0.05, 0.1])), float(rng.integers(0, 4)))


@pytest.mark.parametrize("two_way", [False, True])
@pytest.mark.parametrize("block", range(5))
def test_optimal_among_all_placements(block, two_way):
    inner = worse = 0
    for seed in range(40 * block, 40 * block + 40):
        rng, graph, edge, cloud, link = case(seed)
        pins = {}
        if rng.random() < 0.3:
            pins = {graph.nodes[int(rng.integers(len(graph)))].name: str(rng.choice(["edge", "cloud"]))}
        values = {
            parts: milliseconds(graph, parts, edge, cloud, link, two_way)
            for parts in assignments(len(graph), 2)
            if (two_way or forward(graph, parts))
            and all(parts[graph.position(n)] == (d == "cloud") for n, d in pins.items())
        }
        plan = edge_cloud(graph, edge, cloud, link, two_way=two_way, pinned=pins)
        assert plan.value == pytest.approx(min(values.values()))
        assert values[plan.parts] == pytest.approx(plan.value)
        assert plan.optimal
        assert latency(graph, plan.parts, edge, cloud, link, two_way=two_way) == plan.value
        inner += 0 < sum(plan.parts) < len(graph)
        if not pins:
            prefix = best_prefix(graph, edge, cloud, link)
            worse += prefix.value > plan.value * (1 + 1e-9)
            if not two_way:  # with latency per message, coming back can cost more than one message
                assert prefix.value >= plan.value * (1 - 1e-9)
    assert inner >= 5  # not only all here or all there
    assert two_way or worse >= 1  # some need another order


def limited(seed, two_way):
    """A case with memory limits, and the ms of every placement that keeps them."""
    rng, graph, edge, cloud, link = case(seed)
    limits = rng.uniform(0.3, 1.1, 2) * graph.memory.sum()
    edge = CostedDevice("edge", edge.speed, float(limits[0]))
    cloud = CostedDevice("cloud", cloud.speed, float(limits[1]))
    values = {
        parts: milliseconds(graph, parts, edge, cloud, link, two_way)
        for parts in assignments(len(graph), 2)
        if (two_way or forward(graph, parts))
        and graph.memory[np.array(parts) == 0].sum() <= edge.memory_limit
        and graph.memory[np.array(parts) == 1].sum() <= cloud.memory_limit
    }
    return graph, edge, cloud, link, values


@pytest.mark.parametrize("two_way", [False, True])
@pytest.mark.parametrize("block", range(4))
def test_optimal_among_all_placements_that_keep_memory_limits(block, two_way):
    bound_by_memory = 0
    for seed in range(30 * block, 30 * block + 30):
        graph, edge, cloud, link, values = limited(seed, two_way)
        if not values:
            with pytest.raises(ValueError, match=r"are missing|there is no placement that keeps the memory"):
                edge_cloud(graph, edge, cloud, link, two_way=two_way, visits=1000)
            continue
        plan = edge_cloud(graph, edge, cloud, link, two_way=two_way)
        assert values[plan.parts] == pytest.approx(min(values.values()))
        assert plan.value == pytest.approx(values[plan.parts])
        assert plan.optimal
        free = edge_cloud(
            graph, CostedDevice("edge", edge.speed), CostedDevice("cloud", cloud.speed), link, two_way=two_way
        )
        bound_by_memory += free.value < plan.value * (1 - 1e-9)
    assert bound_by_memory >= 5


@pytest.mark.parametrize("two_way", [False, True])
@pytest.mark.parametrize("visits", [0, 1, 3])
def test_few_visits_still_prove_a_true_bound(visits, two_way):
    met = gaps = 0
    for seed in range(60):
        graph, edge, cloud, link, values = limited(seed, two_way)
        if not values:
            continue
        try:
            plan = edge_cloud(graph, edge, cloud, link, two_way=two_way, visits=visits)
        except ValueError as error:
            if not re.search(f"^{visits} visits found no placement", str(error)):
                raise
            continue
        met += 1
        best = min(values.values())
        assert plan.parts in values
        assert plan.bound <= best * (1 + 1e-9)
        assert plan.value >= best * (1 - 1e-9)
        gaps += plan.gap > 0
    assert met >= 25
    assert gaps >= 1


def test_memory_prices_close_the_gap_where_they_can():
    # A chain whose every prefix is best at some price: the limit picks the prefix, and the bound meets it.
    nodes = [Node(f"n{i}", 10.0, 10.0) for i in range(4)]
    graph = Graph.of_edges(nodes, [(f"n{i}", f"n{i + 1}", 1.0) for i in range(3)], [("n0", 1e6)])
    plan = edge_cloud(graph, CostedDevice("edge", 1.0, 20.0), CostedDevice("cloud", 0.5), Link(8, 0))
    assert plan.parts == (0, 0, 1, 1)
    assert plan.optimal


def test_one_copy_serves_all_readers():
    nodes = [Node("a", 1.0), Node("b", 100.0), Node("c", 100.0), Node("d", 0.0)]
    tensors = [
        Tensor("x", 1e6, None, ("a",)),
        Tensor("y", 1000.0, "a", ("b", "c")),
        Tensor("z", 1e6, "b", ("d",)),
        Tensor("w", 1e6, "c", ("d",)),
    ]
    graph = Graph(tuple(nodes), tuple(tensors))
    plan = edge_cloud(graph, CostedDevice("edge"), CostedDevice("cloud", 100.0), Link(8, 5))
    assert plan.parts == (0, 1, 1, 1)
    assert plan.value == pytest.approx(1 + 5 + 1 + 2)  # y is sent once: 1 ms


def test_tensors_come_back_only_when_that_is_asked_for():
    nodes = [Node("a", 100.0), Node("answer", 1.0)]
    graph = Graph.of_edges(nodes, [("a", "answer", 10.0)], [("a", 10.0)])
    edge, cloud, link = CostedDevice("edge"), CostedDevice("cloud", 100.0), Link(8, 2)
    pins = {"answer": "edge"}
    assert edge_cloud(graph, edge, cloud, link, pinned=pins).value == pytest.approx(101)
    plan = edge_cloud(graph, edge, cloud, link, pinned=pins, two_way=True)
    assert plan.parts == (1, 0)
    assert plan.value == pytest.approx(1 + 1 + 2 * 2.01)
    with pytest.raises(ValueError, match="'a' is in the cloud and read on the edge"):
        latency(graph, (1, 0), edge, cloud, link)
    with pytest.raises(ValueError, match="pinned nodes contradict each other"):
        edge_cloud(graph, edge, cloud, link, pinned={"a": "cloud", "answer": "edge"})


def test_bad_arguments():
    graph = random_graph(0, 4)
    edge, cloud = CostedDevice("edge"), CostedDevice("cloud")
    with pytest.raises(ValueError, match=r"pinned to \['moon'\]"):
        edge_cloud(graph, edge, cloud, Link(), pinned={"n0": "moon"})
    with pytest.raises(ValueError, match="no node 'nowhere'"):
        edge_cloud(graph, edge, cloud, Link(), pinned={"nowhere": "edge"})
    with pytest.raises(ValueError, match="are missing"):
        edge_cloud(graph, CostedDevice("edge", 1.0, 0.0), CostedDevice("cloud", 1.0, 0.0), Link())
