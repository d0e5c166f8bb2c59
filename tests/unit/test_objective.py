"""The objective: passes, penalties, weights that change, and the scan of the data before a fit."""

import numpy as np
import pytest

from nlsq_nb import Model
from nlsq_nb.backends import get_backend
from nlsq_nb.core.layout import BLOCK
from nlsq_nb.core.penalties import group_variance
from nlsq_nb.engines.local import LocalEngine
from nlsq_nb.errors import NumericsError
from nlsq_nb.objective import DataObjective
from nlsq_nb.scan import require_finite, summarize
from nlsq_nb.sources.arrays import ArraySource
from nlsq_nb.sources.sample import sample
from nlsq_nb.sources.weights import GroupWeights, total_weight

MODEL = Model("a*exp(-b*x) + c")
THETA = np.array([2.0, 0.7, 0.3])
N = 3 * BLOCK + 99
RNG = np.random.default_rng(2)
X, Y, SIGMA = RNG.uniform(0.0, 4.0, N), RNG.normal(size=N) + 3.0, RNG.uniform(0.5, 2.0, N)
BACKENDS = [get_backend("cpu", 2), get_backend("reference")]


def engine(source, backend=BACKENDS[1]):
    return LocalEngine(backend, backend.compile(MODEL.program, source.dtype), source)


def objective(source, **options):
    return DataObjective(engine(source), 3, lambda theta: None, **options)


def penalty(theta):
    return group_variance(theta, [(0, 2), (1, 3)], 0.2, N)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_penalty_is_part_of_every_order(order):
    source = ArraySource(X, Y)
    plain, found = (objective(source, penalty=p)(THETA, order) for p in (None, penalty))
    added = penalty(THETA)
    assert (found.order, found.n_rows) == (order, N)
    size = len(plain.packed)
    np.testing.assert_allclose(found.packed, plain.packed + added.packed[:size], rtol=1e-15)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("added", [None, penalty])
def test_matvec_is_the_matrix_of_order_two(backend, added):
    source = ArraySource(X, Y, SIGMA, resident="loop")
    assert source.n_chunks == 4
    found = DataObjective(engine(source, backend), 3, lambda theta: None, penalty=added)
    for v in np.eye(3):
        np.testing.assert_allclose(found.matvec(THETA, v), found(THETA, 2).jtj @ v, rtol=1e-10)
    np.testing.assert_allclose(found.matvec(2 * THETA, v), found(2 * THETA, 2).jtj @ v, rtol=1e-10)


def test_passes_of_data_and_sample_are_counted_apart():
    source = ArraySource(X, Y)
    made = []

    def part():
        made.append(1)
        return objective(sample(source, [(5, 500)]))

    found = objective(source, sample=part)
    found(THETA, 1)
    found.matvec(THETA, THETA)
    assert (found.passes, found.sample_passes, made) == (2, 0, [])
    assert found.sample is found.sample
    assert found.sample(THETA, 0).n_rows == 495
    assert (found.passes, found.sample_passes, made) == (2, 1, [1])
    assert found.sample.weight == 495
    alone = objective(source)
    assert alone.sample is alone


def test_weight_follows_the_group_weights():
    weights = GroupWeights()
    group = RNG.integers(0, 2, N)
    source = ArraySource([group, X], Y, SIGMA, group_weights=weights)
    found = objective(source, weight=123.0)
    assert (found.weight, found.revision) == (123.0, 0), "the scan's weight is taken while it holds"
    before = found(THETA, 2)
    weights.set([1.0, 3.0])
    assert found.revision == 1
    w = np.array([1.0, 3.0])[group] / SIGMA**2
    assert found.weight == pytest.approx(w.sum(), rel=1e-13)
    r = Y - MODEL(X, *THETA)
    assert before.sse == pytest.approx(np.sum(r**2 / SIGMA**2), rel=1e-12)
    assert found(THETA, 2).sse == pytest.approx(np.sum(w * r**2), rel=1e-12)


def test_only_the_first_sums_are_explained():
    def explain(theta):
        raise NumericsError(str(theta[0]))

    with np.errstate(all="ignore"):
        found = DataObjective(engine(ArraySource(X, Y)), 3, explain)
        with pytest.raises(NumericsError, match="nan"):
            found(np.array([np.nan, 1.0, 1.0]), 0)
        found = DataObjective(engine(ArraySource(X, Y)), 3, explain)
        found(THETA, 0)
        assert not found(np.array([np.nan, 1.0, 1.0]), 0).is_finite


@pytest.mark.parametrize("sigma", [None, 0.5, SIGMA])
def test_summary(sigma):
    w = np.ones(N) if sigma is None else np.broadcast_to(1.0 / np.square(sigma), N)
    one = summarize(ArraySource(X, Y, sigma), ["x"], check=True, backend=get_backend("cpu"))
    assert (one.n_rows, one.n_residuals) == (N, N)
    assert one.weight == pytest.approx(w.sum(), rel=1e-13)
    assert one.signal == pytest.approx(np.sum(w * Y**2), rel=1e-13)
    assert one.spread == pytest.approx(np.sum(w * (Y - np.average(Y, weights=w)) ** 2), rel=1e-12)
    loop = ArraySource(X, Y, sigma, resident="loop")
    assert summarize(loop, ["x"], check=True, backend=get_backend("cpu")) == one, "chunks do not show"
    assert total_weight(loop) == one.weight


def test_a_model_that_is_not_finite_is_named_by_row():
    source = ArraySource(X - 1.0, Y)
    model = Model("a*log(x)")
    with pytest.raises(NumericsError, match=f"row {int(np.argmax(X <= 1.0))} "):
        require_finite(model.program, source, np.ones(1), model.params)
