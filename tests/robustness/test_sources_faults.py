"""Sources that fail, change or end too early: retried, left out or named; nothing stays open behind them."""

import errno
import gc
import itertools
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from nlsq_nb import ConvergenceWarning, DataError, NumericsError, SourceError, StopFit, curve_fit
from nlsq_nb.core.layout import BLOCK
from nlsq_nb.errors import NlsqError
from nlsq_nb.sources import hdf5_file, mapped, spool
from nlsq_nb.sources.ahead import StoredRows
from nlsq_nb.sources.hdf5 import HDF5Source
from nlsq_nb.sources.rows import Reading, RowFormat

MODEL, P0 = "a*exp(-b*x) + c", [2.0, 1.0, 1.0]
N = 6 * BLOCK + 100
RNG = np.random.default_rng(3)
X = RNG.uniform(0.0, 4.0, N)
Y = 3.0 * np.exp(-1.2 * X) + 0.5 + RNG.normal(0.0, 0.1, N)
STREAM = {"chunk_size": BLOCK, "loop_strategy": "loop", "backend": "reference"}
TORN = (OSError, errno.EIO, "torn tape")
FDS = Path("/proc/self/fd")


def held():
    """Open files, threads and temporary files."""
    gc.collect()
    files = len(list(FDS.iterdir())) if FDS.exists() else 0
    return files, threading.active_count(), sorted(Path(tempfile.gettempdir()).glob("nlsq_nb-*"))


@pytest.fixture(autouse=True)
def nothing_stays(path):
    curve_fit(MODEL, path, p0=P0, **STREAM)  # what is loaded once stays
    before = held()
    yield
    assert held() == before


@pytest.fixture
def path(tmp_path):
    where = tmp_path / "data.h5"
    with h5py.File(where, "w") as file:
        file["x"], file["y"] = X, Y
    return where


def batches(rows=1_000):
    for lo in range(0, N, rows):
        yield X[lo : lo + rows], Y[lo : lo + rows]


def bits(result):
    return result.popt.tobytes(), result.pcov.tobytes(), result.sse


def expected():
    return bits(curve_fit(MODEL, X, Y, P0, backend="reference"))


class FailsAt:
    """A function whose n-th call raises, and calls after it for as long as `stays` says."""

    def __init__(self, function, n, stays=1, error=TORN):
        self.function, self.n, self.stays = function, n, stays
        self.error = error
        self.calls = 0

    def __call__(self, *args, **named):
        self.calls += 1
        if self.n <= self.calls < self.n + self.stays:
            kind, *what = self.error  # a new one each time: errors hold the frames that they went through
            raise kind(*what)
        return self.function(*args, **named)

    def __get__(self, owner, kind=None):
        return lambda *args, **named: self(owner, *args, **named)


# -- retries ---------------------------------------------------------------------------------
def test_a_fault_that_passes_changes_no_bit(path, monkeypatch):
    wanted = expected()
    for n in (2, 3, 9, 30):
        fails = FailsAt(hdf5_file._read_into, n, stays=2)
        monkeypatch.setattr(hdf5_file, "_read_into", fails)
        assert bits(curve_fit(MODEL, path, p0=P0, max_retries_per_batch=2, **STREAM)) == wanted
        monkeypatch.undo()
        assert fails.calls > n + 2


def test_a_fault_that_stays_is_named(path, monkeypatch):
    monkeypatch.setattr(hdf5_file, "_read_into", FailsAt(hdf5_file._read_into, 12, stays=10**9))
    with pytest.raises(SourceError, match=r"chunk \d+, rows \d+ to \d+, cannot be read after 3 attempts.*torn tape"):
        curve_fit(MODEL, path, p0=P0, **STREAM)


def broken_chunk(file):
    file.create_dataset("x", data=X, chunks=(BLOCK,), compression="gzip", fletcher32=True)
    where = file["x"].id.get_chunk_info(2)
    file["y"] = Y
    return where.byte_offset + where.size // 2


def test_a_broken_chunk_is_left_out_when_that_is_allowed(path):
    with h5py.File(path, "w") as file:
        at = broken_chunk(file)
    data = bytearray(path.read_bytes())
    data[at] ^= 255
    path.write_bytes(data)
    with pytest.raises(SourceError, match="chunk 2, rows 8192 to 12287"):
        curve_fit(MODEL, path, p0=P0, **STREAM)
    found = curve_fit(MODEL, path, p0=P0, min_success_rate=0.8, **STREAM)
    keep = np.r_[0 : 2 * BLOCK, 3 * BLOCK : N]
    assert found.n_points == len(keep)
    assert found.popt == pytest.approx(curve_fit(MODEL, X[keep], Y[keep], P0).popt, rel=1e-9)
    assert "chunk 2 could not be read: rows 8192 to 12287 are left out" in found.notes
    with pytest.raises(SourceError, match="only 6 of 7 chunks"):
        curve_fit(MODEL, path, p0=P0, min_success_rate=0.95, **STREAM)


