"""What every compact operator must do, to inherit, for operators of other packages too::

    from netcarve.model.operators.conformance import OperatorConformance

    class TestMine(OperatorConformance):
        operator = "mine"

        def formula(self, site, option):
            return macs, params  # as published

Runs under pytest, in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import torch

from .counting import count
from .initialise import Targets, initialise, refit
from .site import Operator, Site, operator
from .stages import Substitute

STEPS = 5  # of the regression of those that need one
# kernel, stride, dilation, inputs, outputs, groups, padding; a linear layer has no kernel
GRID: dict[str, tuple[tuple[int, ...], int, int, int, int, int, bool]] = {
    "3x3": ((3, 3), 1, 1, 8, 12, 1, True),
    "3x3 narrowing": ((3, 3), 1, 1, 12, 8, 1, True),
    "3x3 stride 2": ((3, 3), 2, 1, 8, 8, 1, True),
    "3x3 dilation 2": ((3, 3), 1, 2, 8, 8, 1, True),
    "3x3 no padding": ((3, 3), 1, 1, 8, 8, 1, False),
    "3x3 groups": ((3, 3), 1, 1, 8, 8, 2, True),
    "5x5 stride 2": ((5, 5), 2, 1, 6, 9, 1, True),
    "1x1": ((1, 1), 1, 1, 8, 12, 1, True),
    "1x1 stride 2": ((1, 1), 2, 1, 8, 12, 1, True),
    "3 over one axis": ((3,), 1, 1, 8, 12, 1, True),
    "linear": ((), 1, 1, 12, 16, 1, True),
    "pruned": ((3, 3), 1, 1, 7, 11, 1, True),
}


def site_of(
    name: str, *, bias: bool = True, nonnegative: bool = True, kind: torch.dtype = torch.float64
) -> Site:
    """A site of :data:`GRID` with random weights."""
    kernel, stride, dilation, inputs, outputs, groups, padded = GRID[name]
    generator = torch.Generator().manual_seed(len(name))
    weight = torch.randn(outputs, inputs // groups, *kernel, generator=generator, dtype=torch.float64)
    dims = len(kernel)
    return Site(
        weight.to(kind),
        torch.randn(outputs, generator=generator, dtype=torch.float64).to(kind) if bias else None,
        (stride,) * dims,
        tuple(dilation * (k // 2) if padded else 0 for k in kernel),
        (dilation,) * dims,
        groups,
        (9, 8)[:dims] if dims else (5,),
        nonnegative,
        True,
        name=name,
        head=0 if dims else 4,
    )


def inputs_of(site: Site, batch: int = 6) -> torch.Tensor:
    """Random inputs, none below zero where the site says so."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(site.example(batch).shape, generator=generator, dtype=torch.float64).to(site.weight.dtype)
    return x.abs() if site.nonnegative else x


