"""What publications say of each compact system: planted layers found again, optimal errors, identities."""

import math

import numpy as np
import pytest
import torch
from netcarve.model.operators.connected import balanced_chain, interleaved_factors, regular
from netcarve.model.operators.counting import count
from netcarve.model.operators.initialise import Targets, initialise, refit
from netcarve.model.operators.shared import k_means, learned_dictionary, pursuit
from netcarve.model.operators.site import Site, operator
from netcarve.model.operators.stages import Shift, Tail, shuffle
from torch.nn import functional


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv(weight, *, nonnegative=False, stride=1, **others):
    """A layer of stride 1, padded by half its kernel."""
    dims, padding = weight.dim() - 2, tuple(k // 2 for k in weight.shape[2:])
    sizes = {"size": (8,) * dims} if dims else {}
    return Site(
        weight, None, (stride,) * dims, padding, (1,) * dims, nonnegative=nonnegative, **sizes, **others
    )


def started(name, site, option):
    return initialise(operator(name), site, option)


@torch.no_grad()
def kernel_of(new, site):
    """The dense weight that a linear substitute stands for, from its answers to single ones."""
    if not site.dims:
        return new(torch.eye(site.inputs, dtype=torch.float64)).T
    sides = tuple(2 * k - 1 for k in site.kernel)
    x = torch.zeros(site.inputs, site.inputs, *sides, dtype=torch.float64)
    x[(range(site.inputs), range(site.inputs), *(k - 1 for k in site.kernel))] = 1
    inside = tuple(slice(k - 1 - k // 2, 2 * k - 1 - k // 2) for k in site.kernel)
    y = new(x)[(..., *inside)].flip([*range(2, 2 + site.dims)])
    return y.transpose(0, 1)


def error(new, site):
    """Squared Frobenius distance of the weights."""
    return float((kernel_of(new, site) - site.weight).square().sum())


# -- low rank ---------------------------------------------------------------------------------------------


def test_the_kernel_is_read_off_as_it_is():
    site = conv(drawn(5, 4, 3, 3))
    assert torch.allclose(kernel_of(site, site), site.weight)


@pytest.mark.parametrize("option", [0.25, 0.5])
def test_svd_misses_the_discarded_singular_values(option):
    site = conv(drawn(12, 8, 3, 3))
    values = torch.linalg.svdvals(site.weight.flatten(1))
    assert math.isclose(error(started("svd", site, option), site), values[int(12 * option) :].square().sum())
    rows = site.weight.permute(1, 2, 3, 0).reshape(24, 36)
    values = torch.linalg.svdvals(rows)
    found = error(started("spatial-svd", site, option), site)
    assert math.isclose(found, values[int(24 * option) :].square().sum())


@pytest.mark.parametrize("multiplier", [1, 2, 4])
def test_separable_misses_the_discarded_singular_values_of_each_input(multiplier):
    site = conv(drawn(12, 8, 3, 3))
    values = torch.linalg.svdvals(site.weight.flatten(2).transpose(0, 1))
    found = error(started("separable", site, multiplier), site)
    assert math.isclose(found, values[:, multiplier:].square().sum(), rel_tol=1e-10)


def test_tucker_finds_a_planted_core_again():
    core, into, out = drawn(6, 4, 3, 3), drawn(16, 4, seed=1), drawn(12, 6, seed=2)
    site = conv(torch.einsum("srij,cr,os->ocij", core, into, out))
    assert error(started("tucker", site, 0.5), site) < 1e-20 * site.weight.square().sum()


def test_cp_comes_close_to_planted_terms():
    a, b, u, v = (drawn(n, 3, seed=n) for n in (12, 6, 3, 3))
    site = conv(torch.einsum("or,cr,ir,jr->ocij", a, b, u, v))
    assert error(started("cp", site, 1), site) < 1e-2 * site.weight.square().sum()


def test_principal_components_of_real_outputs_miss_less_of_them():
    """Inputs of few directions: the weight's own singular vectors do not know of them."""
    x = torch.einsum("bihw,ij->bjhw", drawn(16, 3, 8, 8), drawn(3, 8, seed=5)) + 0.05 * drawn(16, 8, 8, 8)
    site = conv(drawn(12, 8, 3, 3))
    seen = conv(site.weight, inputs_seen=x)
    with torch.no_grad():
        missed = [
            float((started(name, seen, 0.25)(x) - site(x)).square().sum()) for name in ("output-pca", "svd")
        ]
    assert missed[0] < 0.8 * missed[1]


# -- separable, inverted residual, fire, shift ------------------------------------------------------------


@pytest.mark.parametrize("t", [2, 4, 6])
def test_inverted_residual_is_separable_on_what_is_not_negative(t):
    site, x = conv(drawn(12, 8, 3, 3), nonnegative=True), drawn(2, 8, 8, 8, seed=1)
    through, straight = started("inverted-residual", site, t), started("separable", site, t / 2)
    with torch.no_grad():
        torch.testing.assert_close(through(x.abs()), straight(x.abs()), rtol=1e-10, atol=1e-10)
        assert not torch.allclose(through(x), straight(x), rtol=0.1)


def test_inverted_residual_refuses_what_its_relu_would_cut():
    assert "below zero" in operator("inverted-residual").refuses(conv(drawn(12, 8, 3, 3)))


@pytest.mark.parametrize(
    ("inputs", "squeezed", "expanded", "params"),
    [(96, 16, 64, 11920), (128, 16, 64, 12432), (128, 32, 128, 45344), (256, 32, 128, 49440),
     (256, 48, 192, 104880), (384, 48, 192, 111024), (384, 64, 256, 188992), (512, 64, 256, 197184)],
)  # fmt: skip
def test_fires_of_squeezenet_have_the_published_parameters(inputs, squeezed, expanded, params):
    weight = torch.empty(2 * expanded, inputs, 3, 3, device="meta")
    site = Site(weight, weight.new_empty(len(weight)), (1, 1), (1, 1), (1, 1), size=(4, 4))
    built = operator("fire").build(site, squeezed / inputs)
    assert count(built, site.example()).params == params


def test_shift_is_a_depthwise_convolution_of_single_ones():
    moves = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    x, ones = drawn(2, 9, 6, 5), torch.zeros(9, 1, 3, 3, dtype=torch.float64)
    for channel, (a, b) in enumerate(moves):
        ones[channel, 0, 1 + a, 1 + b] = 1
    assert torch.equal(Shift(moves)(x), functional.conv2d(x, ones, padding=1, groups=9))
    assert not list(Shift(moves).parameters())
    assert count(Shift(moves), x[:1]).macs == 0


def test_shift_module_keeps_the_largest_singular_values_of_all_taps():
    site = conv(drawn(8, 8, 3, 3))
    values = torch.linalg.svdvals(site.wide.permute(2, 0, 1)).flatten().sort(descending=True).values
    assert math.isclose(error(started("shift", site, 0.25), site), values[18:].square().sum(), rel_tol=1e-9)


def test_loaded_displacements_move_the_channels():
    moved, still = Shift([(1, 0), (0, -1)], (1, 1)), Shift([(0, 0), (0, 0)], (1, 1))
    x = drawn(1, 2, 4, 4)
    assert not torch.equal(moved(x), still(x))
    still.load_state_dict(moved.state_dict())
    assert torch.equal(moved(x), still(x))


# -- shuffles and interleaved groups ----------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "groups"), [(12, 3), (60, 5), (8, 8), (6, 1)])
def test_shuffle_undoes_itself_with_the_other_number(channels, groups):
    there, back = shuffle(channels, groups), shuffle(channels, channels // groups)
    assert torch.equal(there[back], torch.arange(channels))


def test_groups_only_meet_through_the_shuffle():
    """Jacobian between groups of two grouped layers in a row: zero without the shuffle, full with it."""
    x, groups = drawn(8, 1), 2
    a, b = (drawn(8, 8 // groups, 1, seed=s) for s in (1, 2))

    def net(x, order):
        y = functional.conv1d(x[None], a, groups=groups)[:, order]
        return functional.conv1d(y, b, groups=groups)[0]

    without = torch.autograd.functional.jacobian(lambda x: net(x, torch.arange(8)), x)[:, 0, :, 0]
    across = torch.autograd.functional.jacobian(lambda x: net(x, shuffle(8, groups)), x)[:, 0, :, 0]
    assert without[:4, 4:].abs().max() == without[4:, :4].abs().max() == 0
    assert (across != 0).all()


@pytest.mark.parametrize(
    ("name", "option"), [("interleaved", 4), ("interleaved", 2), ("interleaved-v2", 2), ("interleaved-v2", 3)]
)
def test_interleaved_layers_are_found_again_and_join_every_pair_once(name, option):
    site = conv(drawn(16, 16, 3, 3))
    planted = operator(name).build(site, option)
    for n, layer in enumerate(planted.layers):
        layer.weight.data.copy_(drawn(*layer.weight.shape, seed=n))
    kernel = kernel_of(planted, site)
    assert (kernel != 0).all()
    again = started(name, conv(kernel), option)
    assert error(again, conv(kernel)) < 1e-24 * kernel.square().sum()
    for layer in again.layers:  # paths, as products of ones; on a map of one place only centres meet it
        layer.weight.data.fill_(1)
    paths = again(torch.eye(16, dtype=torch.float64)[..., None, None])
    assert torch.equal(paths.flatten(1), torch.ones(16, 16, dtype=torch.float64))


def test_chain_of_three_stages_costs_what_igcv2_says():
    sizes = (4, 4, 4)
    factors = interleaved_factors(drawn(64, 64, 9), sizes, sizes)
    assert sum(f.numel() for f in factors) == 64 * (9 * 4 + 4 + 4) == 2816
    assert math.prod(balanced_chain(64, 3, 9)) == 64
    assert balanced_chain(64, 3, 9)[0] == 1  # a depthwise kernel: k^2 K_1 is nearest to the others


def test_identity_half_is_found():
    """Outputs that copy an input are the first half of a ShuffleNet V2 unit."""
    weight = 0.3 * drawn(8, 8, 3, 3)
    copies = {1: 6, 2: 0, 5: 3, 7: 7}
    for out, into in copies.items():
        weight[out] = 0
        weight[out, into, 1, 1] = 1
    site, x = conv(weight), drawn(2, 8, 8, 8).abs()
    new = started("shuffle-v2", site, 1.0)
    with torch.no_grad():
        assert torch.equal(new(x)[:, list(copies)], x[:, list(copies.values())])


# -- learned groups, expanders ----------------------------------------------------------------------------


def test_hidden_groups_are_found_again():
    rows, columns = (torch.from_numpy(np.random.default_rng(s).permutation(16)) for s in (0, 1))
    weight = torch.block_diag(*drawn(4, 4, 4))[:, :, None, None] * drawn(16, 16, 3, 3, seed=1)
    site = conv(weight[rows][:, columns])
    assert error(started("learned-groups", site, 4), site) == 0


def test_groups_keep_more_energy_than_chance():
    site = conv(drawn(32, 32, 3, 3))
    kept = kernel_of(started("learned-groups", site, 4), site)
    inside = kept != 0
    assert torch.equal(kept[inside], site.weight[inside])  # as the masked dense layer
    assert inside.double().mean() == 0.25
    assert 0.28 < kept.square().sum() / site.weight.square().sum() < 0.35


@pytest.mark.parametrize(
    ("outputs", "inputs", "degree"), [(64, 64, 4), (64, 64, 8), (32, 64, 8), (64, 64, 32)]
)
def test_expanders_are_regular_on_both_sides_and_expand(outputs, inputs, degree):
    edges = regular(outputs, inputs, degree)
    mask = np.zeros((outputs, inputs))
    mask[np.arange(outputs)[:, None], edges] = 1
    d1, d2 = degree, outputs * degree / inputs
    assert (mask.sum(1) == d1).all()
    assert (mask.sum(0) == d2).all()
    first, second = np.linalg.svd(mask, compute_uv=False)[:2]
    assert second / first <= 1.1 * (math.sqrt(d1 - 1) + math.sqrt(d2 - 1)) / math.sqrt(d1 * d2)


@pytest.mark.parametrize(("degree", "layers"), [(2, 10), (4, 5), (8, 4)])
def test_expanders_join_all_channels_in_a_few_layers(degree, layers):
    reach = np.eye(64, dtype=bool)
    for n in range(layers):
        reach = reach[regular(64, 64, degree, seed=n)].any(1)
    assert reach.all()
    groups = np.kron(np.eye(64 // degree), np.ones((degree, degree))) > 0  # of equal density: never
    assert not np.linalg.matrix_power(groups.astype(np.int64), 3).all()


@pytest.mark.parametrize(("outputs", "inputs", "degree"), [(7, 5, 2), (5, 13, 3), (1, 1, 1), (9, 4, 1)])
def test_expanders_leave_no_channel_alone(outputs, inputs, degree):
    edges = regular(outputs, inputs, degree)
    assert all(len(set(row)) == degree for row in edges.tolist())
    counts = np.bincount(edges.ravel(), minlength=inputs)
    assert counts.max() - counts.min() <= 1


def test_refit_of_layers_that_share_inputs_is_that_of_each_output_alone():
    """Moments computed once for all, beside least squares of every output on what it reads."""
    site, x = conv(drawn(6, 8, 3, 3)), drawn(8, 8, 8, 8, seed=1)
    new, y = started("expander", site, 0.5), site(x)
    targets = Targets.of(y, site.axis, rows=10**6)
    refit(new, x, targets, intercept=False, ridge=1e-12)
    patches = functional.unfold(x, 3, padding=1).unflatten(1, (8, 9)).movedim(3, 1).flatten(0, 1)
    first = 0
    for tail in new.tails:
        assert isinstance(tail, Tail)
        for n, read in enumerate(tail.before.index.view(len(tail.layer.weight), -1)):
            rows = patches[:, read].flatten(1)
            wanted = torch.linalg.lstsq(rows, y.movedim(1, -1).reshape(-1, 6)[:, first + n]).solution
            torch.testing.assert_close(tail.layer.weight[n].flatten(), wanted, rtol=1e-6, atol=1e-8)
        first += len(tail.layer.weight)


# -- shared weights ---------------------------------------------------------------------------------------


def planted_dictionary(size, each, count=600, length=32):
    atoms = functional.normalize(drawn(size, length), dim=1)
    rng = np.random.default_rng(0)
    index = torch.from_numpy(np.stack([rng.permutation(size)[:each] for _ in range(count)]))
    values = drawn(count, each, seed=1)
    return atoms, (values[:, None] @ atoms[index])[:, 0]


def test_pursuit_is_exact_with_the_true_dictionary():
    atoms, vectors = planted_dictionary(24, 2)
    index, values = pursuit(vectors, atoms, 2)
    found = (values[:, None] @ atoms[index])[:, 0]
    # Now and then two atoms explain a vector's largest part as well as the true one.
    exact = (found - vectors).norm(dim=1) < 1e-9 * vectors.norm(dim=1)
    assert exact.double().mean() > 0.9


@pytest.mark.parametrize(("size", "missed"), [(24, 0.3), (32, 0.01)])
def test_a_dictionary_with_room_finds_a_planted_one(size, missed):
    """Of the same size it ends in a local optimum; singular vectors as a start miss 0.44 of the length."""
    _, vectors = planted_dictionary(24, 2)
    atoms, index, values = learned_dictionary(vectors, size, 2)
    assert ((values[:, None] @ atoms[index])[:, 0] - vectors).norm() < missed * vectors.norm()


def test_looked_up_filters_are_sums_of_few_atoms():
    site = conv(drawn(10, 16, 3, 3))
    new = started("dictionary", site, 0.5)
    atoms = new.layers[0].weight[:, :, 0, 0]  # [size, inputs]
    codes = torch.linalg.lstsq(atoms.T, kernel_of(new, site).movedim(1, 0).flatten(1)).solution
    assert ((codes.abs() > 1e-9).sum(0) <= 4).all()
    torch.testing.assert_close(atoms.T @ codes, kernel_of(new, site).movedim(1, 0).flatten(1))


def test_codebooks_hold_so_many_numbers_and_lose_no_more_than_even_steps():
    site = conv(drawn(16, 16, 3, 3))
    weight = started("codebook", site, 16)
    assert len(kernel_of(weight, site).unique()) <= 16
    numbers = site.weight.flatten()
    centres, index = k_means(numbers, 16)
    nearest = (numbers[:, None] - centres).abs().argmin(1)
    assert torch.equal(index, nearest)
    even = torch.linspace(float(numbers.min()), float(numbers.max()), 16, dtype=torch.float64)
    steps = (numbers[:, None] - even).abs().amin(1).square().sum()
    assert (centres[index] - numbers).square().sum() < 0.7 * steps


def test_kronecker_products_are_found_again():
    first, second = drawn(3, 4), drawn(5, 6, seed=1)
    site = Site(torch.kron(first, second))
    assert error(started("kronecker", site, 1), site) < 1e-24 * site.weight.square().sum()


def test_circulant_blocks_multiply_as_convolutions_on_a_ring():
    site = Site(drawn(8, 12))
    new, x = started("circulant", site, 4), drawn(5, 12, seed=1)
    values = new.tails[0].values[..., 0].detach()  # [2, 3, 4]
    spectrum = torch.fft.fft(values)[None] * torch.fft.fft(x.view(5, 1, 3, 4))
    wanted = torch.fft.ifft(spectrum.sum(2)).real.reshape(5, 8)
    with torch.no_grad():
        torch.testing.assert_close(new(x), wanted)
    kernel = kernel_of(new, site)
    assert error(started("circulant", Site(kernel), 4), Site(kernel)) < 1e-28


def test_versatile_filters_are_found_again():
    """Half of the outputs are the inner windows of the others' filters, in any order."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(12))
    whole, inner = drawn(6, 5, 3, 3), torch.zeros(6, 5, 3, 3, dtype=torch.float64)
    inner[:, :, 1, 1] = whole[:, :, 1, 1] * drawn(6, 1, seed=3)
    site = conv(torch.cat([whole, inner])[order])
    assert error(started("versatile", site, 0.5), site) < 1e-28


def test_inner_versatile_outputs_see_no_more_than_their_window():
    site = conv(drawn(6, 4, 5, 5))
    new = started("versatile", site, 0.5)
    kernel = kernel_of(new, site)
    sides = sorted(int((kernel[o].abs().sum(0) > 1e-12).any(0).sum()) for o in range(6))
    assert sides == [1, 1, 3, 3, 5, 5]


def test_filters_slid_along_the_channels_are_found_again():
    order = torch.from_numpy(np.random.default_rng(0).permutation(12))
    filters, weight = drawn(6, 4, 3, 3), torch.zeros(12, 8, 3, 3, dtype=torch.float64)
    weight[:6, :4], weight[6:, 4:] = filters, filters * drawn(6, 1, 1, 1, seed=2)
    site = conv(weight[order])
    assert error(started("versatile-channels", site, 2), site) < 1e-28
