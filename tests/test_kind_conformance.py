"""Every kind of choices does what kinds must do, the one of docs/extending.md included."""

import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from netcarve import Space, trace
from netcarve.commands.arguments import kinds_of
from netcarve.devices import Device, Link
from netcarve.spaces.kinds import known_kinds, read_options
from netcarve.spaces.testing import KindConformance, ToyNet, fingerprint
from torch import nn

GUIDE = Path(__file__).parents[1] / "docs" / "extending.md"


class TestPrune(KindConformance):
    kind = "prune"


class TestDrop(KindConformance):
    kind, beside = "drop", ("prune",)


class TestMask(KindConformance):
    kind, beside, options = "mask", ("prune",), {"sparsities": (0.0, 0.5), "granularity": "row"}


class TestSplits(KindConformance):
    kind, beside = "splits", ("prune", "drop")
    options = {"devices": (Device("edge"), Device("server")), "links": Link(8, 2)}  # noqa: RUF012


class TestWidth(KindConformance):
    kind, beside = "width", ("prune",)


class TestGroup(KindConformance):
    kind, beside = "group", ("width", "prune")


class TestExits(KindConformance):
    kind, beside, options = "exits", ("prune",), {"exits": 1, "thresholds": (0.9, 0.5)}


class TestBranches(KindConformance):
    kind, beside, options = "branches", ("prune",), {"branches": (1, 2), "branch_place": "stem"}


class TestOperators(KindConformance):
    kind, beside, options = "operators", ("prune", "drop"), {"operators": ("svd",)}


class TestBypass(KindConformance):
    kind, beside = "bypass", ("prune", "operators")

    @classmethod
    @cache
    def made(cls):
        model, x = cls.network()
        blueprint = trace(model, x)
        data = blueprint.calibrate([((torch.randn(24, *x.shape[1:], generator=torch.Generator()),), {})])
        options = {"operators": ("svd",), "ratios": 3, "calibration": data}
        return blueprint, blueprint.space(cls.kind, *cls.beside, **options)


class TestBits(KindConformance):
    kind, beside = "bits", ("prune", "mask", "drop")


@pytest.mark.slow
class TestBitsOfOperators(KindConformance):
    kind, beside, options = (
        "bits",
        ("operators", "prune"),
        {"operators": ("svd", "codebook"), "bits_group": 8},
    )


class RewritableToy(ToyNet):
    """With an average pool behind a convolution, and branches that are added."""

    def __init__(self) -> None:
        super().__init__()
        self.beside, self.down = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.block(x)
        x = torch.relu(nn.functional.avg_pool2d(self.down(x) + self.beside(x), 2))
        return self.out(torch.relu(self.hidden(x.mean((2, 3)))))


class TestRewrite(KindConformance):
    kind, beside = "rewrite", ("prune", "drop")

    @classmethod
    def network(cls):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return RewritableToy().eval(), torch.randn(4, 3, 6, 6)


def test_all_installed_kinds_are_tried():
    tried = {cls.kind for cls in KindConformance.__subclasses__()}
    assert tried >= set(known_kinds())


def test_spaces_with_other_calibrations_are_not_joined():
    model, x = KindConformance.network()
    blueprint = trace(model, x)
    data = blueprint.calibrate([((x,), {})])
    pruned, dropped = (blueprint.space(kind, calibration=data) for kind in ("prune", "drop"))
    assert len(pruned + dropped) == len(pruned) + len(dropped)
    assert (pruned + blueprint.space("drop")).model.mending.calibrated is data
    with pytest.raises(ValueError, match=r"different calibrations.*calibrate once"):
        pruned + blueprint.space("drop", calibration=[((x,), {})])


@pytest.fixture
def uniform(tmp_path, monkeypatch):
    """The guide's kind, installed as another package would."""
    code = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)[0]
    (tmp_path / "uniform_kind.py").write_text(code)
    info = tmp_path / "uniform_kind-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: uniform-kind\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[netcarve.kinds]\nuniform = uniform_kind:Uniform\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "uniform"
    sys.modules.pop("uniform_kind", None)


def test_a_kind_of_another_package_is_one_of_them(uniform):
    suite = type("TestUniform", (KindConformance,), {"kind": uniform, "options": {"shares": (0.0, 0.5)}})
    for name in (n for n in dir(suite) if n.startswith("test_")):
        getattr(suite(), name)()
    assert uniform in known_kinds()
    assert kinds_of(["prune", "uniform"]) == ("prune", "uniform")
    assert read_options([uniform], {"shares": "0,0.5"}) == {"shares": [0.0, 0.5]}
    blueprint, space = suite.made()
    assert len(space) == 1
    assert space.size == 2
    joined = space + blueprint.space("prune")
    with pytest.raises(ValueError, match="both decide about 'stem"):
        joined.cost_arrays([joined.baseline])


def test_options_are_read_from_text():
    kinds = ["mask", "exits", "splits", "branches", "bits"]
    texts = {
        "sparsities": "0, 0.5, 2:4",
        "norm": "2",
        "bits-activations": "8",
        "bits-scheme": "symmetric",
        "exit-places": "a,b",
        "parts": "none",
        "sensitivity": "true",
    }
    assert read_options(kinds, texts) == {
        "sparsities": [0.0, 0.5, "2:4"],
        "norm": 2,
        "bits_activations": 8,
        "bits_scheme": "symmetric",
        "exit_places": ["a", "b"],
        "parts": None,
        "sensitivity": True,
    }
    for texts, message in (
        ({"sparsites": "0"}, "did you mean sparsities"),
        ({"norm": "two"}, "'norm' is a whole number, got 'two'"),
        ({"devices": "edge"}, "cannot be given as text"),
    ):
        with pytest.raises(ValueError, match=message):
            read_options(kinds, texts)


def test_narrowed_options_keep_their_meaning():
    model, x = KindConformance.network()
    space = trace(model, x).space("prune", "mask", ratios=4)
    choices = [replace(c, options=(c.options[0], c.options[-1])) for c in space.choices]
    narrow = Space(choices, model=space.model)
    last = narrow.candidate(narrow.counts - 1)
    same = space.from_values(last.values)
    assert fingerprint(narrow.build(last), x) == fingerprint(space.build(same), x)
    for name, value in narrow.cost_arrays([last]).items():
        assert value[0] == space.cost_arrays([same])[name][0]
