"""Sequences of several lengths: in batches of one length each, and padded with the true lengths beside."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from netcarve import Task, sweep, trace
from netcarve.evaluators import TaskError
from netcarve.model.capture import CaptureError
from torch import nn

EXAMPLE, LENGTHS = 12, (8, 12, 20)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Convolutions(nn.Module):
    """Of sequences [batch, steps, 4]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv1d(4, 12, 3, padding=1), nn.BatchNorm1d(12)
        self.second, self.head = nn.Conv1d(12, 10, 3, padding=1), nn.Linear(10, 3)

    def forward(self, x):
        x = self.norm(self.first(x.transpose(1, 2))).relu()
        return self.head(self.second(x).relu().mean(2))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.LSTM(4, 12, 2, batch_first=True), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.body(x)[0].mean(1))


class Masked(Recurrent):
    """Padding, told by the true lengths [batch], has no part in the mean."""

    def forward(self, x, lengths):
        counts = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        outputs = self.body(x)[0] * counts[..., None]
        return self.head(outputs.sum(1) / lengths[:, None])


class Branching(Convolutions):
    """Its forward takes another path for longer sequences."""

    def __init__(self, change):
        super().__init__()
        self.extra, self.change = nn.Conv1d(4, 12, 1), change

    def forward(self, x):
        h = self.first(x.transpose(1, 2))
        if x.shape[1] > 15:
            h = self.change(self, h, x)
        return self.head(self.second(self.norm(h).relu()).relu().mean(2))


def bucketed(net, lengths=LENGTHS, **options):
    """A task of batches of several lengths, one length each, labelled with the network's own answers."""
    net.eval()
    data = [(x := normal(20, steps, 4, seed=steps), net(x).argmax(1)) for steps in lengths]
    return Task(net, normal(2, EXAMPLE, 4), data, **options)


def reference(blueprint, model, candidate):
    """The model itself, with all weights that read removed units zeroed."""
    model = copy.deepcopy(model)
    weights = dict(model.named_parameters())
    for group in blueprint.groups:
        kept = blueprint.kept(candidate).get(group.name, np.arange(group.size))
        gone = np.setdiff1d(np.arange(group.size), kept)
        for member in group.members:
            if member.role == "in":
                positions = torch.from_numpy(member.positions[gone].ravel())
                weights[member.parameter].data.index_fill_(member.axis, positions, 0.0)
    return model


SPACES = {}


def space_of(net):
    if net not in SPACES:
        blueprint = trace(net().eval(), normal(2, EXAMPLE, 4))
        SPACES[net] = blueprint, blueprint.space("prune")
    return SPACES[net]


