"""Samples are seeded, stay inside their boxes and cover them; starting points keep p0 and the bounds."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_nb import ConfigError
from nlsq_nb.core.sampling import (
    SAMPLERS,
    candidates,
    halton_sample,
    kronecker_sample,
    latin_hypercube_sample,
    scale_samples,
    scattered_rows,
    sobol_sample,
    stratified_rows,
)

NAMES = sorted(SAMPLERS)
every_sampler = pytest.mark.parametrize("name", NAMES)
FLOATS = st.floats(-1.7e308, 1.7e308)
SIZES = st.floats(1e-12, 1e12)
STARTS = st.one_of(st.just(0.0), SIZES, SIZES.map(lambda v: -v))


@every_sampler
@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 70), d=st.integers(1, 12), seed=st.integers(0, 2**32))
def test_points_fill_the_unit_cube_and_repeat(name, n, d, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Sobol' numbers that are no power of two are not an event
        points = SAMPLERS[name](n, d, seed=seed)
    assert points.shape == (n, d)
    assert points.dtype == np.float64
    assert ((points >= 0.0) & (points < 1.0)).all()
    assert np.array_equal(points, SAMPLERS[name](n, d, seed=seed))
    assert not np.array_equal(points, SAMPLERS[name](n, d, seed=seed + 1))


@given(n=st.integers(1, 50), d=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_latin_hypercube_has_one_point_in_each_slice(n, d, seed):
    slices = np.floor(latin_hypercube_sample(n, d, seed=seed) * n).astype(int)
    assert (np.sort(slices, axis=0) == np.arange(n)[:, None]).all()


@pytest.mark.parametrize("sampler", [sobol_sample, halton_sample, kronecker_sample])
def test_sequences_go_on_where_shorter_ones_end(sampler):
    assert np.array_equal(sampler(33, 3, seed=4)[:7], sampler(7, 3, seed=4))


@pytest.mark.parametrize(("n", "size"), [(1000, 7), (100_000, 1024), (50, 50)])
def test_scattered_rows_are_one_of_each_part(n, size):
    rows = scattered_rows(n, size, 3)
    assert np.array_equal(rows, scattered_rows(n, size, 3))
    assert ((rows >= np.arange(size) * n // size) & (rows < np.arange(1, size + 1) * n // size)).all()
    assert size == n or not np.array_equal(rows, scattered_rows(n, size, 4))


@pytest.mark.parametrize("d", [1, 2, 5, 12])
def test_multiples_of_an_irrational_vector_fill_the_cube(d):
    points = kronecker_sample(512, d, seed=3)
    assert points.shape == (512, d)
    assert ((points >= 0.0) & (points < 1.0)).all()
    for column in points.T:  # every axis more evenly than by chance
        assert np.abs(np.sort(column) - (np.arange(512) + 0.5) / 512).max() < 0.02
    assert not np.array_equal(points, kronecker_sample(512, d, seed=4))


def test_sobol_is_balanced_in_powers_of_two():
    slices = np.floor(sobol_sample(16, 3, seed=1) * 16).astype(int)
    assert (np.sort(slices, axis=0) == np.arange(16)[:, None]).all()


@every_sampler
@pytest.mark.parametrize(
    ("n", "d", "field"), [(0, 2, "n_samples"), (2, 0, "n_dims"), (2.5, 2, "n_samples"), (True, 1, "n_samples")]
)
def test_bad_counts_are_named(name, n, d, field):
    with pytest.raises(ConfigError, match=rf"^{field}="):
        SAMPLERS[name](n, d)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("seed", [-1, 1.5, "0", None, True])
def test_a_bad_seed_is_named(name, seed):
    with pytest.raises(ConfigError, match=r"^seed=.*; an integer ≥ 0 is needed"):
        SAMPLERS[name](4, 2, seed=seed)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("n", "d"), [(10**12, 2), (2, 10**12), (2**12 + 1, 2**12)])
def test_more_than_memory_holds_is_refused_at_once(name, n, d):
    with pytest.raises(ConfigError, match=rf"^n_samples={n} points of n_dims={d} are too many to hold; 16,777,216"):
        SAMPLERS[name](n, d)


def test_axes_without_direction_numbers_are_refused():
    assert SAMPLERS["sobol"](1, 21_201).shape == (1, 21_201)
    with pytest.raises(ConfigError, match=r"^n_dims=21202; .*halton or lhs"):
        SAMPLERS["sobol"](1, 21_202)


def test_scipy_stats_is_imported_only_when_it_is_needed():
    code = "import sys, nlsq_nb.core.sampling; sys.exit('scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=4), st.integers(0, 99))
def test_scaled_samples_stay_in_the_box(box, seed):
    lower, upper = np.sort(np.array(box), axis=1).T
    unit = np.random.default_rng(seed).random((20, len(lower)))
    unit[0], unit[1] = 0.0, 1.0
    points = scale_samples(unit, lower, upper)
    assert ((points >= lower) & (points <= upper)).all()
    assert np.array_equal(points[0], lower)
    assert np.array_equal(points[1], upper)


@st.composite
def bounded_starts(draw):
    """p0 of any size with bounds that are missing, one-sided, finite or equal to it."""
    p0, lower, upper = [], [], []
    for _ in range(draw(st.integers(1, 5))):
        start = draw(STARTS)
        below, above = (draw(st.one_of(st.just(np.inf), st.just(0.0), SIZES)) for _ in range(2))
        p0.append(start)
        lower.append(start - below)
        upper.append(start + above)
    return np.array(p0), np.array(lower), np.array(upper)


@settings(max_examples=150, deadline=None)
@given(
    bounded_starts(),
    st.integers(0, 12),
    st.sampled_from(NAMES),
    st.booleans(),
    st.floats(1e-6, 1e3),
    st.integers(0, 1000),
)
def test_candidates_keep_p0_the_bounds_and_what_is_fixed(problem, n, sampler, center, factor, seed):
    p0, lower, upper = problem
    points = candidates(p0, lower, upper, n, sampler, center, factor, seed)
    free = lower < upper
    assert points.shape == (n + 1 if free.any() else 1, len(p0))
    assert np.array_equal(points[0], p0)
    assert np.isfinite(points).all()
    assert ((points >= lower) & (points <= upper)).all()
    assert (points[:, ~free] == p0[~free]).all()
    assert np.array_equal(points, candidates(p0, lower, upper, n, sampler, center, factor, seed))


@given(st.floats(0.0, 10.0), st.floats(0.01, 3.0))
@settings(max_examples=30, deadline=None)
def test_finite_bounds_are_searched_around_p0_or_everywhere(p0, factor):
    around = candidates([p0], [0.0], [10.0], 200, scale_factor=factor)[1:, 0]
    box = max(0.0, p0 - 5.0 * factor), min(10.0, p0 + 5.0 * factor)
    width = box[1] - box[0]
    assert around.min() == pytest.approx(box[0], abs=width / 100)
    assert around.max() == pytest.approx(box[1], abs=width / 100)
    assert ((around >= box[0]) & (around <= box[1])).all()
    everywhere = candidates([p0], [0.0], [10.0], 200, center_on_p0=False, scale_factor=factor)[1:, 0]
    assert np.histogram(everywhere, 10, (0.0, 10.0))[0].tolist() == [20] * 10


@pytest.mark.parametrize("p0", [1e-200, 3e-9, 1.0, -7.0, 1e200])
def test_unbounded_points_reach_a_decade_to_either_side_of_any_size(p0):
    sizes = candidates([p0], -np.inf, np.inf, 400)[1:, 0] / p0
    assert np.sum(sizes < 0.0) == 50  # one in eight
    assert np.abs(sizes).max() == pytest.approx(17.8, rel=0.05)
    assert 0.01 < np.abs(sizes).min() < 0.03
    assert np.sum(sizes > 1.0) == pytest.approx(175, abs=1)  # half of the others
    for low, high in [(0.08, 0.125), (8, 12.5)]:  # ten times off is inside, on either side
        assert np.mean((sizes > low) & (sizes < high)) > 0.04


def test_wider_regions_go_further_and_narrow_ones_stay():
    wide = candidates([2.0], -np.inf, np.inf, 400, scale_factor=2.0)[1:, 0]
    assert wide.max() == pytest.approx(634, rel=0.1)
    assert wide.min() < -100.0
    assert np.sum(np.abs(wide) < 0.2) > 50
    narrow = candidates([2.0], -np.inf, np.inf, 200, scale_factor=0.01)[1:, 0]
    assert np.abs(narrow / 2.0 - 1.0).max() < 0.03
    assert candidates([2.0], -np.inf, np.inf, 200, scale_factor=0.99)[1:].min() > 0.0


def test_zero_has_both_signs_and_size_one():
    points = candidates([0.0], -np.inf, np.inf, 200)[1:, 0]
    assert np.sum(points > 0.0) == pytest.approx(100, abs=1)
    assert 5.0 < np.abs(points).max() < 10.0
    assert np.sum(np.abs(points) < 1.0) > 20


def test_one_sided_bounds_cut_the_region():
    points = candidates([2.0, -2.0], [0.0, -np.inf], [np.inf, -1.0], 100)[1:]
    assert (points[:, 0] > 0.0).all()  # none mirrored, none piled up on the bound
    assert points[:, 0].max() > 20.0
    assert (points[:, 1] <= -1.0).all()
    assert points[:, 1].min() < -20.0


@pytest.mark.parametrize("far", [1e20, 1e300, 1.7e308])
def test_bounds_that_stand_for_none_are_not_searched(far):
    given, free = (candidates([5.0, 0.0], low, high, 50) for low, high in ((-far, far), (-np.inf, np.inf)))
    np.testing.assert_array_equal(given, free)


def test_p0_at_the_ends_of_float64():
    for p0 in (1.7e308, -1.7e308, 5e-324):
        points = candidates([p0, p0], [-np.inf, -1.7e308], [np.inf, 1.7e308], 50, scale_factor=10.0)
        assert np.isfinite(points).all()


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"sampler": "magic"}, "^sampler="),
        ({"scale_factor": 0.0}, "^scale_factor="),
        ({"scale_factor": np.inf}, "^scale_factor="),
        ({"n": -1}, "^n="),
        ({"p0": [1.0, 4.0]}, r"^p0\[1\]=4 .*\[0, 3\]"),
        ({"p0": [np.nan, 1.0]}, r"^p0\[0\]=nan"),
        ({"p0": [np.inf, 1.0]}, r"^p0\[0\]=inf"),
    ],
)
def test_bad_options_are_named(changed, text):
    given = {"p0": [1.0, 1.0], "lower": [-np.inf, 0.0], "upper": [np.inf, 3.0], "n": 3} | changed
    with pytest.raises(ConfigError, match=text):
        candidates(**given)


@given(st.integers(0, 5000), st.integers(0, 6000), st.integers(1, 100), st.integers(0, 99))
def test_row_ranges_are_disjoint_rising_and_of_the_size_asked_for(n_rows, size, run, seed):
    ranges = stratified_rows(n_rows, size, seed, run)
    assert ranges == stratified_rows(n_rows, size, seed, run)
    flat = [edge for one in ranges for edge in one]
    assert flat == sorted(flat)
    assert all(0 <= lo < hi <= n_rows for lo, hi in ranges)
    total = sum(hi - lo for lo, hi in ranges)
    if size >= n_rows:
        assert total == n_rows
    else:
        assert max((hi - lo for lo, hi in ranges), default=0) <= run
        assert size - len(ranges) <= total <= size
        assert total == size or n_rows < 2 * size  # rows are only missing where nearly all are taken


def test_row_ranges_cover_sorted_data_evenly_and_in_every_part():
    ranges = stratified_rows(1_000_000, 64_000, seed=3)
    assert len(ranges) == 1000
    for k in range(10):
        rows = np.concatenate([np.arange(lo, hi) for lo, hi in ranges[k::10]])
        assert np.histogram(rows, 10, (0, 1_000_000))[0].tolist() == [640] * 10


def test_row_ranges_are_not_in_step_with_a_period():
    """A sine of exactly one period a stratum: regular runs would all see the same phase."""
    ranges = stratified_rows(1_000_000, 64_000, seed=0)
    phase = np.array([lo % 1000 for lo, _ in ranges])
    assert np.histogram(phase, 4, (0, 1000 - 64))[0].min() > 200
    assert stratified_rows(1_000_000, 64_000, seed=1) != ranges
