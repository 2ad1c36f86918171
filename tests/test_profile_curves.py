"""Curves through measured times, and profiles made of them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netcarve.devices import Profile, ProfileError
from netcarve.devices.profile import fit_affine, fit_law

# ms = a + b macs + c bytes, so that every figure below can be computed by hand
CONV = [2e-3, 1e-6, 1e-8]
MADE_UP = Profile(
    {
        "conv2d": np.array([[m, b, np.dot(CONV, [1, m, b])] for m in (1e3, 1e5, 1e6) for b in (1e3, 1e5)]),
        "relu": np.array([[0, 1e3, 0.01], [0, 1e4, 0.02]]),
    },
    scale=1.5,
    per_stage_ms=0.25,
    machine="made up",
    versions={"torch": "2"},
    error=(0.03, 0.1),
)


# Curves.


def test_a_line_in_macs_and_bytes_is_found_and_followed_beyond_the_measured_range():
    rng = np.random.default_rng(0)
    work = rng.uniform(1e2, 1e6, (40, 2))
    law = fit_law(np.column_stack([work, CONV[0] + work @ CONV[1:]]))
    new = rng.uniform(10, 1e8, (50, 2))
    np.testing.assert_allclose(law.milliseconds(*new.T), CONV[0] + new @ CONV[1:], rtol=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_a_curve_is_positive_and_never_falls_as_work_grows(seed, n):
    rng = np.random.default_rng(seed)
    points = np.column_stack([rng.choice([0, 1e3, 1e6], n), rng.uniform(1, 1e6, n), rng.uniform(1e-4, 9, n)])
    law = fit_law(points)
    macs = np.sort(rng.uniform(0, 1e8, 30))
    moved = np.sort(rng.uniform(0, 1e8, 30))
    ms = law.milliseconds(macs, moved)
    assert (ms > 0).all()
    assert np.isfinite(ms).all()
    assert (np.diff(ms) >= -1e-12 * ms[1:]).all()


def test_a_curve_bends_to_what_was_measured():
    """Ten times slower once the cache is full: no line, but rising."""
    size = np.logspace(3, 7, 30)
    ms = np.where(size > 1e5, 1e-6 * size, 1e-7 * size)
    law = fit_law(np.column_stack([np.zeros(30), size, ms]))
    np.testing.assert_allclose(law.milliseconds(np.zeros(30), size), ms, rtol=0.25)


def test_an_odd_measurement_does_not_decide_the_correction():
    x = np.linspace(1, 20, 15)
    y = 1.2 * x + 0.5
    y[4] *= 3
    assert fit_affine(x, y) == pytest.approx((1.2, 0.5), rel=0.02)
    scale, start = fit_affine(x, 1.2 * x - 0.5)
    assert start == 0
    assert scale == pytest.approx(1.16, abs=0.04)


# Profiles.


def test_times_of_calls_are_the_curves_times_the_scale_and_nothing_for_what_is_not_there():
    macs, moved = np.array([[2e5, 0, 0.0], [4e5, 0, 0.0]]), np.array([[5e4, 1e3, 0.0], [6e4, 1e4, 1e3]])
    got = MADE_UP.milliseconds(["conv2d", "relu", "relu"], macs, moved)
    conv = [1.5 * np.dot(CONV, [1, m, b]) for m, b in ((2e5, 5e4), (4e5, 6e4))]
    np.testing.assert_allclose(got, [[conv[0], 0.015, 0.0], [conv[1], 0.03, 0.015]], rtol=1e-6)


def test_operators_that_were_not_measured_take_those_of_their_class_then_of_the_machine():
    assert [MADE_UP.source(n) for n in ("relu", "relu 3", "gelu")] == ["measured", "class", "machine"]
    one = np.array([[1e4]])
    times = MADE_UP.milliseconds(["conv2d", "conv2d 5x5/1 7x7", "gelu"], *[one.repeat(3, 1)] * 2)[0]
    assert times[0] == times[1] != times[2] > 0


def test_a_profile_survives_its_file(tmp_path):
    MADE_UP.save(tmp_path / "p.json")
    again = Profile.load(tmp_path / "p.json")
    assert again.to_json() == MADE_UP.to_json()
    work = np.random.default_rng(0).uniform(1, 1e7, (2, 5, 3))
    names = ["conv2d", "relu", "gelu"]
    np.testing.assert_array_equal(again.milliseconds(names, *work), MADE_UP.milliseconds(names, *work))


def test_profiles_that_cannot_be_say_how_to_make_one(tmp_path):
    with pytest.raises(ProfileError, match="netcarve profile TASK -o"):
        Profile.load(tmp_path / "none.json")
    for text, says in (
        ("no json", "no JSON"),
        ("[1]", "no profile of this version"),
        ('{"format": "netcarve-profile-0"}', "make one with `netcarve profile"),
        ('{"format": "netcarve-profile-1"}', "damaged"),
        (json.dumps(MADE_UP.to_json() | {"operators": {}}), "needs measured operators"),
        (json.dumps(MADE_UP.to_json() | {"operators": {"relu": [[1, 2, 0]]}}), "take 0 ms"),
        (json.dumps(MADE_UP.to_json() | {"operators": {"relu": [[1, 2]]}}), "rows of"),
        (json.dumps(MADE_UP.to_json() | {"scale": -1}), "scale must be above 0"),
    ):
        (tmp_path / "p.json").write_text(text)
        with pytest.raises(ProfileError, match=says):
            Profile.load(tmp_path / "p.json")
