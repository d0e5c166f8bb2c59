"""Weights of rows: by sigma, and by group, which may change while a fit runs."""

import threading

import numpy as np
import pytest

from nlsq_nb.errors import DataError
from nlsq_nb.sources.arrays import ArraySource
from nlsq_nb.sources.weights import GroupWeights, total_weight

RNG = np.random.default_rng(5)
N = 60
GROUP = RNG.integers(0, 3, N).astype(float)
X, Z, Y = RNG.normal(size=(3, N))
W = np.array([0.5, 2.0, 7.0])


def columns_of(source):
    (chunk,) = source.chunks()
    return chunk


def test_one_column_is_group_and_variable():
    chunk = columns_of(ArraySource(GROUP, Y, group_weights=GroupWeights(W)))
    np.testing.assert_array_equal(chunk.x[0], GROUP)
    np.testing.assert_array_equal(chunk.w[0], W[GROUP.astype(int)])


TABLES = {
    "rows of columns": np.array([GROUP, X, Z]),
    "columns of rows": np.array([GROUP, X, Z]).T,
    "list": [GROUP.astype(np.int8), X, Z],
    "tuple of lists": (GROUP.tolist(), X.tolist(), Z.tolist()),
    "list of rows": np.array([GROUP, X, Z]).T.tolist(),
    "mapping": {"site": GROUP, "z": Z, "x": X},
}


@pytest.mark.parametrize("x", TABLES.values(), ids=TABLES)
def test_a_column_more_is_the_group_alone(x):
    source = ArraySource(x, Y, variables=("x", "z"), group_weights=GroupWeights(W))
    chunk = columns_of(source)
    for found, wanted in zip(chunk.x, (X, Z), strict=True):
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(chunk.w[0], W[GROUP.astype(int)])


@pytest.mark.parametrize("x", [np.array([GROUP, X]), np.array([GROUP, X]).T, [GROUP, X]])
def test_a_column_more_than_one_variable(x):
    chunk = columns_of(ArraySource(x, Y, group_weights=GroupWeights(W)))
    np.testing.assert_array_equal(chunk.x[0], X)


@pytest.mark.parametrize("x", [np.array([GROUP, X]), np.array([GROUP, X]).T, [GROUP, X], {"x": GROUP, "z": X}])
def test_as_many_columns_as_variables(x):
    chunk = columns_of(ArraySource(x, Y, variables=("x", "z"), group_weights=GroupWeights(W)))
    np.testing.assert_array_equal(chunk.x[0], GROUP)
    np.testing.assert_array_equal(chunk.x[1], X)
    np.testing.assert_array_equal(chunk.w[0], W[GROUP.astype(int)])


def test_few_rows_are_told_apart_by_their_number():
    """(3, 2) is two columns for three rows, not three columns for two."""
    chunk = columns_of(
        ArraySource([[0, 5.0], [1, 6.0], [1, 7.0]], [1, 2, 3], variables=("x", "z"), group_weights=GroupWeights([3, 4]))
    )
    np.testing.assert_array_equal(chunk.w[0], [3, 4, 4])
    np.testing.assert_array_equal(chunk.x[1], [5, 6, 7])


def test_sigma_and_group_multiply():
    sigma = RNG.uniform(0.5, 2.0, (2, N))
    source = ArraySource([GROUP, X], [Y, Z], sigma, n_outputs=2, group_weights=GroupWeights(W))
    chunk = columns_of(source)
    for k in range(2):
        np.testing.assert_array_equal(chunk.w[k], 1.0 / sigma[k] ** 2 * W[GROUP.astype(int)])
    np.testing.assert_array_equal(source.root_weights(), np.sqrt(np.stack(chunk.w)))


def test_ones_until_set_then_from_the_next_pass_on():
    weights = GroupWeights()
    source = ArraySource([GROUP, X], Y, group_weights=weights)
    assert (source.revision, total_weight(source)) == (0, N)
    assert columns_of(source).w is None
    running = source.reader()
    weights.set(W)
    assert source.revision == 1
    assert running.read(0).w is None, "a pass keeps the weights that it began with"
    np.testing.assert_array_equal(columns_of(source).w[0], W[GROUP.astype(int)])
    weights.set(2 * W)
    assert source.revision == 2
    assert total_weight(source) == pytest.approx(2 * W[GROUP.astype(int)].sum(), rel=1e-15)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.0, 0.0], r"residual_weights\[1\] is 0"),
        ([1.0, 2.0, -1.0], r"residual_weights\[2\] is -1"),
        ([np.nan], r"residual_weights\[0\] is nan"),
        ([1.0, np.inf], r"residual_weights\[1\] is inf"),
        ([[1.0, 2.0]], r"shape \(1, 2\)"),
        ([], r"shape \(0,\)"),
        (2.0, r"shape \(\)"),
        (["a"], "dtype"),
    ],
)
def test_bad_weights_change_nothing(values, text):
    weights = GroupWeights([1.0, 2.0])
    with pytest.raises(DataError, match=text):
        weights.set(values)
    assert weights.revision == 1
    assert weights.values.tolist() == [1.0, 2.0]


def test_weights_are_a_copy():
    mine = np.array([1.0, 2.0])
    weights = GroupWeights(mine)
    mine[0] = 9.0
    assert weights.values.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="read-only"):
        weights.values[0] = 3.0


@pytest.mark.parametrize("bad", [0.5, -1.0, 3.0, np.nan, np.inf])
def test_bad_index_is_named(bad):
    group = GROUP.copy()
    group[[17, 40]] = bad
    with pytest.raises(DataError, match=rf"it is {bad} at row 17"):
        list(ArraySource([group, X], Y, group_weights=GroupWeights(W)).chunks())


def test_bad_index_does_not_matter_until_weights_are_set():
    weights = GroupWeights()
    source = ArraySource(X, Y, group_weights=weights)
    assert columns_of(source).w is None
    weights.set(W)
    with pytest.raises(DataError, match="at row"):
        list(source.chunks())


def test_fewer_weights_are_noticed():
    weights = GroupWeights(W)
    source = ArraySource([GROUP, X], Y, group_weights=weights)
    list(source.chunks())
    weights.set(W[:2])
    with pytest.raises(DataError, match=f"2.0 at row {int(np.argmax(GROUP == 2))}; there are 2 residual weights"):
        list(source.chunks())


def test_omitted_rows_keep_their_names():
    group, y = GROUP.copy(), Y.copy()
    y[3], group[5], group[20] = np.nan, np.nan, 8.0
    source = ArraySource([group, X], y, omit=True, group_weights=GroupWeights(W))
    assert source.n_omitted == 2
    with pytest.raises(DataError, match=r"8\.0 at row 20"):
        list(source.chunks())
    group[20] = 1.0
    source = ArraySource([group, X], y, omit=True, group_weights=GroupWeights(W))
    np.testing.assert_array_equal(columns_of(source).w[0], W[np.delete(group, [3, 5]).astype(int)])


def test_setting_from_many_threads_counts_every_change():
    weights = GroupWeights()
    threads = [
        threading.Thread(target=lambda k=k: [weights.set([1.0 + k]) for _ in range(200)]) for k in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert weights.revision == 1600
    revision, values = weights.current
    assert revision == 1600
    assert 1.0 <= values[0] <= 8.0
