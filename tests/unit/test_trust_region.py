"""The trust-region step fulfils the optimality conditions of its subproblem, exactly within the bounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_nb.core.trust_region import Step, next_radius, trust_region_step

INF = np.inf


def random_problem(seed, p, bounded, spread=0.0):
    """A positive definite H with columns of different sizes, g, D above the column norms, and a box around 0."""
    rng = np.random.default_rng(seed)
    size = 10.0 ** rng.uniform(-spread, spread, p)
    jac = rng.normal(size=(p + 5, p)) * size
    h = jac.T @ jac
    g = jac.T @ rng.normal(size=p + 5)
    scale = np.sqrt(np.diag(h)) * rng.uniform(1.0, 3.0, p)
    lower, upper = np.full(p, -INF), np.full(p, INF)
    if bounded:
        full = np.abs(np.linalg.solve(h, g)) + 1e-3 / size
        for k in range(p):
            lower[k] = rng.choice([-INF, 0.0, -full[k] * rng.uniform(0, 2)])
            upper[k] = rng.choice([INF, 0.0 if lower[k] < 0.0 else INF, full[k] * rng.uniform(0, 2)])
    return h, g, scale, (lower, upper), size


def assert_optimal(h, g, scale, room, step, size):
    lower, upper = room
    assert (step.delta >= lower).all()
    assert (step.delta <= upper).all()
    assert step.damping >= 0.0
    pull = (g - h @ step.delta - step.damping * scale**2 * step.delta) / size
    tolerance = 1e-9 * (np.linalg.norm(g / size) + 1e-300)
    inside = (step.delta > lower) & (step.delta < upper)
    assert (np.abs(pull[inside]) <= tolerance).all()
    assert (pull[(step.delta == lower) & (lower < upper)] <= tolerance).all()
    assert (pull[(step.delta == upper) & (lower < upper)] >= -tolerance).all()


seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 8)


@given(seed=seeds, p=sizes, bounded=st.booleans(), spread=st.sampled_from([0.0, 4.0]))
@settings(deadline=None, max_examples=150)
def test_full_step(seed, p, bounded, spread):
    h, g, scale, room, size = random_problem(seed, p, bounded, spread)
    step = trust_region_step(h, g, scale, INF, room, 0.0)
    assert step.damping == 0.0
    assert_optimal(h, g, scale, room, step, size)


@given(seed=seeds, p=sizes, radius=st.floats(1e-4, 1e2))
@settings(deadline=None, max_examples=150)
def test_limited_step(seed, p, radius):
    h, g, scale, room, size = random_problem(seed, p, bounded=False)
    step = trust_region_step(h, g, scale, radius, room, 0.0)
    assert_optimal(h, g, scale, room, step, size)
    assert step.norm <= 1.1 * radius * (1 + 1e-9)
    if step.damping > 0.0:  # complementarity: damped only when the radius limits the step
        assert step.norm >= 0.9 * radius * (1 - 1e-9)


@given(seed=seeds, p=sizes, radius=st.floats(1e-4, 1e2))
@settings(deadline=None, max_examples=200)
def test_limited_step_in_a_box(seed, p, radius):
    h, g, scale, room, size = random_problem(seed, p, bounded=True)
    step = trust_region_step(h, g, scale, radius, room, 0.0)
    assert_optimal(h, g, scale, room, step, size)
    assert step.predicted >= -1e-12 * (g @ np.linalg.solve(h, g))


@given(seed=seeds, p=sizes, radius=st.floats(1e-4, 1e2), bounded=st.booleans())
@settings(deadline=None, max_examples=100)
def test_numbers_of_the_step(seed, p, radius, bounded):
    h, g, scale, room, _ = random_problem(seed, p, bounded)
    step = trust_region_step(h, g, scale, radius, room, 0.0)
    d = step.delta
    assert step.norm == pytest.approx(np.linalg.norm(scale * d))
    assert step.slope == pytest.approx(g @ d, rel=1e-9, abs=1e-12)
    assert step.predicted == pytest.approx(2 * g @ d - d @ h @ d, rel=1e-9, abs=1e-12)


@given(seed=seeds, p=st.integers(2, 5), radius=st.floats(1e-2, 1e1))
@settings(deadline=None, max_examples=50)
def test_no_feasible_point_is_better(seed, p, radius):
    h, g, scale, room, _ = random_problem(seed, p, bounded=True)
    step = trust_region_step(h, g, scale, radius, room, 0.0)
    damped = h + step.damping * np.diag(scale**2)

    def gain(d):
        return 2 * g @ d - d @ damped @ d

    rng = np.random.default_rng(seed)
    reach = np.abs(np.linalg.solve(h, g)).max()
    for _ in range(50):
        trial = np.clip(step.delta + reach * 10.0 ** rng.uniform(-6, 1) * rng.normal(size=p), *room)
        assert gain(trial) <= gain(step.delta) + 1e-9 * abs(g) @ (abs(step.delta) + reach)


@given(seed=seeds, p=sizes, radius=st.floats(1e-3, 1e1), bounded=st.booleans())
@settings(deadline=None, max_examples=100)
def test_units_of_the_parameters_do_not_matter(seed, p, radius, bounded):
    h, g, scale, room, _ = random_problem(seed, p, bounded)
    units = 2.0 ** np.random.default_rng(seed).integers(-30, 30, p)  # powers of 2: no rounding
    step = trust_region_step(h, g, scale, radius, room, 0.0)
    other = trust_region_step(
        h / np.outer(units, units), g / units, scale / units, radius, (room[0] * units, room[1] * units), 0.0
    )
    np.testing.assert_allclose(other.delta / units, step.delta, rtol=1e-9, atol=1e-12 * np.abs(step.delta).max())


def test_parameter_without_influence_stays():
    h = np.diag([2.0, 0.0, 3.0])
    unlimited = (np.full(3, -INF), np.full(3, INF))
    step = trust_region_step(h, np.array([2.0, 0.0, 3.0]), np.array([2.0, 0.0, 2.0]), INF, unlimited, 0.0)
    np.testing.assert_allclose(step.delta, [1.0, 0.0, 1.0])


def test_singular_matrix_gives_the_shortest_step():
    jac = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    h, g = jac.T @ jac, jac.T @ np.array([2.0, 4.0, 6.0])
    step = trust_region_step(h, g, np.sqrt(np.diag(h)), INF, (np.full(2, -INF), np.full(2, INF)), 0.0)
    np.testing.assert_allclose(step.delta, [1.0, 1.0], rtol=1e-9)


def test_parameter_without_room_does_not_keep_the_others_from_moving():
    h = np.array([[7.0, -1.6, -1.2], [-1.6, 11.4, 3.8], [-1.2, 3.8, 9.2]])
    g = np.array([0.1, -7.5, -1.5])
    room = np.array([0.0, -0.7, 0.0]), np.array([0.0, 0.9, 0.05])
    step = trust_region_step(h, g, np.sqrt(np.diag(h)), INF, room, 0.0)
    assert_optimal(h, g, np.sqrt(np.diag(h)), room, step, np.ones(3))


def test_held_parameter_returns_when_the_others_pull_it_inside():
    # A first full step runs into the bound of the first parameter; holding it must not be final.
    h = np.array([[2.0, 1.9], [1.9, 2.0]])
    g = np.array([1.0, -1.0])
    lower, upper = np.array([-1.0, -0.3]), np.array([0.2, 1.0])
    step = trust_region_step(h, g, np.sqrt(np.diag(h)), INF, (lower, upper), 0.0)
    assert_optimal(h, g, np.ones(2), (lower, upper), step, np.ones(2))


@pytest.mark.parametrize("ratio", [-np.inf, -10.0, 0.0, 0.1, 0.25])
def test_radius_shrinks_after_a_poor_step(ratio):
    step = Step(np.array([1.0]), norm=1.0, damping=0.1, slope=1.0, predicted=1.5)
    radius = next_radius(1.0, step, ratio * step.predicted)
    assert 0.1 <= radius <= 0.5


def test_radius_follows_a_good_step():
    damped = Step(np.array([1.0]), norm=1.0, damping=0.1, slope=1.0, predicted=1.5)
    full = Step(np.array([0.3]), norm=0.3, damping=0.0, slope=1.0, predicted=1.5)
    assert next_radius(1.0, damped, 0.5 * 1.5) == 1.0
    assert next_radius(1.0, damped, 0.9 * 1.5) == 2.0
    assert next_radius(1.0, full, 0.5 * 1.5) == 0.6


def test_radius_never_becomes_zero():
    step = Step(np.array([0.0]), norm=0.0, damping=0.0, slope=0.0, predicted=0.0)
    radius = 1.0
    for _ in range(3000):
        radius = next_radius(radius, step, -np.inf)
    assert radius > 0.0
