"""Every compact operator does what operators must do, at the cost that its publication gives."""

import math

import pytest
from netcarve.model.operators.conformance import OperatorConformance
from netcarve.model.operators.connected import balanced_chain
from netcarve.model.operators.shared import ATOMS
from netcarve.model.operators.site import known_operators, operator

# One of each way to be built and started; the others take the same care, and longer.
QUICK = (
    "svd",
    "separable",
    "inverted-residual",
    "shift",
    "fire",
    "learned-groups",
    "interleaved",
    "dictionary",
    "sparse",
)


def read(site):
    """Places of the input."""
    return math.prod(site.size)


def given(site):
    """Places of the output."""
    return math.prod(site.output_size)


def share(full, option):
    return max(1, min(full, round(full * option)))


def svd(site, option):
    rank = share(min(site.outputs, site.inputs * site.taps), option)
    params = rank * (site.taps * site.inputs + site.outputs)
    return params * given(site), params


def spatial_svd(site, option):
    kh, kw = site.kernel
    rank = share(min(site.inputs * kh, site.outputs * kw), option)
    first, second = rank * kh * site.inputs, rank * kw * site.outputs
    return first * site.output_size[0] * site.size[1] + second * given(site), first + second


def tucker(site, option):
    r1, r2 = share(site.inputs, option), share(site.outputs, option)
    first, rest = site.inputs * r1, site.taps * r1 * r2 + r2 * site.outputs
    return first * read(site) + rest * given(site), first + rest


def cp(site, option):
    rank, at = round(option * site.inputs), list(site.size)
    macs, params = read(site) * rank * site.inputs, rank * (site.inputs + sum(site.kernel) + site.outputs)
    for axis, k in enumerate(site.kernel):
        at[axis] = site.output_size[axis]
        macs += rank * k * math.prod(at)
    return macs + rank * site.outputs * given(site), params


def basis(site, option):
    kh, kw = site.kernel
    full = min(site.outputs, site.inputs * max(site.kernel))
    each = full if option == 1 else max(1, round(site.outputs * option / 2))
    square = min(site.outputs, site.inputs * site.taps) if option == 1 else 0
    params = site.inputs * (each * (kh + kw) + square * site.taps) + (2 * each + square) * site.outputs
    return params * given(site), params


def separable(site, option):
    params = option * site.inputs * (site.taps + site.outputs)
    return params * given(site), params


def mobilenet(site, option):
    macs, params = separable(site, option)
    return macs, params + option * site.inputs


def inverted_residual(site, option):
    middle = option * site.inputs
    macs = middle * (site.inputs * read(site) + (site.taps + site.outputs) * given(site))
    return macs, middle * (site.inputs + site.taps + site.outputs)


def shift(site, option):
    middle = share(site.taps * min(site.inputs, site.outputs), option)
    macs = middle * (site.inputs * read(site) + site.outputs * given(site))
    return macs, middle * (site.inputs + site.outputs)


def fire_linear(site, option):
    squeezed = share(site.inputs, option)
    e1 = 0 if option == 1 else site.outputs // 2
    expands = squeezed * (e1 + site.taps * (site.outputs - e1))
    return squeezed * site.inputs * read(site) + expands * given(site), squeezed * site.inputs + expands


def fire(site, option):
    macs, params = fire_linear(site, option)
    return macs, params + share(site.inputs, option)


