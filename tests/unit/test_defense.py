"""The four layers as functions: what happens exactly on their boundaries, at zero, infinity and nan, and when off."""

from math import inf, nan, nextafter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlsq_nb.phases.defense import clip_step, cost_rose, is_warm_start, relative_loss, step_mode


# -- the relative loss -----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mse", "variance", "relative"),
    [
        (2.0, 4.0, 0.5),
        (0.0, 4.0, 0.0),
        (inf, 4.0, inf),
        (1e-18, 1e-18, 1.0),  # no absolute floor: y of order 1e-9 is judged like any other
        (1e-300, 1e-290, pytest.approx(1e-10)),
        (0.0, 0.0, 0.0),
        (1e-300, 0.0, inf),
        (inf, 0.0, inf),
    ],
)
def test_relative_loss(mse, variance, relative):
    assert relative_loss(mse, variance) == relative


def test_relative_loss_of_nan_is_nan():
    assert np.isnan(relative_loss(nan, 1.0))


# -- layer 1 ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("relative", "threshold", "warm"),
    [
        (0.0, 0.01, True),
        (nextafter(0.01, 0.0), 0.01, True),
        (0.01, 0.01, False),
        (nextafter(0.01, 1.0), 0.01, False),
        (inf, 0.01, False),
        (nan, 0.01, False),
        (0.0, None, False),
        (inf, None, False),
    ],
)
def test_warm_start(relative, threshold, warm):
    assert is_warm_start(relative, threshold) is warm


# -- layer 2 ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("relative", "mode"),
    [
        (0.0, "refinement"),
        (nextafter(0.1, 0.0), "refinement"),
        (0.1, "careful"),
        (nextafter(1.0, 0.0), "careful"),
        (1.0, "exploration"),
        (inf, "exploration"),
        (nan, "exploration"),
    ],
)
def test_step_mode(relative, mode):
    assert step_mode(relative, adapts=True) == mode
    assert step_mode(relative, adapts=False) == "fixed"


# -- layer 3 ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("loss", "best", "tolerance", "rose"),
    [
        (1.25, 1.0, 0.25, False),  # 1.25 is exact: on the limit is not above it
        (nextafter(1.25, 2.0), 1.0, 0.25, True),
        (1.0, 1.0, 0.0, False),
        (nextafter(1.0, 2.0), 1.0, 0.0, True),
        (0.5, 1.0, 0.0, False),
        (0.0, 0.0, 0.05, False),
        (5e-324, 0.0, 0.05, True),
        (inf, 1.0, 1.0, True),
        (nan, 1.0, 1.0, True),
        (1.0, nan, 1.0, True),
        (1.0, inf, 0.05, False),
        (inf, inf, 0.05, False),
    ],
)
def test_cost_rose(loss, best, tolerance, rose):
    assert cost_rose(loss, best, tolerance) is rose
    assert cost_rose(loss, best, None) is False


# -- layer 4 ---------------------------------------------------------------------------------
STEP = np.array([3.0, -4.0])  # of length 5


@pytest.mark.parametrize(("longest", "clipped"), [(5.0, False), (6.0, False), (4.9999, True), (1e-9, True)])
def test_clip_exactly_at_the_limit_is_no_clip(longest, clipped):
    step, asked, shortened = clip_step(STEP, longest)
    assert (asked, shortened) == (5.0, clipped)
    assert np.linalg.norm(step) == pytest.approx(min(longest, 5.0), rel=1e-15)
    np.testing.assert_allclose(step / np.linalg.norm(step), STEP / 5.0, rtol=1e-15)
    assert clipped or step is STEP


def test_a_rounded_step_of_the_longest_length_is_no_clip():
    step = np.full(3, 0.1 / np.sqrt(3.0))
    length = np.linalg.norm(step)
    for longest in (length, nextafter(length, 0.0), nextafter(length, 1.0), 0.1):
        assert clip_step(step, longest)[2] is False
    assert clip_step(step, length * (1.0 - 1e-9))[2] is True


def test_no_clip_when_off_or_without_a_step():
    assert clip_step(STEP, None) == (STEP, 5.0, False)
    step, asked, shortened = clip_step(np.zeros(2), 0.1)
    assert (step.tolist(), asked, shortened) == ([0.0, 0.0], 0.0, False)


@given(
    st.lists(st.floats(-1e100, 1e100), min_size=1, max_size=5),
    st.floats(1e-6, 1e6),
)
def test_a_step_is_never_longer_than_allowed_nor_turned(values, longest):
    given_step = np.array(values)
    before = given_step.copy()
    step, asked, shortened = clip_step(given_step, longest)
    assert np.linalg.norm(step) <= longest * (1.0 + 1e-11)
    assert np.array_equal(given_step, before)
    assert shortened is (asked > longest * (1.0 + 1e-12))
    if shortened:
        np.testing.assert_allclose(step, given_step * (longest / asked), rtol=1e-12, atol=0.0)
    else:
        assert np.array_equal(step, given_step)
