"""Deployment: stages that run, started, fed, measured and stopped."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ...devices import Device, Link, routes
from ...model.stages import Stage
from .stream import Boundary, Record, StageRecord, Stream, quartiles
from .transport import Calls, InputError, ServeError, StageError, Transport


def simulated(on: Sequence[str], devices: Sequence[Device], links: Sequence[Link]) -> dict[str, Any]:
    """``link``, ``speeds`` and ``cores`` for a :class:`Deployment` whose stages run on these devices.

    Stages of one device share a core. The inputs are on the first device. Devices faster than this machine,
    and those with a profile of another machine, run at this machine's speed.

    Args:
        on: name of each stage's device.
        devices, links: as given to the space.
    """
    names = [device.name for device in devices]
    known = routes(names, links)
    at = [0, *(names.index(name) for name in on)]
    link = []
    for here, there in pairwise(at):
        taken = np.flatnonzero(known.passes[here, there])
        link.append([_link(float(known.ms_per_byte[i]), float(known.latency_ms[i])) for i in taken])
    used = list(dict.fromkeys(at[1:]))
    cores = free_cores(len(used))
    return {
        "link": link,
        "speeds": [min(1.0, devices[i].speed) for i in at[1:]],
        "cores": [cores[used.index(i)] for i in at[1:]] if cores else [],
    }


def free_cores(count: int) -> list[int]:
    """So many cores that this process may use, no two of one physical core where there are enough; empty
    where there are too few, or the system does not tell."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    usable = sorted(os.sched_getaffinity(0))
    firsts = dict.fromkeys(min(c for c in _siblings(core) if c in usable) for core in usable)
    order = [*firsts, *(core for core in usable if core not in firsts)]
    return order[:count] if len(order) >= count else []


def _siblings(core: int) -> set[int]:
    """All threads of a core's physical core."""
    try:
        text = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text()
    except OSError:
        return {core}
    spans = [part.split("-") for part in text.strip().split(",")]
    return {core, *(c for span in spans for c in range(int(span[0]), int(span[-1]) + 1))}


def _link(ms_per_byte: float, latency_ms: float) -> Link:
    return Link(8e-3 / ms_per_byte if ms_per_byte else float("inf"), latency_ms)


# -- Stages that run: started, fed, measured, stopped ---------------------------------------------------

TRANSPORTS = ("tcp", "ray")
RUNTIMES = ("pt2", "onnx")
LATENCY_PER_INPUT_MS = 2.0  # one more input under way for so much simulated latency, by default
MOST_INFLIGHT = 64

Route = Link | Sequence[Link] | None


