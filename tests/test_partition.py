"""From a model to a graph for the partitioners and back to stages; the command and the picture."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from netcarve.deployment.alternatives import placements, robustness
from netcarve.deployment.decompose import measured_layout
from netcarve.deployment.network import read_network
from netcarve.deployment.partitioners import CostedDevice, chain, in_order, stage_costs
from netcarve.deployment.picture import MOST, Box, GraphPicture, picture_of, plot_graph
from netcarve.deployment.planning import plan_layout
from netcarve.deployment.setting import METHODS, partition_settings
from netcarve.devices import Device, Link, Profile
from netcarve.model.stages import run_stages, split
from torch import nn


class Branching(nn.Module):
    """A stem, a short and a long branch, a skip from the input, and a part that is small to send."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.long = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)))
        self.short = nn.Conv2d(16, 16, 1)
        self.squeeze = nn.Conv2d(16, 2, 1)
        self.head = nn.Sequential(nn.Conv2d(2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 3))
        self.out = nn.Linear(8, 5)

    def forward(self, x):
        y = self.stem(x)
        y = self.short(y) + self.long(y)
        y = self.squeeze(y) + x[:, :2]
        q, k = self.head(y).chunk(2, dim=1)
        return self.out(torch.cat([q.mean((2, 3)), k.amax((2, 3))], dim=1))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return read_network(Branching().eval(), torch.randn(2, 3, 16, 16), seconds=0.05)


@pytest.fixture(scope="module")
def steady(network):
    """The same with times that do not hang on this machine: 1 ms for 10^5 MACs, 0.01 ms for each call."""
    calls = [replace(call, ms=call.macs / 1e5 + 0.01) for call in network.calls]
    other = network.corrected([len(calls)], np.array([1.0]))
    other.calls = calls
    for cached in ("ms", "dag"):
        other.__dict__.pop(cached, None)
    return other


def layout_of(network, *args, **options):
    return plan_layout(network, partition_settings(*args, **options))


def same(network, stages):
    x = torch.randn(3, 3, 16, 16)
    want = network.functional.captured.source(x)
    torch.testing.assert_close(run_stages(stages, x), want, rtol=1e-6, atol=1e-6)


def test_calls_and_cuts_are_those_of_the_network(network):
    assert len(network.calls) == len(network.order.calls)
    assert network.macs.sum() == pytest.approx(sum(network.cuts[0].macs))
    # A view is made for nothing: it counts for the call that reads it.
    assert [ms > 0 for ms in network.ms] == [call.moved > 0 for call in network.calls]
    weights = sum(p.numel() * 4 for p in Branching().state_dict().values() if p.is_floating_point())
    assert sum(call.weights for call in network.calls) == weights
    assert network.input_bytes == 3 * 16 * 16 * 4


def test_the_chain_crosses_what_the_cuts_send(network):
    graph = network.chain(network.cuts)
    assert graph.crossing.tolist() == [network.input_bytes, *(c.bytes for c in network.cuts), 0]
    assert graph.work.sum() == pytest.approx(network.ms.sum())
    assert graph.peaks.max() == max(call.alive for call in network.calls)
    double = read_network(
        network.functional.captured.source, torch.randn(2, 3, 16, 16), batch=2, seconds=0.01
    )
    twice = double.chain(double.cuts)
    assert twice.crossing == pytest.approx(2 * graph.crossing)
    assert twice.memory.tolist() == graph.memory.tolist()  # weights are there once