def test_an_iterator_that_fails_is_begun_anew():
    starts = itertools.count()

    def begin():
        number = next(starts)
        for k, batch in enumerate(batches()):
            if k == 7 and number % 2:
                raise OSError(errno.EIO, "torn tape")
            yield batch

    assert bits(curve_fit(MODEL, begin, p0=P0, **STREAM)) == expected()
    assert next(starts) > 4


@pytest.mark.parametrize("k", [None, 0])
def test_an_iterator_that_fails_at_the_very_first_row_is_begun_anew(k):
    starts = itertools.count()

    def rows(number):
        for at, batch in enumerate(batches()):
            if at == k and number < 2:
                raise OSError(errno.EIO, "torn tape")
            yield batch

    def begin():
        number = next(starts)
        if k is None and number < 2:
            raise OSError(errno.EIO, "no tape")
        return rows(number)

    assert bits(curve_fit(MODEL, begin, p0=P0, **STREAM)) == expected()


def test_an_iterator_that_keeps_failing_is_named():
    starts = itertools.count()

    def begin():
        number = next(starts)
        for k, batch in enumerate(batches()):
            if k == 7 and number > 3:
                raise OSError(errno.EIO, "torn tape")
            yield batch

    text = "chunk 1, rows 4096 to 8191, cannot be read after 3 attempts.*what comes after it cannot be read either"
    with pytest.raises(SourceError, match=text):
        curve_fit(MODEL, begin, p0=P0, min_success_rate=0.1, **STREAM)


@pytest.mark.parametrize("k", [0, 7])
def test_an_iterator_that_fails_the_only_time_it_is_read(k):
    def begin():
        for number, batch in enumerate(batches()):
            if number == k:
                raise OSError(errno.EIO, "torn tape")
            yield batch

    with pytest.raises(SourceError, match="torn tape"):
        curve_fit(MODEL, begin(), p0=P0, **STREAM)


# -- sources that change -----------------------------------------------------------------------
def rewritten(path):
    with h5py.File(path.with_suffix(".new"), "w") as file:
        file["x"], file["y"] = X, Y + 1.0
    path.with_suffix(".new").rename(path)


def written_in_place(path):
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(bytes(8))


