"""Compact operators: accuracy when three convolutions are replaced at once, and time beside MACs.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/operators.py [--seeds 3] [--only accuracy|latency|kernels]

Accuracy: a small digits network, trained here, without any fine-tuning: weights in closed form (start), with
the last linear stage fitted to the original's outputs from the original's inputs (refit), and from those that
the compressed network gives (cascade). The last column is what a prototype reached there, one seed.

Latency: one layer of 64 channels on 32x32 and of 256 on 14x14, batch 1, one thread; calls of the operator
alternate with those of the layer, in eager mode and in onnxruntime. The figure is the ratio
of the medians of processor time.

Kernels: the same two layers, at batches of 1 and 16, sparse at every density beside what the performance
model of this machine says of it; in blocks; and with a predictor that leaves outputs out.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial

import onnxruntime
import torch
from netcarve.evaluators.digits import data
from netcarve.evaluators.machine import processor
from netcarve.model.operators.catalogue import GUIDING, in_turn
from netcarve.model.operators.counting import count
from netcarve.model.operators.gated import PredictedLayer
from netcarve.model.operators.initialise import Targets, initialise, refit, regress
from netcarve.model.operators.kernels import Pace
from netcarve.model.operators.site import Site, known_operators, operator
from torch import nn
from torch.nn.functional import cross_entropy

ROWS = 20_000  # of a fit
LAYERS = ("a", "b", "last")  # 3x3: 32 to 32, 32 to 32, 32 to 64 channels, on 4x4

# Option of an operator at a site, and what the prototype reached: start, refit, cascade.
ROWS_OF_TABLE: list[tuple[str, str, Callable[[Site], float], tuple[float | None, ...]]] = [
    ("separable", "1 filter", lambda s: 1, (41.6, 92.2, 96.0)),
    ("separable", "2 filters", lambda s: 2, (88.9, 98.0, 98.9)),
    ("inverted-residual", "t = 6", lambda s: 6, (96.7, 99.3, 99.1)),
    ("svd", "rank 8", lambda s: 8 / s.outputs, (75.3, 95.1, 98.4)),
    ("output-pca", "rank 8", lambda s: 8 / s.outputs, (83.6, None, None)),
    ("spatial-svd", "rank 24", lambda s: 24 / (3 * s.inputs), (98.2, 98.9, 99.1)),
    ("tucker", "half of both", lambda s: 0.5, (97.8, 99.1, 98.7)),
    ("cp", "rank 64", lambda s: 64 / s.inputs, (None, None, None)),
    ("shift", "4 a displacement", lambda s: 4 / min(s.inputs, s.outputs), (52.0, 98.2, 98.2)),
    ("fire-linear", "squeeze 8", lambda s: 8 / s.inputs, (10.0, 95.3, 97.8)),
    ("basis", "16 + 16", lambda s: 31.9 / s.outputs, (24.7, 98.7, 98.9)),
    ("learned-groups", "2 groups", lambda s: 2, (23.1, 98.9, 98.9)),
    ("learned-groups", "4 groups", lambda s: 4, (9.6, 96.7, 97.6)),
    ("expander", "density 1/2", lambda s: 0.5, (17.6, 98.4, None)),
    ("expander", "density 1/4", lambda s: 0.25, (10.7, 91.3, None)),
    ("dictionary", "31 atoms, 4 looked up", lambda s: 31 / s.inputs, (95.1, None, None)),
    ("interleaved", "8 groups", lambda s: 8, (None, None, None)),
    ("interleaved-v2", "3 stages", lambda s: 3, (None, None, None)),
    ("versatile", "", lambda s: 0.5, (10.0, None, None)),
    ("versatile-channels", "2 windows", lambda s: 2, (None, None, None)),
    ("codebook", "16 numbers", lambda s: 16, (None, None, None)),
    ("circulant", "blocks of 4", lambda s: 4, (None, None, None)),
    ("sparse", "density 1/4", lambda s: 0.25, (None, None, None)),
    ("sparse", "density 1/10", lambda s: 0.1, (None, None, None)),
    ("mobilenet", "1 filter, ReLU", lambda s: 1, (15.1, 96.2, None)),
    ("fire", "squeeze 8, ReLU", lambda s: 8 / s.inputs, (None, None, None)),
    ("shuffle", "2 groups, ReLU", lambda s: 2, (9.6, 60.4, None)),
    ("shuffle-v2", "ReLU", lambda s: 1.0, (None, None, None)),
]


class Net(nn.Module):
    """conv16, conv32, max-pool, residual(32, 32), conv64, average, linear: 42 618 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = self._conv(1, 16), self._conv(16, 32)
        self.a, self.b, self.last = self._conv(32, 32), self._conv(32, 32), self._conv(32, 64)
        self.classes = nn.Linear(64, 10)

    @staticmethod
    def _conv(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.second(self.first(x).relu()).relu(), 2)
        x = (x + self.b(self.a(x).relu())).relu()
        return self.classes(self.last(x).relu().mean((2, 3)))


