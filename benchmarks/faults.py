"""Does a sweep keep what it has found when everything around it fails?

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/faults.py [--kills 200] [--trials 300] [--inputs 100000]

Three parts: the driver is killed (SIGKILL) at random moments and resumed; workers are killed, stopped, run
out of memory, leave, return NaN or nonsense at random over a sweep on two Ray workers; every reader of a file
that somebody else may have written is given mutations of good ones. About five minutes. Exit code 1 if
anything that was told is not kept, a front differs from the quiet run's, or a reader breaks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from faults_driver import kill_drivers
from faults_fuzz import fuzz
from faults_workers import fault_workers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--trials", type=int, default=300, help="of each sweep")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sound = True
    with tempfile.TemporaryDirectory() as name:
        killed = kill_drivers(Path(name), kills=options.kills, trials=options.trials, seed=options.seed)
    print(f"driver: killed {killed.kills} times in {killed.sessions} sessions; {options.trials} trials a run")
    print(f"  outcomes told and looked up after each kill  {killed.told}")
    print(f"  of these missing or changed                  {killed.missing}")
    print(f"  ledgers that did not open                    {killed.unreadable}")
    print(f"  fronts equal to the quiet run's              {'yes' if killed.same_front else 'NO'}")
    sound &= not killed.missing and not killed.unreadable and killed.same_front

    with tempfile.TemporaryDirectory() as name:
        faulty = fault_workers(Path(name), trials=options.trials)
    faults = ", ".join(f"{n} {what}" for what, n in sorted(faulty.asked.items()))
    print(f"workers: {faulty.trials} trials, {faulty.asked.total()} to fail ({faults})")
    print(f"  failed                                       {faulty.failed.total()}")
    print(f"  failed without a fault of their own          {faulty.failed['']}")
    print(f"  other scores than in the quiet run           {faulty.differing}")
    print(f"  front equal, of the trials that did not fail {'yes' if faulty.same_front else 'NO'}")
    print(f"  seconds, and without faults                  {faulty.seconds:.0f}, {faulty.quiet_seconds:.0f}")
    sound &= faulty.failed == faulty.asked and not faulty.differing and faulty.same_front

    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        readers = fuzz(Path(name), inputs=options.inputs, seed=options.seed)
    print(f"readers: {sum(r.inputs for r in readers):,} inputs")
    for r in readers:
        broken = r.broke.total()
        print(
            f"  {r.reader:36} {r.inputs:7,}  understood {r.understood:6,}  "
            f"refused {r.refused:6,}  broke {broken}"
        )
        for text, count in r.broke.most_common(5):
            print(f"    {count} x {text}")
        sound &= not broken
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
