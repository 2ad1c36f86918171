"""Stages as Ray actors, one each, so that a cluster can host them."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ...evaluators.errors import first_line
from ...evaluators.ray_session import RaySession
from ...export.stages import write_stages
from ...model.stages import Stage
from ...standalone import wire
from .tcp import START_SECONDS
from .transport import Answer, Lost, StageError, Transport

STATUS_SECONDS = 2.0  # for an actor to say how it is
_TICK = 0.2  # seconds between looks whether a session has ended

# kind, number, samples, body, when it has arrived over the simulated link (the machine's monotonic clock)
Parcel = tuple[int, int, int, list[Any], float]


class _Actor:
    """Calls of :meth:`run` come one after the other, those of the rest beside them."""

    def load(
        self, files: dict[str, bytes], file: str, hops: Sequence[Sequence[float]], slow: float, threads: int
    ) -> None:
        from ...standalone.stage import RunningStage as Loaded
        from ...standalone.stage import keep_memory

        keep_memory()

        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            self.stage = Loaded(Path(folder) / file, threads)
        self.hops, self.slow = hops, slow
        self.begin("")

    def begin(self, session: str) -> None:
        self.session = session
        self.delay = wire.Delay(self.hops)
        self.counts: dict[str, Any] = {
            "inputs": 0,
            "busy_s": 0.0,
            "slept_s": 0.0,
            "payload": 0,
            "bytes": None,
        }
        self.computing: tuple[int, float] | None = None

    def status(self) -> dict[str, Any]:
        number, since = self.computing or (None, 0.0)
        return {
            **self.counts,
            "computing": number,
            "for_s": 0.0 if number is None else time.monotonic() - since,
        }

    def run(self, session: str, parcel: Parcel) -> Parcel:
        import numpy as np

        kind, number, samples, body, arrives = parcel
        if session != self.session or kind != wire.DATA:
            return parcel
        if (left := arrives - time.monotonic()) > 0:
            time.sleep(left)
        start = time.monotonic()
        self.computing = (number, start)
        answer = self.stage(wire.Frame(kind, number, samples, [a.copy() for a in body]))
        taken = time.monotonic() - start
        if self.slow > 1:
            time.sleep(taken * (self.slow - 1))
        ready = time.monotonic()
        self.counts["inputs"] += 1
        self.counts["busy_s"] += taken
        self.counts["slept_s"] += ready - start - taken
        self.counts["payload"] += answer.bytes if answer.kind == wire.DATA else 0
        self.computing = None
        arrays = [np.frombuffer(part, dtype=np.uint8) for part in answer.body]
        return answer.kind, number, samples, arrays, self.delay.arrival(ready, answer.bytes)


class Actors(Transport):
    """Arguments as of :class:`.tcp.Tcp`. An answer travels from actor to actor through Ray's object store.

    Args:
        address: of a running cluster; ``None`` starts a private local one, which ends with :meth:`close`.

    Raises:
        PoolError: Ray does not start, or has too few cores.
        StageError: an actor does not load its stage.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        runtime: str,
        address: str | None,
        hops: Sequence[Sequence[Sequence[float]]],
        slow: Sequence[float],
        threads: int,
    ) -> None:
        super().__init__([stage.name for stage in stages])
        self._hops, self._slow, self._threads = hops, slow, threads
        with tempfile.TemporaryDirectory(prefix="netcarve-serve-") as folder:
            write_stages(stages, Path(folder), formats=(runtime,))
            files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        common = {name: content for name, content in files.items() if not name.startswith("stage-")}
        self._files = [f"stage-{k}.{runtime}" for k in range(1, len(stages) + 1)]
        parcels = [
            {**common, **{n: c for n, c in files.items() if n.startswith(file)}} for file in self._files
        ]
        size = sum(len(content) for parcel in parcels for content in parcel.values())
        self._session = RaySession(len(stages), address=address, data_bytes=size)
        self._number = 0  # of the session
        self._lane = wire.SendLane()  # what is under way, by its references at each stage
        self._payload = 0
        self._delay = wire.Delay(())
        self._actors: list[Any] = []
        self._collector: threading.Thread | None = None
        try:
            os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of answers nobody waits for any more
            import ray

            self._ray = ray
            kind = type("StageActor", (_Actor,), {"run": ray.method(concurrency_group="work")(_Actor.run)})
            options: dict[str, Any] = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0}
            options["concurrency_groups"] = {"work": 1}
            self._new: Any = ray.remote(**options)(kind).remote
            self._parcels = [ray.put(parcel) for parcel in parcels]
            self._actors = [self._new() for _ in stages]
            self._load(range(len(stages)))
        except BaseException:
            self.close()
            raise

    def open(self) -> None:
        self._number += 1
        self.events, self._lane, self._payload = SimpleQueue(), wire.SendLane(), 0
        self._delay = wire.Delay(self._hops[0])
        for k, actor in enumerate(self._actors):
            try:
                self._ray.get(actor.begin.remote(str(self._number)), timeout=STATUS_SECONDS * 5)
            except self._ray.exceptions.RayError as error:
                raise StageError(f"stage {self.names[k]} {_death(error)}", self.names[k]) from error
        arguments = (self._lane, self.events)
        self._collector = threading.Thread(target=self._collect, args=arguments, daemon=True)
        self._collector.start()

    def send(self, frame: wire.Frame) -> None:
        import numpy as np

        arrays = [np.frombuffer(part, dtype=np.uint8) for part in frame.body]
        arrives = self._delay.arrival(time.monotonic(), frame.bytes)
        self._payload += frame.bytes
        refs: list[Any] = []
        item: Any = (frame.kind, frame.number, frame.samples, arrays, arrives)
        for actor in self._actors:
            item = actor.run.remote(str(self._number), item)
            refs.append(item)
        self._lane.put(refs, room=float("inf"))

    def end(self) -> None:
        self._lane.end(drop=True)
        if self._collector is not None:
            self._collector.join()  # Ray starts anew where it is asked anything after its end

    def blame(self, lost: Lost) -> Lost:
        return lost

    def hung(self, seconds: float) -> Lost:
        found = self.status()
        for k, status in enumerate(found):
            if status is None:
                return Lost(k, "does not answer: it is stopped, or its machine cannot be reached")
        working = [(s["for_s"], k) for k, s in enumerate(found) if s and s["computing"] is not None]
        if working:
            long, k = max(working)
            return Lost(k, f"has been computing for {long:.1f} s")
        return Lost(0, f"and all others are idle, but nothing was answered for {seconds:g} s")

    def restart(self, stage: int) -> None:
        self.end()
        self._ray.kill(self._actors[stage], no_restart=True)
        self._actors[stage] = self._new()
        self._load([stage])

    def status(self) -> list[dict[str, Any] | None]:
        refs = [actor.status.remote() for actor in self._actors]
        self._ray.wait(refs, num_returns=len(refs), timeout=STATUS_SECONDS)
        found: list[dict[str, Any] | None] = []
        for ref in refs:
            try:
                found.append(self._ray.get(ref, timeout=0))
            except self._ray.exceptions.RayError:
                found.append(None)
        return found

    def sent(self) -> tuple[int, int | None]:
        return self._payload, None

    def close(self) -> None:
        self.end()
        actors, self._actors = self._actors, []
        try:
            for actor in actors:
                self._ray.kill(actor, no_restart=True)
        finally:
            self._session.close()

    def _load(self, which: Sequence[int]) -> None:
        refs = [
            self._actors[k].load.remote(
                self._parcels[k],
                self._files[k],
                self._hops[k + 1] if k + 1 < len(self._hops) else (),
                self._slow[k],
                self._threads,
            )
            for k in which
        ]
        for k, ref in zip(which, refs, strict=True):
            try:
                self._ray.get(ref, timeout=START_SECONDS)
            except self._ray.exceptions.RayError as error:
                raise StageError(f"stage {self.names[k]} {_death(error)}", self.names[k]) from error

    def _collect(self, lane: wire.SendLane, events: SimpleQueue[Any]) -> None:
        while (refs := lane.get()) is not None:
            while not self._ray.wait([refs[-1]], timeout=_TICK)[0]:
                if lane.ended:
                    return
            try:
                kind, number, samples, body, _ = self._ray.get(refs[-1])
            except self._ray.exceptions.RayError:
                events.put(self._first_lost(refs))
                return
            events.put(Answer(wire.Frame(kind, number, samples, [bytearray(a) for a in body])))

    def _first_lost(self, refs: Sequence[Any]) -> Lost:
        """A later stage only passes on that it was given nothing."""
        for k, ref in enumerate(refs):
            try:
                self._ray.get(ref)
            except self._ray.exceptions.RayError as error:
                return Lost(k, _death(error))
        return Lost(len(refs) - 1, "lost its answer")


def _death(error: Exception) -> str:
    return f"died ({first_line(error)})"
