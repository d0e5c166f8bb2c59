"""The conformance tests of backends on executed PTX, and what only a device can get wrong."""

import numpy as np
import pytest

from nlsq_nb import Model
from nlsq_nb.backends import get_backend
from nlsq_nb.backends.cuda.columns import put_column
from nlsq_nb.backends.cuda.toolkit import toolkit
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.losses import LOSSES, Loss
from nlsq_nb.core.sums import Accumulator
from nlsq_nb.testing import EXPRESSIONS, TOLERANCE, BackendTests, scaled_error, sums_error


@pytest.fixture(autouse=True)
def _on_the_stand_in(driver):
    return driver


class TestCuda(BackendTests):
    def backend(self):
        return get_backend("cuda")

    def rows(self, kernel, x, theta):
        x = tuple(put_column(np.ascontiguousarray(c), kernel.dtype, toolkit().cuda.stream()) for c in x)
        chunk = Chunk(0, x, x[:1])
        return tuple(
            np.array(self.backend().rows(kernel.program, name, chunk, theta).copy_to_host())
            for name in ("values", "jacobian")
        )


def total(backend, model, chunk, theta, dtype=np.float64, order=2):
    kernel = backend.compile(model.program, dtype)
    into = Accumulator(len(theta), order)
    backend.reduce(kernel, backend.put(chunk, dtype), np.asarray(theta, dtype=float), order, into)
    return into.result()


def chunk_of(data, weighted, dtype=np.float64):
    x, y, w = (tuple(np.ascontiguousarray(c, dtype=dtype) for c in part) for part in (data.x, data.y, data.w))
    return Chunk(0, x, y, w if weighted else None, lasting=True)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("index", [3, 7, 66])  # fused, two groups of sums and two outputs, five parameters