def shortened(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("change", [written_in_place, shortened])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_file_that_changes_during_a_fit(path, change, in_place, monkeypatch):
    if in_place:
        monkeypatch.setattr(hdf5_file, "_MAP_FROM", 0)
    done = []

    def callback(params, loss, iteration):
        if not done:
            before = path.stat().st_mtime_ns
            change(path)
            os.utime(path, ns=(before, before + 1))
            done.append(True)

    with pytest.raises(SourceError, match="was changed while it was being fitted"):
        curve_fit(MODEL, path, p0=P0, callback=callback, callback_frequency=1, **STREAM)
    assert done


def test_a_file_that_is_shortened_while_it_is_read_in_place(path, monkeypatch):
    """The writer waits until the reader has let go: no signal, an error."""
    monkeypatch.setattr(hdf5_file, "_MAP_FROM", 0)
    load, writers = mapped.MappedFile.load, []

    def slow(held_file, start, length):
        load(held_file, start, length)
        if len(writers) == 0 and start > 60_000:
            writers.append(threading.Thread(target=shortened, args=(path,)))
            writers[0].start()
            writers[0].join(0.2)

    monkeypatch.setattr(mapped.MappedFile, "load", slow)
    with pytest.raises(SourceError, match="was changed while it was being fitted"):
        curve_fit(MODEL, path, p0=P0, **STREAM)
    writers[0].join()


def test_a_writer_waits_until_nothing_is_read_in_place(path, monkeypatch):
    """The thread that reads ahead meets him first, while the chunk before is in use: no signal, the right rows."""
    monkeypatch.setattr(hdf5_file, "_MAP_FROM", 0)
    source = HDF5Source(path).open(Reading(("x",), chunk_rows=BLOCK, resident="loop"))
    reader, other = source.reader(), source.reader()
    other.read(0)
    reader.read(0)
    writer = threading.Thread(target=shortened, args=(path,))
    writer.start()
    writer.join(0.2)
    for k in range(1, source.n_chunks - 1):  # from the second on they are read while he waits
        chunk = reader.read(k)
        reader._ahead[1].result()
        assert writer.is_alive()
        assert chunk.y[0].tobytes() == Y[k * BLOCK : (k + 1) * BLOCK].tobytes()
    assert writer.is_alive()
    reader.close()
    writer.join(0.2)
    assert writer.is_alive()  # another pass is under way
    other.close()
    writer.join()
    with pytest.raises(SourceError, match="was changed while it was being fitted"):
        source.reader().read(0)
    source.close()


class Recorded:
    """A store that knows which rows are shown in place."""

    n_rows = 10

    def __init__(self):
        self.shown, self.most, self.rests, self.faults = set(), 0, 0, {4}

    def open(self):
        pass

    def block(self, field, lo, hi, rooms, *, in_place=False):
        assert in_place
        if lo in self.faults:
            self.faults.remove(lo)
            raise OSError(*TORN[1:])
        self.shown.add((lo, hi))
        self.most = max(self.most, len(self.shown))
        return np.arange(lo, hi, dtype=np.float64)

    def check(self):
        pass

    def drop(self, lo, hi):
        self.shown.discard((lo, hi))

    def rest(self):
        self.rests += 1

    def close(self):
        pass


@pytest.mark.parametrize("end", [1, 3, 5])
def test_no_more_than_two_chunks_are_shown(end):
    store = Recorded()
    rows = StoredRows(store, [(0, None), (0, None)])
    reader = rows.reader(RowFormat(1, 1, has_sigma=False, has_group=False, dtype=np.dtype(float)), 2, None)
    for k in range(end):
        try:
            chunk = reader.read(k)
        except OSError:
            chunk = reader.read(k)
        assert chunk.x[0].tolist() == [2.0 * k, 2.0 * k + 1.0]
    reader.close()
    rows.close()
    assert (store.shown, store.rests) == (set(), 1)
    assert store.most == 2 or (end == 1 and store.most == 1)  # the second may not have been begun when the pass ended


def test_a_file_that_is_replaced_is_read_to_the_end_and_told_later(path):
    """The open file is the old one; afterwards it cannot be found any more."""
    done = []

    def callback(params, loss, iteration):
        if not done:
            rewritten(path)
            done.append(True)

    found = curve_fit(MODEL, path, p0=P0, callback=callback, callback_frequency=1, **STREAM)
    assert bits(found) == expected()
    with pytest.raises(SourceError, match="was changed"):
        list(found.residual_chunks())


@pytest.mark.parametrize("fewer", [True, False])
def test_an_iterator_with_another_number_of_rows(fewer):
    lengths = itertools.chain([N] * 3 if fewer else [N - 900] * 3, itertools.repeat(N - 900 if fewer else N))

    def begin():
        length = next(lengths)
        return ((X[lo : min(lo + 500, length)], Y[lo : min(lo + 500, length)]) for lo in range(0, length, 500))

    with pytest.raises(SourceError, match="not the same as in the first pass"):
        curve_fit(MODEL, begin, p0=P0, **STREAM)


def test_an_iterator_of_other_random_numbers():
    def begin():
        noise = np.random.default_rng()
        return ((x, y + noise.normal(size=len(y))) for x, y in batches())

    with pytest.raises(SourceError, match=r"not the same as in the first pass.*fixed seed"):
        curve_fit(MODEL, begin, p0=P0, **STREAM)


# -- the temporary file --------------------------------------------------------------------------
def test_no_folder_for_it_is_named(monkeypatch):
    def nowhere(*_, **__):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", nowhere)
    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(SourceError, match=r"No usable temporary directory.*TMPDIR.*give a function"):
        curve_fit(MODEL, batches(), p0=P0, **STREAM)


def test_a_full_disk_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = tempfile.TemporaryFile

    def full(**named):
        file = made(**named)
        write = FailsAt(file.write, 5, stays=99, error=(OSError, errno.ENOSPC, os.strerror(errno.ENOSPC)))
        return SimpleNamespace(fileno=file.fileno, close=file.close, seek=file.seek, write=write)

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(SourceError, match=f"{tmp_path}, which failed after 8192 rows.*No space left.*TMPDIR"):
        curve_fit(MODEL, batches(), p0=P0, **STREAM)
    assert [each.name for each in tmp_path.iterdir()] == ["data.h5"]


@pytest.mark.parametrize(
    ("model", "error"), [("a*exp(-b*x) + log(x - 9)", NumericsError), ("a*zzz(x)", NlsqError), (MODEL, ValueError)]
)
def test_the_temporary_file_is_gone_after_errors(model, error):
    how = {"method": "lm", "bounds": (0.0, 9.0)} if error is ValueError else {}
    with pytest.raises(error):
        curve_fit(model, batches(), p0=P0 if model == MODEL else None, **how, **STREAM)


def test_a_generator_is_closed_and_its_rows_are_gone():
    generator = batches()
    found = curve_fit(MODEL, generator, p0=P0, **STREAM)
    assert bits(found) == expected()
    assert generator.gi_frame is None
    with pytest.raises(SourceError, match="kept for the time of the fit only"):
        next(found.residual_chunks())
    with pytest.raises(DataError, match="has to be made anew"):
        curve_fit(MODEL, generator, p0=P0, **STREAM)


@pytest.mark.parametrize("what", ["profile", "intervals", "residuals", "picture"])
def test_a_file_is_closed_when_a_result_has_read_it_again(path, what):
    found = curve_fit(MODEL, path, p0=P0, **STREAM)
    before = held()
    if what == "profile":
        found.profile("b")
    elif what == "intervals":
        found.confidence_intervals(method="profile")
    elif what == "residuals":
        next(found.residual_chunks())
    else:
        found._of_the_data().drawn(100)
    assert held() == before


def test_who_is_done_closes_no_file_that_another_reads(path):
    found = curve_fit(MODEL, path, p0=P0, **STREAM)
    before, whole = held(), [part.copy() for part in found.residual_chunks()]
    parts = found.residual_chunks()
    some = [next(parts).copy()]
    found.profile("b")
    some += [part.copy() for part in parts]
    np.testing.assert_array_equal(np.concatenate(some), np.concatenate(whole))
    with ThreadPoolExecutor(3) as pool:
        assert len({each.interval for each in pool.map(found.profile, ["b"] * 3)}) == 1
    assert held() == before


# -- callbacks, and who interrupts ---------------------------------------------------------------
@pytest.mark.parametrize("kind", ["file", "generator", "function"])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, StopFit])
def test_callbacks_that_raise(path, kind, error):
    def callback(params, loss, iteration):
        raise error("from the callback")

    source = {"file": path, "generator": batches(), "function": batches}[kind]
    call = lambda: curve_fit(MODEL, source, p0=P0, callback=callback, callback_frequency=1, **STREAM)  # noqa: E731
    if error is ZeroDivisionError:
        with pytest.raises(error, match="from the callback"):
            call()
    else:
        with pytest.warns(ConvergenceWarning):
            assert not call().success


