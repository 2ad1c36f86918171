"""Splits that cannot be are refused, with the reason and the cure."""

import netcarve
import pytest
import torch
from netcarve.__main__ import run as command
from netcarve.devices import Device, Link
from netcarve.model.stages import CutError
from netcarve.spaces.kinds import make_kinds
from netcarve.spaces.kinds.splits.kind import SplitsKind
from torch import nn


@pytest.fixture(scope="module")
def blueprint():
    torch.manual_seed(0)
    parts = {
        "a": nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()),
        "b": nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        "c": nn.Sequential(nn.Conv2d(8, 6, 3, stride=2), nn.ReLU()),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "head": nn.Linear(6, 5),
    }
    net = nn.Sequential()
    for name, part in parts.items():
        net.add_module(name, part)
    return netcarve.trace(net.eval(), torch.randn(4, 3, 8, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "both"}, "encoding is 'positions' or 'each', got 'both'"),
        ({"placement": "random"}, "placement is 'ordered' or 'free'"),
        ({"encoding": "each", "parts": 3}, "leave out parts"),
        ({"encoding": "each", "placement": "free"}, "in turn"),
        ({"parts": 1}, "at least 2 parts, got parts=1"),
        ({"places": 0}, "at least 1 place"),
        ({"forced": "a"}, "a list of module names"),
        ({"devices": []}, "at least one device"),
        ({"devices": [Device("a"), Device("a")]}, "two devices are called 'a'"),
        ({"devices": [Device("a"), Device("b"), Device("c")], "links": [Link(), Link(), Link()]}, "3 links"),
    ],
)
def test_options_that_cannot_be_are_refused_before_any_work(options, message):
    with pytest.raises(ValueError, match=message):
        SplitsKind(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": 40}, r"40 parts need 39 places to cut, but this model has \d+; ask for fewer"),
        ({"parts": 12, "forbidden": ["a", "b", "c"]}, "outside the forbidden modules"),
        ({"forced": ["nothing"]}, "no legal cut right after module 'nothing'"),
        ({"forbidden": ["nothing"]}, "no cut lies in or after a module 'nothing'"),
        ({"forced": ["a"]}, "ask for at least 3 parts"),
    ],
)
def test_places_that_cannot_be_are_refused(blueprint, options, message):
    with pytest.raises(CutError, match=message):
        blueprint.space("splits", **options)


def test_kinds_that_the_cost_tables_do_not_follow_are_refused(blueprint):
    with pytest.raises(ValueError, match="splits and group cannot be searched together"):
        blueprint.space("splits", "group")


def test_options_of_other_kinds_are_refused(blueprint):
    with pytest.raises(TypeError, match="'parts' is of the kind 'splits', which is not asked for"):
        blueprint.space("prune", parts=2)
    with pytest.raises(TypeError, match="'part' is unknown; a space of splits takes parts, encoding"):
        blueprint.space("splits", part=2)
    with pytest.raises(ValueError, match="'splits' is given twice"):
        blueprint.space("splits", "splits")


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.seen += 1
        return self.b(torch.relu(self.a(x)))


def test_models_that_cannot_be_cut_say_why():
    with pytest.raises(CutError, match="has state between calls: it writes on seen"):
        netcarve.trace(Counting(), torch.randn(2, 4)).space("splits")
    with pytest.raises(CutError, match="Linear has no place to cut"):
        netcarve.trace(nn.Linear(4, 4), torch.randn(2, 4)).space("splits")
    single = netcarve.trace(nn.Linear(4, 4), torch.randn(2, 4))
    assert single.cuts == ()


def test_a_space_without_splits_has_no_stages(blueprint):
    space = blueprint.space("prune", ratios=2)
    with pytest.raises(ValueError, match="has no splits"):
        space.model.stages(space.baseline)


@pytest.mark.parametrize(
    "kinds", [("splits", "width"), ("mask", "group"), ("exits", "splits"), ("branches", "group")]
)
def test_kinds_that_do_not_go_together_are_refused_before_the_model_is_proven(kinds):
    with pytest.raises(ValueError, match="cannot be"):
        make_kinds(kinds, {})


@pytest.mark.quick("arguments0", "arguments2", "arguments3")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--force", "stem"], "add splits to --space: --space prune,splits"),
        (["--space", "splits", "--forbid", "nothing"], "no cut lies in or after a module 'nothing'"),
        (["--space", "splits", "--searcher", "greedy-merge", "--parts", "3"], "leave out --parts"),
        (["--space", "splits", "--searcher", "greedy-split", "--placement", "free"], "--limit 'stages<=3'"),
    ],
)
def test_the_command_line_refuses_in_a_line(arguments, says, capsys):
    assert command(["sweep", "digits", *arguments]) == 2
    assert says in capsys.readouterr().err
