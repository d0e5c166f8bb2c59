"""Robust losses: ρ and its derivatives, and what the passes of both backends make of them."""

import mpmath
import numpy as np
import pytest

from nlsq_nb import Model
from nlsq_nb.backends import get_backend
from nlsq_nb.backends.entries import kernel_entry
from nlsq_nb.codegen.module import load
from nlsq_nb.codegen.skeletons import render
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.layout import BLOCK, sums_size
from nlsq_nb.core.losses import FLOOR, LEAST_SQUARES, LOSSES, Loss, rho, weigh
from nlsq_nb.core.sums import Accumulator
from nlsq_nb.testing import TOLERANCE, sums_error
from tests.conformance.test_shapes import loops

LONG = (pytest.mark.slow, pytest.mark.long)
ROBUST = LOSSES[1:]
FEW = Model("a*exp(-b*x) + c")
MANY = Model(" + ".join(f"a{k}*exp(-((x - m{k})/s{k})**2)" for k in range(3)) + " + c + d*x")
BOTH = Model(["a*exp(-b*x) + c", "a*x + d"])
MODELS = {"fused": FEW, "tiled": MANY, "two outputs": BOTH}
EXACT = {
    "huber": lambda z: z if z <= 1 else 2 * mpmath.sqrt(z) - 1,
    "soft_l1": lambda z: 2 * (mpmath.sqrt(1 + z) - 1),
    "cauchy": lambda z: mpmath.log(1 + z),
    "arctan": mpmath.atan,
    "tukey": lambda z: (1 - (1 - z) ** 3) / 3 if z <= 1 else mpmath.mpf(1) / 3,
}


def theta_of(model):
    return 1.0 + 0.3 * np.cos(np.arange(1.0, model.n_params + 1.0))


def chunk_of(model, rows=2 * BLOCK + 77, *, weighted=True, dtype=np.float64):
    """Data of which a fifth are outliers, around another point than `theta_of`."""
    rng = np.random.default_rng(4)
    x = rng.uniform(0.0, 4.0, rows)
    values = np.atleast_2d(model(x, *(1.01 * theta_of(model))))
    noise = rng.normal(0.0, 0.1, values.shape) * np.where(rng.uniform(size=values.shape) < 0.2, 30.0, 1.0)
    y, w = values + noise, rng.uniform(0.5, 2.0, values.shape)
    stored = [np.ascontiguousarray(c, dtype=dtype) for c in (x, *y, *w)]
    count = len(values)
    return Chunk(0, (stored[0],), tuple(stored[1 : 1 + count]), tuple(stored[1 + count :]) if weighted else None)


def total(backend, model, chunk, loss, order=2, step=None):
    kernel = backend.compile(model.program, chunk.y[0].dtype, loss)
    into = Accumulator(model.n_params, order)
    for lo in range(0, chunk.n_rows, step or chunk.n_rows):
        rows = slice(lo, lo + (step or chunk.n_rows))
        w = None if chunk.w is None else tuple(c[rows] for c in chunk.w)
        part = Chunk(lo, tuple(c[rows] for c in chunk.x), tuple(c[rows] for c in chunk.y), w)
        backend.reduce(kernel, part, theta_of(model), order, into)
    return into.result()


@pytest.mark.parametrize("kind", ROBUST)
def test_rho_and_its_derivatives(kind):
    z = np.concatenate([10.0 ** np.arange(-40.0, 40.0, 3.7), [0.3, 0.7, 1.3]])
    with mpmath.workdps(150):
        exact = [[mpmath.diff(EXACT[kind], mpmath.mpf(v), k, h=mpmath.mpf(v) / 10**30) for v in z] for k in range(3)]
    for found, right in zip(rho(kind, z), exact, strict=True):
        assert np.allclose(found, np.array(right, dtype=float), rtol=1e-13, atol=1e-300)


@pytest.mark.parametrize("kind", LOSSES)
def test_rho_is_scipys(kind):
    least_squares = pytest.importorskip("scipy.optimize._lsq.least_squares")
    if kind == "tukey":
        assert "tukey" not in least_squares.IMPLEMENTED_LOSSES
        return
    z = np.linspace(0.0, 9.0, 50)
    if kind != "linear":
        right = np.empty((3, len(z)))
        least_squares.IMPLEMENTED_LOSSES[kind](z, right, cost_only=False)
        assert np.allclose(rho(kind, z), right, rtol=1e-13, atol=1e-15)
    else:
        assert np.array_equal(rho(kind, z)[0], z)


@pytest.mark.parametrize("kind", ROBUST)
def test_matrix_weights(kind):
    r, w = np.linspace(-20.0, 20.0, 401), np.full(401, 0.7)
    loss = Loss(kind, 1.7)
    value, push, h = weigh(loss, r, w)
    slope = push[r != 0.0] / (w * r)[r != 0.0]
    assert np.allclose(np.gradient(value, r)[1:-1], 2.0 * push[1:-1], atol=0.02)  # the gradient is of the cost
    assert (h[r != 0.0] >= FLOOR * slope * 0.7 - 1e-15).all()
    assert np.allclose(weigh(Loss(kind, 1.7, "meat"), r, w)[2], w * push * push / w)
    true = weigh(Loss(kind, 1.7, "bread"), r, w)[2]
    apart = np.abs(np.gradient(push, r) - true)[1:-1]
    assert np.sort(apart)[-5] < 0.08  # but at huber's two corners
    assert (true < -1e-9).any() == Loss(kind).redescends


# every one is compiled, so that most are slow tests
QUICK = [("fused", True, kind) for kind in ROBUST] + [("tiled", False, "huber")]
ALL = [(shape, weighted, kind) for shape in MODELS for weighted in (False, True) for kind in ROBUST]


