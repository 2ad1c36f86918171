"""Consecutive stages: the dynamic programme against every cut there is."""

import itertools
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from netcarve.deployment.partitioners import CostedDevice, Graph, Link, Node, chain
from netcarve.deployment.partitioners.oracles import random_graph


def stages(graph, count, *, empty, forced=(), forbidden=()):
    """Every tuple of boundaries, 0 and the number of nodes included."""
    n = len(graph)
    for cuts in itertools.combinations_with_replacement(range(n + 1), count - 1):
        ends = (0, *cuts, n)
        if not empty and len(set(ends)) < len(ends):
            continue
        after = {graph.nodes[at - 1].name for at in ends if 0 < at < n}
        if set(forced) <= after and not after & set(forbidden):
            yield ends


def cost(graph, devices, links, ends, goal, blocking, most_ms=np.inf):
    """By definition, from sets of live tensors; None where memory does not suffice or a stage is too slow."""
    times, total = [], 0.0
    for k, (device, (start, end)) in enumerate(zip(devices, itertools.pairwise(ends), strict=True)):
        nodes = graph.nodes[start:end]
        needs = sum(node.memory for node in nodes) + max((node.peak for node in nodes), default=0.0)
        if needs > device.memory_limit:
            return None
        compute = sum(node.work for node in nodes) / device.speed
        sending = transfer = 0.0
        if k < len(devices) - 1 and end < len(graph):
            live = sum(
                t.bytes
                for t in graph.tensors
                if (t.source is None or graph.position(t.source) < end)
                and max(map(graph.position, t.targets)) >= end
            )
            total += live
            transfer = live * 8 / (links[k].bandwidth_mbps * 1000)
            sending = links[k].latency_ms + transfer
        each = compute + sending if blocking else max(compute, transfer)
        if each > most_ms:
            return None
        times.append(each if goal == "throughput" else compute + sending)
    return {"throughput": max(times), "latency": sum(times), "traffic": total}[goal]


