"""Pruning and cutting in one search, beside one after the other, at equal evaluations.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/joint.py [--trials 100] [--seeds 5] [--picture F.png]

AlexNet, half as wide, on scikit-learn's digits, noisy, enlarged to 64x64 and sent as bytes, runs on an edge
device (0.02x of this machine) and a server (1x) joined by a slow link: the setting of Neurosurgeon (Kang et
al. 2017) and of two-step pruning (Shi et al. 2019, arXiv 1903.03472), with the data that are at hand. Latency
and traffic are modelled end to end from a measured profile; accuracy is measured on repaired networks,
nothing is trained after pruning. Objectives: accuracy, latency, traffic.

- prune, then split: search of pruning ratios for accuracy and MACs; then every cut of every network found.
- split, then prune: the cuts of the unpruned network that no other beats in latency and traffic; then pruning
  with each of them, the trials shared.
- joint: one search of both.

Beside them the two steps of the paper: prune everything evenly until half of the loss of accuracy that is
tolerated is spent, then for each cut the layer that crosses it until all is; the best of these against the
best cut of the unpruned network, and the joint search's best under the same tolerance.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import joint_net
from netcarve import Blueprint, Candidate, Front, Objective, Space, Task, Trial, sweep, trace
from netcarve.devices import Device, Link
from netcarve.evaluators import Quality
from netcarve.evaluators.pool import Job
from netcarve.evaluators.profiling import with_profiles

GOALS = (Objective("accuracy"), Objective("latency_ms"), Objective("traffic_kb"))
DEVICES = (Device("edge", "0.02x"), Device("server", "1x"))
LINK = Link(bandwidth_mbps=1.1, latency_ms=5.0)  # 137.5 kB/s, a third-generation mobile uplink
TOLERATED = 0.04  # loss of accuracy that the paper's users accept
INTEREST = 0.10  # loss of accuracy at which the hypervolume's reference lies


@dataclass(frozen=True)
class Setting:
    """Everything that is the same for all."""

    task: Task
    blueprint: Blueprint
    joint: Space  # pruning ratios and the cut
    devices: tuple[Device, ...]
    unpruned: dict[int, dict[str, float]]  # costs by option of the cut
    accuracy: float  # of the unpruned network

    @property
    def cut(self) -> int:
        """Position of the cut among the joint space's choices."""
        return next(i for i, c in enumerate(self.joint.choices) if c.name == "cut:1")


def make_setting() -> Setting:
    task = joint_net.task()
    blueprint = trace(task.model, task.example)
    devices = with_profiles(DEVICES, task, blueprint)
    space = blueprint.space(
        "prune", "splits", ratios=16, devices=devices, links=LINK, calibration=task.calibration_batches
    )
    at = next(i for i, c in enumerate(space.choices) if c.name == "cut:1")
    options = [cut_at(space.baseline, at, k) for k in range(len(space.choices[at]))]
    costs = space.cost_arrays(options)
    unpruned = {k: {m: float(v[k]) for m, v in costs.items()} for k in range(len(options))}
    score = Job(task, space, (Quality(),)).evaluate(0, space.baseline).scores
    assert score is not None
    return Setting(task, blueprint, space, devices, unpruned, score["accuracy"])


def cut_at(candidate: Candidate, at: int, option: int) -> Candidate:
    indices = (*candidate.indices[:at], option, *candidate.indices[at + 1 :])
    return Candidate(indices, candidate.choices)


def everywhere(setting: Setting, trials: Iterable[Trial]) -> list[Trial]:
    """The trials' networks at every cut: their accuracy, and the costs there. Nothing is evaluated."""
    found: dict[Candidate, float] = {}
    for t in trials:
        if not t.failed:
            for option in range(len(setting.joint.choices[setting.cut])):
                found.setdefault(cut_at(t.candidate, setting.cut, option), t.scores["accuracy"])
    candidates = list(found)
    costs = setting.joint.cost_arrays(candidates)
    names = [o.name for o in GOALS[1:]]
    return [
        Trial(n, c, {"accuracy": found[c], **{m: float(costs[m][n]) for m in names}})
        for n, c in enumerate(candidates)
    ]


