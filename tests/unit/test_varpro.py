"""Variable projection on the sums equals the joint problem that it eliminates parameters from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from nlsq_nb.core.trust_region import trust_region_step
from nlsq_nb.core.varpro import reduced_norms, reduced_step, relax

INF = np.inf
seeds = st.integers(0, 2**32 - 1)


def random_problem(seed, p):
    rng = np.random.default_rng(seed)
    jac = rng.normal(size=(p + 6, p)) * 10.0 ** rng.uniform(-2, 2, p)
    residuals = rng.normal(size=p + 6)
    linear = rng.random(p) < 0.5
    one, other = rng.choice(p, 2, replace=False)
    linear[one], linear[other] = True, False
    return jac, residuals, linear, rng


def sums(jac, residuals):
    return jac.T @ jac, jac.T @ residuals


def unlimited(p):
    return np.full(p, -INF), np.full(p, INF)


@given(seed=seeds, p=st.integers(2, 8))
@settings(deadline=None, max_examples=150)
def test_full_reduced_step_is_the_joint_step(seed, p):
    jac, residuals, linear, _ = random_problem(seed, p)
    h, g = sums(jac, residuals)
    joint = np.linalg.lstsq(jac, residuals, rcond=None)[0]
    step = reduced_step(h, g, np.sqrt(np.diag(h)), INF, unlimited(p), 0.0, linear)
    np.testing.assert_allclose(step.delta, joint, rtol=1e-7, atol=1e-9 * np.abs(joint).max())
    assert step.damping == 0.0
    relaxed = relax(h, g, linear, unlimited(p), 0.0)
    total = 2 * g @ joint - joint @ h @ joint
    assert relaxed.predicted + step.predicted == pytest.approx(total, rel=1e-8)


@given(seed=seeds, p=st.integers(2, 8), radius=st.floats(1e-3, 10.0))
@settings(deadline=None, max_examples=100)
def test_limited_step_leaves_the_linear_parameters_at_their_best(seed, p, radius):
    jac, residuals, linear, _ = random_problem(seed, p)
    h, g = sums(jac, residuals)
    scale = reduced_norms(h, linear, 0.0)
    step = reduced_step(h, g, scale, radius, unlimited(p), 0.0, linear)
    left = (g - h @ step.delta)[linear] / np.sqrt(np.diag(h))[linear]
    assert np.abs(left).max() <= 1e-9 * np.linalg.norm(residuals)
    assert step.norm == pytest.approx(np.linalg.norm((scale * step.delta)[~linear]))
    assert step.norm <= 1.1 * radius * (1 + 1e-9)


@given(seed=seeds, p=st.integers(2, 8))
@settings(deadline=None, max_examples=100)
def test_reduced_step_within_bounds(seed, p):
    jac, residuals, linear, rng = random_problem(seed, p)
    h, g = sums(jac, residuals)
    full = np.abs(np.linalg.solve(h, g))
    room = (-full * rng.uniform(0, 2, p), full * rng.uniform(0, 2, p))
    step = reduced_step(h, g, reduced_norms(h, linear, 0.0), INF, room, 0.0, linear)
    assert (step.delta >= room[0]).all()
    assert (step.delta <= room[1]).all()
    best = relax(h, g, linear, room, 0.0)
    # slope and predicted count from the relaxed point; together they are the exact reduction of the quadratic
    gain = 2 * g @ step.delta - step.delta @ h @ step.delta
    assert best.predicted + step.predicted == pytest.approx(gain, rel=1e-8, abs=1e-10)


@given(seed=seeds, p=st.integers(2, 8))
@settings(deadline=None, max_examples=100)
def test_relax_is_the_exact_minimum(seed, p):
    jac, residuals, linear, _ = random_problem(seed, p)
    h, g = sums(jac, residuals)
    step = relax(h, g, linear, unlimited(p), 0.0)
    best = np.linalg.lstsq(jac[:, linear], residuals, rcond=None)[0]
    np.testing.assert_allclose(step.delta[linear], best, rtol=1e-8, atol=1e-10 * np.abs(best).max())
    assert not step.delta[~linear].any()
    reached = np.sum((residuals - jac[:, linear] @ best) ** 2)
    assert residuals @ residuals - step.predicted == pytest.approx(reached, rel=1e-8)


@given(seed=seeds, p=st.integers(2, 6))
@settings(deadline=None, max_examples=75)
def test_relax_within_bounds(seed, p):
    jac, residuals, linear, rng = random_problem(seed, p)
    h, g = sums(jac, residuals)
    full = np.abs(np.linalg.solve(h, g)) + 1e-6
    room = (-full * rng.uniform(0.01, 2, p), full * rng.uniform(0.01, 2, p))
    step = relax(h, g, linear, room, 0.0)
    assert (step.delta >= room[0]).all()
    assert (step.delta <= room[1]).all()
    norms = np.linalg.norm(jac[:, linear], axis=0)
    box = (room[0][linear] * norms, room[1][linear] * norms)
    best = lsq_linear(jac[:, linear] / norms, residuals, box, method="bvls", tol=1e-14)
    assert residuals @ residuals - step.predicted == pytest.approx(2 * best.cost, rel=1e-8)


def test_no_linear_parameter_is_the_plain_step():
    jac, residuals, _, _ = random_problem(3, 4)
    h, g = sums(jac, residuals)
    none = np.zeros(4, dtype=bool)
    scale = np.sqrt(np.diag(h))
    plain = trust_region_step(h, g, scale, 0.5, unlimited(4), 0.0)
    np.testing.assert_array_equal(reduced_step(h, g, scale, 0.5, unlimited(4), 0.0, none).delta, plain.delta)
    relaxed = relax(h, g, none, unlimited(4), 0.0)
    assert relaxed.predicted == 0.0
    assert not relaxed.delta.any()


def test_a_linear_model_needs_no_radius():
    jac, residuals, _, _ = random_problem(4, 3)
    h, g = sums(jac, residuals)
    step = reduced_step(h, g, np.sqrt(np.diag(h)), 1e-9, unlimited(3), 0.0, np.ones(3, dtype=bool))
    np.testing.assert_allclose(step.delta, np.linalg.lstsq(jac, residuals, rcond=None)[0], rtol=1e-9)


def test_reduced_norms_are_those_of_the_projected_columns():
    jac, _, linear, _ = random_problem(5, 6)
    basis, _ = np.linalg.qr(jac[:, linear])
    projected = jac[:, ~linear] - basis @ (basis.T @ jac[:, ~linear])
    norms = reduced_norms(jac.T @ jac, linear, 0.0)
    np.testing.assert_allclose(norms[~linear], np.linalg.norm(projected, axis=0), rtol=1e-9)
    np.testing.assert_allclose(norms[linear], np.linalg.norm(jac[:, linear], axis=0), rtol=1e-12)