class OperatorConformance:
    """Inherit, and set ``operator`` to the name of one that is installed.

    Attributes:
        saves: it has options that save multiply-accumulates or bytes.
    """

    operator: ClassVar[str]
    saves: ClassVar[bool] = True

    def formula(self, site: Site, option: float) -> tuple[int, int] | None:
        """Multiply-accumulates of one sample, and parameters beside the layer's own bias, as published."""
        return None

    @classmethod
    def made(cls) -> Operator:
        return operator(cls.operator)

    @classmethod
    def sites(cls, *, kind: torch.dtype = torch.float64, bias: bool = True) -> Iterator[Site]:
        """Those of the grid that it takes; there must be one."""
        found = [site for name in GRID if not cls.made().refuses(site := site_of(name, kind=kind, bias=bias))]
        assert found
        yield from found

    @classmethod
    def fitted(cls) -> list[Site]:
        """Some of the sites, on which it is fitted: one where it is regressed first."""
        return [*cls.sites()][:: 100 if cls.made().curved else 3]

    @classmethod
    def sizes(cls, site: Site) -> list[float]:
        """All options at a site, the exact one too."""
        exact = cls.made().exact(site)
        return [*cls.made().options(site), *([] if exact is None else [exact])]

    def test_exact_option_is_the_layer(self) -> None:
        """Whatever the layer: 1e-10 in float64."""
        for bias in (True, False):
            for site in self.sites(bias=bias):
                exact = self.made().exact(site)
                if exact is not None:
                    x, new = inputs_of(site), initialise(self.made(), site, exact)
                    with torch.no_grad():
                        torch.testing.assert_close(new(x), site(x), rtol=1e-10, atol=1e-10)

    def test_outputs_have_the_layer_s_shape(self) -> None:
        for site in self.sites():
            for option in self.sizes(site):
                new = initialise(self.made(), site, option)
                x = inputs_of(site)
                assert new(x).shape == site(x).shape
                assert new(x[:1]).shape == site(x[:1]).shape

    def test_any_option_at_any_width(self) -> None:
        """A pruned layer may have any width; what is counted without weights is what is built with them."""
        for site in [*self.sites()][::2]:
            for outputs, inputs in ((1, 1), (3, 2), (5, 9)):
                weight = site.weight.new_zeros(outputs, inputs, *site.kernel).normal_(
                    generator=torch.Generator().manual_seed(0)
                )
                cut = replace(site, weight=weight, bias=weight.new_zeros(outputs))
                for option in self.sizes(site):
                    new = initialise(self.made(), cut, option)
                    assert new(inputs_of(cut)).shape == cut(inputs_of(cut)).shape
                    bare = cut.resized(outputs, inputs)
                    assert count(self.made().build(bare, option), bare.example()) == count(new, cut.example())

    def test_fitting_loses_nothing(self) -> None:
        """On the inputs that it is fitted to."""
        for site in self.sites():
            x = inputs_of(site, 24)
            y = site(x)
            for option in self.made().options(site):
                new = initialise(self.made(), site, option)
                with torch.no_grad():
                    before = (new(x) - y).square().sum()
                    targets = Targets.of(y, site.axis, rows=10**9)
                    refit(new, x, targets, intercept=True, ridge=1e-9)
                    assert (new(x) - y).square().sum() <= before * (1 + 1e-6) + 1e-9

    def test_weights_depend_on_the_layer_s(self) -> None:
        for site in self.fitted():
            other = replace(site, weight=site.weight.flip(0).flip(1) * 1.5)
            for option in self.made().options(site):
                x = inputs_of(site)
                a, b = (initialise(self.made(), one, option, x, steps=STEPS) for one in (site, other))
                assert not torch.allclose(a(x), b(x))

    def test_same_weights_each_time(self) -> None:
        for site in self.fitted():
            for option in self.sizes(site):
                a, b = (initialise(self.made(), site, option, inputs_of(site), steps=STEPS) for _ in range(2))
                for name, value in a.state_dict().items():
                    assert torch.equal(value, b.state_dict()[name]), name

    def test_state_goes_round(self) -> None:
        for site in self.sites():
            for option in self.sizes(site):
                new = initialise(self.made(), site, option)
                again = self.made().build(site, option)
                again.load_state_dict(new.state_dict())
                assert torch.equal(again(inputs_of(site)), new(inputs_of(site)))

    def test_gradients_reach_every_weight(self) -> None:
        for site in self.sites():
            for option in self.made().options(site):
                new = initialise(self.made(), site, option)
                (new(inputs_of(site)) - 1).square().sum().backward()
                for name, value in new.named_parameters():
                    assert value.grad is not None, (site.name, option, name)
                    assert value.grad.abs().sum() > 0, (site.name, option, name)

    def test_costs_are_as_published(self) -> None:
        """Counted from what is built, beside the formula."""
        for bias in (True, False):
            for site in self.sites(bias=bias):
                for option in self.sizes(site):
                    wanted = self.formula(site, option)
                    if wanted is None:
                        continue
                    found = count(self.made().build(site, option), site.example())
                    macs, params = wanted
                    of_bias = site.outputs if bias else 0
                    assert (found.macs, found.params) == (macs, params + of_bias), (site.name, option)

    def test_it_exports(self) -> None:
        for site in [*self.sites(kind=torch.float32)][:1]:
            new = self._some(site)
            x = inputs_of(site)
            batch = {0: torch.export.Dim("batch", min=2)}
            program = torch.export.export(new, (x,), dynamic_shapes=(batch,))
            torch.testing.assert_close(program.module()(x[:3]), new(x[:3]), rtol=1e-5, atol=1e-5)

    def test_it_runs_in_onnx(self) -> None:
        import onnxruntime  # type: ignore[import-untyped]

        for site in [*self.sites(kind=torch.float32)][:1]:
            new, x = self._some(site), inputs_of(site)
            with TemporaryDirectory() as folder:
                file = Path(folder, "operator.onnx")
                torch.onnx.export(new, (x,), file, dynamo=True, verbose=False)
                session = onnxruntime.InferenceSession(file)
            found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
            torch.testing.assert_close(torch.from_numpy(found), new(x).detach(), rtol=1e-4, atol=1e-4)

    def test_it_says_why_where_it_does_not_apply(self) -> None:
        reasons = {name: self.made().refuses(site_of(name)) for name in GRID}
        assert reasons["3x3 groups"]
        for name, reason in reasons.items():
            assert reason == reason.strip(), name
            assert not reason.endswith("."), name

    def test_options_are_cheaper_somewhere(self) -> None:
        """A wide layer with a kernel, or a wide linear one: every operator saves something there."""
        saved = []
        for kernel in ((3, 3), ()):
            dims = len(kernel)
            weight = torch.empty(64, 64, *kernel, device="meta")
            wide = Site(weight, None, (1,) * dims, (1,) * dims, (1,) * dims, 1, (8,) * max(dims, 1), True)
            wide = replace(wide, head=0 if dims else 8)
            if not self.made().refuses(wide):
                for option in self.made().options(wide):
                    costs = count(self.made().build(wide, option), wide.example())
                    saved.append(costs.macs < wide.macs or costs.bytes < 4 * weight.numel())
        assert any(saved) == self.saves

    def _some(self, site: Site) -> Substitute:
        return initialise(self.made(), site, self.sizes(site)[0])