def case(seed):
    rng = np.random.default_rng(seed)
    graph = random_graph(seed, int(rng.integers(4, 9)))
    count = int(rng.integers(1, 5))
    total = graph.memory.sum()
    devices = [
        CostedDevice(f"d{k}", float(rng.integers(1, 5)), float(rng.integers(total // 2, total + 2)))
        for k in range(count)
    ]
    links = [Link(float(rng.integers(1, 40)) / 100, float(rng.integers(0, 4))) for _ in range(count - 1)]
    return rng, graph, devices, links


@pytest.mark.parametrize("goal", ["throughput", "latency", "traffic"])
@pytest.mark.parametrize("block", range(5))
def test_optimal_among_all_cuts(goal, block):
    refused = 0
    for seed in range(40 * block, 40 * block + 40):
        rng, graph, devices, links = case(seed)
        empty, blocking = bool(rng.integers(2)), bool(rng.integers(2))
        names = [node.name for node in graph.nodes[:-1]]
        few = rng.permutation(names).tolist()
        forced = few[: int(rng.integers(0, min(2, len(devices))))]
        forbidden = few[2:3]
        values = [
            cost(graph, devices, links, ends, goal, blocking)
            for ends in stages(graph, len(devices), empty=empty, forced=forced, forbidden=forbidden)
        ]
        best = min((v for v in values if v is not None), default=None)
        options = {"blocking": blocking, "empty": empty, "forced": forced, "forbidden": forbidden}
        if best is None:
            refused += 1
            with pytest.raises(ValueError, match=r"missing|lacks|places that may be cut"):
                chain(graph, devices, links, minimise=goal, **options)
            continue
        plan = chain(graph, devices, links, minimise=goal, **options)
        assert plan.value == pytest.approx(best)
        assert plan.optimal
        assert list(plan.parts) == sorted(plan.parts)
        ends = (0, *np.searchsorted(plan.parts, range(1, len(devices))).tolist(), len(graph))
        assert cost(graph, devices, links, ends, goal, blocking) == pytest.approx(best)
    assert refused < 20


@pytest.mark.parametrize("goal", ["throughput", "latency", "traffic"])
def test_optimal_where_activations_and_the_slowest_stage_are_bounded(goal):
    bound_by_peaks = bound_by_ms = refused = 0
    for seed in range(120):
        rng, graph, devices, links = case(seed)
        peaks = rng.integers(0, 30, len(graph)).astype(float)
        nodes = tuple(replace(n, peak=p) for n, p in zip(graph.nodes, peaks.tolist(), strict=True))
        bare, graph = graph, Graph(nodes, graph.tensors)
        most = float(rng.uniform(0.2, 0.8) * graph.work.sum())
        empty, blocking = bool(rng.integers(2)), bool(rng.integers(2))

        def best(of, most_ms, devices=devices, links=links, empty=empty, blocking=blocking):
            every = stages(of, len(devices), empty=empty)
            values = (cost(of, devices, links, ends, goal, blocking, most_ms) for ends in every)
            return min((v for v in values if v is not None), default=None)

        want = best(graph, most)
        options = {"minimise": goal, "blocking": blocking, "empty": empty, "most_ms": most}
        if want is None:
            refused += 1
            with pytest.raises(ValueError, match=r"missing|lacks|places that may be cut|takes at most"):
                chain(graph, devices, links, **options)
            continue
        plan = chain(graph, devices, links, **options)
        assert plan.value == pytest.approx(want)
        ends = (0, *np.searchsorted(plan.parts, range(1, len(devices))).tolist(), len(graph))
        assert cost(graph, devices, links, ends, goal, blocking, most * (1 + 1e-9)) == pytest.approx(want)
        bound_by_peaks += best(bare, most) < want - 1e-9
        bound_by_ms += best(graph, np.inf) < want - 1e-9
    assert refused < 90
    assert bound_by_peaks >= 3
    assert bound_by_ms >= 3 or goal == "throughput"  # there it can only refuse


def test_blocks_of_rows_do_not_change_the_result(monkeypatch):
    graph, devices = random_graph(3, 11), [CostedDevice(f"d{k}", 1.0 + k) for k in range(3)]
    whole = chain(graph, devices, Link(0.1, 2), empty=True)
    monkeypatch.setattr(sys.modules[chain.__module__], "BLOCK", 2)
    assert chain(graph, devices, Link(0.1, 2), empty=True) == whole


def test_says_how_much_memory_is_missing():
    graph = Graph(tuple(Node(f"n{i}", 1.0, m) for i, m in enumerate([6.0, 6.0, 6.0])), ())
    devices = [CostedDevice("x", memory_limit=9), CostedDevice("y", memory_limit=9)]
    with pytest.raises(ValueError, match="lacks 3 bytes"):
        chain(graph, devices)
    raised = [CostedDevice("x", memory_limit=12), CostedDevice("y", memory_limit=12)]
    assert chain(graph, raised).value == 2


def test_profiles_and_order_of_devices_count():
    graph = Graph(tuple(Node(f"n{i}", 1.0) for i in range(6)), ())
    slow, fast = CostedDevice("slow", 1.0), CostedDevice("fast", 2.0)
    assert chain(graph, [slow, fast]).parts == (0, 0, 1, 1, 1, 1)
    assert chain(graph, [fast, slow]).parts == (0, 0, 0, 0, 1, 1)
    profile = {f"n{i}": 100.0 if i == 0 else 1.0 for i in range(6)}
    assert chain(graph, [CostedDevice("p", profile=profile), slow]).parts == (0, 1, 1, 1, 1, 1)


def test_a_narrow_place_is_cut():
    nodes = [Node(f"n{i}", 1.0) for i in range(6)]
    edges = [(f"n{i}", f"n{i + 1}", 10.0 if i == 1 else 100_000.0) for i in range(5)]
    plan = chain(
        Graph.of_edges(nodes, edges),
        [CostedDevice("x"), CostedDevice("y")],
        Link(8, 0),
        minimise="throughput",
    )
    assert plan.parts == (0, 0, 1, 1, 1, 1)
    assert plan.value == pytest.approx(4)  # ms; the other stage needs 2 ms and 0.01 ms to send


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"minimise": "speed"}, "one of throughput, latency, traffic, got 'speed'"),
        ({"links": [Link(), Link()]}, "2 devices in a row have 1 links between them, got 2"),
        ({"forced": ["n0", "n1"]}, "2 forced cuts make 3 stages, but 2 are asked for"),
        ({"forced": ["n0"], "forbidden": ["n0"]}, r"\['n0'\]"),
        ({"forbidden": ["n0", "n1"]}, "has only 0 places that may be cut"),
        ({"forbidden": ["nowhere"]}, "no node 'nowhere'"),
    ],
)
def test_bad_arguments(options, says):
    graph = Graph(tuple(Node(f"n{i}", 1.0) for i in range(3)), ())
    with pytest.raises(ValueError, match=says):
        chain(graph, [CostedDevice("x"), CostedDevice("y")], **options)


def test_more_stages_than_nodes():
    graph = Graph(tuple(Node(f"n{i}", 1.0) for i in range(3)), ())
    devices = [CostedDevice(f"d{k}") for k in range(5)]
    with pytest.raises(ValueError, match=re.escape("5 stages need 4 cuts")):
        chain(graph, devices)
    assert chain(graph, devices, empty=True).value == 1