def marked(quick, every=ALL):
    listed = [(case, case if isinstance(case, tuple) else (case,)) for case in every]
    return [pytest.param(*values, marks=() if case in quick else LONG) for case, values in listed]


def error(found, right, plain):
    """The largest error of the sums, in units of what least squares adds up at the same rows."""
    p, root = plain.n_params, np.sqrt(np.diag(plain.jtj))
    scale = [plain.sse, *(root * np.sqrt(plain.sse)), *np.outer(root, root)[np.triu_indices(p)]]
    return np.max(np.abs(found.packed - right.packed) / np.array(scale[: len(found.packed)]))


@pytest.mark.parametrize(("shape", "weighted", "kind"), marked(QUICK))
def test_kernels_against_reference(shape, weighted, kind):
    model, cpu, reference = MODELS[shape], get_backend("cpu", 1), get_backend("reference")
    chunk = chunk_of(model, weighted=weighted)
    plain = total(reference, model, chunk, LEAST_SQUARES)
    for part in ("steps", "bread", "meat"):
        loss = Loss(kind, 0.15, part)
        found, right = (total(b, model, chunk, loss) for b in (cpu, reference))
        assert error(found, right, plain) <= TOLERANCE


@pytest.mark.parametrize(("shape", "weighted", "kind"), marked([("fused", True, "cauchy")]))
def test_lower_orders_and_products_against_reference(shape, weighted, kind):
    model, cpu, reference = MODELS[shape], get_backend("cpu", 1), get_backend("reference")
    chunk, loss = chunk_of(model, weighted=weighted), Loss(kind, 0.15)
    plain = total(reference, model, chunk, LEAST_SQUARES)
    for order in (0, 1):
        found, right = (total(b, model, chunk, loss, order) for b in (cpu, reference))
        assert error(found, right, plain) <= TOLERANCE
    v, h = np.sin(theta_of(model)), total(reference, model, chunk, loss).jtj
    product = cpu.matvec(cpu.compile(model.program, np.float64, loss), chunk, theta_of(model), v)
    assert np.allclose(product, h @ v, rtol=1e-11, atol=1e-13 * np.abs(h).max())


@pytest.mark.parametrize("kind", marked(["huber"], ROBUST))
def test_float32_is_storage_only(kind):
    chunk, loss = chunk_of(FEW, dtype=np.float32), Loss(kind, 0.15)
    found, right = (total(get_backend(name), FEW, chunk, loss) for name in ("cpu", "reference"))
    assert error(found, right, total(get_backend("reference"), FEW, chunk, LEAST_SQUARES)) <= TOLERANCE


@pytest.mark.parametrize("model", [FEW, pytest.param(MANY, marks=LONG)], ids=["fused", "tiled"])
def test_threads_and_chunks_do_not_change_bits(model):
    chunk, loss = chunk_of(model, 12 * 4 * BLOCK + 99), Loss("cauchy", 0.15)
    one = total(get_backend("cpu", 1), model, chunk, loss)
    for threads, step in ((2, None), (3, 3 * BLOCK), (1, BLOCK)):
        again = total(get_backend("cpu", threads), model, chunk, loss, step=step)
        assert again.high.tobytes() == one.high.tobytes()
        assert again.low.tobytes() == one.low.tobytes()


@pytest.mark.parametrize("kind", ROBUST)
def test_a_large_scale_is_least_squares(kind):
    chunk, backend = chunk_of(FEW), get_backend("cpu", 1)
    plain = total(backend, FEW, chunk, LEAST_SQUARES)
    assert sums_error(total(backend, FEW, chunk, Loss(kind, 1e9)), plain) <= TOLERANCE


def test_another_scale_or_part_needs_no_other_code():
    chunk, backend, before = chunk_of(FEW), get_backend("cpu", 1), kernel_entry.cache_info().misses
    found = {total(backend, FEW, chunk, Loss("huber", f, part)).sse for f in (0.3, 0.4) for part in ("steps", "meat")}
    assert len(found) == 2
    assert kernel_entry.cache_info().misses <= before + 1


@pytest.mark.parametrize("kind", marked(["tukey"], ROBUST))
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_what_is_not_finite_stays_visible(name, bad, kind):
    chunk = chunk_of(FEW, 300)
    chunk.y[0][7] = bad
    for order in (0, 1, 2):
        assert not total(get_backend(name, 1), FEW, chunk, Loss(kind), order).is_finite


@pytest.mark.parametrize("kind", marked(["cauchy"], ROBUST))
@pytest.mark.parametrize("weighted", [True, pytest.param(False, marks=LONG)])
def test_hot_loop_is_vector_code_without_calls(kind, weighted):
    llvm = pytest.importorskip("llvmlite.binding")
    if not llvm.get_host_cpu_features().get("fma"):
        pytest.skip("a processor without FMA")
    chunk, theta = chunk_of(FEW, 10, weighted=weighted), theta_of(FEW)
    module = load(render(FEW.program, "cpu", weighted, kind), {})
    for order in (2, 0):
        sums = getattr(module, f"sums{order}")
        columns, numbers = (*chunk.x, *chunk.y, *(chunk.w or ())), Loss(kind).numbers()
        sums(0, 0, *columns, theta, numbers, np.zeros((2, sums_size(3, order))))
        hot = [loop for loop in loops(sums.inspect_asm(sums.signatures[-1])) if "pd\t" in loop and "vf" in loop]
        hot = [loop for loop in hot if any(f"{p}mm" in loop for p in "yz")]
        assert hot
        assert not any("call" in loop for loop in hot)