def trained(seed: int) -> Net:
    """15 epochs of AdamW, one cycle to 3e-3, batches of 64."""
    torch.manual_seed(seed)
    (x, y), _ = data()
    net, steps = Net(), len(x) // 64
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, 15 * steps)
    for _ in range(15):
        for rows in torch.randperm(len(x))[: steps * 64].view(steps, 64):
            optimizer.zero_grad()
            cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return net.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(net: nn.Module) -> float:
    _, (x, y) = data()
    return 100 * float((net(x).argmax(1) == y).double().mean())


@torch.no_grad()
def read(net: Net, name: str, x: torch.Tensor) -> torch.Tensor:
    """What the layer called ``name`` reads."""
    seen: list[torch.Tensor] = []
    with getattr(net, name)[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        net(x)
    return seen[0]


def replaced(net: Net, name: str, option: Callable[[Site], float], way: str) -> tuple[Net, float]:
    """The network with three substitutes, and the share of the layers' weights that they hold."""
    (x, _), _ = data()
    small, op, kept, whole = Net().eval(), operator(name), 0, 0
    small.load_state_dict(net.state_dict())
    for layer in LAYERS:
        conv = getattr(net, layer)[0]
        inputs = read(net, layer, x)
        site = Site(
            conv.weight,
            None,
            conv.stride,
            conv.padding,
            conv.dilation,
            1,
            tuple(inputs.shape[2:]),
            True,
            True,
        )
        y = site(inputs)
        new = initialise(op, Site(**{**vars(site), "inputs_seen": inputs[:512]}), option(site))
        kept += sum(p.numel() for p in new.parameters())
        whole += conv.weight.numel()
        given = read(small, layer, x) if way == "cascade" else inputs
        if op.curved and way != "start":
            regress(new, given[:512], y[:512])
        getattr(small, layer)[0] = new
        if way != "start":
            constants = refit(new, given, Targets.of(y, site.axis, rows=ROWS), intercept=True)
            getattr(small, layer)[1].running_mean -= constants
    return small, kept / whole


def accuracies(seeds: int, names: Collection[str]) -> None:
    nets = [trained(seed) for seed in range(seeds)]
    base = statistics.mean(map(accuracy, nets))
    print(f"unchanged {base:.1f} %, {seeds} seeds; 450 images a seed\n")
    print(f"| {'operator':18}| {'size':22}| kept | start | refit | cascade | prototype          |")
    print(f"|{'-' * 19}|{'-' * 23}|-----:|------:|------:|--------:|--------------------|")
    for name, size, option, prototype in ROWS_OF_TABLE:
        if name not in names:
            continue
        found = []
        for way in ("start", "refit", "cascade"):
            made = [replaced(net, name, option, way) for net in nets]
            found.append(statistics.mean(accuracy(small) for small, _ in made))
        then = " / ".join("-" if p is None else f"{p:.1f}" for p in prototype)
        print(
            f"| {name:18}| {size:22}| {made[0][1]:.2f} | {found[0]:5.1f} | {found[1]:5.1f} | {found[2]:7.1f} "
            f"| {then:19}|",
            flush=True,
        )


def session(module: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    """A call in onnxruntime, one thread."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), file, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    made = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    fed = {made.get_inputs()[0].name: x.numpy()}
    return lambda: made.run(None, fed)


def ratio(one: Callable[[], object], other: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Medians of calls in turn: milliseconds of ``one``, and those of ``other`` as a multiple."""
    times: tuple[list[float], list[float]] = ([], [])
    for n in range(rounds + 3):
        for call, taken in zip((one, other), times, strict=True):
            begun = time.process_time()
            call()
            if n >= 3:
                taken.append(time.process_time() - begun)
    mine, theirs = map(statistics.median, times)
    return 1e3 * mine, theirs / mine


def wide(channels: int, size: int) -> Iterator[tuple[str, float, Site]]:
    """Every operator at its middle option, at a 3x3 layer and, what stands for linear ones alone, at one."""
    weight = torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5
    conv = Site(weight, None, (1, 1), (1, 1), (1, 1), 1, (size, size), True, True)
    linear = Site(weight[:, :, 1, 1].contiguous(), None, size=(size * size,))
    for name in known_operators():
        site = conv if not operator(name).refuses(conv) else linear
        options = operator(name).options(site) or [1]
        yield name, options[(len(options) - 1) // 2], site


def latencies(rounds: int, names: Collection[str]) -> None:
    for channels, size in ((64, 32), (256, 14)):
        print(f"\n{channels} channels, {size}x{size}; multiples of the layer's own\n")
        print(f"| {'operator':18}| option | MACs | bytes | eager | onnxruntime |")
        print(f"|{'-' * 19}|-------:|-----:|------:|------:|------------:|")
        for name, option, site in wide(channels, size):
            if name not in names:
                continue
            new = operator(name).build(site, option).eval().requires_grad_(False)
            if operator(name).by_name:  # time depends on which weights there are
                operator(name).start(new, site, option)
            else:
                for p in new.parameters():
                    p.data.normal_(0, 0.1)
            layer = site.like(site.inputs, site.outputs).requires_grad_(False)
            layer.weight.data.copy_(site.weight)
            x = torch.rand(site.example().shape)
            costs, own = count(new, x), count(layer, x)
            with torch.no_grad():
                _, eager = ratio(lambda: layer(x), lambda: new(x), rounds)  # noqa: B023
                _, onnx = ratio(session(layer, x), session(new, x), rounds)
            shown = "*" if site.dims == 0 else ""
            macs, size = costs.macs / own.macs, costs.bytes / own.bytes
            start = f"| {name + shown:18}| {option:6g} | {macs:4.2f} | {size:5.2f}"
            print(f"{start} | {eager:5.2f} | {onnx:11.2f} |", flush=True)


def kernels(rounds: int) -> None:
    """Times as multiples of the layer's own, by calls in turn."""
    for batch in (1, 16):
        print(f"\nbatch {batch}\n")
        print("| layer        | operator            | MACs | time | performance model |")
        print("|--------------|---------------------|-----:|-----:|------------------:|")
        for channels, size in ((64, 32), (256, 14)):
            _, _, site = next(wide(channels, size))
            layer = site.like(site.inputs, site.outputs).requires_grad_(False)
            layer.weight.data.copy_(site.weight)
            x = torch.rand(site.example(batch).shape)
            pace = Pace.timed(site, partial(in_turn, runs=GUIDING), batch)
            asked = [("sparse", d) for d in (0.5, 0.25, 0.1, 0.05)] + [("direct", 16), ("direct", 32)]
            for name, option in [*asked, ("collaborative", 0.95)]:
                new = initialise(operator(name), replace(site, inputs_seen=x[:1]), option)
                new.requires_grad_(False)
                macs, said = count(new, x[:1]).macs / site.macs, ""
                if name == "sparse":
                    said = f"{pace.seconds(option) / pace.dense:.2f}"
                made = new.tails[0]
                if isinstance(made, PredictedLayer):
                    made.skips = True
                    macs = made.skipping(x)[1] / batch / site.macs
                with torch.no_grad():
                    _, taken = ratio(lambda: layer(x), lambda: new(x), rounds)  # noqa: B023
                shown = f"{name} {option:g}"
                print(
                    f"| {channels:3} on {size}x{size} | {shown:20}| {macs:4.2f} | {taken:4.2f} | {said:>17} |"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=40, help="calls of each in a timing")
    parser.add_argument("--only", choices=("accuracy", "latency", "kernels"))
    parser.add_argument("--operators", type=lambda text: text.split(","), help="names; default: all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{processor()}, 1 thread")
    names = options.operators or known_operators()
    if options.only in (None, "accuracy"):
        accuracies(options.seeds, names)
    if options.only in (None, "latency"):
        latencies(options.rounds, names)
    if options.only in (None, "kernels"):
        kernels(options.rounds)


if __name__ == "__main__":
    main()
