"""Passes on this machine: chunks of any kind give the same bits, reading faults, progress, samples."""

import re
from pathlib import Path

import numpy as np
import pytest

from nlsq_nb import Model
from nlsq_nb.backends import get_backend
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.layout import BLOCK
from nlsq_nb.engines.local import LocalEngine
from nlsq_nb.errors import SourceError
from nlsq_nb.scan import summarize
from nlsq_nb.sources import arrays
from nlsq_nb.sources.arrays import ArraySource
from nlsq_nb.sources.retrying import RetryingSource
from nlsq_nb.sources.sample import batches, sample
from nlsq_nb.sources.weights import GroupWeights, total_weight

MODEL = Model("a*exp(-b*x) + c")
THETA = np.array([2.0, 0.7, 0.3])
N = 5 * BLOCK + 321
RNG = np.random.default_rng(8)
X = RNG.uniform(0.0, 4.0, N)
Y = MODEL(X, *THETA) + RNG.normal(size=N) * 10.0 ** RNG.uniform(-3, 3, N)
SIGMA = RNG.uniform(0.5, 2.0, N)
GROUP = RNG.integers(0, 3, N)
BACKEND = get_backend("reference")


def engine(source, on_progress=None, **options):
    """An engine over a source that is read with these options."""
    reading = RetryingSource(source, **options)
    reading.on_progress = on_progress
    return LocalEngine(BACKEND, BACKEND.compile(MODEL.program, source.dtype), reading)


def bits(source, order=2):
    sums = engine(source).run(THETA, order)
    return sums.n_rows, sums.high.tobytes(), sums.low.tobytes()


class Tape:
    """A source of someone else's: chunks of one block, some of which fail some times when read."""

    dtype = np.dtype(np.float64)
    revision = 0
    n_rows = N
    n_chunks = -(-N // BLOCK)

    def __init__(self, faults):
        self.faults = dict(faults)
        self.released = []
        self.reads = 0

    def reader(self):
        return self

    def rows(self, k):
        return k * BLOCK, min(N, (k + 1) * BLOCK)

    def read(self, k):
        self.reads += 1
        if self.faults.get(k, 0) > 0:
            self.faults[k] -= 1
            raise OSError(f"tape torn at {k}")
        lo, hi = self.rows(k)
        return Chunk(lo, (X[lo:hi],), (Y[lo:hi],))

    def release(self):
        self.released.append(self.reads)

    def chunks(self):
        return (self.read(k) for k in range(self.n_chunks))


# -- chunks ----------------------------------------------------------------------------------
@pytest.mark.parametrize("resident", ["auto", "scan", "loop"])
def test_residence_decides_the_chunks_but_no_bit(resident, monkeypatch):
    monkeypatch.setattr(arrays, "_RESIDENT_ROWS", 2 * BLOCK)
    source = ArraySource(X, Y, SIGMA, resident=resident, chunk_rows=BLOCK - 7)
    assert source.n_chunks == {"auto": 3, "scan": 1, "loop": 6}[resident]
    assert next(source.chunks()).n_rows == {"auto": 2 * BLOCK, "scan": N, "loop": BLOCK}[resident]
    assert bits(source) == bits(ArraySource(X, Y, SIGMA, resident="scan"))


def test_auto_keeps_large_chunks():
    assert ArraySource(X, Y, chunk_rows=10).n_chunks == 1


@pytest.fixture
def mapped(tmp_path, monkeypatch):
    """Makes arrays mapped from a file, and takes few rows for many."""
    monkeypatch.setattr(arrays, "_RESIDENT_ROWS", BLOCK)
    count = iter(range(100))

    def make(values):
        path = tmp_path / f"{next(count)}.npy"
        np.save(path, values)
        return np.load(path, mmap_mode="r")

    return make


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", ">f4", "<f2", "<i4", "u1"])
@pytest.mark.parametrize("precision", ["float64", "float32", "auto"])
def test_mapped_files_give_the_bits_of_copies(mapped, dtype, precision):
    x, y, sigma = (np.abs(c * 3).astype(dtype) for c in (X, np.clip(Y, -40, 40), SIGMA))
    source = ArraySource(mapped(x), mapped(y), mapped(sigma), precision=precision)
    copied = ArraySource(x, y, sigma, precision=precision)
    assert (source.n_chunks, source.dtype) == (6, copied.dtype)
    assert bits(source) == bits(copied)
    how = {"check": True, "backend": get_backend("cpu")}
    assert summarize(source, ["x"], **how) == summarize(copied, ["x"], **how)


def test_mapped_tables_and_groups_are_read_chunk_by_chunk(mapped):
    table = np.column_stack([GROUP, X]).astype(np.float32)
    weights = GroupWeights([0.5, 2.0, 3.0])
    source = ArraySource(mapped(table), mapped(Y), SIGMA, group_weights=weights)
    copied = ArraySource(table.copy(), Y, SIGMA, group_weights=weights)
    assert source.n_chunks > 1
    assert bits(source) == bits(copied)
    weights.set([1.0, 9.0, 2.0])
    assert bits(source) == bits(copied)
    # what is converted lies in one buffer, used again
    held = [chunk.x[0].__array_interface__["data"][0] for chunk in source.chunks()]
    assert len(set(held)) == 1


def test_mapped_rows_can_be_omitted(mapped):
    y = Y.astype(np.float32)
    y[[5, BLOCK + 3, N - 1]] = np.nan
    source = ArraySource(mapped(X), mapped(y), mapped(SIGMA), omit=True)
    assert source.n_omitted == 3
    assert bits(source) == bits(ArraySource(X, y, SIGMA, omit=True))


SMAPS = Path("/proc/self/smaps")


def resident_bytes(path):
    """Bytes of a mapped file that are in this process's memory."""
    found = re.findall(rf"{re.escape(str(path))}\n(?:\w+:.*\n)*?Rss: +(\d+) kB", SMAPS.read_text(encoding="utf-8"))
    return 1024 * sum(map(int, found))


@pytest.mark.skipif(not SMAPS.exists(), reason="the system does not show which pages are resident")
def test_pages_of_a_map_go_with_their_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "_RESIDENT_ROWS", 16 * BLOCK)
    path = tmp_path / "y.npy"
    np.save(path, np.ones(4_000_000))
    most = {}
    for every in (1, 1000):
        y = np.load(path, mmap_mode="r")
        source = RetryingSource(ArraySource(np.zeros(len(y)), y), release_every=every)
        most[every] = 0
        for chunk in source.chunks():
            chunk.y[0].sum()
            most[every] = max(most[every], resident_bytes(path))
        assert resident_bytes(path) == 0  # nor do they stay after a pass
        for few in source.runs([(lo, lo + 9) for lo in range(0, len(y), 100_000)]):
            few.y[0].sum()
            most[every] = max(most[every], resident_bytes(path))
        assert resident_bytes(path) == 0
        del y, source, chunk, few
    assert 0 < most[1] < 10_000_000
    assert most[1000] < 10_000_000