class Deployment:
    """Stages of one network as processes of their own, one thread each, while the ``with`` block lasts.

        with Deployment(split(capture(model, x), cuts)) as deployment:
            for output in deployment.run(inputs):
                ...
        print(deployment.record.throughput_per_s)

    Args:
        stages: of :func:`netcarve.model.stages.split`, in order.
        transport: ``"tcp"``, processes connected directly, or ``"ray"``, one actor each.
        link: simulated between stages: ``None`` (none), a link for every boundary, or one entry per boundary,
            each a link, several that follow each other, or ``None``. A list with one entry more begins with
            the route of the inputs to the first stage. A frame is held back at the sending side until it
            would have arrived.
        speeds: of the stages' devices relative to this machine, in (0, 1]: slower ones are simulated by
            sleeping.
        restart: a stage that dies or hangs is started again and unanswered inputs are sent again; else the
            stream ends with :class:`StageError`. Processes and actors started here only.
        inflight: inputs that may be under way or waiting at once, which bounds memory; default: 2 per stage
            + 2, and 1 more for every 2 ms of simulated latency, at most 64.
        threads: of each stage.
        timeout: seconds without an answer, while one is due, after which a stage counts as hung.
        runtime: what runs the stages: ``"pt2"`` (torch) or ``"onnx"`` (onnxruntime; takes longer to start).
        hosts: ``"host:port"`` of each stage, where exported stages listen (TCP only).
        address: of a Ray cluster; ``None`` starts a private local one (Ray only).
        cores: the core of each stage (TCP on Linux only); by default each has one of its own, where this
            process may use enough; ``None``: the system decides.

    Raises:
        ServeError: stages that do not follow each other.
        ValueError: an option that cannot be.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        transport: str = "tcp",
        link: Route | Sequence[Route] = None,
        speeds: Sequence[float] = (),
        restart: bool = False,
        inflight: int | None = None,
        threads: int = 1,
        timeout: float = 60.0,
        runtime: str = "pt2",
        hosts: Sequence[str] = (),
        address: str | None = None,
        cores: Sequence[int] | None = (),
    ) -> None:
        self.stages = list(stages)
        self._calls = Calls(self.stages)
        for what, value, known in (("transport", transport, TRANSPORTS), ("runtime", runtime, RUNTIMES)):
            if value not in known:
                raise ValueError(f"unknown {what} {value!r}; known are {', '.join(known)}")
        for what, count in (("speeds", speeds), ("hosts", hosts), ("cores", cores)):
            if count and len(count) != len(self.stages):
                raise ValueError(f"{len(count)} {what} for {len(self.stages)} stages; give one for each")
        if bad := [s for s in speeds if not 0 < s <= 1]:
            raise ValueError(f"a stage can only be slowed down: speed must be in (0, 1], got {bad[0]!r}")
        if threads < 1 or not (math.isfinite(timeout) and timeout > 0):
            raise ValueError(f"need threads >= 1 and a timeout above 0 s; got {threads} and {timeout}")
        if (hosts and transport != "tcp") or (address is not None and transport != "ray"):
            raise ValueError("hosts are for transport='tcp', an address is for transport='ray'")
        if hosts and restart:
            raise ValueError("stages on other machines cannot be started again from here; leave out restart")
        self.routes = _routes(link, len(self.stages))
        # Without links to simulate, the stages are taken to be on devices of their own.
        self._crossings = [0] + [1] * len(self.routes[1:]) if link is None else list(map(len, self.routes))
        self.speeds = tuple(speeds) or (1.0,) * len(self.stages)
        self.inflight = _inflight(inflight, self.routes)
        self.record: Record | None = None  # of the last stream
        self._options: dict[str, Any] = {
            "runtime": runtime,
            "hops": [[(w.ms_per_byte / 1000, w.latency_ms / 1000) for w in route] for route in self.routes],
            "slow": [1 / s for s in self.speeds],
            "threads": threads,
        }
        self._kind, self._hosts, self._address = transport, tuple(hosts), address
        self._timeout, self._restart = timeout, restart
        chosen = [] if cores is None else list(cores) or free_cores(len(self.stages))
        self._cores: list[int | None] = [*chosen] or [None] * len(self.stages)
        self._transport: Transport | None = None
        self._running = False

    def __enter__(self) -> Self:
        """
        Raises:
            StageError: a stage does not start.
        """
        if self._kind == "tcp":
            from .tcp import Tcp

            self._transport = Tcp(
                self.stages,
                hosts=self._hosts,
                cores=self._cores,
                patience=self._timeout,
                gives=self._calls.gives,
                **self._options,
            )
        else:
            from .actors import Actors

            self._transport = Actors(self.stages, address=self._address, **self._options)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Processes of the stages that were started here over TCP."""
        return [process.pid for process in getattr(self._transport, "processes", [])]

    def close(self) -> None:
        """Stop all stages. May be called twice."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def run(
        self, inputs: Iterable[Any], *, inflight: int | None = None, errors: str = "raise"
    ) -> Iterator[Any]:
        """Outputs of the model for a stream of inputs, in order; :attr:`record` is there at its end.

        Inputs are taken from a thread of its own, as far ahead as ``inflight`` allows.

        Args:
            inputs: each a call of the model: a tensor, a tuple of inputs, a dict of keyword inputs or (args,
                kwargs), of any number of samples that the stages take.
            inflight: other than the deployment's. With 1 the latency is that of an idle pipeline.
            errors: ``"raise"`` ends the stream at an input without an answer; ``"return"`` gives the
                :class:`InputError` in the answer's place and goes on.

        Raises:
            ServeError: the deployment is not open, or has another stream.
            InputError: an input was refused before it was sent, or a stage raised on it.
            StageError: a stage died, hangs or cannot be reached. The deployment is then closed.
        """
        if errors not in ("raise", "return"):
            raise ValueError(f"errors must be 'raise' or 'return', got {errors!r}")
        if inflight is not None and inflight < 1:
            raise ValueError(f"inflight must be at least 1, got {inflight}")
        if self._transport is None:
            raise ServeError(
                "the deployment is not running; use it in a with block: with Deployment(...) as d"
            )
        if self._running:
            raise ServeError(
                "another stream is going through these stages; read it to its end, or close() it"
            )
        return self._run(self._transport, inputs, inflight or self.inflight, errors)

    def _run(self, transport: Transport, inputs: Iterable[Any], inflight: int, errors: str) -> Iterator[Any]:
        stream = Stream(
            transport,
            inputs,
            frame=self._calls.frame,
            output=self._calls.output,
            inflight=inflight,
            timeout=self._timeout,
            restart=self._restart,
        )
        self._running, self.record = True, None
        try:
            for answer in stream.answers():
                if isinstance(answer, InputError) and errors == "raise":
                    raise answer
                yield answer
            self.record = self._recorded(stream, transport, inflight)
        except StageError:
            self.close()
            raise
        finally:
            self._running = False
            transport.end()

    def _recorded(self, stream: Stream, transport: Transport, inflight: int) -> Record:
        low, middle, high = quartiles([1000 * s for s in stream.latencies])
        payload, total = transport.sent()
        payloads, totals = [payload], [total]
        stages = []
        for name, status in zip(transport.names, transport.status(), strict=True):
            known = status or {"inputs": 0, "busy_s": 0.0, "slept_s": 0.0, "payload": 0, "bytes": None}
            count = max(1, known["inputs"])
            busy, slept = 1000 * known["busy_s"] / count, 1000 * known["slept_s"] / count
            stages.append(StageRecord(name, known["inputs"], busy, slept))
            payloads.append(known["payload"])
            totals.append(known["bytes"])
        ends = ["driver", *transport.names, "driver"]
        crossings = [*self._crossings, 0]
        return Record(
            inputs=len(stream.latencies),
            samples=stream.samples,
            failed=stream.failed,
            seconds=stream.last_answered - stream.first_sent,
            latency_ms=middle,
            latency_q25_ms=low,
            latency_q75_ms=high,
            inflight=inflight,
            restarts=stream.restarts,
            stages=tuple(stages),
            boundaries=tuple(
                Boundary(ends[k], ends[k + 1], payloads[k], totals[k], crossings[k])
                for k in range(len(payloads))
            ),
        )


def _routes(link: Route | Sequence[Route], stages: int) -> list[list[Link]]:
    """The simulated links to each stage, in order; the first entry is the route of the inputs."""
    if link is None or isinstance(link, Link):
        link = [link] * (stages - 1)
    entries = [[] if one is None else [one] if isinstance(one, Link) else list(one) for one in link]
    if len(entries) == stages - 1:
        entries.insert(0, [])
    if len(entries) != stages or not all(isinstance(one, Link) for route in entries for one in route):
        raise ValueError(
            f"{stages} stages have {stages - 1} boundaries: give a Link for all, a list with one entry for "
            f"each, or one entry more, the inputs' own route first; got {link!r}"
        )
    return entries


def _inflight(asked: int | None, routes: Sequence[Sequence[Link]]) -> int:
    if asked is not None:
        if asked < 1:
            raise ValueError(f"inflight must be at least 1, got {asked}")
        return asked
    latency = sum(link.latency_ms for route in routes for link in route)
    return min(MOST_INFLIGHT, 2 * len(routes) + 2 + math.ceil(latency / LATENCY_PER_INPUT_MS))
