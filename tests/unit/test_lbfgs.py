"""L-BFGS directions against dense BFGS, and the safeguards."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlsq_nb.core.lbfgs import clip_norm, direction, projected_gradient, remember


def dense(pairs, gradient):
    """The same direction from the full inverse Hessian."""
    s, y, _ = pairs[-1]
    inverse = np.eye(len(gradient)) * (s @ y) / (y @ y)
    for s, y, _ in pairs:
        rho = 1.0 / (s @ y)
        left = np.eye(len(s)) - rho * np.outer(s, y)
        inverse = left @ inverse @ left.T + rho * np.outer(s, s)
    return -inverse @ gradient


@given(seed=st.integers(0, 10_000), p=st.integers(1, 8), m=st.integers(1, 6))
def test_two_loops_are_bfgs(seed, p, m):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(p, p))
    hessian = root @ root.T + np.eye(p)
    pairs = tuple((s, hessian @ s, float(s @ hessian @ s)) for s in rng.normal(size=(m, p)))
    gradient = rng.normal(size=p)
    got = direction(gradient, pairs)
    assert got == pytest.approx(dense(pairs, gradient), rel=1e-8, abs=1e-9 * np.abs(gradient).max())
    assert got @ gradient < 0.0


def test_quadratic_is_solved_after_p_exact_steps():
    hessian = np.diag([1.0, 10.0, 100.0])
    z, pairs = np.ones(3), ()
    for _ in range(12):
        gradient = hessian @ z
        way = direction(gradient, pairs) if pairs else -gradient
        t = -(gradient @ way) / (way @ hessian @ way)
        pairs = remember(pairs, t * way, t * hessian @ way, 10)
        z = z + t * way
        if np.linalg.norm(hessian @ z) < 1e-12:
            break
    assert np.linalg.norm(z) < 1e-10


def test_pairs_without_curvature_are_skipped():
    s = np.array([1.0, 0.0])
    for y in (np.array([0.0, 1.0]), np.array([-1.0, 0.0]), np.zeros(2), np.array([np.nan, 0.0])):
        pairs = ((s, s, 1.0),)
        assert remember(pairs, s, y, 5) is pairs


def test_memory_keeps_the_latest():
    pairs = ()
    for k in range(1, 8):
        pairs = remember(pairs, np.array([float(k)]), np.array([1.0]), 3)
    assert [float(s[0]) for s, *_ in pairs] == [5.0, 6.0, 7.0]


@given(norm=st.floats(0.0, 1e6), limit=st.floats(1e-6, 1e6))
def test_clip_keeps_the_direction(norm, limit):
    gradient = np.array([0.6, -0.8]) * norm
    clipped = clip_norm(gradient, limit)
    assert np.linalg.norm(clipped) <= limit * (1 + 1e-12) or np.linalg.norm(clipped) <= norm
    assert np.linalg.norm(clipped) == pytest.approx(min(norm, limit), rel=1e-12)
    assert clip_norm(gradient, None) is gradient


def test_projected_gradient_drops_what_bounds_forbid():
    gradient = np.array([1.0, 1.0, -1.0, -1.0])
    room = (np.array([0.0, -1.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0, 1.0]))
    # descent goes against the gradient: down from 0 is forbidden, up from 0 is not
    assert projected_gradient(gradient, room).tolist() == [0.0, 1.0, 0.0, -1.0]
