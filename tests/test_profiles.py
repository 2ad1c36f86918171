"""Measuring profiles, and runs on devices that have them."""

import json
from types import SimpleNamespace

import netcarve
import numpy as np
import pytest
import torch
from netcarve.__main__ import run
from netcarve.devices import Device, Link, Profile, devices_of
from netcarve.engine import sweep
from netcarve.engine.measured_front import staged_times
from netcarve.engine.platform import as_stored, memory_limits
from netcarve.evaluators.errors import TaskError
from netcarve.evaluators.profiling import Clocked, calls_of, measure_profile, shared_names, with_profiles
from netcarve.evaluators.stage_timing import stage_jobs, taking_turns
from netcarve.model.capture import capture
from netcarve.model.stages import find_cuts, functionalise, split
from netcarve.report.document import report_document
from netcarve.spaces import trace
from torch import nn

# ms = a + b macs + c bytes, so that every figure below can be computed by hand
CONV = [2e-3, 1e-6, 1e-8]
MADE_UP = Profile(
    {
        "conv2d": np.array([[m, b, np.dot(CONV, [1, m, b])] for m in (1e3, 1e5, 1e6) for b in (1e3, 1e5)]),
        "relu": np.array([[0, 1e3, 0.01], [0, 1e4, 0.02]]),
    },
    scale=1.5,
    per_stage_ms=0.25,
    machine="made up",
    versions={"torch": "2"},
    error=(0.03, 0.1),
)


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 3),
    )


def small_task(**options):
    torch.manual_seed(1)
    x, y = torch.randn(40, 1, 8, 8), torch.arange(40) % 3
    return netcarve.Task(small_net(), x[:2], (x, y), name="small", **options)


@pytest.fixture(scope="module")
def small():
    task = small_task()
    return SimpleNamespace(task=task, blueprint=trace(task.model, task.example))


@pytest.fixture(scope="module")
def measured(small):
    return measure_profile(small.task, small.blueprint, seconds=0.05)


# Calls of a network, and their times.


def test_calls_have_names_and_work_that_can_be_counted_by_hand(small):
    network = functionalise(capture(small_net(), small.task.example))
    calls = {c.operator: c for c in calls_of(network)}
    assert list(calls) == [
        "conv2d 3x3/1 8x8",
        "batch_norm",
        "relu",  # twice
        "conv2d 3x3/2 4x4",
        "reshape",
        "linear 1",
    ]
    first, second = calls["conv2d 3x3/1 8x8"], calls["conv2d 3x3/2 4x4"]
    assert (first.macs, first.moved) == (64 * 9 * 8, 4 * (64 + 8 * 9 + 8 + 8 * 64))
    assert (second.macs, second.moved) == (16 * 8 * 9 * 16, 4 * (8 * 64 + 16 * 8 * 9 + 16 + 16 * 16))
    assert (calls["batch_norm"].macs, calls["batch_norm"].moved) == (0, 4 * (2 * 8 * 64 + 4 * 8))
    assert (calls["linear 1"].macs, calls["linear 1"].moved) == (3 * 256, 4 * (256 + 3 * 256 + 3 + 3))
    assert calls["reshape"].moved == 0  # a view


def test_the_clocked_network_gives_a_time_to_every_call_and_computes_the_same(small):
    network = functionalise(capture(small_net(), small.task.example))
    clocked = Clocked(network)
    x = clocked.inputs[0][0]
    assert x.shape[0] == 1
    torch.testing.assert_close(clocked.whole(), small_net().eval()(x))
    with torch.inference_mode():
        times = clocked.run()
    assert [bool(t > 0) for t in times] == [c.moved > 0 for c in clocked.calls]


def test_names_of_pruned_calls_are_those_of_the_unchanged_network(small):
    calls = calls_of(functionalise(capture(small_net(), small.task.example)))
    other = [type(c)(c.name, c.operator.replace("8x8", "7x7"), 1.0, 2.0) for c in calls]
    shared_names(calls, [other])
    assert [c.operator for c in other] == [c.operator for c in calls]
    assert {(c.macs, c.moved) for c in other} == {(1.0, 2.0)}
    less = other[:-1]
    shared_names([type(c)(c.name, "x", 0.0, 0.0) for c in calls], [less])  # other calls: left alone
    assert [c.operator for c in less] == [c.operator for c in calls[:-1]]


