"""Fits of more rows than native code sums by itself: it asks for the passes, and everything else stays the same."""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import sys
import threading
import time
import tracemalloc
import warnings
import weakref
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from nlsq_nb import HDF5Source, Model, api, curve_fit, whole
from nlsq_nb.backends import cpu
from nlsq_nb.backends.cpu import CpuBackend
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.layout import RESIDENT_ROWS
from nlsq_nb.errors import DataError, NumericsError, SourceError
from nlsq_nb.phases.state import StopReason
from nlsq_nb.sources import retrying
from nlsq_nb.sources.sample import ScatteredSource

from .test_compiled import direct, no_plain_fit, plain, same_in_bits

N = RESIDENT_ROWS + 20_000
MODEL, START = "a*exp(-b*x) + c", (1.0, 0.1, 5.0)
X = np.linspace(0.0, 10.0, N)
NOISE = np.random.default_rng(0).normal(0.0, 0.1, N)
Y = 5.0 * np.exp(-0.5 * X) + 1.0 + NOISE
BOUNDS = {"bounds": ([0.0, 0.0, 0.0], [50.0, 5.0, 5.0])}


def watch(*_):
    """A callback keeps a fit out of native code."""


def fit(way="plain", **options):
    """A fit, plain or in the general way, both without a warning for what is asked of them."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if way != "plain":
            patch.setattr(api, "fit_plainly", no_plain_fit)
        return curve_fit(MODEL, X, Y, START, **options)


@pytest.mark.parametrize("start", [START, (5.1, 0.505, 0.99), (1.0, 3.0, 0.0)])
@pytest.mark.parametrize("rows", [16_385, RESIDENT_ROWS, RESIDENT_ROWS + 1, N])
def test_a_plain_fit_has_the_bits_of_the_general_way(rows, start, monkeypatch):
    assert same_in_bits(monkeypatch, MODEL, X[:rows], Y[:rows], start)


def test_so_has_one_with_standard_deviations(monkeypatch):
    sigma = 0.1 * np.linspace(1.0, 2.0, RESIDENT_ROWS)
    given = (MODEL, X[:RESIDENT_ROWS], Y[:RESIDENT_ROWS], START)
    assert same_in_bits(monkeypatch, *given, sigma=sigma, absolute_sigma=True)
    assert plain(MODEL, X, Y, START, np.full(N, 0.1)) is None  # of so many rows no copies are made


@pytest.mark.parametrize("rows", [60, 5000, N])
def test_so_has_one_whose_x_is_in_no_order(rows, monkeypatch):
    order = np.random.default_rng(1).permutation(N)[:rows]
    assert same_in_bits(monkeypatch, MODEL, X[order], Y[order], START)


@pytest.mark.parametrize("text", ["a + b*x", "a*exp(-((x - m)/s)**2/2) + c"])
def test_so_have_other_models(text, monkeypatch):
    model = Model(text)
    truth = np.linspace(1.0, 2.0, model.n_params)
    assert same_in_bits(monkeypatch, model, X, model(X, *truth) + NOISE, 1.5 * truth)


def test_what_is_mapped_from_a_file_is_read_ahead(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.asarray(np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert plain(MODEL, mapped, Y, START) is None
    assert curve_fit(MODEL, mapped, Y, START).popt.tobytes() == fit().popt.tobytes()


@pytest.mark.parametrize(
    "options", [{}, BOUNDS, {"method": "trf"}, {"precision": "float32"}, {"warmup_sample_size": N}]
)
def test_native_code_ends_where_steps_in_python_do(options, monkeypatch):
    seen = []
    monkeypatch.setattr(api, "fit_directly", lambda *args, **more: seen.append(direct(*args, **more)) or seen[-1])
    native, steps = fit("general", **options), fit("general", callback=watch, **options)
    assert len(seen) == 1
    assert seen[0] is not None
    assert native.status is steps.status
    assert abs(native.nfev - steps.nfev) <= (0 if "warmup_sample_size" not in options else 3)
    np.testing.assert_allclose(native.popt, steps.popt, rtol=1e-9)
    np.testing.assert_allclose(native.perr, steps.perr, rtol=1e-9)


def test_a_file_is_fitted_in_native_code_too(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["x"], file["y"] = X, Y
    seen = []
    monkeypatch.setattr(api, "fit_directly", lambda *args, **more: seen.append(direct(*args, **more)) or seen[-1])
    found = curve_fit(MODEL, HDF5Source(tmp_path / "rows.h5", x="x", y="y"), p0=START)
    assert seen == [found]
    assert found.popt.tobytes() == fit().popt.tobytes()


def test_a_false_optimum_is_left_on_all_rows():
    y = 2.0 * np.sin(3.0 * X + 0.5) + NOISE
    for bounds in ({}, {"bounds": ([-9.0, 0.0, -9.0], [9.0, 9.0, 9.0])}):
        result = curve_fit("a*sin(w*x + p)", X, y, (1.0, 2.0, 0.0), **bounds)
        assert result.success
        assert result.sse / N == pytest.approx(0.01, rel=0.05)
        assert any("a second opinion led to" in note for note in result.notes), result.notes


class Broken:
    """Passes over all rows, one of which ends with an error."""

    def __init__(self, patch, error, at):
        self.points, self.after, reduce, raised = [], 0, CpuBackend.reduce, []

        def failing(backend, kernel, chunk, theta, order, into):
            if chunk.n_rows == N and kernel.program.n_params == 3:
                self.after += bool(raised)
                if len(self.points) == at and not raised:
                    raised.append(error)
                    raise error
                self.points.append(np.array(theta))
            reduce(backend, kernel, chunk, theta, order, into)

        patch.setattr(CpuBackend, "reduce", failing)


@pytest.fixture
def long_passes(monkeypatch):
    """What is looked for between passes is looked for in these, too."""
    monkeypatch.setattr(cpu, "_AT_ONCE", 0.0)


@pytest.mark.parametrize("way", ["plain", "general"])
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.usefixtures("long_passes")
def test_ctrl_c_in_a_pass_gives_the_best_point(way, at, monkeypatch):
    least = fit(way).sse
    with monkeypatch.context() as patch:
        broken = Broken(patch, KeyboardInterrupt, at)
        stopped = fit(way)
    assert stopped.status is StopReason.INTERRUPTED
    assert not stopped.success
    sse = [float(np.sum((Y - (a * np.exp(-b * X) + c)) ** 2)) for a, b, c in broken.points]
    assert stopped.sse == pytest.approx(min(sse), rel=1e-12)
    assert stopped.popt.tolist() == broken.points[int(np.argmin(sse))].tolist()
    assert broken.after == 0
    assert stopped.nfev == at
    assert least <= stopped.sse
    names = [entry["name"] for entry in stopped.streaming_diagnostics["phase_history"]]
    assert len(names) == 4
    assert np.isfinite(stopped.fun).all()
    assert not whole._open


@pytest.mark.parametrize("way", ["plain", "general"])
@pytest.mark.usefixtures("long_passes")
def test_ctrl_c_before_anything_is_known_is_raised(way, monkeypatch):
    broken = Broken(monkeypatch, KeyboardInterrupt, 0)
    with pytest.raises(KeyboardInterrupt):
        fit(way)
    assert broken.after == 0


@pytest.mark.parametrize("way", ["plain", "general"])
@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.usefixtures("long_passes")
def test_an_error_in_a_pass_is_shown_as_it_is(way, at, monkeypatch):
    Broken(monkeypatch, MemoryError("no room"), at)
    with pytest.raises(MemoryError, match="no room"):
        fit(way)
    assert not whole._open


@pytest.mark.parametrize("way", ["plain", "general"])
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.usefixtures("long_passes")
def test_a_pass_that_is_not_answered_is_ctrl_c(way, at, monkeypatch):
    """Python raises it before the first line of what native code calls, and ctypes drops it there."""
    calls = []

    def unanswered(*given):
        calls.append(given)
        return 0x1234 if len(calls) == 1 + at else whole._measure(*given)

    called = whole._SIGNATURE(unanswered)
    monkeypatch.setattr(whole, "_ADDRESS", ctypes.cast(called, ctypes.c_void_p).value)
    stopped = fit(way)
    assert stopped.status is StopReason.INTERRUPTED
    assert (stopped.popt.tolist() == list(START)) == (at == 1)
    assert len(calls) == 1 + at  # no other pass is asked for


def test_passes_that_are_over_are_not_called():
    passes = whole.WholePasses(lambda theta: pytest.fail("called"), 3, N)
    key = np.array(passes.resident.columns, dtype=np.int64)
    assert whole._measure(0, N, key.ctypes.data, 0, 0) != passes.resident.done
    with passes:
        assert whole._open == {passes.resident.columns[0]: passes}


def test_rows_that_are_lost_in_a_later_pass_are_left_out(tmp_path, monkeypatch):
    path = tmp_path / "rows.h5"
    with h5py.File(path, "w") as file:
        file["x"], file["y"] = X, Y
    reads = []

    def fitted(**more):
        reads.clear()
        steps = {"chunk_size": 16_384, "loop_strategy": "loop"}
        return curve_fit(MODEL, HDF5Source(path, x="x", y="y"), p0=START, **steps, **more)

    attempt = retrying.RetryingSource._attempt

    def failing(source, reader, k, read):
        def broken():
            raise OSError("gone")

        reads.append(k)
        return attempt(source, reader, k, broken if k == 3 and reads.count(3) > 2 else read)

    monkeypatch.setattr(retrying.RetryingSource, "_attempt", failing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        native, steps = fitted(min_success_rate=0.5), fitted(min_success_rate=0.5, callback=watch)
        with pytest.raises(SourceError, match="chunk 3"):
            fitted(min_success_rate=1.0)
    assert native.n_points == steps.n_points == N - 16_384
    np.testing.assert_allclose(native.popt, steps.popt, rtol=1e-9)


@pytest.mark.parametrize("way", ["plain", "general"])
def test_data_go_with_the_result(way):
    x = X.copy()
    gone = weakref.ref(x)
    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            if way != "plain":
                patch.setattr(api, "fit_plainly", no_plain_fit)
            result = curve_fit(MODEL, x, Y, START)
        del x
        assert result.success
        del result
        for _ in range(100):  # a thread may be about to let its last share go
            if gone() is None:
                break
            time.sleep(0.01)
        assert gone() is None
    finally:
        gc.enable()


def in_a_child(queue):
    """A fit in a process without the threads of its parent."""
    queue.put(fit().popt.tobytes())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own():
    here = fit().popt.tobytes()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=in_a_child, args=(queue,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of the threads
        child.start()
    found = queue.get()
    child.join()
    assert found == here


def batches_of(x, y, calls, rows=10_000):
    """A function that returns a fresh iterator at every call, and how many batches each gave."""

    def begin():
        calls.append(0)
        for lo in range(0, len(x), rows):
            calls[-1] += 1
            yield x[lo : lo + rows], y[lo : lo + rows]

    return begin


def test_the_first_pass_over_rows_that_are_read_serves_for_all_that_is_first_asked():
    calls, whole_pass = [], -(-N // 10_000)
    found = curve_fit(MODEL, batches_of(X, Y, calls), p0=START)
    # two looks at the first batch; rows are counted; moments, sums at p0 and sample; then the other passes
    assert calls == [1, 1, *[whole_pass] * (1 + found.nfev)]
    expected = fit()
    assert found.nfev == expected.nfev
    for name in ("popt", "pcov", "sse"):
        assert np.asarray(getattr(found, name)).tobytes() == np.asarray(getattr(expected, name)).tobytes()


@pytest.mark.parametrize("options", [{"method": "trf"}, {"second_opinion": True}, BOUNDS, {"warmup_sample_size": N}])
def test_other_fits_of_rows_that_are_read_have_the_bits_of_arrays(options):
    found, expected = curve_fit(MODEL, batches_of(X, Y, []), p0=START, **options), fit("general", **options)
    assert found.nfev == expected.nfev
    assert found.popt.tobytes() == expected.popt.tobytes()
    assert found.pcov.tobytes() == expected.pcov.tobytes()


@pytest.mark.parametrize("rows", [np.arange(0, N, 7), np.arange(N - 9000, N)])
def test_a_sample_taken_from_a_pass_is_that_of_a_pass_of_its_own(rows):
    def chunks():
        return [Chunk(lo, (X[lo : lo + 8192],), (Y[lo : lo + 8192],)) for lo in range(0, N, 8192)]

    source = SimpleNamespace(n_rows=N, revision=0, dtype=np.dtype(float), chunks=lambda: iter(chunks()))
    own, taken = ScatteredSource(source, rows), ScatteredSource(source, rows)
    take = taken.taker()
    for chunk in chunks():
        take(chunk)
    source.chunks = None  # it is not read again
    (a,), source.chunks = list(taken.chunks()), lambda: iter(chunks())
    (b,) = list(own.chunks())
    np.testing.assert_array_equal(a.x[0], b.x[0])
    np.testing.assert_array_equal(a.y[0], Y[rows])
    assert taken.taker() is None


def test_data_and_starts_that_cannot_be_fitted_are_named_as_those_in_memory_are():
    bad = Y.copy()
    bad[N - 5] = np.nan
    for x, y, start, error, words in (
        (X, bad, START, DataError, f"row {N - 5}"),
        (X, Y, (1.0, -800.0, 1.0), NumericsError, "not finite"),
        (X, Y, (1.0, 1.0), DataError, "p0"),
    ):
        said = []
        for data in ((x, y), (batches_of(x, y, []),)):
            with pytest.raises(error, match=words) as found:
                curve_fit(MODEL, *data, p0=start)
            said.append(str(found.value))
        assert said[0] == said[1]


@pytest.mark.parametrize("at", [2, 3])
def test_ctrl_c_while_rows_are_read_gives_the_best_point(at):
    calls, begin = [], batches_of(X, Y, [])

    def stopping():
        calls.append(None)
        for k, batch in enumerate(begin()):
            if len(calls) == 3 + at and k == 5:
                raise KeyboardInterrupt
            yield batch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stopped = curve_fit(MODEL, stopping, p0=START)
    assert stopped.status is StopReason.INTERRUPTED
    assert (stopped.popt.tolist() == list(START)) == (at == 2)
    a, b, c = stopped.popt
    assert stopped.sse == pytest.approx(float(np.sum((Y - a * np.exp(-b * X) - c) ** 2)), rel=1e-12)


def test_an_answer_that_was_wrong_is_not_covered_by_a_later_one():
    """The first thing that goes wrong is what is told, and nothing is read after it."""
    calls, begin = [], batches_of(X, Y, [])

    def failing():
        calls.append(None)
        for k, batch in enumerate(begin()):
            if len(calls) >= 6 and k == 5:
                raise ZeroDivisionError("mine") if len(calls) == 6 else KeyboardInterrupt
            yield batch

    with pytest.raises(ZeroDivisionError, match="mine"):
        curve_fit(MODEL, failing, p0=START, method="trf")
    assert len(calls) == 6


def test_rows_that_are_looked_at_twice_are_summed_once():
    """Of y that are all zero a second look says that they are, and do not underflow."""
    zero = np.zeros(N)
    found = [
        curve_fit("x - a", batches_of(X, zero, []), p0=[X.mean()], **options) for options in ({}, {"callback": watch})
    ]
    assert found[0].sse == pytest.approx(found[1].sse, rel=1e-12)
    np.testing.assert_allclose(found[0].pcov, found[1].pcov, rtol=1e-9)


@pytest.mark.parametrize("way", ["plain", "general"])
def test_kept_results_are_small(way):
    fit(way)
    gc.collect()
    tracemalloc.start()
    try:
        kept = [fit(way) for _ in range(10)]
        gc.collect()
        size = tracemalloc.get_traced_memory()[0] / len(kept)
    finally:
        tracemalloc.stop()
    assert size < 40_000


def test_a_lock_that_ctrl_c_leaves_locked_stops_no_later_pass(monkeypatch):
    """`ThreadPoolExecutor.submit` and `Future.result` enter conditions in Python code, where signals strike."""
    strikes, begin = [], threading.Condition.__enter__

    def struck(condition):
        entered = begin(condition)
        caller = sys._getframe(1)
        if strikes and caller.f_code.co_name in {"acquire", "result"} and "nlsq_nb" in outer(caller):
            strikes.clear()
            raise KeyboardInterrupt
        return entered

    def outer(frame):
        names = []
        while frame is not None:
            names.append(frame.f_code.co_filename)
            frame = frame.f_back
        return " ".join(names)

    expected = fit(covariance_method="qr").popt.tobytes()  # NumPy's part of it runs in threads of Python
    monkeypatch.setattr(threading.Condition, "__enter__", struck)
    for _ in range(3):
        strikes.append(True)
        with contextlib.suppress(KeyboardInterrupt):
            fit(covariance_method="qr")
        assert not strikes
        assert fit(covariance_method="qr").popt.tobytes() == expected