def test_any_order_of_threads_gives_the_same_bits(driver, index, weighted):
    entry = EXPRESSIONS[index]
    model, chunk, found = entry.model(), chunk_of(entry.data(3000), weighted), set()
    for order in ("forward", "reverse", "random", "random"):
        driver.order = order
        sums = total(get_backend("cuda"), model, chunk, entry.theta)
        found.add(sums.high.tobytes() + sums.low.tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("index", [3, pytest.param(7, marks=pytest.mark.slow)])
def test_float32_is_storage(index, weighted):
    entry = EXPRESSIONS[index]
    chunk = chunk_of(entry.data(2000), weighted, np.float32)
    wide = Chunk(0, *(None if p is None else tuple(c.astype(float) for c in p) for p in (chunk.x, chunk.y, chunk.w)))
    found = total(get_backend("cuda"), entry.model(), chunk, entry.theta, np.float32)
    assert sums_error(found, total(get_backend("cpu"), entry.model(), wide, entry.theta)) <= TOLERANCE
    assert sums_error(found, total(get_backend("cuda"), entry.model(), chunk_of(entry.data(2000), weighted),
                                   entry.theta)) <= 1e-6  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("entry", EXPRESSIONS, ids=str)
def test_every_entry_as_on_the_cpu_in_both_dtypes_and_any_order(driver, entry, weighted):
    model, data = entry.model(), entry.data(1500)
    for dtype, most in ((np.float64, TOLERANCE), (np.float32, 1e-6)):
        chunk, bits = chunk_of(data, weighted, dtype), set()
        for order in ("forward", "reverse", "random"):
            driver.order = order
            found = total(get_backend("cuda"), model, chunk, entry.theta, dtype)
            bits.add(found.high.tobytes() + found.low.tobytes())
        assert len(bits) == 1
        assert sums_error(found, total(get_backend("cpu"), model, chunk, entry.theta, dtype)) <= most


@pytest.mark.parametrize("terms", [16, 17, 40])
def test_many_parameters(terms):
    """Sums in registers of several kernels, and in tiles; the Jacobian of some rows at a time."""
    model = Model(" + ".join(f"a{k}*cos({k}*x)" for k in range(terms)))
    rng, theta = np.random.default_rng(terms), 1.0 / (1.0 + np.arange(terms))
    x = rng.uniform(-2, 2, 700)
    chunk = Chunk(0, (x,), (rng.normal(size=700),), (rng.uniform(0.5, 2, 700),), lasting=True)
    found = total(get_backend("cuda"), model, chunk, theta)
    assert sums_error(found, total(get_backend("cpu"), model, chunk, theta)) <= TOLERANCE


def test_pieces_of_a_stored_jacobian(monkeypatch):
    from nlsq_nb.backends.cuda import passes

    entry = EXPRESSIONS[6]
    assert len(entry.theta) > 16
    chunk = chunk_of(entry.data(900), weighted=True)
    whole = total(get_backend("cuda"), entry.model(), chunk, entry.theta)
    monkeypatch.setattr(passes, "_SPACE", 26 * 128)
    assert sums_error(total(get_backend("cuda"), entry.model(), chunk, entry.theta), whole) <= TOLERANCE


def random_model(seed):
    """A SymPy expression of depth three over one variable and some parameters, tame for arguments of order one."""
    import sympy as sp

    rng = np.random.default_rng(seed)
    x, params = sp.Symbol("x"), sp.symbols("a b c d")[: rng.integers(1, 5)]
    one = [
        *(sp.sin, sp.cos, sp.tanh, sp.atan, sp.erf, sp.asinh, sp.Abs),
        *(lambda u: sp.exp(-(u**2)), lambda u: sp.sqrt(1 + u**2), lambda u: sp.log(2 + u**2)),
        *(lambda u: 1 / (1 + u**2), lambda u: u**2, lambda u: (2 + u**2) ** sp.Rational(3, 7)),
        lambda u: sp.Piecewise((u, x < sp.Rational(37, 100)), (2 * u, True)),
    ]
    two = [sp.Add, sp.Mul, lambda u, v: u - v, sp.Max, sp.Min, lambda u, v: u / (2 + sp.cos(v))]

    def grow(depth):
        if depth == 0:
            leaves = [x, *params, sp.Float(rng.uniform(-2, 2))]
            return leaves[rng.integers(len(leaves))]
        if rng.random() < 0.5:
            return one[rng.integers(len(one))](grow(depth - 1))
        return two[rng.integers(len(two))](grow(depth - 1), grow(depth - 1))

    expression = grow(3) + sum(p * x**k for k, p in enumerate(params))
    return Model(expression, params=[str(p) for p in params])


def check_random(seed):
    model = random_model(seed)
    rng = np.random.default_rng(seed)
    theta, n = rng.uniform(0.3, 1.5, model.n_params), int(rng.integers(1, 1500))
    chunk = Chunk(0, (rng.uniform(-1.5, 1.5, n),), (rng.normal(size=n),), lasting=True)
    found = total(get_backend("cuda"), model, chunk, theta)
    assert sums_error(found, total(get_backend("reference"), model, chunk, theta)) <= TOLERANCE, model.text


@pytest.mark.parametrize("seed", range(3))
def test_random_models(seed):
    check_random(seed)


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(10))
def test_more_random_models(batch):
    for seed in range(100 + 20 * batch, 120 + 20 * batch):
        check_random(seed)


def test_hand_written_functions():
    def point(x0, p0, p1):
        return p0 * x0 + p1

    def jac_point(x0, p0, p1):
        return x0, 1.0

    model = Model.from_kernel(point, jac_point)
    x = np.linspace(0, 1, 50)
    chunk = Chunk(0, (x,), (x**2,), lasting=True)
    found = total(get_backend("cuda"), model, chunk, [2.0, 0.5])
    assert sums_error(found, total(get_backend("cpu"), model, chunk, [2.0, 0.5])) <= TOLERANCE
    assert scaled_error(found.jtr, ((x**2 - 2 * x - 0.5)[:, None] * np.stack([x, x**0], 1)).sum(0)) <= TOLERANCE


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", LOSSES[1:])
def test_robust_losses(kind, weighted):
    entry = EXPRESSIONS[3]
    data, theta = entry.data(1100), np.array(entry.theta)
    chunk, model, loss = chunk_of(data, weighted), entry.model(), Loss(kind, 0.7)
    sums = []
    for name in ("cuda", "reference"):
        backend = get_backend(name)
        kernel, into = backend.compile(model.program, np.float64, loss), Accumulator(3, 2)
        backend.reduce(kernel, backend.put(chunk, np.float64), theta, 2, into)
        sums.append((into.result(), backend.matvec(kernel, backend.put(chunk, np.float64), theta, theta[::-1])))
    assert sums_error(sums[0][0], sums[1][0]) <= TOLERANCE
    assert np.allclose(sums[0][1], sums[1][1], rtol=1e-12)