def test_jobs_run_in_turns_warm_with_what_the_stage_before_made(small):
    network = functionalise(capture(small_net(), small.task.example))
    cuts = find_cuts(network)
    jobs = stage_jobs(split(network, [cuts[1], cuts[3]]), small.task.example)
    torch.testing.assert_close(jobs[-1](), small_net().eval()(small.task.example[0][0]))
    seen = []
    timers = [lambda k=k: seen.append(k) or 10.0 + len(seen) for k in range(2)]
    medians = taking_turns(timers, seconds=1e-9, rounds=3)
    assert seen == [0, 0, 1, 1] * 3
    assert [float(m) for m in medians] == [16.0, 18.0]  # of 12, 16, 20 and 14, 18, 22: each second run
    short = [lambda: seen.append(2) or 0.5]
    taking_turns(short, seconds=1e-9, rounds=1)
    assert seen.count(2) == 5  # 2 ms to get warm, and one that counts
    with pytest.raises(ValueError, match="above 0"):
        taking_turns(timers, seconds=0)


@pytest.mark.slow
def test_a_measured_profile_knows_the_operators_at_several_widths(small, measured):
    points = measured.profile.operators
    assert set(points) == {"conv2d 3x3/1 8x8", "batch_norm", "relu", "conv2d 3x3/2 4x4", "linear 1"}
    macs = points["conv2d 3x3/1 8x8"][:, 0]
    assert macs[0] == macs.max() == 64 * 9 * 8  # the unchanged network comes first
    assert set(macs / macs.max()) == {1, 0.75, 0.5, 0.25, 0.125}  # every width once, and the least again
    assert len(points["relu"]) == 2 * len(macs)
    assert [line.calls for line in measured.lines if line.operator == "relu"] == [2]
    assert measured.checked
    assert 0 <= measured.profile.error[0] <= measured.profile.error[1]


def test_a_network_of_which_nothing_may_be_pruned_is_measured_as_it_is():
    torch.manual_seed(0)
    x = torch.randn(6, 4)
    task = netcarve.Task(nn.Linear(4, 3), x[:2], (x, torch.arange(6) % 3))
    found = measure_profile(task, trace(task.model, task.example), seconds=0.01)
    assert set(found.profile.operators) == {"linear 1"}
    assert not found.checked


def test_only_devices_relative_to_this_machine_are_measured(small):
    known = Device("a", MADE_UP, speed=2)
    assert with_profiles([known], small.task, small.blueprint) == (known,)


# Tasks, runs.


def test_a_task_says_what_runs_it():
    task = small_task(devices=["edge=0.2x,memory=1mb", Device("server")], links="20mbps,5ms")
    assert [(d.name, d.speed, d.memory_limit_mb) for d in task.devices] == [
        ("edge", 0.2, 1),
        ("server", 1, np.inf),
    ]
    assert task.links == (Link(20, 5),)
    assert small_task().devices == ()
    for options, says in (
        ({"devices": ["edge"]}, "edge=0.2x"),
        ({"devices": ["a=1x", "b=1x"]}, "need a link"),
        ({"links": "20mbps"}, "give devices"),
    ):
        with pytest.raises(TaskError, match=says):
            small_task(**options)


DEVICES = (Device("edge", MADE_UP, speed=0.5, power_w=2.0), Device("server", MADE_UP, speed=4.0, power_w=9.0))
RELATIVE = tuple(Device(d.name, speed=d.speed, power_w=d.power_w).on(MADE_UP) for d in DEVICES)


@pytest.fixture(scope="module")
def split_space(small):
    return small.blueprint.space("prune", "splits", devices=RELATIVE, links=[Link(50, 0.1)], ratios=3)


