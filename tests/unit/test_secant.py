"""The curvature that JᵀWJ lacks: learnt from gradients, and worth it where residuals are large."""

import numpy as np
import pytest

from nlsq_nb import Model, curve_fit
from nlsq_nb.core.secant import learnt
from nlsq_nb.phases import gauss_newton

# Brown & Dennis: residuals of some hundred at the optimum, sse 85822.20162635628
MODEL = Model("(a + b*x - exp(x))**2 + (c + d*sin(x) - cos(x))**2")
X, STARTS = np.arange(1, 21) / 5, [(25.0, 5.0, -5.0, -1.0), (250.0, 50.0, -50.0, -10.0)]


def test_what_is_learnt_explains_the_change_of_the_gradient():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = (m @ m.T + np.eye(4) for m in rng.normal(size=(2, 4, 4)))
        bend, whole = None, a + b
        for _ in range(6):
            step = rng.normal(size=4)
            bend = learnt(bend, step, whole @ step, a)
            np.testing.assert_allclose((a + bend) @ step, whole @ step, rtol=1e-9)
            np.testing.assert_allclose(bend, bend.T, atol=1e-9 * np.abs(bend).max())


def test_nothing_is_learnt_where_the_sse_is_not_convex():
    step, known = np.array([1.0, 2.0]), np.diag([3.0, 4.0])
    assert learnt(None, step, -step, np.eye(2)) is None
    assert learnt(known, step, -step, np.eye(2)) is known


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_large_residuals_converge_within_the_limit(start, backend, monkeypatch):
    given = {"backend": backend, "second_opinion": False}
    result = curve_fit(MODEL, X, np.zeros(20), start, **given)
    assert result.success
    assert result.sse == pytest.approx(85822.20162635628, rel=1e-12)
    assert result.streaming_diagnostics["phase_iterations"]["gauss_newton"] < 80
    if backend == "reference":
        monkeypatch.setattr(gauss_newton, "LATE", 1000)
        with pytest.warns(UserWarning, match="iteration limit"):
            assert not curve_fit(MODEL, X, np.zeros(20), start, **given).success