def test_private_maps_keep_what_was_written(tmp_path):
    path = tmp_path / "y.npy"
    np.save(path, np.ones(3 * BLOCK))
    y = np.load(path, mmap_mode="c")
    y[:] = 5.0
    source = RetryingSource(ArraySource(np.zeros(len(y)), y, resident="loop"), release_every=1)
    for _ in range(2):
        assert all((chunk.y[0] == 5.0).all() for chunk in source.chunks())


# -- faults ----------------------------------------------------------------------------------
def test_faults_that_pass_leave_no_trace():
    tape = Tape({0: 1, 3: 2})
    found = engine(tape, retries=2)
    assert found.run(THETA, 2).high.tobytes() == engine(Tape({})).run(THETA, 2).high.tobytes()
    assert found.source.left_out == []
    assert tape.reads == tape.n_chunks + 3


@pytest.mark.parametrize("retries", [0, 2])
def test_an_unreadable_chunk_is_named(retries):
    text = f"chunk 3, rows {3 * BLOCK} to {4 * BLOCK - 1}.*{retries + 1} attempts.*torn"
    with pytest.raises(SourceError, match=text):
        engine(Tape({3: retries + 1}), retries=retries).run(THETA, 0)


def test_other_errors_are_not_retried():
    tape = Tape({})
    tape.read = lambda k: 1 / 0
    with pytest.raises(ZeroDivisionError):
        engine(tape, retries=5).run(THETA, 0)


def test_an_unreadable_chunk_is_left_out_of_every_pass(caplog):
    tape = Tape({2: 3})  # readable again later: it stays out
    found = engine(tape, retries=2, min_success=0.5)
    first, second = (found.run(THETA, 2) for _ in range(2))
    assert found.source.left_out == [(2, (2 * BLOCK, 3 * BLOCK))]
    assert first.high.tobytes() == second.high.tobytes()
    kept = np.r_[0 : 2 * BLOCK, 3 * BLOCK : N]
    assert first.n_rows == len(kept)
    assert bits(ArraySource(X[kept], Y[kept]))[1] == first.high.tobytes()
    assert found.source.revision == 1
    assert summarize(found.source, ["x"], check=True, backend=get_backend("cpu")).n_rows == len(kept)
    assert total_weight(found.source) == len(kept)
    np.testing.assert_allclose(
        found.matvec(THETA, np.ones(3)), first.jtj @ np.ones(3), rtol=1e-10
    )
    assert [r.message for r in caplog.records if "left out" in r.message]


def test_too_many_unreadable_chunks_end_it():
    faults = dict.fromkeys(range(4), 99)
    with pytest.raises(SourceError, match=r"only 2 of 6 chunks can be read, less than min_success_rate=0\.5"):
        engine(Tape(faults), min_success=0.5).run(THETA, 0)
    allowed = engine(Tape(faults), min_success=0.3)
    assert allowed.run(THETA, 0).n_rows == N - 4 * BLOCK
    with pytest.raises(SourceError, match="only 0 of 6"):
        engine(Tape(dict.fromkeys(range(6), 99)), min_success=0.0).run(THETA, 0)


