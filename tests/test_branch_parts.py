"""What branches are made of: sets of similar classes, and the parallel composition."""

import itertools

import numpy as np
import pytest
import torch
from netcarve.spaces import trace
from netcarve.spaces.kinds.branches import Branches, cluster_classes
from netcarve.spaces.testing import counted_costs
from torch import nn

# -- classes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "sets"), [(10, 1), (10, 2), (10, 4), (7, 3), (5, 5), (100, 8)])
def test_classes_are_divided_evenly(count, sets):
    vectors = np.random.default_rng(count).normal(size=(count, 12))
    found = cluster_classes(vectors, sets)
    assert sorted(c for members in found for c in members) == list(range(count))
    sizes = [len(members) for members in found]
    assert max(sizes) - min(sizes) <= 1
    assert found == cluster_classes(vectors, sets)
    assert found == cluster_classes(3.0 * vectors, sets)  # of a cosine


def test_planted_classes_are_found():
    rng = np.random.default_rng(0)
    for _ in range(20):
        centres = np.linalg.qr(rng.normal(size=(8, 8)))[0][:3]
        owner = rng.permutation(np.arange(11) % 3)
        found = cluster_classes(centres[owner] + 0.1 * rng.normal(size=(11, 8)), 3)
        assert found == tuple(sorted(tuple(np.flatnonzero(owner == k).tolist()) for k in range(3)))


def test_similarity_within_sets_is_near_the_best_there_is():
    def similarity(vectors, sets):
        x = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return sum(np.linalg.norm(x[list(members)].sum(0)) for members in sets)

    rng, shortfalls = np.random.default_rng(1), []
    for _ in range(20):
        vectors = rng.normal(size=(8, 4))
        halves = (h for h in itertools.combinations(range(8), 4) if 0 in h)
        best = max(similarity(vectors, (h, [c for c in range(8) if c not in h])) for h in halves)
        shortfalls.append(1 - similarity(vectors, cluster_classes(vectors, 2)) / best)
    assert min(shortfalls) >= -1e-12
    assert np.mean(shortfalls) < 0.05


def test_sets_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="3 classes make 1 to 3 sets, asked for 4"):
        cluster_classes(np.eye(3), 4)


# -- the composition -----------------------------------------------------------------------------------


@pytest.mark.parametrize("combine", ["concat", "sum", "mean"])
def test_parallel_compositions_join_what_their_branches_give(combine):
    torch.manual_seed(0)
    nets = [nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3))]
    x = torch.randn(5, 4)
    outputs = torch.stack([net(x) for net in nets])
    want = {"concat": torch.cat(list(outputs), 1), "sum": outputs.sum(0), "mean": outputs.mean(0)}[combine]
    made = Branches(None, nets, combine=combine)
    torch.testing.assert_close(made(x), want)
    assert counted_costs(made, x)["macs"] == sum(counted_costs(net, x)["macs"] for net in nets)
    trunk = nn.Linear(6, 4)
    z = torch.randn(5, 6)
    torch.testing.assert_close(Branches(trunk, nets, combine=combine)(z), made(trunk(z)))


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        (([],), {}, "at least one branch"),
        (([nn.Identity()],), {"combine": "product"}, "combined by concat, sum, mean"),
        (([nn.Identity()] * 2, [(0, 1), (1, 2)]), {}, "each once"),
        (([nn.Identity()] * 2, [(0, 1)]), {}, "one set a branch"),
        (([nn.Identity()], [(0,)]), {"combine": "sum"}, "for combine='concat'"),
    ],
)
def test_compositions_that_make_no_sense_are_refused(args, options, message):
    with pytest.raises(ValueError, match=message):
        Branches(None, *args, **options)


# -- the place ------------------------------------------------------------------------------------------


class Stream(nn.Module):
    """The same channels all through, as in a transformer."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(5, 8)
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(4)
        )
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        x = self.enter(x)
        for part in self.parts:
            x = x + part(x)
        return self.out(x)


def test_branches_that_save_nothing_are_refused_unless_asked_for():
    blueprint = trace(Stream().eval(), torch.randn(3, 5))
    with pytest.raises(ValueError, match="branches save less than 2% wherever they begin"):
        blueprint.space("branches")
    space = blueprint.space("branches", branch_place="enter")
    whole, two, four = space.cost_arrays([space.candidate((k,)) for k in range(3)])["macs"]
    assert whole == two == four
