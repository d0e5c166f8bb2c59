"""Passes over data with correlated errors: whitened sums, whatever chunks the rows come in."""

from types import SimpleNamespace

import numpy as np
import pytest

from nlsq_nb import Model
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.whitening import whitening_from
from nlsq_nb.engines.whitened import WhitenedEngine
from nlsq_nb.errors import SourceError

MODEL = Model(["a*exp(-b*x)", "a*x + b"], params=("a", "b"))
THETA = np.array([1.5, 0.7])
N = 12
RNG = np.random.default_rng(0)
X, Y = RNG.uniform(0.0, 2.0, N), RNG.normal(size=(2, N))
ROOT = RNG.normal(size=(2 * N, 2 * N))
SIGMA = ROOT @ ROOT.T + np.eye(2 * N)


def source(step, rows=N):
    cuts = [slice(k, min(k + step, rows)) for k in range(0, rows, step)]
    return SimpleNamespace(n_rows=N, chunks=lambda: iter([Chunk(c.start, (X[c],), tuple(Y[:, c])) for c in cuts]))


def engine(step=N, rows=N):
    return WhitenedEngine(MODEL.program, source(step, rows), whitening_from(SIGMA, (2, N)))


def expected():
    rest = (Y - MODEL(X, *THETA)).ravel()
    return MODEL.jacobian(X, *THETA).reshape(-1, 2), rest, np.linalg.inv(SIGMA)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_sums(order):
    jac, rest, inverse = expected()
    found = engine().run(THETA, order)
    assert (found.n_rows, found.n_params, found.order) == (N, 2, order)
    assert found.sse == pytest.approx(rest @ inverse @ rest, rel=1e-10)
    if order > 0:
        np.testing.assert_allclose(found.jtr, jac.T @ inverse @ rest, rtol=1e-9)
    if order > 1:
        np.testing.assert_allclose(found.jtj, jac.T @ inverse @ jac, rtol=1e-10)


def test_triangle_and_matvec():
    jac, rest, inverse = expected()
    found = engine().triangle(THETA)
    np.testing.assert_allclose(found.r.T @ found.r, jac.T @ inverse @ jac, rtol=1e-10)
    np.testing.assert_allclose(found.r.T @ found.z, jac.T @ inverse @ rest, rtol=1e-9)
    v = np.array([0.3, -1.1])
    np.testing.assert_allclose(engine().matvec(THETA, v), jac.T @ inverse @ jac @ v, rtol=1e-9)
    assert engine().resident() is None


@pytest.mark.parametrize("step", [1, 5, 7])
def test_chunks_do_not_show_in_the_bits(step):
    assert engine(step).run(THETA, 2).high.tobytes() == engine().run(THETA, 2).high.tobytes()


def test_rows_that_cannot_be_read():
    with pytest.raises(SourceError, match="22 residuals can be read of 24 that the covariance matrix"):
        engine(rows=11).run(THETA, 0)