def test_every_placement_of_the_dag_is_stages_that_equal_the_model(network):
    graph, rng = network.dag, np.random.default_rng(0)
    moved = 0
    for _ in range(10):
        # Any set that is closed under what it reads runs first.
        first = {int(rng.integers(len(graph) // 2 + 3)), graph.position("conv2d")}
        for _, source, targets in sorted(graph.links, key=lambda link: -link[1]):
            if source >= 0 and first.intersection(targets):
                first.add(source)
        parts = [0 if i in first else 1 for i in range(len(graph))]
        other, cuts = network.reordered(parts)
        moved += other is not network
        row, on = in_order(graph, parts)
        # Where a view and what it is a view of both cross, only the latter is sent.
        assert sum(cut.bytes for cut in cuts) <= row.crossing[np.searchsorted(on, 1)]
        same(network, split(other.functional, cuts, check=False))
    assert moved >= 3


@pytest.mark.quick("gcn-traffic", "spectral", "auto", "kernighan")
@pytest.mark.parametrize(
    ("method", "minimise"),
    [
        (m, goal)
        for m in METHODS
        for goal in ("throughput", "latency", "traffic")
        if (m, goal) != ("gcn", "latency")
    ],
)
def test_every_method_gives_stages_and_a_true_bound(steady, method, minimise):
    options = {"devices": ["a=1x", "b=2x"], "links": "100mbps,0.1ms", "imbalance": 2.0}
    layout = layout_of(steady, None, minimise, method=method, **options)
    exact = layout_of(steady, None, minimise, **options)
    assert 0 <= layout.bound <= layout.value * (1 + 1e-9)
    assert exact.plan.optimal
    assert layout.bound <= exact.value * (1 + 1e-9)  # whose plan is one of those it is about
    if method.startswith("greedy"):
        assert layout.value >= exact.value * (1 - 1e-9)
        assert layout.bound == pytest.approx(min(exact.value, layout.value))
    assert len(layout.cuts) == len(layout.on) - 1
    assert layout.plan.parts == tuple(sorted(layout.plan.parts))
    same(steady, split(layout.network.functional, layout.cuts, check=False))


def test_throughput_is_the_least_largest_stage(steady):
    layout = layout_of(steady, 3, links=Link())
    ms, best = steady.ms, np.inf
    for i, one in enumerate(steady.cuts):
        for other in steady.cuts[i + 1 :]:
            a, b = one.index + 1, other.index + 1
            best = min(best, max(ms[:a].sum(), ms[a:b].sum(), ms[b:].sum()))
    assert layout.value == pytest.approx(best)
    without = layout_of(steady, 3)  # links: nearly as fast, with no more bytes
    assert without.bound == pytest.approx(best)
    assert best <= without.value <= best * 1.01 + 1e-9
    assert without.costs.sent.sum() <= layout.costs.sent.sum()


def test_traffic_keeps_the_balance(steady):
    loose, tight = (layout_of(steady, 2, "traffic", imbalance=x) for x in (5.0, 0.1))
    fastest = layout_of(steady, 2).value
    assert max(tight.costs.compute) <= 1.1 * fastest + 1e-9
    assert loose.value <= tight.value
    assert loose.value == min(cut.bytes for cut in steady.cuts)


def test_forced_and_forbidden_modules(steady):
    layout = layout_of(steady, 3, forced=["stem"])
    assert any("stem" in cut.ends for cut in layout.cuts)
    layout = layout_of(steady, 2, forbidden=["long", "head"])
    assert not any({"long", "head"} & set(cut.inside) for cut in layout.cuts)
    with pytest.raises(ValueError, match="no legal cut right after module 'nowhere'"):
        layout_of(steady, 2, forced=["nowhere"])
    with pytest.raises(ValueError, match="knows no forced or forbidden cuts"):
        layout_of(steady, 2, method="spectral", forced=["stem"])


def test_memory_limits_are_kept_or_what_is_missing_is_said(steady):
    needs = layout_of(steady, 2, devices=["a=1x", "b=1x"])
    total = sum(call.weights for call in steady.calls)
    weights = [
        sum(c.weights for c in steady.calls[a:b]) for a, b in zip([0, *needs.ends], needs.ends, strict=False)
    ]
    peaks = [
        max(c.alive for c in steady.calls[a:b]) for a, b in zip([0, *needs.ends], needs.ends, strict=False)
    ]
    short = (weights[0] + peaks[0]) / 1e6 * 0.95
    layout = layout_of(steady, 2, devices=[Device("a", 1, memory_limit_mb=short), "b=1x"])
    calls = steady.calls[: layout.ends[0]]
    assert sum(c.weights for c in calls) + max(c.alive for c in calls) <= short * 1e6
    assert layout.value > needs.value
    with pytest.raises(ValueError, match="are missing"):
        layout_of(steady, 2, devices=[Device(n, 1, memory_limit_mb=total / 1e6 / 3) for n in "ab"])


def test_profiles_give_the_times_of_their_devices(steady):
    points = np.array([[1e3, 1e3, 1.0], [1e6, 1e5, 1.0], [1e8, 1e7, 1.0]])
    profile = Profile({"conv2d": points})  # every call that moves something takes 1 ms
    ms = steady.milliseconds(Device("a", profile, speed=2.0))
    moving = np.array([call.moved > 0 for call in steady.calls])
    assert ms[moving] == pytest.approx(0.5)
    assert (ms[~moving] == 0).all()
    assert steady.milliseconds(Device("a", "0.25x")) == pytest.approx(steady.ms * 4)


def test_two_devices_beside_every_other_placement(steady):
    asked = partition_settings(None, "latency", ["edge=0.1x", "server=1x"], "2mbps,1ms")
    ways = {p.name: p for p in placements(steady, asked)}
    assert list(ways) == ["all on edge", "all on server", "best prefix", "minimum cut"]
    assert ways["all on edge"].latency_ms == pytest.approx(10 * steady.ms.sum())
    upload = steady.input_bytes * 8e-3 / 2 + 1
    assert ways["all on server"].latency_ms == pytest.approx(steady.ms.sum() + upload)
    prefix, cut = ways["best prefix"], ways["minimum cut"]
    assert cut.latency_ms <= prefix.latency_ms * (1 + 1e-9) <= ways["all on edge"].latency_ms
    assert cut.bound_ms == pytest.approx(cut.latency_ms)
    layout = plan_layout(steady, asked)
    assert layout.value == pytest.approx(cut.latency_ms)
    assert layout.plan.optimal
    free = partition_settings(None, "latency", ["edge=0.1x", "server=1x"], "2mbps,1ms", input_kb=0)
    sent = {p.name: p.sent_kb for p in placements(steady, free)}
    assert sent["all on server"] == 0


def test_robustness_changes_one_figure_at_a_time(steady):
    asked = partition_settings(None, "latency", ["edge=0.1x", "server=1x"], "2mbps,1ms")
    layout = plan_layout(steady, asked)
    scenes = robustness(layout, asked, changes=(0.5, 1.5))
    assert [s.figure for s in scenes] == [
        name for name in ("speed of edge", "speed of server", "bandwidth of edge - server") for _ in range(2)
    ]
    for scene in scenes:
        assert scene.best <= scene.value * (1 + 1e-9)
        assert (scene.value > layout.value) == (scene.factor < 1) or scene.value == layout.value
    slow = next(s for s in scenes if s.figure == "bandwidth of edge - server" and s.factor == 0.5)
    assert slow.value == pytest.approx(layout.value + layout.costs.transfer.sum())
    half = partition_settings(None, "latency", ["edge=0.1x", "server=1x"], "1mbps,1ms")
    assert slow.best == pytest.approx(plan_layout(steady, half).value)


def test_plans_are_what_their_real_stages_take(network):
    asked = partition_settings(2)
    measured = measured_layout(network, asked, seconds=0.02)
    assert measured.layout.value == pytest.approx(max(measured.here_ms))
    assert measured.layout.bound <= measured.layout.value
    assert 1 <= measured.tried <= 4
    picture = picture_of(measured, asked)
    assert 2 <= len(picture.boxes) <= MOST
    assert [box.stage for box in picture.boxes] == sorted(box.stage for box in picture.boxes)
    cut = next(b for b in picture.boxes if b.stage == 1)
    assert cut.enters == measured.layout.cuts[0].bytes
    assert picture.boxes[0].enters == network.input_bytes
    assert sum(box.ms for box in picture.boxes) == pytest.approx(sum(measured.here_ms))


@pytest.mark.slow
@pytest.mark.parametrize("boxes", [1, 30, 130])
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_pictures_of_any_size(tmp_path, boxes, ending):
    made = tuple(Box(f"layer{i}.conv", i * 3 // boxes, 0.1 * i, 1e3 * i, 1e3 * (i + 1)) for i in range(boxes))
    file = tmp_path / f"cut.{ending}"
    plot_graph(
        GraphPicture("Net in 3 stages", "about", made, ("one", "two", "three"), ((0, boxes - 1),)), file
    )
    assert file.stat().st_size > 5000
    if ending == "svg":
        assert file.read_text().startswith("<?xml")


def test_a_picture_needs_boxes(tmp_path):
    with pytest.raises(ValueError, match="no box to draw"):
        plot_graph(GraphPicture("", "", (), ()), tmp_path / "x.png")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"minimise": "speed"}, "minimise is one of throughput, latency, traffic, got 'speed'"),
        ({"method": "magic"}, "method is one of exact"),
        ({"parts": 0}, "one part or more, got parts=0"),
        ({"parts": 3, "devices": ["a=1x", "b=1x"]}, "3 parts run on 3 devices, but 2 are given: a, b"),
        ({"devices": ["a"]}, "cannot read the device 'a'"),
        ({"devices": ["a=nowhere.json", "b=1x"]}, "cannot read the profile 'nowhere.json'"),
        ({"devices": []}, "at least one device"),
        ({"links": "0mbps"}, "bandwidth above 0"),
        ({"parts": 4, "links": ["1mbps", "2mbps"]}, "2 links for 4 devices"),
        ({"imbalance": -1}, "imbalance must be 0 or more"),
        ({"input_kb": -1}, "0 kB or more"),
        ({"forced": "stem"}, "forced is a list of module names"),
        ({"minimise": "latency"}, "on equal devices with free links every cut has the same latency"),
    ],
)
def test_what_cannot_be_asked(options, says):
    with pytest.raises(ValueError, match=says):
        partition_settings(**options)


def test_links_by_name_join_neighbours():
    devices = ["a=1x", "b=1x", "c=1x"]
    slow, fast = Link(1, between=("b", "c")), Link(9, between=("a", "b"))
    assert partition_settings(devices=devices, links=[slow, fast]).links == (fast, slow)
    with pytest.raises(ValueError, match="no link joins 'a' and 'b'"):
        partition_settings(devices=devices, links=[slow, Link(9, between=("a", "c"))])


def test_stage_costs_equal_the_chain(steady):
    graph = steady.chain(steady.cuts)
    devices = [CostedDevice("a", 1.0), CostedDevice("b", 3.0)]
    links = [Link(5, 0.3)]
    for minimise in ("throughput", "latency", "traffic"):
        for blocking in (False, True):
            plan = chain(graph, devices, links, minimise=minimise, blocking=blocking)
            assert stage_costs(graph, plan.parts, devices, links).value(
                minimise, blocking=blocking
            ) == pytest.approx(plan.value)


def run(*arguments):
    from netcarve.__main__ import run as command

    return command(list(arguments))


def test_the_command_prints_a_plan_and_draws_it(tmp_path, capsys):
    assert run("partition", "digits", "--parts", "2", "--plot", str(tmp_path / "cut.png")) == 0
    out = capsys.readouterr().out
    assert "stem.0 .." in out
    assert "x the inputs a second" in out
    assert "together equal the model" in out
    assert (tmp_path / "cut.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_command_for_machines(capsys):
    arguments = ["--device", "edge=0.05x", "--device", "server=1x", "--link", "50mbps,1ms"]
    assert run("partition", "digits", *arguments, "--minimise", "latency", "--robustness", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["value"] == pytest.approx(
        sum(stage["ms"] + stage["send_ms"] for stage in made["stages"]) + made["upload_ms"]
    )
    assert made["bound"] <= made["value"]
    assert made["difference"] <= 1e-6
    assert [p["name"] for p in made["placements"]][:2] == ["all on edge", "all on server"]
    assert {s["figure"] for s in made["robustness"]} >= {"speed of edge", "speed of server"}
    assert sum(stage["macs_share"] for stage in made["stages"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--plot", "cut.txt"], "--plot draws .png, .svg, .pdf"),
        (["--plot", "no/such/cut.png"], "there is no folder"),
        (["--minimise", "speed"], "minimise is one of"),
        (["--parts", "500"], "legal cuts, but 500 parts need 499"),
        (["--device", "edge"], "cannot read the device 'edge'"),
        (["--device", "edge=1x", "--devices", "x.toml"], "not both"),
        (["--devices", "x.toml"], "cannot read the devices in 'x.toml'"),
    ],
)
def test_the_command_refuses_in_a_line(arguments, says, capsys):
    assert run("partition", "digits", *arguments) == 2
    assert says in capsys.readouterr().err
