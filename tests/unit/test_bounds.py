"""Points within bounds: a parameter that its bound stops stands on it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlsq_nb.core.bounds import has_room, moved, room_within

INF = np.inf
EPS = float(np.finfo(float).eps)
numbers = st.floats(-1e6, 1e6)


@given(numbers, numbers, st.integers(-3, 3))
def test_a_step_to_a_bound_ends_on_it(theta, bound, off):
    """However the way there was summed up: off by some units in the last place of what was added."""
    delta = bound - theta
    delta += off * EPS * abs(theta)
    if delta == 0.0 or np.sign(delta) != np.sign(bound - theta):
        return
    low, high = (bound, INF) if bound < theta else (-INF, bound)
    there = moved(np.array([theta]), np.array([delta]), np.array([low]), np.array([high]))
    assert there[0] == bound


@given(st.integers(0, 2**32 - 1))
def test_no_point_is_outside_and_what_stays_keeps_its_bits(seed):
    rng = np.random.default_rng(seed)
    low, high = np.sort(rng.normal(size=(2, 5)), axis=0)
    theta = rng.uniform(low, high)
    delta = rng.normal(size=5) * rng.choice([0.0, 1e-9, 1.0], 5)
    there = moved(theta, delta, low, high)
    assert ((low <= there) & (there <= high)).all()
    assert (there[delta == 0.0] == theta[delta == 0.0]).all()
    inside = (theta + delta > low + 1e-12) & (theta + delta < high - 1e-12)
    assert (there[inside] == (theta + delta)[inside]).all()


def test_a_parameter_beside_a_bound_may_leave_it():
    beside = np.nextafter(1.0, 2.0)
    there = moved(np.array([beside]), np.array([EPS]), np.array([1.0]), np.array([INF]))
    assert there[0] == beside + EPS


@pytest.mark.parametrize(("delta", "clear"), [([0.5, 0.0], True), ([1.0, 0.0], False), ([0.0, -2.0], True)])
def test_room(delta, clear):
    lower, upper = np.array([0.0, -INF]), np.array([2.0, INF])
    room = room_within(lower, upper, np.array([1.0, 5.0]))
    assert has_room(room, np.ones(2, bool), np.array(delta)) is clear
    assert room_within(np.full(2, -INF), np.full(2, INF), np.zeros(2)) is None