def test_an_error_of_the_users_own_function_is_shown_as_it_is():
    def begin():
        yield from itertools.islice(batches(), 5)
        raise ZeroDivisionError("mine")

    for source in (begin, begin()):
        with pytest.raises(ZeroDivisionError, match="mine"):
            curve_fit(MODEL, source, p0=P0, **STREAM)


# -- the n-th call -------------------------------------------------------------------------------
CALLS = {
    "open": (h5py, "File"),
    "read": (hdf5_file, "_read_into"),
    "read by HDF5": (h5py.Dataset, "read_direct"),
    "fstat": (hdf5_file, "state_of"),
    "temporary": (tempfile, "TemporaryFile"),
    "spool": (spool.Spool, "_put"),
    "load": (mapped.MappedFile, "load"),
    "lease": (mapped.Lease, "take"),
    "map": (mapped.MappedFile, "__init__"),
}


WHERE = [
    *(("open", kind) for kind in ("file", "packed")),
    *(("fstat", kind) for kind in ("file", "in place")),
    *(("read", kind) for kind in ("file", "in place")),
    ("read by HDF5", "packed"),
    *((call, "in place") for call in ("load", "lease", "map")),
    *((call, "generator") for call in ("temporary", "spool", "load", "map")),
]


@pytest.mark.parametrize("error", [TORN, (MemoryError, "no memory")], ids=["io", "memory"])
@pytest.mark.parametrize(("call", "kind"), WHERE)
def test_the_nth_call_fails(path, call, kind, error, monkeypatch):
    """Each time an error of ours (or a lack of memory as it is), or the very same result."""
    if kind == "in place":
        monkeypatch.setattr(hdf5_file, "_MAP_FROM", 0)
    if kind == "packed":
        with h5py.File(path, "w") as file:
            for column, values in (("x", X), ("y", Y)):
                file.create_dataset(column, data=values, chunks=(BLOCK,), compression="lzf")
    wanted, (owner, name), outcomes = expected(), CALLS[call], []
    original = getattr(owner, name)
    for n in itertools.accumulate(itertools.count(1), lambda last, step: last + 1 + step**2 // 4):
        fails = FailsAt(original, n, error=error)
        monkeypatch.setattr(owner, name, fails)
        try:
            found = curve_fit(MODEL, batches() if kind == "generator" else path, p0=P0, **STREAM)
            assert bits(found) == wanted
            outcomes.append("right")
        except SourceError:
            outcomes.append("told")
        except MemoryError:
            outcomes.append("told" if error[0] is MemoryError else "raw")
        finally:
            monkeypatch.setattr(owner, name, original)
        if fails.calls < n:
            break
    assert outcomes[-1] == "right"
    assert len(outcomes) > 1
    assert "raw" not in outcomes
