"""The three line searches: their conditions, their differences, and the longest step."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlsq_nb.core.linesearch import SEARCHES, Trial, backtracking, strong_wolfe, wolfe

C1, C2 = 1e-4, 0.9


def line(value, slope):
    """φ and φ' as an `evaluate`, and the trials that were asked for."""
    asked = []

    def evaluate(t):
        asked.append(t)
        return Trial(t, value(t), slope(t), t)

    return evaluate, asked


def search(name, value, slope, longest=math.inf):
    evaluate, asked = line(value, slope)
    start = evaluate(0.0)
    asked.clear()
    return start, SEARCHES[name](evaluate, start, longest), asked


def parabola(best, curvature=1.0):
    return (
        lambda t: 0.5 * curvature * (t - best) ** 2,
        lambda t: curvature * (t - best),
    )


@pytest.mark.parametrize("name", SEARCHES)
@given(best=st.floats(1e-3, 1e3), curvature=st.floats(1e-6, 1e6))
def test_parabola(name, best, curvature):
    start, found, _ = search(name, *parabola(best, curvature))
    assert found.value <= start.value + C1 * found.t * start.slope
    if name == "wolfe":
        assert found.slope >= C2 * start.slope
    if name == "strong_wolfe":
        assert abs(found.slope) <= C2 * abs(start.slope)


@pytest.mark.parametrize("name", SEARCHES)
@given(best=st.floats(1e-3, 1e3), longest=st.floats(1e-3, 10.0))
def test_no_trial_beyond_the_longest_step(name, best, longest):
    _, found, asked = search(name, *parabola(best), longest)
    assert max(asked) <= longest
    assert found is not None


def test_a_falling_slope_is_accepted_at_the_longest_step():
    for name in SEARCHES:
        _, found, asked = search(name, lambda t: -t, lambda _: -1.0, 1.0)
        assert (found.t, asked) == (1.0, [1.0])


def test_they_differ():
    # far from the minimum: backtracking is content with t = 1, the others go on
    found = {name: search(name, *parabola(100.0))[1].t for name in SEARCHES}
    assert found["backtracking"] == 1.0
    assert found["wolfe"] > 1.0
    # steep behind the valley: weak Wolfe allows any positive slope, strong Wolfe goes back
    def value(t):
        return -t if t < 0.9 else -0.9 + 5.0 * (t - 0.9)

    def slope(t):
        return -1.0 if t < 0.9 else 5.0

    assert search("wolfe", value, slope)[1].t == 1.0
    assert search("strong_wolfe", value, slope)[1].t < 1.0


@pytest.mark.parametrize("name", SEARCHES)
def test_undefined_regions_are_left(name):
    def value(t):
        return math.nan if t > 0.01 else 0.5 * (t - 0.005) ** 2

    _, found, _ = search(name, value, lambda t: math.nan if t > 0.01 else t - 0.005)
    assert found is not None
    assert found.t <= 0.01
    assert found.value < value(0.0)


@pytest.mark.parametrize("name", SEARCHES)
def test_an_ascent_direction_finds_nothing(name):
    _, found, asked = search(name, lambda t: t, lambda _: -1.0)
    assert found is None
    assert len(asked) <= 60


def test_strong_wolfe_zooms_into_a_narrow_valley():
    # weak Wolfe accepts the first decrease behind the valley, strong Wolfe wants its floor
    def value(t):
        return (t - 0.3) ** 2 * (1.0 + 3.0 * (t > 0.3))

    def slope(t):
        return 2.0 * (t - 0.3) * (1.0 + 3.0 * (t > 0.3))

    evaluate, _ = line(value, slope)
    start = evaluate(0.0)
    found = strong_wolfe(evaluate, start, math.inf)
    assert abs(found.slope) <= C2 * abs(start.slope)
    assert backtracking(evaluate, start, math.inf) is not None
    assert wolfe(evaluate, start, math.inf) is not None