def prune_then_split(setting: Setting, trials: int, seed: int, out: Path, workers: int) -> list[Trial]:
    space = Space([c for c in setting.joint.choices if c.name != "cut:1"], model=setting.joint.model)
    made = sweep(
        setting.task, space, "auto", ("accuracy", "macs"), trials=trials, seed=seed, out=out, workers=workers
    )
    whole = [
        Trial(t.number, setting.joint.from_values({**t.candidate.values, "cut:1": "end"}), t.scores, t.error)
        for t in made.front
    ]
    return everywhere(setting, whole)


def split_then_prune(setting: Setting, trials: int, seed: int, out: Path, workers: int) -> list[Trial]:
    points = {k: (c["latency_ms"], c["traffic_kb"]) for k, c in setting.unpruned.items()}
    best = [k for k, p in points.items() if not any(_beats(q, p) for q in points.values())]
    found: list[Trial] = []
    for number, option in enumerate(best):
        share = trials // len(best) + (number < trials % len(best))
        cut = setting.joint.choices[setting.cut]
        only = replace(cut, options=(cut.options[option],))
        choices = [only if c is cut else c for c in setting.joint.choices]
        space, folder = Space(choices, model=setting.joint.model), out / str(option)
        made = sweep(setting.task, space, "auto", GOALS, trials=share, seed=seed, out=folder, workers=workers)
        found += [
            Trial(0, setting.joint.from_values(t.candidate.values), t.scores, t.error) for t in made.trials
        ]
    return [replace(t, number=n) for n, t in enumerate(found)]


def _beats(q: tuple[float, float], p: tuple[float, float]) -> bool:
    return q != p and q[0] <= p[0] and q[1] <= p[1]


def joint(setting: Setting, trials: int, seed: int, out: Path, workers: int) -> list[Trial]:
    made = sweep(
        setting.task, setting.joint, "auto", GOALS, trials=trials, seed=seed, out=out, workers=workers
    )
    return everywhere(setting, made.trials)


STRATEGIES = {"prune, then split": prune_then_split, "split, then prune": split_then_prune, "joint": joint}


def volume(setting: Setting, trials: Sequence[Trial]) -> float:
    """Of accuracy within INTEREST of the unpruned network's, below its best latency and its least traffic of
    a network that the edge has a part in or sends the input to: shares of 1."""
    latency = min(c["latency_ms"] for c in setting.unpruned.values())
    traffic = setting.unpruned[len(setting.unpruned) - 1]["traffic_kb"]  # the input
    floor = setting.accuracy - INTEREST
    scaled = [
        Trial(
            t.number,
            t.candidate,
            {
                "harm": (setting.accuracy - t.scores["accuracy"]) / INTEREST,
                "slowness": t.scores["latency_ms"] / latency,
                "sending": t.scores["traffic_kb"] / traffic,
            },
        )
        for t in trials
        if not t.failed and t.scores["accuracy"] > floor
    ]
    goals = [Objective(name, "min") for name in ("harm", "slowness", "sending")]
    return Front(scaled, goals).hypervolume((1.0, 1.0, 1.0)) if scaled else 0.0


def two_steps(setting: Setting) -> tuple[Trial, int]:
    """The paper's way: the fastest network within the tolerated loss, and how many were evaluated.

    Step 1: every group pruned alike, as far as half of the loss allows. Step 2: at each cut, the group of
    which most crosses it, pruned further as far as all of the loss allows.
    """
    space, at = setting.joint, setting.cut
    job = Job(setting.task, space, (Quality(),))
    accuracies: dict[Candidate, float] = {}

    def accuracy(candidate: Candidate) -> float:
        key = cut_at(candidate, at, 0)
        if key not in accuracies:
            accuracies[key] = (job.evaluate(0, key).scores or {"accuracy": 0.0})["accuracy"]
        return accuracies[key]

    last = space.counts - 1
    first = space.baseline
    for level in range(1, int(last.max()) + 1):
        even = space.candidate([0 if i == at else min(level, int(last[i])) for i in range(len(last))])
        if accuracy(even) < setting.accuracy - TOLERATED / 2:
            break
        first = even
    found = []
    for option in range(int(last[at]) + 1):
        here = cut_at(first, at, option)
        group = _crossing(space, here, at)
        while group is not None and here.indices[group] < last[group]:
            further = cut_at(here, group, here.indices[group] + 1)
            if accuracy(further) < setting.accuracy - TOLERATED:
                break
            here = further
        found.append(here)
    costs = space.cost_arrays(found)
    trials = [
        Trial(n, c, {"accuracy": accuracy(c), **{m: float(v[n]) for m, v in costs.items()}})
        for n, c in enumerate(found)
    ]
    return min(trials, key=lambda t: t.scores["latency_ms"]), len(accuracies)


