"""Conjugate gradients solve the trust-region subproblem within bounds; column norms come from a few products."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from nlsq_nb.core.cg import CgReason, bounded_step, conjugate_gradient, estimate_norms

INF = np.inf
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 12)


class Product:
    """v ↦ JᵀJ v, counted."""

    def __init__(self, jac):
        self.jac, self.calls = jac, 0

    def __call__(self, v):
        self.calls += 1
        return self.jac.T @ (self.jac @ v)


def random_problem(seed, p, spread=2.0):
    """J with columns of different sizes, g = Jᵀr, and D within a factor of two of the column norms."""
    rng = np.random.default_rng(seed)
    jac = rng.normal(size=(2 * p + 5, p)) * 10.0 ** rng.uniform(-spread, spread, p)
    residuals = rng.normal(size=len(jac))
    scale = np.linalg.norm(jac, axis=0) * 2.0 ** rng.uniform(-1, 1, p)
    return Product(jac), jac.T @ residuals, residuals, scale, rng


def gain(product, g, delta):
    return 2.0 * g @ delta - np.sum((product.jac @ delta) ** 2)


def banded_jacobian(order="together", p=120):
    """Localised columns; the three of a term together, or all of one kind before the next."""
    x, terms = np.linspace(0, p / 3, 10 * p)[:, None], np.arange(p // 3) + 0.5
    u = (x - terms) / 0.4
    columns = np.stack([np.exp(-u * u), u * np.exp(-u * u), u * u * np.exp(-u * u)], 2 if order == "together" else 1)
    return columns.reshape(len(x), p)


@given(seed=seeds, p=sizes)
@settings(deadline=None, max_examples=100)
def test_full_step_solves_the_system(seed, p):
    product, g, _, scale, _ = random_problem(seed, p)
    step = conjugate_gradient(product, g, scale, INF, rtol=1e-12, atol=0.0, max_iterations=3 * p)
    full = np.linalg.solve(product.jac.T @ product.jac, g)
    np.testing.assert_allclose(scale * step.delta, scale * full, atol=1e-8 * np.linalg.norm(scale * full))
    assert step.reason is CgReason.CONVERGED
    assert step.iterations == product.calls <= p + 1
    assert step.predicted == pytest.approx(g @ full, rel=1e-9)


@given(seed=seeds, p=sizes, share=st.floats(1e-3, 0.99), limit=st.integers(1, 12))
@settings(deadline=None, max_examples=150)
def test_limited_step(seed, p, share, limit):
    product, g, _, scale, _ = random_problem(seed, p)
    full = conjugate_gradient(product, g, scale, INF, rtol=1e-12, atol=0.0, max_iterations=3 * p)
    radius = share * full.norm
    step = conjugate_gradient(product, g, scale, radius, rtol=1e-12, atol=0.0, max_iterations=limit)
    assert np.linalg.norm(scale * step.delta) == pytest.approx(step.norm)
    assert step.norm <= radius * (1 + 1e-9)
    assert step.reason in (CgReason.RADIUS, CgReason.LIMIT)
    assert (step.reason is CgReason.RADIUS) == (step.norm >= radius * (1 - 1e-9))
    assert step.predicted == pytest.approx(gain(product, g, step.delta), rel=1e-8)
    downhill = g / scale**2
    cauchy = min((g @ downhill) / np.sum((product.jac @ downhill) ** 2), radius / np.linalg.norm(scale * downhill))
    assert step.predicted >= gain(product, g, cauchy * downhill) * (1 - 1e-9)


def test_tolerances_end_it_early():
    product, g, _, scale, _ = random_problem(1, 60)
    options = [{"rtol": t, "atol": 0.0} for t in (1e-1, 1e-4, 1e-10)]
    options += [{"rtol": 1e-10, "atol": 0.3 * np.linalg.norm(g / scale)}]
    steps = [conjugate_gradient(product, g, scale, INF, max_iterations=200, **o) for o in options]
    assert steps[3].iterations < steps[0].iterations < steps[1].iterations < steps[2].iterations
    for step, t in zip(steps, (1e-1, 1e-4, 1e-10, 0.3), strict=True):
        left = g - product.jac.T @ (product.jac @ step.delta)
        np.testing.assert_allclose(step.residual / scale, left / scale, atol=1e-11 * np.linalg.norm(g / scale))
        assert np.linalg.norm(left / scale) <= t * np.linalg.norm(g / scale) * (1 + 1e-6)


def test_ill_conditioned_system_ends_within_p_products():
    rng = np.random.default_rng(2)
    left, right = (np.linalg.qr(rng.normal(size=(80, 80)))[0] for _ in range(2))
    product = Product(left * np.logspace(0, -5, 80) @ right)
    g = product.jac.T @ rng.normal(size=80)
    step = conjugate_gradient(product, g, np.ones(80), INF, rtol=1e-8, atol=0.0, max_iterations=1000)
    assert step.reason is CgReason.CONVERGED
    assert step.iterations <= 82


def test_redundant_parameters_get_the_step_of_least_norm():
    rng = np.random.default_rng(3)
    jac = rng.normal(size=(20, 6))
    product = Product(np.hstack([jac, jac[:, :2]]))
    residuals = rng.normal(size=20)
    g = product.jac.T @ residuals
    step = conjugate_gradient(product, g, np.ones(8), INF, rtol=1e-13, atol=0.0, max_iterations=50)
    assert step.reason.full
    np.testing.assert_allclose(step.delta, np.linalg.pinv(product.jac) @ residuals, atol=1e-10)


def test_held_and_useless_parameters_stay():
    product, g, residuals, scale, _ = random_problem(4, 7)
    product.jac[:, 2] = 0.0
    g = product.jac.T @ residuals
    scale[[2, 5]] = 0.0
    step = conjugate_gradient(product, g, scale, INF, rtol=1e-12, atol=0.0, max_iterations=50)
    assert step.delta[2] == step.delta[5] == 0.0
    moved = [0, 1, 3, 4, 6]
    np.testing.assert_allclose(step.delta[moved], np.linalg.lstsq(product.jac[:, moved], residuals)[0], rtol=1e-8)


def test_nothing_to_do():
    product, g, _, scale, _ = random_problem(5, 4)
    step = conjugate_gradient(product, 0.0 * g, scale, 1.0, rtol=1e-4, atol=0.0, max_iterations=9)
    assert (step.norm, step.predicted, step.iterations, step.reason) == (0.0, 0.0, 0, CgReason.CONVERGED)


def test_product_that_overflows_ends_it():
    step = conjugate_gradient(
        lambda v: np.full_like(v, INF), np.ones(3), np.ones(3), 1.0, rtol=1e-4, atol=0.0, max_iterations=9
    )
    assert step.reason is CgReason.SINGULAR
    assert not step.delta.any()


@given(seed=seeds, p=sizes)
@settings(deadline=None, max_examples=150)
def test_bounded_step_is_the_bounded_minimum(seed, p):
    product, g, residuals, scale, rng = random_problem(seed, p)
    full = np.abs(np.linalg.solve(product.jac.T @ product.jac, g))
    lower = np.where(rng.random(p) < 0.3, 0.0, -full * rng.uniform(0, 2, p))
    upper = np.where((rng.random(p) < 0.3) & (lower < 0.0), 0.0, full * rng.uniform(0.1, 2, p))
    step = bounded_step(product, g, scale, INF, (lower, upper), rtol=1e-10, atol=0.0, max_iterations=100 * p)
    assert (step.delta >= lower).all()
    assert (step.delta <= upper).all()
    assert step.iterations == product.calls
    assert step.predicted == pytest.approx(gain(product, g, step.delta), rel=1e-8, abs=1e-14 * g @ (full * np.sign(g)))
    best = lsq_linear(product.jac / scale, residuals, (lower * scale, upper * scale), method="bvls", tol=1e-14).x
    np.testing.assert_allclose(step.delta * scale, best, atol=1e-7 * np.abs(best).max() + 1e-12)
    on_bound = (best == lower * scale) | (best == upper * scale)
    pull = (g - product.jac.T @ (product.jac @ (best / scale))) / scale
    strict = on_bound & (np.abs(pull) > 1e-6 * np.linalg.norm(g / scale))
    assert ((step.delta == lower) | (step.delta == upper))[strict].all()  # not beside it


@given(seed=seeds, p=sizes, radius=st.floats(1e-3, 10.0), limit=st.integers(1, 20))
@settings(deadline=None, max_examples=150)
def test_bounded_and_limited_step_descends(seed, p, radius, limit):
    product, g, _, scale, rng = random_problem(seed, p)
    room = (-rng.uniform(0, 2, p) / scale, rng.uniform(0, 2, p) / scale)
    room[0][rng.random(p) < 0.3] = 0.0
    step = bounded_step(product, g, scale, radius, room, rtol=1e-8, atol=0.0, max_iterations=limit)
    assert (step.delta >= room[0]).all()
    assert (step.delta <= room[1]).all()
    assert step.norm <= radius * (1 + 1e-9)
    assert step.predicted == pytest.approx(gain(product, g, step.delta), rel=1e-7, abs=1e-12)
    outward = (room[0] == 0.0) & (g < 0.0)
    assert (step.predicted > 0.0) == (not outward.all())


@pytest.mark.parametrize("guess", [1.0, 1e6, "each off by up to 1e6"])
@pytest.mark.parametrize(("order", "factor"), [("together", 1.3), ("apart", 4.0)])
def test_norms_of_localised_columns(order, factor, guess):
    jac = banded_jacobian(order)
    rng = np.random.default_rng(6)
    start = np.full(jac.shape[1], guess) if guess in (1.0, 1e6) else 10.0 ** rng.uniform(-6, 6, jac.shape[1])
    product = Product(jac)
    ratio = estimate_norms(product, start, np.ones(len(start), dtype=bool)) / np.linalg.norm(jac, axis=0)
    assert ratio.max() <= factor
    assert ratio.min() >= 1.0 / factor
    assert product.calls <= 24


def test_norms_are_equivariant_and_always_the_same():
    jac = banded_jacobian()
    size = 2.0 ** np.random.default_rng(7).integers(-30, 30, jac.shape[1])
    start, used = np.ones(jac.shape[1]), np.ones(jac.shape[1], dtype=bool)
    plain = estimate_norms(Product(jac), start, used)
    np.testing.assert_array_equal(estimate_norms(Product(jac * size), size * start, used), size * plain)


def test_norms_of_dense_columns_balance_the_system():
    rng = np.random.default_rng(8)
    jac = (rng.normal(size=(300, 100)) + 1.0) * 10.0 ** rng.uniform(-6, 6, 100)
    ratio = estimate_norms(Product(jac), np.ones(100), np.ones(100, dtype=bool)) / np.linalg.norm(jac, axis=0)
    assert ratio.max() / ratio.min() <= 10.0


def test_norms_of_silent_and_unused_columns_are_zero():
    jac = banded_jacobian()
    jac[:, 5] = 0.0
    used = np.ones(jac.shape[1], dtype=bool)
    used[9] = False
    norms = estimate_norms(Product(jac), np.ones(jac.shape[1]), used)
    assert np.flatnonzero(norms == 0.0).tolist() == [5, 9]
