"""The same rows give the same bits, whatever the threads and chunks; storage in float32 is only storage."""

import numpy as np
import pytest

from nlsq_nb import Model
from nlsq_nb.backends import get_backend
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.layout import BLOCK
from nlsq_nb.core.sums import Accumulator
from nlsq_nb.testing import TOLERANCE, sums_error

N = 5 * 65536 + 1234
FEW = Model("a*exp(-b*x)*cos(w*x) + c")
MANY = Model(" + ".join(f"a{k}*cos({k}*x)" for k in range(14)))
MODELS = [FEW, MANY]
IDS = ["fused", "tiled"]


def theta_of(model):
    return np.cos(np.arange(1.0, model.n_params + 1.0))


def rows(model, dtype=np.float64, n=N):
    rng = np.random.default_rng(11)
    x = rng.uniform(0.0, 3.0, n)
    # rows of very different sizes, so that any change in the order of addition changes bits
    y = model(x, *theta_of(model)) + rng.normal(size=n) * 10.0 ** rng.uniform(-6, 6, n)
    return tuple(np.ascontiguousarray(c, dtype=dtype) for c in (x, y, rng.uniform(0.1, 9.0, n)))


def total(backend, model, columns, order=2, step=None, weighted=True):
    x, y, w = columns
    kernel = backend.compile(model.program, x.dtype)
    into = Accumulator(model.n_params, order)
    for lo in range(0, len(x), step or len(x)):
        part = slice(lo, lo + (step or len(x)))
        chunk = Chunk(lo, (x[part],), (y[part],), (w[part],) if weighted else None)
        backend.reduce(kernel, backend.put(chunk, x.dtype), theta_of(model), order, into)
    return into.result()


def same_bits(left, right):
    assert left.n_rows == right.n_rows
    assert left.high.tobytes() == right.high.tobytes()
    assert left.low.tobytes() == right.low.tobytes()
    assert left.packed.tobytes() == right.packed.tobytes()
    if left.order == 2:
        assert left.sse == right.sse
        assert left.jtr.tobytes() == right.jtr.tobytes()
        assert left.jtj.tobytes() == right.jtj.tobytes()


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_threads_do_not_change_bits(model):
    columns = rows(model)
    one = total(get_backend("cpu", 1), model, columns)
    assert one.n_rows == N
    for threads in (2, 4):
        backend = get_backend("cpu", threads)
        for _ in range(5):  # whichever thread is first
            same_bits(total(backend, model, columns), one)


@pytest.mark.parametrize("model", MODELS, ids=IDS)
@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_chunks_do_not_change_bits(model, name):
    columns = rows(model)
    backend = get_backend(name, 2)
    whole = total(backend, model, columns)
    for blocks in (1, 3, 16, 100):
        same_bits(total(backend, model, columns, step=blocks * BLOCK), whole)


def test_lower_orders_are_the_same_bits_for_any_threads_and_chunks():
    columns = rows(FEW)
    for order in (0, 1):
        one = total(get_backend("cpu", 1), FEW, columns, order)
        same_bits(total(get_backend("cpu", 4), FEW, columns, order), one)
        same_bits(total(get_backend("cpu", 2), FEW, columns, order, step=3 * BLOCK), one)


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_products_with_a_vector_are_the_same_bits_for_any_threads(model):
    x, y, w = rows(model)
    chunk, theta = Chunk(0, (x,), (y,), (w,)), theta_of(model)
    found = []
    for threads in (1, 2, 4):
        backend = get_backend("cpu", threads)
        kernel = backend.compile(model.program, x.dtype)
        found += [backend.matvec(kernel, chunk, theta, theta[::-1]).tobytes() for _ in range(3)]
    assert len(set(found)) == 1


def test_order_of_rows_shows_in_the_bits():
    """Else the tests above could not fail."""
    x, y, w = rows(FEW)
    turned = tuple(np.ascontiguousarray(c[::-1]) for c in (x, y, w))
    backend = get_backend("cpu", 1)
    assert total(backend, FEW, turned).high.tobytes() != total(backend, FEW, (x, y, w)).high.tobytes()


@pytest.mark.parametrize("weighted", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_float32_is_storage_only(model, weighted):
    columns = rows(model, np.float32, 3 * BLOCK + 17)
    found = total(get_backend("cpu", 2), model, columns, weighted=weighted)
    wide = tuple(c.astype(np.float64) for c in columns)
    assert sums_error(found, total(get_backend("reference"), model, columns, weighted=weighted)) <= TOLERANCE
    assert sums_error(found, total(get_backend("reference"), model, wide, weighted=weighted)) <= TOLERANCE
    assert sums_error(found, total(get_backend("cpu", 2), model, wide, weighted=weighted)) <= TOLERANCE