def _crossing(space: Space, candidate: Candidate, at: int) -> int | None:
    """The choice whose next option takes most from what crosses the cut; None where none does."""
    steps = [
        (i, cut_at(candidate, i, candidate.indices[i] + 1))
        for i in range(len(space))
        if i != at and candidate.indices[i] + 1 < space.counts[i]
    ]
    sent = space.cost_arrays([candidate, *(c for _, c in steps)])["traffic_kb"]
    saved = sent[0] - sent[1:]
    return steps[int(saved.argmax())][0] if len(saved) and saved.max() > 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--picture", type=Path, help="draw the fronts of the first seed")
    options = parser.parse_args()
    setting = make_setting()
    fastest = min(setting.unpruned.values(), key=lambda c: c["latency_ms"])
    print(
        f"unpruned: accuracy {setting.accuracy:.4f}, {len(setting.unpruned)} cuts, fastest {_text(fastest)}"
    )

    fronts: dict[str, list[list[Trial]]] = {name: [] for name in STRATEGIES}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for name, strategy in STRATEGIES.items():
                out = Path(folder) / f"{seed}-{name.replace(', ', '-')}"
                fronts[name].append(strategy(setting, options.trials, seed, out, options.workers))
    print(f"\nhypervolume after {options.trials} evaluations, mean and deviation of {options.seeds} seeds")
    for name, found in fronts.items():
        volumes = [volume(setting, trials) for trials in found]
        spread = statistics.stdev(volumes) if len(volumes) > 1 else 0.0
        around = f"({min(volumes):.4f} to {max(volumes):.4f})"
        print(f"  {name:18} {statistics.mean(volumes):.4f} +- {spread:.4f}   {around}")

    theirs, count = two_steps(setting)
    floor = setting.accuracy - TOLERATED
    allowed = [t for t in fronts["joint"][0] if t.scores["accuracy"] >= floor]
    ours = min(allowed, key=lambda t: t.scores["latency_ms"])
    print(f"\nwithin a loss of {TOLERATED:.0%}, against the fastest cut of the unpruned network")
    for name, t in (("two steps", theirs), ("joint", ours)):
        costs = {m: float(v[0]) for m, v in setting.joint.cost_arrays([t.candidate]).items()}
        same = setting.unpruned[t.candidate.indices[setting.cut]]
        print(f"  {name:10} accuracy {t.scores['accuracy']:.4f}, {t.candidate['cut:1']}: {_text(costs)}")
        print(
            f"  {'':10} latency {fastest['latency_ms'] / costs['latency_ms']:.2f}x less, "
            f"{same['latency_ms'] / costs['latency_ms']:.2f}x less than unpruned at this cut, "
            f"MACs {same['macs'] / costs['macs']:.2f}x less, "
            f"traffic {_ratio(same['traffic_kb'], costs['traffic_kb'])} less"
        )
    print(f"  evaluations: two steps {count}, joint {options.trials}")
    if options.picture:
        joint_net.draw(
            setting.unpruned.values(), {n: f[0] for n, f in fronts.items()}, floor, options.picture
        )
        print(f"wrote {options.picture}")


def _text(costs: dict[str, float]) -> str:
    return f"{costs['latency_ms']:.2f} ms, {costs['traffic_kb']:.2f} kB, {costs['macs'] / 1e6:.2f} M MACs"


def _ratio(was: float, now: float) -> str:
    return f"{was / now:.1f}x" if now else "no traffic at all, infinitely"


if __name__ == "__main__":
    main()