@pytest.mark.slow
def test_a_run_on_devices_keeps_them_its_costs_and_measured_stages(small, split_space, tmp_path):
    done = sweep(small.task, split_space, "random", trials=8, workers=0, out=tmp_path / "r")
    options = {"devices": RELATIVE, "links": [Link(50, 0.1)], "ratios": 3}
    asked = small.blueprint.space("prune", "splits", sensitivity=True, **options)
    assert [o.name for o in done.objectives] == ["accuracy", "latency_ms"]
    assert done.settings.modelled == ("latency_ms", "throughput_per_s", "energy_mj")
    assert [d.to_json() for d in done.devices] == [d.to_json() for d in RELATIVE]
    assert done.links == (Link(50, 0.1),)
    for trial in done.trials:
        want = split_space.cost_arrays([trial.candidate])["latency_ms"][0]
        assert trial.scores["latency_ms"] == pytest.approx(want)  # modelled, also after measuring
    for trial in (done[0], *done.front):
        found = trial.detail["measured"]
        assert len(found["stages"]) == trial.scores["stages"] == len(found["stage_ms"])
        assert found["latency_ms"] >= sum(found["stage_ms"]) > 0
        changes = asked.cost_arrays([trial.candidate])
        assert trial.detail["sensitivity"] == {
            name: pytest.approx(changes[name][0]) for name in ("latency_change", "throughput_change")
        }
    stages = report_document([done])["runs"][0]["stages"]
    for trial, way in zip(done.trials, stages["taken"], strict=True):
        built = split_space.model.stages(split_space.from_values(trial.candidate.values))
        assert [list(pair) for pair in stages["ways"][way]] == [[p.stage.name, p.device] for p in built]
    whole = sweep(
        small.task, small.blueprint.space(ratios=2), "random", trials=2, workers=0, out=tmp_path / "q"
    )
    assert whole.settings.modelled == ()
    assert whole.devices == ()
    text = netcarve.load(tmp_path / "r").show(0)
    assert "latency_ms (modelled)" in text
    assert "measured alone here" in text
    assert "10 to 50 % other" in text