def test_a_source_that_cannot_be_read_again():
    class Stream(Tape):
        reader = None

    assert bits(Stream({})) == bits(ArraySource(X, Y))
    with pytest.raises(SourceError, match=f"chunk 1, from row {BLOCK} on.*torn.*cannot be read again"):
        engine(Stream({1: 1}), retries=3, min_success=0.1).run(THETA, 0)


def test_engines_share_what_is_left_out():
    shared = RetryingSource(Tape({1: 1}), min_success=0.5)
    kernel = BACKEND.compile(MODEL.program, shared.dtype)
    one, other = LocalEngine(BACKEND, kernel, shared), LocalEngine(BACKEND, kernel, shared)
    sums = one.run(THETA, 0)
    assert other.run(THETA, 0).sse == sums.sse
    assert shared.left_out == [(1, (BLOCK, 2 * BLOCK))]


@pytest.mark.parametrize(("every", "calls"), [(1, 6), (2, 3), (4, 1), (10, 0)])
def test_buffers_are_released_now_and_then(every, calls):
    tape = Tape({})
    engine(tape, release_every=every).run(THETA, 0)
    assert len(tape.released) == calls


# -- progress --------------------------------------------------------------------------------
def test_progress_of_long_passes(monkeypatch):
    clock = iter(np.arange(0.0, 100.0, 0.4))
    monkeypatch.setattr("nlsq_nb.sources.retrying.time.perf_counter", lambda: float(next(clock)))
    told = []
    engine(Tape({}), on_progress=lambda *what: told.append(what)).run(THETA, 0)
    # a reading of the clock at the beginning and after each of the six chunks
    assert [(rows, n) for rows, n, _ in told] == [(3 * BLOCK, N), (N, N)]
    assert [seconds for *_, seconds in told] == pytest.approx([1.2, 2.4])


def test_no_progress_of_short_passes():
    told = []
    engine(Tape({}), on_progress=lambda *what: told.append(what)).run(THETA, 0)
    assert not told


# -- samples ---------------------------------------------------------------------------------
RANGES = [(10, 20), (BLOCK - 5, BLOCK + 5), (2 * BLOCK, 4 * BLOCK + 1), (N - 3, N)]
ROWS = np.concatenate([np.arange(lo, hi) for lo, hi in RANGES])


@pytest.mark.parametrize("resident", ["scan", "loop"])
def test_sample_has_its_rows_in_order(resident):
    source = ArraySource(X, Y, SIGMA, resident=resident)
    part = sample(source, RANGES[::-1])
    assert (part.n_rows, part.n_chunks, part.dtype) == (len(ROWS), 1, source.dtype)
    (chunk,) = part.chunks()
    np.testing.assert_array_equal(chunk.x[0], X[ROWS])
    np.testing.assert_array_equal(chunk.w[0], (1.0 / SIGMA**2)[ROWS])
    assert bits(part) == bits(ArraySource(X[ROWS], Y[ROWS], SIGMA[ROWS]))


def test_sample_of_buffers_is_a_copy(mapped):
    part = sample(ArraySource(mapped(X.astype(np.float32)), mapped(Y)), RANGES)
    (chunk,) = part.chunks()
    np.testing.assert_array_equal(chunk.x[0], X.astype(np.float32)[ROWS])


def test_sample_follows_the_weights():
    weights = GroupWeights()
    part = sample(ArraySource([GROUP, X], Y, group_weights=weights), RANGES)
    assert next(part.chunks()).w is None
    for values in ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]):
        weights.set(values)
        np.testing.assert_array_equal(next(part.chunks()).w[0], np.array(values)[GROUP[ROWS]])
    assert part.revision == 2


def test_sample_reads_its_source_once():
    tape = Tape({})
    part = sample(tape, RANGES)
    assert tape.reads == 0
    for _ in range(3):
        list(part.chunks())
    assert tape.reads == tape.n_chunks


def test_sample_without_rows():
    with pytest.raises(SourceError, match="sample"):
        list(sample(RetryingSource(Tape({0: 9}), min_success=0.1), [(3, 9)]).chunks())


@pytest.mark.parametrize("n", [1, 3, 50])
def test_batches_share_out_all_rows_and_each_covers_the_range(n):
    source = ArraySource(np.arange(N), Y)
    parts = [np.concatenate([c.x[0] for c in part.chunks()]) for part in batches(source, n)]
    assert len(parts) == n
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(N))
    for rows in parts:
        assert rows.min() < 0.1 * N
        assert rows.max() > 0.9 * N
        assert abs(len(rows) - N / n) <= 2 * N / (16 * n)


def test_no_more_batches_than_rows():
    parts = batches(ArraySource(X[:3], Y[:3]), 10)
    assert [part.n_rows for part in parts] == [1, 1, 1]