@given(st.sampled_from([Convolutions, Recurrent]), st.integers(0, 999), st.integers(3, 60))
@settings(max_examples=15, deadline=None)
def test_a_pruned_network_equals_the_masked_model_at_any_length(net, seed, steps):
    blueprint, space = space_of(net)
    candidate = space.sample(np.random.default_rng(seed), 1)[0]
    x = normal(3, steps, 4, seed=seed)
    with torch.no_grad():
        expected = reference(blueprint, net().eval(), candidate)(x)
        torch.testing.assert_close(space.build(candidate)(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.quick("Convolutions")
@pytest.mark.parametrize("net", [Convolutions, Recurrent])
def test_batches_of_several_lengths_are_searched(net, tmp_path):
    task = bucketed(net())
    space = trace(task.model, task.example).space("prune", calibration=task.calibration_batches)
    run = sweep(task, space, "random", trials=4, workers=0, out=tmp_path / "run")
    assert run[0].scores["accuracy"] == 1.0
    for trial in run.trials[1:]:
        with torch.no_grad():
            module = run.model(trial.number)
            hits = torch.cat([module(*args).argmax(1) == targets for args, _, targets in task.batches])
        assert trial.scores["accuracy"] == pytest.approx(float(hits.double().mean()))


@pytest.mark.slow
def test_an_exported_program_takes_other_lengths(tmp_path):
    task = bucketed(Convolutions())
    space = trace(task.model, task.example).space("prune", calibration=task.calibration_batches)
    run = sweep(task, space, "random", trials=2, workers=0, out=tmp_path / "run")
    run.export(1, tmp_path / "export", formats=["pt2"])
    program = torch.export.load(tmp_path / "export" / "model.pt2").module()
    with torch.no_grad():
        for steps in (5, *LENGTHS, 33):
            x = normal(3, steps, 4, seed=steps)
            torch.testing.assert_close(program(x), run.model(1)(x))


def test_repair_learns_from_batches_as_long_as_the_example(caplog):
    task = bucketed(Convolutions())
    alone = [call for call in task.calibration_batches if call[0][0].shape[1] == EXAMPLE]
    built = []
    for batches in (task.calibration_batches, alone):
        space = trace(task.model, task.example).space("prune", calibration=batches)
        half = space.candidate([int(n) // 2 for n in space.counts])
        built.append(space.build(half)(normal(3, EXAMPLE, 4)))
    assert torch.equal(*built)
    assert [r.getMessage() for r in caplog.records if "samples" in r.getMessage()] == [
        "repair learns from 20 samples: 1 of 3 calibration batches are as long as the example, and the "
        "others are left out; give more of that length"
    ]
    others = [call for call in task.calibration_batches if call[0][0].shape[1] != EXAMPLE]
    with pytest.raises(
        ValueError, match=r"no calibration batch is as long as the example.*make one of these"
    ):
        trace(task.model, task.example).space("prune", calibration=others)


def test_calibration_batches_as_long_as_the_example_are_taken_first():
    lengths = [8, 20] * 20 + [EXAMPLE] * 10
    task = bucketed(Convolutions(), lengths)  # 1,000 samples, some held back, of which about 512 are taken
    held = sum(args[0].shape[1] == EXAMPLE for args, _, _ in task.batches)
    taken = [args[0].shape[1] for args, _ in task.calibration_batches]
    assert len(taken) == 26 < len(task.batches)
    assert taken.count(EXAMPLE) == held > 26 * 10 / len(lengths)
    fewer = bucketed(Convolutions(), lengths[-20:])  # all fit: the order stays
    assert [args[0].shape[1] for args, _ in fewer.calibration_batches] == lengths[-20:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net, h, x: h + net.extra(x.transpose(1, 2)), "takes another path there"),
        (lambda net, h, x: h.flip(1), "takes another path there"),
    ],
)
def test_a_forward_that_branches_on_the_length_is_refused(change, message):
    task = bucketed(Branching(change))
    space = trace(task.model, task.example).space("prune")
    with pytest.raises(ValueError, match=rf"validation batch 2 has \(2, 20, 4\).*{message}.*pad all data"):
        sweep(task, space, "random", trials=2, workers=0)
    # Between the shortest and the longest it must run at least.
    calls = [((normal(2, steps, 4),), {}) for steps in (14, 30, 31)]
    with pytest.raises(ValueError, match="the only length"):
        space.model.check_lengths(space, {"validation": calls})


def test_a_branch_that_keeps_units_together_is_taken():
    task = bucketed(Branching(lambda net, h, x: h * 2))
    space = trace(task.model, task.example).space("prune")
    space.model.check_lengths(space, {"validation": [b[:2] for b in task.batches]})


def test_captured_graphs_take_one_length_and_say_why():
    task = bucketed(Convolutions())
    space = trace(task.model, task.example).space("prune", "width")
    with pytest.raises(
        ValueError, match="changes the captured graph, in which lengths are fixed; pad all data"
    ):
        sweep(task, space, "random", trials=2, workers=0)
    with pytest.raises(TaskError, match="only the first axis"):
        Task(task.model, normal(2, 9, 4), [(x := normal(20, 8, 4), task.model(x).argmax(1))])


@pytest.mark.quick("False")
@pytest.mark.parametrize("several", [False, True])
def test_padded_batches_with_their_lengths_are_searched(several, tmp_path):
    """Lengths as an input, in batches padded to one length or each to its own."""
    net = Masked().eval()
    data = []
    for number, longest in enumerate((EXAMPLE, 20, EXAMPLE) if several else (EXAMPLE,) * 3):
        lengths = torch.randint(3, longest + 1, (20,), generator=torch.Generator().manual_seed(number))
        x = normal(20, longest, 4, seed=number) * (torch.arange(longest) < lengths[:, None])[..., None]
        data.append(((x, lengths), net(x, lengths).argmax(1)))
    task = Task(net, data[0][0], data)
    space = trace(net, task.example).space("prune", calibration=task.calibration_batches)
    run = sweep(task, space, "random", trials=3, workers=0, out=tmp_path / "run")
    assert run[0].scores["accuracy"] == 1.0
    assert not any(trial.failed for trial in run.trials)
    pruned = run.model(2)
    (x, lengths), _ = data[1]
    with torch.no_grad():
        for i in range(5):  # padding makes no difference to what the masks let through
            alone = pruned(x[i : i + 1, : lengths[i]], lengths[i : i + 1])
            torch.testing.assert_close(pruned(x, lengths)[i : i + 1], alone)


def test_packed_sequences_are_refused_in_words():
    class Packed(Recurrent):
        def forward(self, x, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.head(self.body(packed)[1][0][-1])

    with pytest.raises(CaptureError, match=r"pack_padded_sequence.*mask"):
        trace(Packed().eval(), (normal(2, EXAMPLE, 4), torch.tensor([5, 12])))
