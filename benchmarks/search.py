"""Searchers on real problems, beside those of other libraries: hypervolume by evaluations, and the goals.

    python benchmarks/search.py --make-table      # once: scores 3,072 networks, ten minutes of two cores
    python benchmarks/search.py                   # all problems; peers from the cache where they have run
    python benchmarks/search.py --searchers nsga2 random --problems truth --peers none
    python benchmarks/search.py --searchers optuna-gp --problems truth    # hours: only when named
    python benchmarks/search.py --times           # CPU time of a proposal
    python benchmarks/search.py --bought --quick  # against uniform cuts, on test data (search_bought.py)
    python benchmarks/search.py --problems truth --evaluations 400   # how many the slow ones need to 99.5 %

Problems (``search_problems.py``): ``truth``, an enumerated space of the digits task; ``large``, a ResNet-20
of 12 groups with 8 ratios each; ``three`` objectives; ``constrained`` by costs and accuracy; ``measured``,
limited by accuracy alone. netcarve's searchers are driven as ``netcarve.sweep`` drives them: the unchanged
network counts as the first evaluation and 16 candidates are under way. Peers run as their users run them:
defaults, one candidate at a time, each told before the next is asked for. Repeated candidates count.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: times are of one thread

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from netcarve.search.registry import known_searchers
from rich.console import Console
from rich.table import Table
from search_peers import PEERS, Peer, cached, peer_run
from search_problems import NAMES, Problem, everything, load, make_digits, make_resnet
from search_results import MARKS, SHARE, Result, average_ranks, goals
from search_runs import TIMED, curve, own_run, proposal_times

SEEDS = {"truth": 10, "large": 5, "three": 10, "constrained": 10, "measured": 10}
TOLD = (100, 300, 1000)  # trials told before the proposals that are timed
MOST_MS, MOST_MS_GP = 2.0, 50.0  # CPU milliseconds per candidate at the last of them
LEFT_OUT = {"optuna-gp": "takes hours, name it with --searchers"}  # where no searchers are named


def own_result(name: str, problem: Problem, seeds: int, evaluations: int) -> Result:
    """A searcher that refuses the problem gives its reason, and one that fails does too."""
    curves = []
    for seed in range(seeds):
        try:
            trials = own_run(name, problem, seed, evaluations)
        except Exception as error:  # whatever a searcher under construction raises
            note(f"\n{name} on {problem.name}, seed {seed}: {type(error).__name__}: {error}\n")
            return Result(name, False, np.empty((0, 0)), f"{type(error).__name__}: {error}")
        curves.append(curve(problem, [dict(t.scores) for t in trials], evaluations))
    return Result(name, False, np.array(curves))


def peer_result(
    peer: Peer, problem: Problem, seeds: int, evaluations: int, *, fresh: bool, run: bool
) -> Result:
    """With ``run`` false, of the seeds that are in the cache."""
    curves = []
    for seed in range(seeds):
        if not run and not cached(peer, problem, seed, evaluations):
            continue
        found = peer_run(peer, problem, seed, evaluations, fresh=fresh)
        scores = [problem.score(problem.space.candidate(row)) for row in found.indices]
        curves.append(curve(problem, scores, evaluations))
        note(".")
    reason = "" if curves else "not run yet"
    return Result(peer.name, True, np.array(curves).reshape(-1, evaluations), reason)


def describe(problem: Problem) -> str:
    """The problem in a line; where it is enumerated, the share of candidates that keep its limits."""
    text = f"{problem.name}: {problem.space}, {', '.join(o.name for o in problem.objectives)}"
    if problem.limits:
        kept = [problem.feasible(scores) for scores in everything(problem)]
        text += f"; {', '.join(m.text for m in problem.limits)} (kept by {np.mean(kept):.2%})"
    return f"{text}; hypervolume {'as a share of the truth' if problem.truth else 'in the region'}"


def show_problem(console: Console, problem: Problem, found: Sequence[Result]) -> None:
    table = Table(title=describe(problem), title_justify="left", box=None, pad_edge=False, header_style="")
    table.add_column("searcher", no_wrap=True)
    headings = [f"{mark} {what}" for mark in MARKS for what in ("mean", "worst")]
    headings += ["std", *([f"to {SHARE:.1%}"] if problem.truth else []), "seeds"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for r in sorted(found, key=lambda r: -r.at(MARKS[-1]).mean() if len(r.curves) else 1.0):
        if not len(r.curves):
            table.add_row(label(r), *["-"] * (2 * len(MARKS)))
            continue
        cells = [f"{value:.3f}" for m in MARKS for value in (r.at(m).mean(), r.at(m).min())]
        cells.append(f"{r.at(MARKS[-1]).std():.3f}")
        if problem.truth:
            cells.append(f"{r.needed():.0f}" if np.isfinite(r.needed()) else f">{r.curves.shape[1]}")
        table.add_row(label(r), *cells, str(len(r.curves)))
    console.print(table)
    for r in found:
        if r.reason:
            console.print(f"  - {r.name}: {r.reason.splitlines()[0][:90]}", highlight=False)
    console.print()


def show_times(console: Console, names: Sequence[str], problem: Problem) -> bool:
    """CPU milliseconds per candidate, of peers from a kept run; True when all of ours meet their goal."""
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("CPU ms per candidate", no_wrap=True)
    for heading in (*(f"{told} told" for told in TOLD), "goal"):
        table.add_column(heading, justify="right", no_wrap=True)
    met_all = True
    for name in names:
        note(f"\r{name}: timing proposals ")
        try:
            timing = proposal_times(name, problem, TOLD)
        except Exception as error:  # as in own_result
            table.add_row(f"* {name}", *["-"] * len(TOLD), f"{type(error).__name__}: {error}"[:40])
            continue
        most = MOST_MS_GP if "gp" in name else MOST_MS
        met = timing.last <= most and not timing.given_up
        met_all &= met
        cells = ["-" if ms is None else f"{ms:.2f}" for ms in timing.at]
        ended = "" if timing.told == TOLD[-1] else f" (ended after {timing.told})"
        table.add_row(f"* {name}", *cells, f"<= {most:g}: {'met' if met else 'MISSED'}{ended}")
    for peer in PEERS:
        if cached(peer, problem, 0, MARKS[-1]):
            seconds = peer_run(peer, problem, 0, MARKS[-1]).seconds[TOLD[0] - TIMED : TOLD[0]]
            table.add_row(f"  {peer.name}", f"{1e3 * seconds.mean():.2f}", *["-"] * (len(TOLD) - 1))
    note("\n")
    console.print(table)
    return met_all


def chosen_searchers(named: Sequence[str] | None) -> list[str]:
    """Those named, else all that end in reasonable time."""
    return list(named) if named is not None else [n for n in known_searchers() if n not in LEFT_OUT]


def show_left_out(console: Console, names: Sequence[str]) -> None:
    for name, why in LEFT_OUT.items():
        if names and name not in names:
            console.print(f"      -  {name}: left out, {why}", highlight=False)


def label(result: Result) -> str:
    return f"  {result.name}" if result.peer else f"* {result.name}"


def note(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument(
        "--searchers",
        nargs="*",
        help=f"of netcarve; all by default but {', '.join(LEFT_OUT)} (hours), none when left empty",
    )
    parser.add_argument("--peers", choices=("run", "cached", "none"), default="run")
    parser.add_argument("--only-peers", nargs="+", choices=[p.name for p in PEERS], help="all by default")
    parser.add_argument("--seeds", type=int, help="so many seeds (10, and 5 for large)")
    parser.add_argument("--evaluations", type=int, default=MARKS[-1], help=f"of a run, at least {MARKS[-1]}")
    parser.add_argument("--fresh", action="store_true", help="run the peers again")
    parser.add_argument("--make-table", action="store_true", help="make what the problems rest on, and end")
    parser.add_argument("--workers", type=int, default=2, help="processes that make the table (2)")
    parser.add_argument("--times", action="store_true", help="only time proposals")
    parser.add_argument("--bought", action="store_true", help="only what a search buys over uniform cuts")
    parser.add_argument("--nets", nargs="+", default=["resnet20", "vit", "half-alexnet"], help="of --bought")
    parser.add_argument("--quick", action="store_true", help="of --bought: 60 trials, one seed")
    options = parser.parse_args()
    if options.evaluations < MARKS[-1]:
        parser.error(f"--evaluations must be at least {MARKS[-1]}, got {options.evaluations}")
    return options


def main() -> int:
    options = arguments()
    if options.make_table:
        for path in (make_digits(options.workers), make_resnet()):
            print(path)
        return 0
    console = Console(width=120)
    if options.bought:
        from search_bought import show_bought

        seeds, trials = (1, 60) if options.quick else (options.seeds or 3, options.evaluations)
        show_bought(console, options.nets, seeds, trials)
        return 0
    names = chosen_searchers(options.searchers)
    if options.times:
        met_all = show_times(console, names, load("large"))
        show_left_out(console, names)
        return 0 if met_all else 1
    peers = [p for p in PEERS if options.only_peers is None or p.name in options.only_peers]
    results: dict[str, list[Result]] = {}
    for problem in map(load, options.problems):
        seeds = options.seeds or SEEDS[problem.name]
        found = results.setdefault(problem.name, [])
        for name in names:
            note(f"\r{problem.name}: {name:<40}")
            found.append(own_result(name, problem, seeds, options.evaluations))
        how = {"fresh": options.fresh, "run": options.peers == "run"}
        for peer in peers if options.peers != "none" else ():
            note(f"\r{problem.name}: {peer.name:<40}")
            found.append(peer_result(peer, problem, seeds, options.evaluations, **how))
        note(f"\r{'':<60}\r")
        show_problem(console, problem, found)
    ranks = average_ranks(results)
    console.print(f"average rank over {', '.join(results)} at {', '.join(map(str, MARKS))} evaluations:")
    for name in sorted(ranks, key=lambda n: ranks[n]):
        console.print(f"  {ranks[name]:5.1f}  {name}", highlight=False)
    unranked = {r.name for found in results.values() for r in found} - ranks.keys()
    for name in sorted(unranked):
        console.print(f"      -  {name}: not run on every problem", highlight=False)
    show_left_out(console, names)
    met_all = True
    for text, met in goals(results):
        met_all &= met is not False
        console.print(f"{'' if met is None else 'met: ' if met else 'MISSED: '}{text}", highlight=False)
    return 0 if met_all else 1


if __name__ == "__main__":
    sys.exit(main())