def test_measured_stages_make_the_same_pipeline_as_by_hand(small, split_space):
    cuts = [c for c in split_space.choices if c.name.startswith("cut")]
    candidate = split_space.from_values(
        split_space.baseline.values | {cuts[0].name: cuts[0].options[len(cuts[0]) // 2]}
    )
    found = staged_times(small.task, split_space, candidate)
    sent = split_space.cost_arrays([candidate])["traffic_kb"][0] * 1e3
    assert found["devices"] == ["edge", "server"]
    link = 0.1 + sent * 8e-3 / 50
    assert found["latency_ms"] == pytest.approx(sum(found["stage_ms"]) + link)
    assert found["throughput_per_s"] == pytest.approx(1000 / max(*found["stage_ms"], link - 0.1))


def test_devices_of_another_machine_are_not_timed_here(small, tmp_path):
    space = small.blueprint.space("splits", devices=DEVICES, links=[Link(50)])
    done = sweep(small.task, space, "random", ["latency", "traffic"], trials=3, workers=0, out=tmp_path / "r")
    assert all("measured" not in t.detail for t in done.trials)
    assert all("sensitivity" in t.detail for t in done.front)


def test_memory_limits_of_devices_are_limits_of_the_run(small, tmp_path):
    def space(*sizes):
        devices = [Device(d.name, MADE_UP, memory_limit_mb=m) for d, m in zip(DEVICES, sizes, strict=True)]
        return small.blueprint.space("prune", "splits", devices=devices, links=[Link(50)], ratios=3)

    assert memory_limits(space(0.006, 9)) == ["memory_mb:edge<=0.006", "memory_mb:server<=9"]
    assert memory_limits(small.blueprint.space(ratios=2)) == []
    done = sweep(small.task, space(0.006, 9), "random", trials=8, workers=0, out=tmp_path / "r")
    assert all(t.scores["memory_mb:edge"] <= 0.006 for t in done.trials[1:])
    with pytest.raises(ValueError, match="MB are missing"):
        sweep(small.task, space(1e-4, 1e-4), "random", trials=8, workers=0, out=tmp_path / "q")


def test_latency_of_a_split_network_needs_devices(small, tmp_path):
    space = small.blueprint.space("prune", "splits", ratios=2)
    with pytest.raises(ValueError, match="give devices and what joins"):
        sweep(small.task, space, "random", ["accuracy", "latency"], trials=2, workers=0, out=tmp_path / "r")
    done = sweep(small.task, space, "random", trials=2, workers=0, out=tmp_path / "r")
    assert [o.name for o in done.objectives] == ["accuracy", "traffic_kb"]


def test_sensitivity_is_a_cost_where_it_is_asked_for(small):
    options = {"devices": RELATIVE, "links": [Link(50, 0.1)], "ratios": 2}
    plain = small.blueprint.space("splits", **options)
    asked = small.blueprint.space("splits", **options, sensitivity=True)
    few = plain.sample(np.random.default_rng(0), 9)
    without = plain.cost_arrays(few)
    costs = asked.cost_arrays([asked.from_values(c.values) for c in few])
    assert set(costs) - set(without) == {"latency_change", "throughput_change"}
    whole = costs["stages"] == 1
    np.testing.assert_allclose(costs["latency_change"][whole], 1.0)  # one device, half as fast
    assert (costs["latency_change"][~whole] < 1).all()


def test_stored_devices_are_used_where_the_same_are_asked_for():
    asked = devices_of(["edge=0.5x,power=2w", "server=4x,power=9w"])
    assert as_stored(asked, RELATIVE) == RELATIVE
    other = devices_of(["edge=0.5x,power=2w", "server=3x,power=9w"])
    assert as_stored(other, RELATIVE) == other
    files = (Device("edge", MADE_UP, speed=0.5, power_w=2.0), DEVICES[1])
    assert as_stored(asked, files) == asked  # a profile's own speed is something else
    assert as_stored(files, files) == files


def test_a_run_is_not_resumed_with_other_devices_and_says_which(small, split_space, tmp_path):
    options = {"trials": 2, "workers": 0, "out": tmp_path / "r"}
    sweep(small.task, split_space, "random", **options)
    for links, devices, says in (
        ([Link(10, 0.1)], RELATIVE, r"over 50 mbps, 0.1 ms, are now .* over 10 mbps, 0.1 ms; give"),
        ([Link(50, 0.1)], DEVICES, r"edge \(0.5x this machine\), .* are now edge \(0.5x made up\)"),
        ([Link(50, 0.1)], [d.asked() for d in RELATIVE], "are now another profile"),
    ):
        space = small.blueprint.space("prune", "splits", devices=devices, links=links, ratios=3)
        with pytest.raises(ValueError, match=says) as refused:
            sweep(small.task, space, "random", resume=True, **options)
        assert "profile-1" not in str(refused.value)
    space = small.blueprint.space(
        "prune", "splits", devices=RELATIVE, links=[Link(50, 0.1)], ratios=3, places=2
    )
    with pytest.raises(ValueError, match="the choice 'cut:1'"):
        sweep(small.task, space, "random", resume=True, **options)


@pytest.mark.slow
def test_the_command_line_measures_once_and_resumes_with_what_was_measured(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "import netcarve, torch\nfrom torch import nn\n\n\ndef task():\n    torch.manual_seed(1)\n"
        "    x, y = torch.randn(40, 1, 8, 8), torch.arange(40) % 3\n"
        "    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))\n"
        "    return netcarve.Task(net, x[:2], (x, y), name='mine')\n"
    )
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = run(list(arguments))
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    command = ["sweep", "mine.py:task", "--space", "prune,splits", "--device", "edge=0.2x", "--device"]
    command += ["server=1x", "--link", "20mbps,5ms", "--workers", "0", "--out", "r", "--searcher", "random"]
    code, out, err = call(*command, "--trials", "4")
    assert code == 0, err
    assert "measuring this machine" in err
    assert "Modelled: latency, for edge (0.2x this machine), server (1x this machine) over 20 mbps" in out
    code, out, err = call(*command, "--trials", "6", "--resume")
    assert code == 0, err
    assert "measuring this machine" not in err
    assert "6 trials" in out
    slower = ["1mbps" if word == "20mbps,5ms" else word for word in command]
    code, out, err = call(*slower, "--trials", "6", "--resume")
    assert code != 0
    assert "cannot resume r with other settings" in err
    code, out, err = call("profile", "mine.py:task", "-o", "p.json", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [set(line) for line in found["lines"]] == [{"operator", "calls", "ms"}] * 3
    assert Profile.load("p.json").to_json() == {k: found[k] for k in Profile.load("p.json").to_json()}
    code, _, err = call("sweep", "mine.py:task", "--device", "edge=p.json")
    assert code == 2
    assert "--space prune,splits" in err
