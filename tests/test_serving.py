"""Stages that run as processes: the same answers, in order, counted, and refused where they must be."""

import io
import os
import pickle
import socket
import tempfile
import time
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from netcarve import Link
from netcarve.deployment.serving import Deployment, InputError, ServeError, StageError
from netcarve.deployment.serving.deployment import simulated
from netcarve.devices import Device
from netcarve.model.capture import capture
from netcarve.model.stages import balanced, find_cuts, functionalise, split
from netcarve.standalone import wire
from netcarve.standalone.stage import load_pt2, tensor_bytes
from torch import nn


class Net(nn.Module):
    """Two inputs and a constant; what crosses the cuts is one tensor, then two; a dict comes out."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 5)
        self.table = nn.Embedding(10, 64)

    def forward(self, x, ids, scale=2.0):
        h = self.a(x).relu()
        g = self.b(h).relu() + h
        return {"logits": self.c(g + self.table(ids).mean(1)) * scale, "h": h.mean(1)}


def example(samples, seed=0):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 32, generator=random)
    return {"x": x, "ids": torch.randint(0, 10, (samples, 3), generator=random)}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def stages(net):
    network = functionalise(capture(net, example(2)))
    return split(network, balanced(find_cuts(network), 3))


@pytest.fixture(scope="module")
def deployment(stages):
    with Deployment(stages, timeout=60) as running:
        yield running


def assert_same(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert list(a) == list(b)
        assert all(torch.equal(a[k], b[k]) for k in b)


STREAM = [example(1 + i % 4, seed=i) for i in range(30)]


def test_answers_are_the_models_in_order_at_any_batch_size_and_all_bytes_are_counted(
    net, stages, deployment
) -> None:
    assert_same(list(deployment.run(STREAM)), [net(**one) for one in STREAM])
    record = deployment.record
    samples = sum(len(one["x"]) for one in STREAM)
    ports = [stages[0].inputs, *(stage.outputs for stage in stages)]
    payloads = [sum(p.bytes(1) for p in some) * samples for some in ports]
    assert [b.payload_bytes for b in record.boundaries] == payloads
    assert [b.wire_bytes for b in record.boundaries] == [n + 32 * len(STREAM) for n in payloads]
    assert record.traffic_kb == sum(payloads[1:-1]) / samples / 1000
    assert (record.inputs, record.samples, record.failed, record.restarts) == (30, samples, 0, 0)
    assert [s.inputs for s in record.stages] == [30] * 3
    assert record.throughput_per_s == samples / record.seconds
    assert record.latency_q25_ms <= record.latency_ms <= record.latency_q75_ms


def test_one_input_at_a_time_and_no_inputs_at_all(net, deployment) -> None:
    assert_same(list(deployment.run(STREAM[:3], inflight=1)), [net(**one) for one in STREAM[:3]])
    assert list(deployment.run([])) == []
    assert deployment.record.inputs == 0


def test_an_input_of_the_wrong_shape_is_refused_with_the_ports_words_and_never_sent(
    net, stages, deployment
) -> None:
    wrong = {**example(2), "x": torch.randn(2, 31)}
    with pytest.raises(ValueError, match="x is") as by_the_stage:
        stages[0].module(**wrong)
    good, refused, after = deployment.run([STREAM[0], wrong, STREAM[1]], errors="return")
    assert isinstance(refused, InputError)
    assert refused.number == 1
    assert str(refused) == f"input 1 is refused: {by_the_stage.value}"
    assert_same([good, after], [net(**STREAM[0]), net(**STREAM[1])])
    assert (deployment.record.inputs, deployment.record.failed) == (2, 1)
    assert deployment.record.boundaries[0].payload_bytes == 3 * (32 * 4 + 3 * 8)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": torch.randn(2, 32)}, "not built like the example"),
        ((torch.randn(2, 32, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.int64)), "not built like"),
        ({**example(2), "x": torch.randn(2, 32).double()}, "float64"),
        ({**example(2), "ids": torch.zeros(3, 3, dtype=torch.int64)}, "same batch"),
        ({**example(2), "x": "text"}, "must be a tensor"),
    ],
)
def test_other_wrong_inputs_end_the_stream_with_their_number(deployment, inputs, message) -> None:
    answers = deployment.run([STREAM[0], inputs])
    next(answers)
    with pytest.raises(InputError, match=message) as found:
        next(answers)
    assert (found.value.number, found.value.stage) == (1, "input..relu")
    assert len(list(deployment.run(STREAM[:2]))) == 2  # the deployment goes on


def test_a_stage_that_raises_is_named_and_others_are_answered(net, stages, deployment) -> None:
    outside = {**example(2), "ids": torch.full((2, 3), 10)}
    good, failed, after = deployment.run([STREAM[0], outside, STREAM[1]], errors="return")
    assert isinstance(failed, InputError)
    assert failed.stage == stages[1].name  # where the table is; the last stage passes the error on
    assert str(failed).startswith(f"input 1: stage {failed.stage} raised IndexError: ")
    assert [s.inputs for s in deployment.record.stages] == [3, 3, 2]
    assert_same([good, after], [net(**STREAM[0]), net(**STREAM[1])])


def test_no_more_inputs_are_taken_than_may_be_under_way(deployment) -> None:
    taken = []

    def inputs():
        for number, one in enumerate(STREAM):
            taken.append(number)
            yield one

    ahead = []
    for answered, _ in enumerate(deployment.run(inputs(), inflight=3), start=1):
        ahead.append(len(taken) - answered)
    assert len(taken) == len(STREAM)
    assert max(ahead) <= 3 + 1  # one waits in the hand


def test_what_the_inputs_raise_arrives_after_the_answers_before_it(net, deployment) -> None:
    def inputs():
        yield from STREAM[:2]
        raise KeyError("the camera is gone")

    got = []
    with pytest.raises(KeyError, match="camera"):
        got.extend(deployment.run(inputs()))
    answers = deployment.run(inputs())
    assert_same([next(answers), next(answers)], [net(**one) for one in STREAM[:2]])
    answers.close()


def test_a_stream_that_is_left_leaves_nothing_behind(net, deployment) -> None:
    answers = deployment.run(STREAM)
    next(answers)
    with pytest.raises(ServeError, match="another stream"):
        deployment.run(STREAM)
    answers.close()
    assert_same(list(deployment.run(STREAM[5:8])), [net(**one) for one in STREAM[5:8]])


def test_strangers_at_the_door_do_no_harm(net, deployment) -> None:
    port = deployment._transport.processes[1].port
    for said in (
        b"GET / HTTP/1.1\r\n\r\n",
        wire.HEADER.pack(wire.MAGIC, wire.CONTROL, 0, 0, 0, 1 << 40),
        wire.HEADER.pack(wire.MAGIC, wire.DATA, 1, 0, 1, 8) + bytes(8),
    ):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(said)
    with wire.connect("127.0.0.1", port, "control", "x", token="guessed") as stranger:
        assert wire.read_frame(stranger.fileno()) is None  # hung up
    assert_same(list(deployment.run(STREAM[:2])), [net(**one) for one in STREAM[:2]])


@pytest.mark.slow
def test_simulated_links_and_devices_hold_answers_back(net, stages) -> None:
    link = Link(bandwidth_mbps=1, latency_ms=3)
    with Deployment(stages, link=link, speeds=[0.5, 1, 1], runtime="onnx") as deployment:
        got = list(deployment.run(STREAM[:1] * 6, inflight=1))
        record = deployment.record
    assert torch.allclose(got[0]["logits"], net(**STREAM[0])["logits"], atol=1e-5)
    sent = [b.payload_bytes / 6 for b in record.boundaries[1:-1]]
    assert record.latency_q25_ms >= sum(link.milliseconds(n) for n in sent)
    assert record.stages[0].slept_ms >= 0.99 * record.stages[0].busy_ms
    assert [b.crossings for b in record.boundaries] == [0, 1, 1, 0]


# -- no processes needed


def test_messages_follow_each_other_over_links() -> None:
    delay = wire.Delay([(0.001, 0.5), (0.002, 0.1)])
    # 100 bytes: 0.1 s on the first link, 0.2 s on the second, which is the slower one.
    assert delay.arrival(1.0, 100) == pytest.approx(1.0 + 0.1 + 0.5 + 0.2 + 0.1)
    assert delay.arrival(1.0, 100) == pytest.approx(1.0 + 0.1 + 0.5 + 2 * 0.2 + 0.1)
    assert delay.arrival(5.0, 0) == pytest.approx(5.6)
    assert wire.Delay(()).arrival(2.0, 100) == 2.0


def test_stages_take_the_links_and_speeds_of_their_devices() -> None:
    devices = [Device("a", 0.5), Device("b"), Device("c", 4.0)]
    links = [Link(8, 1), Link(80, 2)]  # a - b - c
    found = simulated(["a", "c", "b", "b"], devices, links)
    assert found["speeds"] == [0.5, 1.0, 1.0, 1.0]
    assert found["link"] == [[], [Link(8, 1), Link(80, 2)], [Link(80, 2)], []]
    if found["cores"]:
        assert found["cores"][2] == found["cores"][3]
        assert len(set(found["cores"])) == 3


PORTS = st.lists(
    st.tuples(
        st.sampled_from([1, 2, 4, 8]),
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=4),
    ),
    max_size=4,
)


@settings(max_examples=40, deadline=None)
@given(PORTS, st.integers(0, 3), st.integers(0, 2**64 - 1), st.randoms(use_true_random=False))
def test_frames_arrive_as_they_were_sent(ports, samples, number, random) -> None:
    expected = wire.Expected(
        tuple(wire.WirePort(f"p{i}", "any", size, tuple(sizes)) for i, (size, sizes) in enumerate(ports)),
        0,
        5,
    )
    body = [random.randbytes(n) for n in expected.sizes(samples)]
    with tempfile.TemporaryFile() as file:
        assert wire.write_frame(file.fileno(), wire.Frame(wire.DATA, number, samples, body)) == 32 + sum(
            map(len, body)
        )
        wire.write_frame(file.fileno(), wire.text_frame(wire.ERROR, number, error="no"))
        file.seek(0)
        frame = wire.read_frame(file.fileno(), expected)
        assert (frame.kind, frame.number, frame.samples) == (wire.DATA, number, samples)
        assert [bytes(part) for part in frame.body] == body
        assert wire.read_frame(file.fileno(), expected).json() == {"error": "no"}
        assert wire.read_frame(file.fileno(), expected) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GET / HTTP/1.1\r\nHost: somewhere.example", "begins with b'GET '"),
        (wire.HEADER.pack(wire.MAGIC, wire.DATA, 1, 0, 2, 999), "2 samples"),
        (wire.HEADER.pack(wire.MAGIC, wire.DATA, 2, 0, 2, 32), "2 tensors"),
        (wire.HEADER.pack(wire.MAGIC, wire.DATA, 1, 0, 9, 144), "9 samples, but 1 to 8"),
        (wire.HEADER.pack(wire.MAGIC, wire.DATA, 1, 0, 2, 32) + bytes(31), "in the middle"),
        (wire.HEADER.pack(wire.MAGIC, wire.DATA, 1, 0, 2, 32)[:20], "in the middle"),
        (wire.HEADER.pack(wire.MAGIC, wire.ERROR, 0, 0, 0, 1 << 60), "a text of"),
        (wire.HEADER.pack(wire.MAGIC, 7, 0, 0, 0, 0), "of kind 7"),
    ],
)
def test_frames_out_of_order_are_refused(tmp_path, content, message) -> None:
    expected = wire.Expected((wire.WirePort("x", "float32", 4, ((1, 0), (0, 4))),), 1, 8)
    (tmp_path / "frames").write_bytes(content)
    fd = os.open(tmp_path / "frames", os.O_RDONLY)
    with pytest.raises(wire.FrameError, match=message):
        wire.read_frame(fd, expected)
    os.close(fd)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.bool, torch.int64, torch.float8_e4m3fn]
)
def test_bytes_of_tensors_are_dense_and_of_every_type(dtype) -> None:
    whole = torch.arange(12).reshape(3, 4).to(dtype)
    for tensor in (whole, whole.t(), whole[:, 1:3], whole[0, 0], whole[:0]):
        back = torch.frombuffer(bytearray(tensor_bytes(tensor)) or bytearray(16), dtype=dtype)
        assert torch.equal(back[: tensor.numel()].reshape(tensor.shape).view(dtype), tensor.contiguous())


def test_files_with_pickled_parts_are_not_loaded(tmp_path) -> None:
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "x.pt2"
    program = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    program.example_inputs = None
    torch.export.save(program, path)
    load_pt2(path, [], 1)
    evil = pickle.dumps(Evil(), protocol=2)
    for name in ("x/data/sample_inputs/other.pt", "x/data/constants/opaque_obj_0", "x/data/weights/model.pt"):
        changed = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(changed, "a") as archive:
            archive.writestr(name, evil)
        (tmp_path / "y.pt2").write_bytes(changed.getvalue())
        with pytest.raises(ValueError, match="does not need"):
            load_pt2(tmp_path / "y.pt2", [], 1)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "z.pt2").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a program of"):
        load_pt2(tmp_path / "z.pt2", [], 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transport": "udp"}, "known are tcp, ray"),
        ({"runtime": "tvm"}, "known are pt2, onnx"),
        ({"speeds": [1, 1]}, "2 speeds for 3 stages"),
        ({"speeds": [2, 1, 1]}, "only be slowed down"),
        ({"link": [Link(1)]}, "2 boundaries"),
        ({"inflight": 0}, "at least 1"),
        ({"timeout": 0}, "timeout above 0"),
        ({"threads": 0}, "threads >= 1"),
        ({"hosts": ["a:1"] * 3, "restart": True}, "started again from here"),
        ({"hosts": ["a:1"] * 3, "transport": "ray"}, "hosts are for"),
        ({"address": "x:1"}, "address is for"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_starts(stages, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Deployment(stages, **options)


def test_stages_must_follow_each_other_and_the_deployment_be_open(stages) -> None:
    with pytest.raises(ServeError, match="there are no stages"):
        Deployment([])
    with pytest.raises(ServeError, match="give the stages of one split, in order"):
        Deployment([stages[2], stages[0]])
    with pytest.raises(ServeError, match="with block"):
        Deployment(stages).run(STREAM)
    with pytest.raises(ValueError, match="host:port"), Deployment(stages, hosts=["a", "b:2", "c:3"]):
        pass
    hosts = ["127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1"]
    with Deployment(stages, hosts=hosts) as nobody, pytest.raises(StageError, match=r"stage\.py --listen"):
        list(nobody.run(STREAM))


def test_a_session_does_not_read_what_is_for_the_next_one(net, deployment, monkeypatch) -> None:
    """A reader that lags behind would find the next session's connection under the number of its own."""
    read = wire.read_frame

    def lagging(fd, expected=None, **options):
        time.sleep(0.02)
        return read(fd, expected, **options)

    monkeypatch.setattr(wire, "read_frame", lagging)
    for _ in range(3):
        assert_same(list(deployment.run(STREAM[:2])), [net(**one) for one in STREAM[:2]])
