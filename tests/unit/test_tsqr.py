"""R of √W J block by block: the same for any chunks and threads, and as accurate as LAPACK on all rows at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_nb import Model
from nlsq_nb.backends import get_backend
from nlsq_nb.core.covariance import covariance, covariance_of_triangle
from nlsq_nb.core.layout import BLOCK
from nlsq_nb.core.penalties import GroupVariance, group_variance
from nlsq_nb.core.tsqr import EPS, Triangle, TriangleAccumulator, triangle_of
from nlsq_nb.engines.local import LocalEngine
from nlsq_nb.objective import DataObjective
from nlsq_nb.sources.arrays import ArraySource

MODEL = Model("a*exp(-b*x) + c*x")
THETA = np.array([2.0, 0.7, 0.3])


def triangle_from(rows, rounding=EPS):
    """The triangle of a matrix [J | r]."""
    into = TriangleAccumulator(rows.shape[1] - 1, rounding)
    into.add(triangle_of(rows[k : k + BLOCK]) for k in range(0, len(rows), BLOCK))
    return into.result()


def engine(source, backend="cpu", model=MODEL, n_threads=None):
    backend = get_backend(backend, n_threads)
    return LocalEngine(backend, backend.compile(model.program, source.dtype), source)


def data(n, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.0, 5.0, n)
    return x, MODEL(x, *THETA) + rng.normal(0.0, 0.1, n), rng.uniform(0.1, 2.0, n)


def all_bits(triangle):
    return np.concatenate([triangle.r.ravel(), triangle.z, [triangle.rest]]).tobytes()


@given(rows=st.integers(0, 3000), width=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_triangle_of_any_shape(rows, width, seed):
    matrix = np.random.default_rng(seed).normal(size=(rows, width))
    found = triangle_of(matrix)
    assert found.shape == (width, width)
    np.testing.assert_array_equal(found, np.triu(found))
    np.testing.assert_allclose(found.T @ found, matrix.T @ matrix, rtol=0, atol=1e-12 * max(rows, 1))


@pytest.mark.parametrize("blocks", [1, 2, 3, 7, 20])
def test_blocks_merge_to_what_all_rows_give(blocks):
    rng = np.random.default_rng(blocks)
    rows = rng.normal(size=(blocks * BLOCK - 100, 5)) * 10.0 ** np.arange(5)
    found, whole = triangle_from(rows), np.linalg.qr(rows, mode="r")
    np.testing.assert_allclose(np.abs(np.diag(found.r)), np.abs(np.diag(whole))[:-1], rtol=1e-13)
    assert found.rest == pytest.approx(abs(whole[-1, -1]), rel=1e-13)
    np.testing.assert_allclose(found.norms, np.linalg.norm(rows[:, :-1], axis=0), rtol=1e-13)
    assert found.sse == pytest.approx(rows[:, -1] @ rows[:, -1], rel=1e-13)


@pytest.mark.parametrize("weighted", [False, True])
def test_chunks_threads_and_backends_do_not_show_in_the_bits(weighted):
    x, y, sigma = data(10 * BLOCK + 17)
    given = {"sigma": sigma if weighted else None, "resident": "loop"}
    found = [
        all_bits(engine(ArraySource(x, y, chunk_rows=rows, **given), backend, n_threads=threads).triangle(THETA))
        for rows, threads, backend in (
            (BLOCK, 1, "cpu"),
            (3 * BLOCK, 3, "cpu"),
            (x.size, 2, "cpu"),
            (2 * BLOCK, None, "reference"),
        )
    ]
    assert len(set(found)) == 1


def test_weights_and_several_outputs():
    model = Model(["a*x + b", "b*x**2 - a"], params=("a", "b"))
    x = np.linspace(0.1, 2.0, 50)
    y = np.array([1.1 * x + 0.4, 0.6 * x**2 - 1.0])
    sigma = np.random.default_rng(2).uniform(0.5, 2.0, y.shape)
    source = ArraySource(x, y, sigma, n_outputs=2)
    found = engine(source, model=model).triangle(np.array([1.0, 0.5]))
    jac = (model.jacobian(x, 1.0, 0.5) / sigma[:, :, None]).reshape(-1, 2)
    rest = ((y - model(x, 1.0, 0.5)) / sigma).ravel()
    np.testing.assert_allclose(found.r.T @ found.r, jac.T @ jac, rtol=1e-13)
    np.testing.assert_allclose(found.r.T @ found.z, jac.T @ rest, rtol=1e-11, atol=1e-13)
    assert found.sse == pytest.approx(rest @ rest, rel=1e-13)
    expected = np.linalg.lstsq(jac, rest, rcond=None)[0]
    np.testing.assert_allclose(found.step(), expected, rtol=1e-11)


@pytest.mark.parametrize("jac", [lambda x, a, b: np.stack([x, np.ones_like(x)], axis=1), "cs", "3-point", "2-point"])
def test_functions_that_are_called_as_they_are(jac):
    model = Model.from_callable(lambda x, a, b: a * x + b, jac=jac)
    x = np.linspace(0.0, 1.0, 40)
    found = engine(ArraySource(x, 2.0 * x + 1.0), model=model).triangle(np.array([1.0, 1.0]))
    rounding = {"3-point": EPS ** (2 / 3), "2-point": EPS**0.5}.get(jac if isinstance(jac, str) else "", EPS)
    assert found.rounding == pytest.approx(rounding)
    np.testing.assert_allclose(found.step(), [1.0, 0.0], atol=1e-6)


def test_a_penalty_takes_part():
    x, y, _ = data(100)
    penalty = GroupVariance([(0, 2)], 0.3, 100)
    objective = DataObjective(engine(ArraySource(x, y)), 3, lambda theta: None, penalty=penalty)
    found, sums = objective.triangle(THETA), objective(THETA, 2)
    np.testing.assert_allclose(found.r.T @ found.r, sums.jtj, rtol=1e-12)
    np.testing.assert_allclose(found.r.T @ found.z, sums.jtr, rtol=1e-11)
    assert found.sse == pytest.approx(sums.sse, rel=1e-13)
    assert objective.passes == 2


@pytest.mark.parametrize("groups", [[(0, 5)], [(0, 2), (2, 5)], [(1, 4), (2, 5)], [(3, 4)]])
def test_rows_of_a_penalty_give_its_sums(groups):
    theta = np.array([1.0, 4.0, -2.0, 0.5, 3.0])
    rows = GroupVariance(groups, 0.7, 40).rows(theta)
    sums = group_variance(theta, groups, 0.7, 40)
    np.testing.assert_allclose(rows[:, :-1].T @ rows[:, :-1], sums.jtj, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(rows[:, :-1].T @ rows[:, -1], sums.jtr, rtol=1e-13, atol=1e-13)
    assert rows[:, -1] @ rows[:, -1] == pytest.approx(sums.sse, rel=1e-13)


def test_columns_of_some_parameters():
    rows = np.random.default_rng(4).normal(size=(60, 5))
    mask = np.array([True, False, True, True])
    part = triangle_from(rows).of(mask)
    kept = rows[:, :-1][:, mask]
    np.testing.assert_allclose(part.step(), np.linalg.lstsq(kept, rows[:, -1], rcond=None)[0], rtol=1e-12)
    assert part.sse == pytest.approx(rows[:, -1] @ rows[:, -1], rel=1e-13)
    projected = kept @ np.linalg.lstsq(kept, rows[:, -1], rcond=None)[0]
    assert part.offset == pytest.approx(np.linalg.norm(projected) / np.linalg.norm(rows[:, -1]), rel=1e-12)


def test_a_step_leaves_what_is_not_determined():
    rows = np.random.default_rng(5).normal(size=(60, 4))
    rows[:, 1] = 3.0 * rows[:, 0]
    step = triangle_from(rows).step()
    short = np.linalg.lstsq(rows[:, [0, 2]], rows[:, -1], rcond=None)[0]
    assert step[0] + 3.0 * step[1] == pytest.approx(short[0], rel=1e-12)
    assert step[2] == pytest.approx(short[1], rel=1e-12)
    assert abs(step[1]) < abs(short[0])


# -- covariance ------------------------------------------------------------------------------------
def everything(p):
    return np.ones(p, dtype=bool)


@given(seed=st.integers(0, 2**32 - 1), p=st.integers(1, 8))
@settings(deadline=None, max_examples=50)
def test_covariance_is_that_of_the_normal_matrix_where_this_is_good(seed, p):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(p + 10, p + 1)) * 10.0 ** rng.uniform(-8, 8, p + 1)
    jac, free = rows[:, :-1], rng.uniform(size=p) < 0.8
    found = covariance_of_triangle(triangle_from(rows), free, 2.0)
    expected = covariance(jac.T @ jac, free, 2.0)
    size = np.sqrt(np.diag(expected.matrix)) + ~free
    np.testing.assert_allclose(found.matrix / np.outer(size, size), expected.matrix / np.outer(size, size), atol=1e-8)
    # that of the normal matrix may be an upper bound, p times too large
    assert found.condition <= expected.condition * 1.001 <= 1.002 * p * found.condition
    assert not found.undetermined.any()


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("units", [1.0, 1e9, 1e-9])
def test_ill_conditioned_is_not_undetermined(gap, units):
    # orthonormal columns u, v: those of u and u + gap·v have the errors √(1 + 1/gap²) and 1/gap
    orthonormal = np.linalg.qr(np.random.default_rng(6).normal(size=(50, 3)))[0]
    jac = orthonormal @ np.array([[1.0, units, 0.0], [0.0, units * gap, 0.0], [0.0, 0.0, 1.0]])
    found = covariance_of_triangle(triangle_from(np.column_stack([jac, np.ones(50)])), everything(3), 1.0)
    errors = np.sqrt(np.diag(found.matrix))
    np.testing.assert_allclose(errors, [np.hypot(1.0, 1.0 / gap), 1.0 / (gap * units), 1.0], rtol=10 * EPS / gap)
    assert not found.undetermined.any()


def test_undetermined_directions_are_named():
    rows = np.random.default_rng(7).normal(size=(60, 5))
    rows[:, 2] = 3.0 * rows[:, 0]
    found = covariance_of_triangle(triangle_from(rows), everything(4), 2.0)
    assert found.undetermined.tolist() == [True, False, True, False]
    assert np.isinf(found.matrix[0, 0])
    rest = np.linalg.inv(rows[:, [0, 1, 3]].T @ rows[:, [0, 1, 3]])
    np.testing.assert_allclose(found.matrix[np.ix_([1, 3], [1, 3])], 2.0 * rest[1:, 1:], rtol=1e-10)
    rows[:, 1] = 0.0
    assert covariance_of_triangle(triangle_from(rows), everything(4), 2.0).undetermined.tolist() == [True] * 3 + [False]


def test_differences_are_not_trusted_beyond_their_digits():
    rows = np.random.default_rng(8).normal(size=(60, 3))
    rows[:, 1] = rows[:, 0] + 1e-9 * rows[:, 1]
    exact, rough = (covariance_of_triangle(triangle_from(rows, r), everything(2), 1.0) for r in (EPS, EPS**0.5))
    assert not exact.undetermined.any()
    assert rough.undetermined.all()


def test_no_rows():
    found = TriangleAccumulator(2).result()
    assert isinstance(found, Triangle)
    assert found.sse == 0.0
    assert found.offset == 0.0
    assert not found.r.any()
