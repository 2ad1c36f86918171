"""Devices, links and the costs of a pipeline on them, against plain loops."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netcarve.devices import (
    Device,
    Link,
    Profile,
    devices_json,
    devices_of,
    links_of,
    parse_device,
    parse_link,
    pipeline_costs,
    read_platform,
    routes,
    sensitivity,
)

PROFILE = Profile({"conv2d 3x3/1 8x8": np.array([[1e6, 1e5, 1.0], [1e5, 3e4, 0.2]])}, machine="here")


def brute_force(ms, sent, weights, peaks, begins, on, devices, ways):
    """One candidate, stage by stage; ``ways[a, b]``: list of (name, link) that a message takes."""
    bounds = [0, *begins, len(weights)]
    at, delay, stages = 0, 0.0, 0
    busy, kept, peak = (dict.fromkeys(range(len(devices)), 0.0) for _ in range(3))
    sending, traffic, energy = {}, 0.0, 0.0
    for first, last, device in zip(bounds, bounds[1:], on, strict=False):
        if first == last:
            continue
        stages += 1
        if device != at:
            for name, link in ways[at, device]:
                time = sent[first] * 8 / (link.bandwidth_mbps * 1e6) * 1e3
                sending[name] = sending.get(name, 0.0) + time
                delay += link.latency_ms + time
                traffic += sent[first]
                energy += link.energy_mj_per_mb * sent[first] / 1e6
        busy[device] += devices[device].per_stage_ms
        for s in range(first, last):
            busy[device] += ms[device][s]
            kept[device] += weights[s]
            peak[device] = max(peak[device], peaks[s])
        at = device
    energy += sum(d.power_w * busy[i] for i, d in enumerate(devices))
    slowest = max(*busy.values(), *sending.values(), 1e-6)
    memory = {f"memory_mb:{d.name}": (kept[i] + peak[i]) / 1e6 for i, d in enumerate(devices)}
    return {
        "traffic_kb": traffic / 1e3,
        "latency_ms": sum(busy.values()) + delay,
        "throughput_per_s": 1000 / slowest,
        "memory_mb": max(memory.values()),
        **memory,
        "stages": stages,
        "energy_mj": energy,
    }


def plain_ways(names, links):
    """By number of devices and links: one for every pair, or a chain."""
    ways = {}
    for a, b in itertools.permutations(range(len(names)), 2):
        if len(links) == 1:
            ways[a, b] = [((a, b), links[0])]
        else:
            steps = range(a, b) if a < b else range(a - 1, b - 1, -1)
            ways[a, b] = [((i, a < b), links[i]) for i in steps]
    return ways


def _device(name, rng):
    law = {"relu": np.ones((1, 3))}
    profile = Profile(law, per_stage_ms=float(rng.uniform(0, 3))) if rng.random() < 0.7 else None
    return Device(name, profile, speed=float(rng.uniform(0.2, 3)), power_w=float(rng.integers(0, 9)))


@st.composite
def pipelines(draw):
    d, s, k = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = 3
    devices = [_device(f"d{i}", rng) for i in range(d)]
    count = draw(st.sampled_from([1, d - 1])) if d > 1 else 0
    links = [Link(*map(float, rng.uniform(0.1, 100, 3))) for _ in range(count)]
    arrays = (
        rng.uniform(0, 10, (n, d, s)),
        np.concatenate([rng.integers(0, 10**6, (n, s)), np.zeros((n, 1))], axis=1),
        rng.uniform(0, 1e6, (n, s)),
        rng.uniform(0, 1e6, (n, s)),
        np.sort(rng.integers(0, s + 1, (n, k - 1)), axis=1),
        rng.integers(0, d, (n, k)),
    )
    return arrays, devices, links


@settings(max_examples=150, deadline=None)
@given(pipelines())
def test_pipeline_costs_equal_plain_loops(made):
    arrays, devices, links = made
    got = pipeline_costs(*arrays, devices, links)
    ways = plain_ways([d.name for d in devices], links)
    for i in range(len(arrays[0])):
        want = brute_force(*(a[i] for a in arrays), devices, ways)
        assert set(got) == set(want)
        for name, value in want.items():
            assert got[name][i] == pytest.approx(value, rel=1e-9, abs=1e-9), name


@settings(max_examples=40, deadline=None)
@given(pipelines())
def test_sensitivity_equals_one_change_after_another(made):
    arrays, devices, links = made
    got = sensitivity(*arrays, devices, links, changes=(0.2, 0.5))
    ways = plain_ways([d.name for d in devices], links)

    def costs(i, devices, speeds, links):
        rows = [a[i] for a in arrays]
        rows[0] = rows[0] / np.array(speeds)[:, None]
        devices = [replace(d, speed=d.speed * f) for d, f in zip(devices, speeds, strict=True)]
        return brute_force(*rows, devices, plain_ways([d.name for d in devices], links) if links else ways)

    for i in range(len(arrays[0])):
        ones = [1.0] * len(devices)
        base = costs(i, devices, ones, links)
        rises, losses = [], []
        for f in (0.8, 1.2, 0.5, 1.5):
            for j in range(len(devices)):
                found = costs(i, devices, [f if j == m else 1.0 for m in range(len(devices))], links)
                rises.append(found["latency_ms"] / base["latency_ms"] - 1)
                losses.append(1 - found["throughput_per_s"] / base["throughput_per_s"])
            for j, link in enumerate(links):
                for field in ("bandwidth_mbps", "latency_ms"):
                    values = {
                        "bandwidth_mbps": link.bandwidth_mbps,
                        "latency_ms": link.latency_ms,
                        "energy_mj_per_mb": link.energy_mj_per_mb,
                    }
                    other = Link(**values | {field: values[field] * f})
                    found = costs(i, devices, ones, [*links[:j], other, *links[j + 1 :]])
                    rises.append(found["latency_ms"] / base["latency_ms"] - 1)
                    losses.append(1 - found["throughput_per_s"] / base["throughput_per_s"])
        for name, all_of in (("latency_change", rises), ("throughput_change", losses)):
            assert got[name][i] == pytest.approx(max(*all_of, 0.0), rel=1e-7, abs=1e-9)
            assert got[f"{name}_mean"][i] == pytest.approx(np.abs(all_of).mean(), rel=1e-7, abs=1e-9)


def test_one_device_alone_has_no_traffic_and_needs_no_link():
    ms = np.full((1, 1, 3), 2.0)
    zeros = np.zeros((1, 3))
    got = pipeline_costs(ms, np.ones((1, 4)), zeros, zeros, np.array([[1, 2]]), np.zeros((1, 3), int),
                         [Device("only")], [])  # fmt: skip
    assert got["traffic_kb"] == [0]
    assert got["latency_ms"] == [6]
    assert got["stages"] == [3]
    assert got["throughput_per_s"] == [pytest.approx(1000 / 6)]
    assert "energy_mj" not in got  # its power is not known


def test_a_known_example_by_hand():
    """20 kB over 16 mbps: 10 ms; 3 ms delay; 4 ms at the edge, 1 ms on the server."""
    devices = [Device("edge", power_w=2.0), Device("server", power_w=50.0)]
    ms = np.array([[[1.0, 3.0, 5.0], [0.2, 0.6, 1.0]]])
    sent = np.array([[150_000.0, 0, 20_000.0, 0]])
    held = np.array([[1e6, 2e6, 3e6]])
    peaks = np.array([[5e6, 4e6, 1e6]])
    got = pipeline_costs(
        ms, sent, held, peaks, np.array([[2]]), np.array([[0, 1]]), devices, [Link(16.0, 3.0)]
    )
    assert {k: v[0] for k, v in got.items()} == pytest.approx(
        {
            "traffic_kb": 20.0,
            "latency_ms": 4 + 3 + 10 + 1,
            "throughput_per_s": 100.0,  # the link is the slowest
            "memory_mb": 8.0,
            "memory_mb:edge": 8.0,
            "memory_mb:server": 4.0,
            "stages": 2.0,
            "energy_mj": 4 * 2 + 1 * 50,
        }
    )


def test_named_links_may_leave_devices_to_pass_messages_on():
    star = [Link(10, between=("hub", "a")), Link(20, between=("hub", "b"))]
    ways = routes(["a", "b", "hub"], star)
    assert ways.passes[0, 1].sum() == 2
    assert ways.passes[0, 2].sum() == 1
    assert not (ways.passes[0, 1] & ways.passes[1, 0]).any()  # each direction is a link of its own


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("edge=0.2x", Device("edge", speed=0.2)),
        ("edge=0.2", Device("edge", speed=0.2)),
        ("pi.4-b=2x, memory=64mb, power=500mw", Device("pi.4-b", speed=2, memory_limit_mb=64, power_w=0.5)),
        ("e=1e-1x,memory=1gb", Device("e", speed=0.1, memory_limit_mb=1000)),
        ("e=1x,memory=500kb", Device("e", memory_limit_mb=0.5)),
    ],
)
def test_devices_are_read(text, want):
    assert parse_device(text) == want
    assert Device.from_json(json.loads(json.dumps(want.to_json()))) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("20mbps,5ms", Link(20, 5)),
        ("1.5 Gbps", Link(1500)),
        ("250kbps, 2s", Link(0.25, 2000)),
        ("1gbps,80us", Link(1000, 0.08)),
    ],
)
def test_links_are_read(text, want):
    got = parse_link(text)
    assert (got.bandwidth_mbps, got.latency_ms) == pytest.approx((want.bandwidth_mbps, want.latency_ms))
    assert Link.from_json(json.loads(json.dumps(want.to_json()))) == want


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("edge", "edge=0.2x"),
        ("edge=", "edge=0.2x"),
        ("=1x", "needs a name"),
        ("my edge=1x", "needs a name"),
        ("edge=0x", "above 0"),
        ("edge=1.2.3x", "netcarve profile"),
        ("edge=-1x", "above 0"),
        ("edge=nowhere.json", "netcarve profile"),
        ("edge=1x,memory=64", "kb, mb, gb"),
        ("edge=1x,memory=64tb", "kb, mb, gb"),
        ("edge=1x,memory=0mb", "above 0 MB"),
        ("edge=1x,power=5", "mw, w"),
        ("edge=1x,colour=red", "memory=64mb"),
    ],
)
def test_devices_that_cannot_be_say_why(text, says):
    with pytest.raises(ValueError, match=says):
        parse_device(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0mbps", "above 0"),
        ("-5mbps", "kbps, mbps, gbps"),
        ("20", "kbps, mbps, gbps"),
        ("20mbs", "kbps, mbps, gbps"),
        ("20mbps,-1ms", "us, ms, s"),
        ("20mbps,5", "us, ms, s"),
        ("20mbps,5ms,1ms", "20mbps,5ms"),
    ],
)
def test_links_that_cannot_be_say_why(text, says):
    with pytest.raises(ValueError, match=says):
        parse_link(text)


def test_links_and_devices_must_fit():
    three = devices_of(["a=1x", "b=1x", "c=2x"])
    assert len(links_of("1mbps", three)) == 1
    assert len(links_of(["1mbps", "2mbps"], three)) == 2
    with pytest.raises(ValueError, match="3 links for 3 devices: give one for all, or 2"):
        links_of(["1mbps"] * 3, three)
    with pytest.raises(ValueError, match="need a link"):
        links_of([], three)
    with pytest.raises(ValueError, match="no links join 'a' and 'c'"):
        links_of([Link(1, between=("a", "b"))], three)
    with pytest.raises(ValueError, match="joins 'x', but the devices are a, b, c"):
        links_of([Link(1, between=("a", "x"))], three)
    with pytest.raises(ValueError, match="two links join"):
        links_of([Link(1, between=("a", "b")), Link(2, between=("b", "a"))], three)
    with pytest.raises(ValueError, match="for all or for none"):
        links_of([Link(1, between=("a", "b")), Link(2)], three)
    with pytest.raises(ValueError, match="two devices are called 'a'"):
        devices_of(["a=1x", "a=2x"])
    with pytest.raises(ValueError, match="at least one"):
        devices_of([])
    with pytest.raises(ValueError, match="give a list"):
        devices_of("a=1x")
    with pytest.raises(ValueError, match="two different devices"):
        Link(1, between=("a", "a"))
    with pytest.raises(ValueError, match="0 or more"):
        Link(1, math.nan)
    with pytest.raises(ValueError, match=r"netcarve profile TASK -o"):
        Device("edge", "0.5x").known_profile()


def test_a_profile_that_devices_share_is_written_once():
    own = Profile({"relu": np.ones((1, 3))}, machine="board")
    devices = (
        Device("edge", "0.2x").on(PROFILE),
        Device("board", own),
        Device("server").on(PROFILE),
        Device("twin", Profile.from_json(own.to_json()), speed=2.0),
    )
    written = json.loads(json.dumps(devices_json(devices)))
    assert [type(d["profile"]) for d in written] == [dict, dict, str, str]
    again = devices_of(written)
    assert [d.to_json() for d in again] == [d.to_json() for d in devices]
    assert again[2].profile is again[0].profile
    with pytest.raises(ValueError, match="'edge' has the profile of 'cloud', which is no device before it"):
        devices_of([{"name": "edge", "profile": "cloud"}])
    with pytest.raises(ValueError, match="before it"):
        devices_of([{"name": "edge", "profile": __file__}])  # no file is read for what a run says


def test_a_factor_is_of_the_profile_of_this_machine():
    edge = Device("edge", "0.25x", power_w=3.0)
    assert edge.profile is None
    known = edge.on(PROFILE)
    assert (known.profile, known.speed, known.power_w) == (PROFILE, 0.25, 3.0)
    assert known.on(Profile({"relu": np.ones((1, 3))})).profile is PROFILE


def test_a_platform_file_is_read_and_refused(tmp_path):
    PROFILE.save(tmp_path / "board.json")
    file = tmp_path / "home.toml"
    file.write_text(
        '[[device]]\nname = "camera"\nprofile = "board.json"\nmemory_mb = 8\npower_w = 1.5\n'
        '[[device]]\nname = "box"\nspeed = 0.5\n[[device]]\nname = "cloud"\nprofile = "2x"\n'
        '[[link]]\nbetween = ["camera", "box"]\nbandwidth_mbps = 20\nlatency_ms = 5\n'
        '[[link]]\nbetween = ["box", "cloud"]\nbandwidth_mbps = 100\nenergy_mj_per_mb = 40\n'
    )
    devices, links = read_platform(file)
    assert [d.name for d in devices] == ["camera", "box", "cloud"]
    assert devices[0].known_profile().to_json() == PROFILE.to_json()
    assert (devices[0].memory_limit_mb, devices[1].speed, devices[2].speed) == (8, 0.5, 2)
    assert [k.energy_mj_per_mb for k in links] == [0, 40]
    two = '[[device]]\nname = "a"\n[[device]]\nname = "b"\n'
    for text, says in (
        ('[[device]]\nname = "a"\nwatts = 3', "no 'watts'"),
        ("[[device]]\nspeed = 3", "needs a name"),
        ('[[device]]\nname = "a"\n[[device]]\nname = "b"\n[[link]]\nlatency_ms = 3', "bandwidth_mbps"),
        ('[device]\nname = "a"', "two brackets"),
        ('[[devices]]\nname = "a"', "'devices'"),
        ("[[device", "no TOML"),
        ('[[device]]\nname = "a"\nspeed = "fast"', "speed must be a number, got 'fast'"),
        ('[[device]]\nname = "a"\nspeed = true', "speed must be a number"),
        ('[[device]]\nname = "a"\nprofile = true', "must be a number, got True"),
        ('[[device]]\nname = "a"\nmemory_mb = "64mb"', "memory limit in MB must be a number"),
        ('[[device]]\nname = "a"\npower_w = "5w"', "power in W must be a number"),
        ('[[device]]\nname = "a"\nprofile = "-1x"', "speed must be above 0"),
        (f'{two}[[link]]\nbandwidth_mbps = "20mbps"', "bandwidth in mbps must be a number"),
        (f"{two}[[link]]\nbandwidth_mbps = 0", "bandwidth above 0"),
        (f'{two}[[link]]\nbandwidth_mbps = 20\nlatency_ms = "5"', "latency must be a number"),
        (f'{two}[[link]]\nbandwidth_mbps = 20\nbetween = "ab"', "two different devices"),
        ("", "at least one"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=says):
            read_platform(file)
    with pytest.raises(ValueError, match="cannot read"):
        read_platform(tmp_path / "none.toml")