def learned_groups(site, option):
    """The sum of the products of balanced sizes; 1 / G where G divides both sides."""
    sizes = [[n // option + (g < n % option) for g in range(option)] for n in (site.outputs, site.inputs)]
    params = site.taps * sum(o * i for o, i in zip(*sizes, strict=True))
    return params * given(site), params


def expander(site, option):
    params = site.taps * max(share(site.inputs, option), math.ceil(site.inputs / site.outputs)) * site.outputs
    return params * given(site), params


def dictionary(site, option):
    size = share(site.inputs, option)
    looked = (size if option == 1 else min(ATOMS, size)) * site.taps * site.outputs
    params = size * site.inputs + looked
    return size * site.inputs * read(site) + looked * given(site), params


def chain(site, into, out):
    """Of grouped layers, the first with the kernel: every width times the outputs of a group."""
    width, params, taps = math.prod(into), 0, site.taps
    for i, o in zip(into, out, strict=True):
        params += taps * width * o
        width, taps = width // i * o, 1
    filled = width - site.outputs if site.bias is not None else 0
    return params * given(site), params + filled


def interleaved(site, option):
    """G^2 (k^2 / L + 1 / M) with G = L M channels on both sides."""
    return chain(site, *([math.ceil(n / option), option] for n in (site.inputs, site.outputs)))


def interleaved_v2(site, option):
    return chain(site, *(balanced_chain(n, option, site.taps) for n in (site.inputs, site.outputs)))


def shuffle(site, option):
    between = option * max(1, round(site.outputs / 4 / option))
    first, rest = between * site.inputs // option, between * (site.taps + site.outputs // option)
    return first * read(site) + rest * given(site), first + between + rest


def shuffle_v2(site, option):
    """c^2 / 2 + (k^2 + 1) c / 2 at stride 1 with c channels."""
    first = min(site.inputs, site.outputs) // 2 if site.same else site.outputs // 2
    between = max(1, round(option * (site.outputs - first)))
    params = between * (site.inputs - first if site.same else site.inputs)
    macs = params * read(site)
    rest = between * (site.taps + site.outputs - first)
    if not site.same:
        rest += site.inputs * (site.taps + first)
    copied = first if site.same and site.bias is not None else 0  # they have no constants
    return macs + rest * given(site), params + between + rest - copied


def collaborative(site, option):
    """The layer, and 1 / k^2 of it for the gates, which have constants."""
    gate = site.inputs * site.outputs
    return site.macs + gate * given(site), site.weight.numel() + gate + site.outputs


def circulant(site, option):
    blocks = math.ceil(site.outputs / option) * math.ceil(site.inputs / option)
    return site.macs, site.taps * option * blocks


def codebook(site, option):
    return site.macs, option


def kronecker(site, option):
    def factors(n):
        small = next(f for f in range(math.isqrt(n), 0, -1) if n % f == 0)
        return small, n // small

    (o1, o2), (i1, i2) = factors(site.outputs), factors(site.inputs)
    macs = option * (o2 * site.inputs + o1 * o2 * i1)
    return macs * read(site), option * (o1 * i1 + o2 * i2)


def versatile(site, option):
    """Windows of k, k - 2, ... of each filter; a scale for each output."""
    windows = [
        math.prod(k - 2 * ring for k in site.kernel) for ring in range(math.ceil(min(site.kernel) / 2))
    ]
    filters = math.ceil(site.outputs / len(windows))
    macs = filters * site.inputs * sum(windows) + site.outputs
    return macs * given(site), filters * site.inputs * site.taps + site.outputs


def versatile_channels(site, option):
    """An n-th of the layer, by filters that n outputs share; a scale for each output."""
    width, primaries = math.ceil(site.inputs / option), math.ceil(site.outputs / option)
    filters = site.taps * width * primaries
    return (option * filters + site.outputs) * given(site), filters + site.outputs


def sparse(site, option):
    """One multiply-accumulate a weight and place."""
    entries = max(1, round(option * site.weight.numel()))
    return entries * given(site), entries


def direct(site, option):
    """As the layer, in whatever blocks."""
    return site.macs, site.weight.numel()


def linear(site, option):
    params = site.outputs * site.inputs * math.prod(min(side, int(option)) for side in site.kernel)
    return params * given(site), params


def shared_heads(site, option):
    size = math.gcd(site.head, site.outputs)
    heads = site.outputs // size
    params = share(heads, option) * size * site.inputs + heads * size**2
    return params * given(site), params


FORMULAS = {
    "basis": basis,
    "circulant": circulant,
    "codebook": codebook,
    "collaborative": collaborative,
    "cp": cp,
    "dictionary": dictionary,
    "direct": direct,
    "expander": expander,
    "fire": fire,
    "fire-linear": fire_linear,
    "interleaved": interleaved,
    "interleaved-v2": interleaved_v2,
    "inverted-residual": inverted_residual,
    "kronecker": kronecker,
    "learned-groups": learned_groups,
    "mobilenet": mobilenet,
    "output-pca": svd,
    "separable": separable,
    "shift": shift,
    "shuffle": shuffle,
    "shuffle-v2": shuffle_v2,
    "sparse": sparse,
    "spatial-svd": spatial_svd,
    "linear": linear,
    "shared-heads": shared_heads,
    "svd": svd,
    "tucker": tucker,
    "versatile": versatile,
    "versatile-channels": versatile_channels,
}


class TestSVD(OperatorConformance):
    operator = "svd"

    def formula(self, site, option):
        return svd(site, option)


class _Others(OperatorConformance):
    """One operator runs in ONNX in the quick run: each takes a second."""

    test_it_runs_in_onnx = pytest.mark.slow(OperatorConformance.test_it_runs_in_onnx)

    def formula(self, site, option):
        return FORMULAS[self.operator](site, option)


for _name in known_operators():
    if _name != "svd":
        _class = type(
            f"Test_{_name.replace('-', '_')}",
            (_Others,),
            {"operator": _name, "saves": _name not in ("collaborative", "direct")},
        )
        globals()[_class.__name__] = _class if _name in QUICK else pytest.mark.slow(_class)


def test_names_are_those_of_the_classes():
    assert [operator(name).name for name in known_operators()] == known_operators()


def test_an_unknown_operator_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown operator 'svdd'; known are basis, "):
        operator("svdd")
