"""Rows in blocks: spans that lie in them, who reduces which, and the bits of arrays wherever blocks are cut."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlsq_nb import Model
from nlsq_nb.backends import get_backend
from nlsq_nb.core.layout import SEGMENT
from nlsq_nb.core.losses import LEAST_SQUARES
from nlsq_nb.core.sums import Accumulator
from nlsq_nb.core.tsqr import TriangleAccumulator
from nlsq_nb.engines.local import LocalEngine
from nlsq_nb.engines.parts import BlockRows, Job, reduce_part, runs_of
from nlsq_nb.engines.placing import given_to, in_turn, owned, spans_of
from nlsq_nb.sources import pieces
from nlsq_nb.sources.arrays import ArraySource
from nlsq_nb.sources.pieces import PiecesSource
from nlsq_nb.sources.retrying import RetryingSource
from nlsq_nb.sources.rows import RowFormat
from nlsq_nb.sources.weights import GroupWeights, total_weight

N = 21 * SEGMENT + 4097
CUTS = {
    "odd": [(100_001, 200_003), (77_777,)],
    "on segments": [(4 * SEGMENT, 12 * SEGMENT), (8 * SEGMENT,)],
    "small": [tuple(range(5_001, N, 5_001)), tuple(range(33_333, N, 33_333))],
    "one": [(), ()],
}
MODEL = Model("a*exp(-b*x) + c")
THETA = np.array([2.0, 0.7, 0.3])
RNG = np.random.default_rng(4)
X = RNG.uniform(0.0, 4.0, N)
Y = MODEL(X, *THETA) + RNG.normal(size=N) * 10.0 ** RNG.uniform(-3, 0, N)
SIGMA = RNG.uniform(0.5, 2.0, N)
GROUP = RNG.integers(0, 3, N)

edges = st.lists(st.integers(1, N - 1), max_size=30, unique=True).map(lambda inner: [0, *sorted(inner), N])


@given(st.lists(edges, min_size=1, max_size=3), st.integers(1, 2 * N))
def test_spans_are_all_rows_and_lie_in_blocks_or_across_few_rows(fields, longest):
    spans = spans_of(fields, N, longest)
    assert spans[0][0] == 0
    assert spans[-1][1] == -(-N // SEGMENT)
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert all(0 < hi - lo <= -(-longest // SEGMENT) for lo, hi in spans)
    inner = sorted(set().union(*fields))
    for begin, end in pairwise(inner):
        first, last = -(-begin // SEGMENT), end // SEGMENT
        if last - first >= 2:  # rows that could be read in place are in no span that leaves the block
            assert all(lo >= first and (hi <= last or end == N) for lo, hi in spans if lo < last and first < hi)


@given(edges, st.integers(1, 5), st.data())
def test_every_row_is_given_to_one_task(cuts, count, data):
    spans = spans_of([cuts], N, N // 7)
    at = [sorted(data.draw(st.sets(st.sampled_from("abc"), min_size=1))) for _ in cuts[1:]]
    mine = owned(spans, cuts, at)
    assert sorted(span for some in mine.values() for span in some) == spans
    runs = [run for some in mine.values() for run in in_turn(some, count)]
    assert sorted(span for run in runs for span in run) == spans
    rows = [rows for run in runs for found in given_to(run, cuts) for rows in found.rows]
    assert sum(hi - lo for lo, hi in rows) == N
    for run in runs:
        for found in given_to(run, cuts):
            assert all(cuts[found.block] <= lo < hi <= cuts[found.block + 1] for lo, hi in found.rows)


def test_a_block_in_several_places_goes_where_there_is_less():
    cuts = [0, 3 * SEGMENT, 7 * SEGMENT, 11 * SEGMENT]
    mine = owned([(0, 3), (3, 7), (7, 11)], cuts, ["ab", "a", "ab"])
    assert mine == {"a": [(3, 7)], "b": [(0, 3), (7, 11)]}
    assert in_turn([(0, 1), (1, 9), (9, 10)], 3) == [((0, 1),), ((1, 9),), ((9, 10),)]


def blocks(column, cuts, width=None):
    """A field as blocks that begin at odd addresses of their own."""
    found = []
    for lo, hi in zip([0, *cuts], [*cuts, N], strict=True):
        part = column[lo:hi]
        found.append((lo, part.copy() if width is None else np.stack([part] * width, axis=1)))
    return found


def reduced(what, rows, given, **job):
    """A pass in three tasks, the last part first."""
    inner = [[first for first, _ in field] + [N] for field in given]
    spans = spans_of(inner, N, rows.longest)
    found = []
    for run in reversed(in_turn(spans, 3)):
        needed = [
            [field[g.block] for g in given_to(run, cuts)] for field, cuts in zip(given, inner, strict=True)
        ]
        job_of = Job(what, "reference", "t", MODEL.program, rows.form.dtype.name, LEAST_SQUARES, THETA, **job)
        found += zip(runs_of(run), reduce_part(job_of, rows, run, 1, needed), strict=True)
    return [result for _, result in sorted(found, key=lambda pair: pair[0])]


def here(x, y, dtype=np.float64, sigma=None, weights=None):
    backend = get_backend("reference")
    source = ArraySource(x, y, sigma, precision=np.dtype(dtype).name, group_weights=weights)
    return LocalEngine(backend, backend.compile(MODEL.program, dtype), RetryingSource(source))


def same_sums(found, engine):
    into = Accumulator(3, 2)
    for states, rows in found:
        into.join(states, rows)
    sums, expected = into.result(), engine.run(THETA, 2)
    assert sums.n_rows == N
    assert sums.high.tobytes() == expected.high.tobytes()
    assert sums.low.tobytes() == expected.low.tobytes()


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("stored", ["as it is", "float32", "columns of a table"])
def test_bits_of_arrays(cuts, dtype, stored, monkeypatch):
    monkeypatch.setattr(pieces, "_COPIED", 2 * SEGMENT)
    form = RowFormat(1, 1, has_sigma=False, has_group=False, dtype=np.dtype(dtype))
    x, y = X, Y
    if stored == "float32":
        x, y = X.astype(np.float32), Y.astype(np.float32)
    width = 2 if stored == "columns of a table" else None
    given = [blocks(x, CUTS[cuts][0], width), blocks(y, CUTS[cuts][1])]
    rows = BlockRows(form, ((0, None if width is None else 1), (1, None)), (0, 0), N, N // 5)
    same_sums(reduced("sums", rows, given), here(x, y, dtype))


@pytest.mark.parametrize("cuts", CUTS)
def test_weights_and_triangles(cuts):
    weights = GroupWeights([1.0, 0.3, 2.5])
    form = RowFormat(1, 1, has_sigma=True, has_group=True, dtype=np.dtype(np.float64))
    fields = [blocks(c, CUTS[cuts][k % 2]) for k, c in enumerate((X, Y, SIGMA, GROUP))]
    rows = BlockRows(form, tuple((k, None) for k in range(4)), (0,) * 4, N, N // 5)
    engine = here(np.stack([GROUP.astype(np.float64), X]), Y, sigma=SIGMA, weights=weights)
    same_sums(reduced("sums", rows, fields, groups=weights.values), engine)
    parts = reduced("weight", rows, fields, groups=weights.values)
    assert sum(w for part in parts for w in part) == pytest.approx(total_weight(engine.source), rel=1e-12)
    into, expected = TriangleAccumulator(3), engine.triangle(THETA)
    for merged in reduced("triangle", rows, fields, groups=weights.values):
        into.join(merged)
    assert into.result().r.tobytes() == expected.r.tobytes()


def test_blocks_are_read_in_place_and_only_the_rows_at_their_ends_copied():
    form = RowFormat(1, 1, has_sigma=False, has_group=False, dtype=np.dtype(np.float64))
    given = [blocks(X, (100_001,)), blocks(Y, (100_001,))]
    source = PiecesSource(N, given, (0, 0), ((0, None), (1, None)), form, None)
    shared = {}
    for span in spans_of([[0, 100_001, N]] * 2, N, N):
        for chunk in source.chunks(*span):
            columns = zip((*chunk.x, *chunk.y), given, strict=True)
            shared[span] = [any(np.shares_memory(column, block) for _, block in field) for column, field in columns]
    assert shared == {(0, 6): [True, True], (6, 7): [False, False], (7, 22): [True, True]}
