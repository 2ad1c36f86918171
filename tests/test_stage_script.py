"""The script that runs one stage: what it does to a program, and when it stops reading."""

import socket
import threading
from types import SimpleNamespace

import pytest
import torch
from netcarve.export.stages import program_of
from netcarve.model.capture import capture
from netcarve.model.stages import by_balance, find_cuts, functionalise, split
from netcarve.standalone import wire
from netcarve.standalone.stage import Worker, load_pt2, without_lookups
from torch import nn


class Table(nn.Module):
    """Parameters, a buffer that is not kept, one that is shared, and two tensors out."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.last.weight = nn.Parameter(torch.randn(6, 6))
        self.again = self.last
        self.register_buffer("scale", torch.rand(6), persistent=False)

    def forward(self, x):
        h = self.norm(self.first(x)).relu() * self.scale
        return self.again(self.last(h)) + 1, h


def test_looked_up_once_a_program_does_the_same() -> None:
    torch.manual_seed(0)
    network = functionalise(capture(Table().eval(), torch.randn(2, 4)))
    for stage in split(network, by_balance(find_cuts(network))[:1]):
        program = program_of(stage)
        given = [torch.randn(port.shape(3)) for port in stage.inputs]
        with torch.inference_mode():
            fast, want = without_lookups(program)(*given), program.module()(*given)
        assert len(fast) == len(stage.outputs)
        assert all(torch.equal(a, b) for a, b in zip(fast, want, strict=True))


@pytest.mark.slow
def test_a_program_that_writes_on_its_state_is_left_to_torch() -> None:
    program = torch.export.export(nn.BatchNorm1d(4), (torch.randn(3, 4),)).run_decompositions({})
    call, x = without_lookups(program), torch.randn(3, 4)
    with torch.no_grad():
        got = call(x)
    assert isinstance(got, torch.Tensor)  # not the new statistics beside it
    assert torch.equal(got, program.module()(x))


def test_the_checks_of_a_program_are_asked_at_every_new_number_of_samples(tmp_path) -> None:
    """The ports of a manifest may allow what the program does not: no graph runs without its guards."""

    class Pair(nn.Linear):
        def forward(self, x):
            return (super().forward(x),)

    batch = torch.export.Dim("batch", min=1, max=4)
    program = torch.export.export(Pair(2, 2), (torch.zeros(3, 2),), dynamic_shapes=({0: batch},))
    program.example_inputs = None
    torch.export.save(program, tmp_path / "x.pt2")
    run = load_pt2(tmp_path / "x.pt2", [wire.WirePort("x", "float32", 4, ((1, 0), (0, 2)))], 1)
    for samples in (2, 2, 3):
        assert len(run(samples, [bytearray(8 * samples)])[0]) == 8 * samples
    with pytest.raises(Exception, match="4"):
        run(5, [bytearray(40)])


def test_a_worker_that_has_ended_reads_no_more(monkeypatch) -> None:
    left, right = socket.socketpair()
    begun, lag = threading.Event(), threading.Event()

    def lagging(fd, expected):
        begun.set()
        lag.wait(0.2)
        lasting.append(not done.is_set())

    lasting, done = [], threading.Event()
    monkeypatch.setattr(wire, "read_frame", lagging)
    sender = wire.Sender(left.fileno(), wire.Delay(()), print)
    worker = Worker(SimpleNamespace(takes=None), right.fileno(), sender, print)
    threading.Thread(target=lambda: begun.wait() and worker.received.end(drop=True), daemon=True).start()
    worker.run()
    done.set()
    sender.finish()
    left.close()
    right.close()
    assert lasting == [True]
