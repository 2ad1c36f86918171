"""What `Space.build` gives is an ordinary trainable module, whichever of the two artifacts it is."""

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from netcarve import trace
from netcarve.model.proof import relative_difference
from netcarve.spaces.testing import zeroed_consumers
from torch import nn
from toys import Recurrent


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.n1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.body, self.n2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=0.3)
        self.inner, self.drop, self.head = nn.Linear(8, 12), nn.Dropout(0.3), nn.Linear(12, 4)

    def forward(self, x):
        x = torch.relu(self.n1(self.stem(x)))
        x = (x + torch.relu(self.n2(self.body(x)))).mean((2, 3))
        return self.head(self.drop(torch.relu(self.inner(x))))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.norm = nn.Embedding(30, 16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.drop, self.down = nn.Linear(16, 32), nn.Dropout(0.2), nn.Linear(32, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, ids):
        x = self.token(ids)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return self.head((x + self.down(self.drop(torch.relu(self.up(x))))).mean(1))


def images(n):
    return torch.randn(n, 3, 8, 8)


def tokens(n):
    return torch.randint(0, 30, (n, 6))


NETS = {"convolutional": (Convolutional, images), "transformer": (Transformer, tokens)}
ARTIFACTS = ("own", "graph")


class Case:
    """One network, traced, with what is made of it at a third pruned."""

    def __init__(self, name, artifact):
        torch.manual_seed(0)
        make, self.inputs = NETS[name]
        self.net = make()
        for _ in range(3):  # statistics that are no identity
            self.net(self.inputs(16))
        self.blueprint = trace(self.net, self.inputs(2))
        self.space = self.blueprint.space(ratios=[0, 0.34])
        self.make = getattr(self.blueprint.surgeon, artifact)
        self.candidate = self.space.candidate([1] * len(self.space))
        self.unchanged = self.make(self.blueprint.alive(self.space.baseline))
        self.small = self.make(self.blueprint.alive(self.candidate))


@pytest.fixture(scope="module")
def cases():
    return {(name, artifact): Case(name, artifact) for name in NETS for artifact in ARTIFACTS}


@pytest.fixture(params=[(name, artifact) for name in NETS for artifact in ARTIFACTS], ids="-".join)
def case(request, cases):
    return cases[request.param]


def step(net, x):
    """Loss of one train-mode pass, its gradients, and the buffers that the pass moved."""
    net = copy.deepcopy(net).train()
    torch.manual_seed(1)
    loss = net(x).square().mean()
    loss.backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    return loss.detach(), gradients, dict(net.named_buffers())


def test_state_dict_goes_round(case):
    x, state = case.inputs(3), case.small.state_dict()
    assert set(state) == set(case.net.state_dict())
    other = copy.deepcopy(case.small)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
        assert not other(x).equal(case.small(x))
        other.load_state_dict(state)
        assert other(x).equal(case.small(x))


def test_a_training_step_of_the_unchanged_network_is_the_originals(case):
    x = case.inputs(5)
    (loss, gradients, buffers), (loss_0, gradients_0, buffers_0) = (
        step(net, x) for net in (case.unchanged, case.net)
    )
    torch.testing.assert_close(loss, loss_0, rtol=1e-6, atol=0)
    assert set(gradients) == set(gradients_0)
    for name, gradient in gradients_0.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-7)
    for name, buffer in buffers_0.items():
        if "running" in name:
            torch.testing.assert_close(buffers[name], buffer)


def test_a_training_step_of_the_pruned_network_is_the_masked_originals(cases):
    """Without dropout, whose masks differ in shape, kept weights get the gradients of the masked network."""
    for artifact in ARTIFACTS:
        case = cases["convolutional", artifact]
        masked, small = zeroed_consumers(case.net, case.blueprint, case.candidate), copy.deepcopy(case.small)
        masked.drop.p = 0.0
        for module in (small, *getattr(small, "modules", list)()):
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if artifact == "graph":
            for node in small.graph.nodes:
                if node.target is torch.ops.aten.dropout.default:
                    node.args = (node.args[0], 0.0, node.args[2])
            small.recompile()
        x = case.inputs(5)
        (loss, gradients, _), (loss_0, gradients_0, _) = (step(net, x) for net in (small, masked))
        torch.testing.assert_close(loss, loss_0)
        kept = case.blueprint.kept(case.candidate)
        head = next(m for g in case.blueprint.groups for m in g.members if m.parameter == "head.weight")
        group = next(g for g in case.blueprint.groups if head in g.members)
        columns = head.positions[kept[group.name]].reshape(-1)
        torch.testing.assert_close(gradients["head.weight"], gradients_0["head.weight"][:, columns])
        torch.testing.assert_close(gradients["head.bias"], gradients_0["head.bias"])


def test_a_copy_trains_alone(case):
    x = case.inputs(4)
    before = case.small(x).detach()
    twin = copy.deepcopy(case.small)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        torch.manual_seed(0)
        loss = twin.train()(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert case.small(x).detach().equal(before)
    assert not case.small.training
    assert all(p.grad is None for p in case.small.parameters())


@pytest.mark.quick("convolutional-own-eager", "transformer-graph-eager")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile(case, backend):
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(case.small), backend=backend, fullgraph=True)
    x = case.inputs(3)
    torch.testing.assert_close(compiled(x), case.small(x))
    torch.manual_seed(0)
    loss = compiled.train()(x).square().mean()
    loss.backward()
    assert all(p.grad is not None for p in compiled.parameters())


def test_torch_export(case):
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(case.small, (case.inputs(2),), dynamic_shapes=({0: batch},))
    x = case.inputs(7)
    torch.testing.assert_close(program.module()(x), case.small(x))


@pytest.mark.quick("convolutional-own", "transformer-graph")
def test_onnx(case, tmp_path):
    x = case.inputs(2)
    torch.onnx.export(case.small, (x,), tmp_path / "small.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert relative_difference([torch.from_numpy(got)], [case.small(x)])[0] < 1e-5
    assert np.isfinite(got).all()


def test_dropout_between_recurrent_layers_follows_train():
    torch.manual_seed(0)
    net, x = Recurrent(nn.LSTM, 4, 8, 2, num_layers=2, dropout=0.5), torch.randn(3, 6, 4)
    space = trace(net, x).space(ratios=[0, 0.5])
    graph = space.model.facts.surgeon.graph(space.model.alive(space.baseline))
    torch.testing.assert_close(step(graph, x)[:2], step(net, x)[:2])
    torch.testing.assert_close(graph(x), net.eval()(x))
