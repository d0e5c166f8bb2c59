"""Fits on a Dask cluster: the bits of one machine, also when workers die, join, or cannot read a file."""

import gc
import os
import shutil
import signal
import ssl
import subprocess
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from nlsq_nb import AdaptiveHybridStreamingOptimizer, HDF5Source, Model, curve_fit
from nlsq_nb.engines import dask, lines, parts
from nlsq_nb.engines.dask import DaskCluster
from nlsq_nb.errors import BackendUnavailable, DataError, SourceError, UnsupportedOption
from nlsq_nb.sources.dask_arrays import DaskArrays
from nlsq_nb.sources.rows import Reading
from nlsq_nb.testing import SourceTests

LONG = (pytest.mark.slow, pytest.mark.long)
da = pytest.importorskip("dask.array", reason="Dask is not installed")
distributed = pytest.importorskip("distributed", reason="distributed is not installed")

MODEL = "a*exp(-b*x) + c"
N = 300_123
START = {"p0": [1.0, 1.0, 1.0], "backend": "reference"}
pytestmark = pytest.mark.filterwarnings("ignore:Sending large graph")


def rows(block, block_info=None):
    """The data, made where they are needed: two columns of each block."""
    (lo, hi), *_ = block_info[None]["array-location"]
    return made(lo, hi)


def made(lo, hi):
    k = np.arange(lo, hi, dtype=np.float64)
    x = 4.0 * ((k * 0.6180339887498949) % 1.0)
    noise = np.sin(k * 12.9898) * 10.0 ** (-1.0 - 2.0 * ((k * 0.7548776662466927) % 1.0))
    return np.stack([x, 3.0 * np.exp(-1.5 * x) + 0.5 + noise], axis=1)


def arrays(n=N, chunks=70_001):
    """x and y as lazy Dask arrays, whose graph holds no data."""
    table = da.empty((n, 2), chunks=(chunks, 2)).map_blocks(rows, dtype=np.float64)
    return table[:, 0], table[:, 1]


def bits(result):
    return result.popt.tobytes(), result.pcov.tobytes(), result.sse


@pytest.fixture(scope="module")
def client():
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with pytest.MonkeyPatch.context() as patch:
        # Workers, restarted ones too, get the path of this process, and import this module's functions by its name.
        patch.syspath_prepend(str(Path(__file__).parents[2]))
        with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster, set_as_default=False) as found:
            yield found


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    found = tmp_path_factory.mktemp("dask") / "rows.h5"
    with h5py.File(found, "w") as file:
        file["x"], file["y"] = made(0, N).T
    return found


@pytest.fixture(scope="module")
def expected():
    x, y = made(0, N).T
    return bits(curve_fit(MODEL, x, y, **START))


# -- without a cluster -----------------------------------------------------------------------
class TestDaskArrays(SourceTests):
    def source(self, x, y, sigma, chunk_rows):
        xs = [da.from_array(x[0], chunks=30_011), da.from_array(x[1], chunks=7_000)]
        spread = None if sigma is None else da.from_array(sigma, chunks=50_000)
        data = DaskArrays({"t": xs[1], "x": xs[0]}, da.from_array(y, chunks=11_111), spread)
        return data.open(Reading(("x", "t"), chunk_rows=chunk_rows, resident="loop"))


@pytest.mark.parametrize("shape", ["rows", "columns", "both", "sequence"])
def test_shapes_of_x(shape):
    x, t = made(0, 200_000).T
    y = 2.0 * np.exp(-x) + 0.3 * t
    both = da.from_array(np.stack([x, t]), chunks=(1, 60_000))
    given = {"rows": both, "columns": both.T, "both": {"x": both[0], "t": both[1]}, "sequence": (both[0], both[1])}
    model = Model("a*exp(-b*x) + c*t", x=("x", "t"))
    found = curve_fit(model, given[shape], da.from_array(y, chunks=50_000), **START)
    assert np.allclose(found.popt, [2.0, 1.0, 0.3])


def test_small_data_are_gathered():
    x, y = arrays(5_000)
    few = made(0, 5_000)
    assert bits(curve_fit(MODEL, x, y, sigma=0.5)) == bits(curve_fit(MODEL, *few.T, sigma=0.5))
    assert curve_fit(MODEL, x, y).fun.shape == (5_000,)


@pytest.mark.parametrize("n", [100, 20_480])
def test_few_rows_of_a_file_are_read_here(tmp_path, n):
    """On any cluster, with the bits of arrays."""

    class Idle:
        n_workers = 2

        def reduce(self, job, rows, fields, on_progress):
            raise AssertionError("nothing is sent")

    x, y = made(0, n).T.copy()
    with h5py.File(tmp_path / "few.h5", "w") as file:
        file["x"], file["y"] = x, y
    found = curve_fit(MODEL, HDF5Source(tmp_path / "few.h5"), p0=[1.0, 0.1, 5.0], engine=Idle())
    assert bits(found) == bits(curve_fit(MODEL, x, y, [1.0, 0.1, 5.0]))


def test_what_cannot_be_read_is_said():
    x, y = arrays()
    with pytest.raises(DataError, match=r"unknown length; call its compute_chunk_sizes"):
        curve_fit(MODEL, x[x > 1.0], y[x > 1.0])
    with pytest.raises(DataError, match="xdata is ndarray where others are Dask arrays"):
        curve_fit(MODEL, made(0, N)[:, 0], y)
    with pytest.raises(DataError, match=r"sigma has shape \(5,\), ydata has 300123 rows"):
        curve_fit(MODEL, x, y, sigma=da.ones(5))
    with pytest.raises(UnsupportedOption, match="drop the rows before"):
        curve_fit(MODEL, x, y, nan_policy="omit")
    with pytest.raises(BackendUnavailable, match="no client is active"):
        curve_fit(MODEL, x, y, engine="dask")


# -- two processes ---------------------------------------------------------------------------
def test_same_bits_with_two_processes(client, path, expected):
    """Blocks that are computed in every pass, blocks that are held, and a file."""
    threads = threading.active_count()
    x, y = arrays()
    with client.as_current():
        assert bits(curve_fit(MODEL, x, y, **START)) == expected
    held = client.persist([x, y])
    assert bits(curve_fit(MODEL, *held, engine=client, **START)) == expected
    optimizer = AdaptiveHybridStreamingOptimizer(backend="reference")
    assert bits(optimizer.fit(path, MODEL, START["p0"], engine=client, verbose=0)) == expected
    del held, optimizer
    gc.collect()
    assert not client.futures
    assert threading.active_count() <= threads + 1  # a pool of distributed's


CUTS = ["float32", "tables", "fields apart"]
LONG_CUTS = ["odd", "small", "several holders"]


@pytest.mark.parametrize("cut", [*CUTS, *(pytest.param(cut, marks=LONG) for cut in LONG_CUTS)])
def test_blocks_that_are_held_have_the_bits_of_arrays_wherever_they_are_cut(client, cut):
    x, y = made(0, N).T.copy()
    if cut == "float32":
        x, y = x.astype(np.float32), y.astype(np.float32)
    chunks = {"odd": ((100_001, 77_777, N - 177_778),) * 2, "fields apart": (90_000, 50_001), "small": (5_001, 7_000)}
    expected = bits(curve_fit(MODEL, x, y, **START))
    if cut == "tables":  # rows along the second axis: x is not contiguous in the memory of a block of its transpose
        table = da.from_array(np.stack([x, y], axis=1), chunks=(66_666, 2))
        given = client.persist([table[:, 0], table[:, 1]])
    else:
        sizes = chunks.get(cut, (70_001, 70_001))
        given = client.persist([da.from_array(c, chunks=(k,)) for c, k in zip((x, y), sizes, strict=True)])
    with client.as_current():
        distributed.wait(given)
    if cut == "several holders":
        client.replicate(distributed.futures_of(given))
    assert bits(curve_fit(MODEL, *given, engine=client, **START)) == expected


@pytest.mark.slow
@pytest.mark.long
def test_one_cluster_for_fits_of_several_arrays(client, expected):
    held, placed = client.persist(list(arrays())), DaskCluster(client)
    other = client.persist(list(arrays(chunks=50_001)))
    for given in (held, other, held, arrays(), arrays(chunks=50_001)):
        assert bits(curve_fit(MODEL, *given, engine=placed, **START)) == expected


@pytest.mark.parametrize("when", ["just before a pass", "before a pass", "in a pass"])
@pytest.mark.parametrize("data", ["file", pytest.param("held", marks=LONG)])
def test_a_worker_that_is_killed_costs_no_bit(client, path, expected, data, when, monkeypatch):
    given = (path,) if data == "file" else client.persist(list(arrays()))
    answers, plain = [], dask.ask

    def killing(*asked):
        if len(answers) == 2:
            address, pid = next(iter(client.run(os.getpid).items()))
            kill = threading.Timer(0.02 if when == "in a pass" else 0.0, os.kill, (pid, signal.SIGKILL))
            kill.start()
            if when != "in a pass":
                kill.join()
            while when == "before a pass" and address in client.nthreads():
                time.sleep(0.001)
        begin = time.monotonic()
        answers.append(plain(*asked))
        assert when != "before a pass" or time.monotonic() - begin < 20.0  # nobody speaks to the dead for half a minute
        return answers[-1]

    monkeypatch.setattr(dask, "ask", killing)
    assert bits(curve_fit(MODEL, *given, engine=client, **START)) == expected
    assert len(answers) >= 4
    client.wait_for_workers(2)


@pytest.mark.parametrize("data", ["file", "held"])
def test_a_pass_takes_a_message_and_no_task_while_all_goes_well(client, path, expected, data, monkeypatch):
    given = (path,) if data == "file" else client.persist(list(arrays(chunks=7 * 16_384)))  # whole segments
    if data == "held":
        with client.as_current():
            distributed.wait(list(given))
    answers, plain = [], dask.ask
    monkeypatch.setattr(dask, "ask", lambda *asked: answers.append(plain(*asked)) or answers[-1])
    assert bits(curve_fit(MODEL, *given, engine=client, **START)) == expected
    assert len(answers) >= 3
    assert sum(found is None for found in answers) <= 1  # rows that are cut for a worker come with the first


@pytest.mark.parametrize("what", ["no message to workers", "no way to reach them"])
def test_tasks_do_what_messages_cannot(client, path, expected, what, monkeypatch):
    tries = []

    def refuse(*_, **__):
        tries.append(what)
        raise OSError(what)

    monkeypatch.setattr(lines, "_CLIENTS", weakref.WeakKeyDictionary())
    monkeypatch.setattr(*(client, "run") if what.startswith("no message") else (lines, "_called"), refuse)
    assert bits(curve_fit(MODEL, path, engine=client, **START)) == expected
    assert len(tries) == 1  # which may take seconds


def test_lines_are_kept_from_fit_to_fit_and_end_with_their_client(client, path, expected, monkeypatch):
    def waiting():
        return sum(t.name == "nlsq_nb-line" for t in threading.enumerate())

    assert bits(curve_fit(MODEL, path, engine=client, **START)) == expected
    before = client.run(waiting)
    with distributed.Client(client.scheduler.address, set_as_default=False) as mine:
        runs, plain = [], mine.run
        monkeypatch.setattr(mine, "run", lambda *a, **k: runs.append(a) or plain(*a, **k))
        for _ in range(3):
            assert bits(curve_fit(MODEL, path, engine=mine, **START)) == expected
        assert len(runs) == 1
        assert client.run(waiting) == {worker: count + 1 for worker, count in before.items()}
    assert bits(curve_fit(MODEL, path, engine=client, **START)) == expected
    assert mine not in lines._CLIENTS
    end = time.monotonic() + 20.0
    while client.run(waiting) != before and time.monotonic() < end:
        time.sleep(0.05)
    assert client.run(waiting) == before


def test_two_fits_at_once_have_lines_of_their_own(client, path, expected):
    with ThreadPoolExecutor(3) as pool:
        fits = [pool.submit(curve_fit, MODEL, path, engine=client, **START) for _ in range(6)]
        assert all(bits(fit.result()) == expected for fit in fits)


@pytest.mark.slow
def test_lines_are_encrypted_where_the_cluster_is(tmp_path, path, expected, monkeypatch):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    cert, key = (str(tmp_path / name) for name in ("cert.pem", "key.pem"))
    request = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=here", "-days", "2")
    subprocess.run([openssl, *request, "-keyout", key, "-out", cert], check=True, capture_output=True)
    names = [f"tls_{role}_" for role in ("client", "scheduler", "worker")]
    roles = {f"{name}cert": cert for name in names} | {f"{name}key": key for name in names}
    security = distributed.Security(tls_ca_file=cert, require_encryption=True, **roles)
    made, plain = [], lines._called
    monkeypatch.setattr(lines, "_called", lambda *given: made.append(plain(*given)) or made[-1])
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with (
        distributed.LocalCluster(security=security, protocol="tls", **options) as cluster,
        distributed.Client(cluster, security=security, set_as_default=False) as client,
    ):
        assert bits(curve_fit(MODEL, path, engine=client, **START)) == expected
    assert [type(line) for line in made] == [ssl.SSLSocket] * 2


def lose():
    """The worker can no longer open its file."""
    def gone(self, groups, pieces, retries):
        raise SourceError("rows.h5 does not exist here")

    parts.FileRows.kept = parts.FileRows.open
    parts.FileRows.open = gone


def find_again():
    if hasattr(parts.FileRows, "kept"):
        parts.FileRows.open = parts.FileRows.kept
        del parts.FileRows.kept


def test_a_file_that_workers_lose(client, path, expected):
    client.wait_for_workers(2)
    first, second = client.nthreads()
    time.sleep(2.0)  # after a second without a pass they have let go of it
    try:
        client.run(lose, workers=[first])
        assert bits(curve_fit(MODEL, path, engine=client, **START)) == expected
        client.run(lose, workers=[second])
        time.sleep(2.0)
        with pytest.raises(SourceError, match=r"does not exist here \(tried by tcp://.*, tcp://"):
            curve_fit(MODEL, path, engine=client, **START)
    finally:
        client.run(find_again)


def test_a_block_that_cannot_be_computed_is_named(client):
    def broken(block, block_info=None):
        (lo, _), *_ = block_info[None]["array-location"]
        if lo >= 210_000:
            raise ZeroDivisionError("no such block")
        return block

    x, y = arrays()
    y = y.map_blocks(broken, dtype=np.float64)
    with pytest.raises(SourceError, match=r"rows \d+ to \d+ cannot be reduced .* ZeroDivisionError: no such block"):
        curve_fit(MODEL, x, y, engine=client, **START)


@pytest.mark.parametrize("where", ["there", "here"])
def test_blocks_that_fail_once_are_computed_again(client, expected, where, tmp_path):
    """A fault in mid-fit: every third time that one of the blocks of y is made, which an attempt may do twice."""
    def torn(block, block_info=None):
        (lo, _), *_ = block_info[None]["array-location"]
        tries = len(list(tmp_path.iterdir()))
        if lo == 140_002:
            (tmp_path / f"{tries}").touch()
            if tries % 3 == 1:
                raise OSError(5, "torn tape")
        return block

    x, y = arrays()
    y, engine = y.map_blocks(torn, dtype=np.float64), client if where == "there" else "local"
    assert bits(curve_fit(MODEL, x, y, engine=engine, **START)) == expected
    assert len(list(tmp_path.iterdir())) > 2
    with pytest.raises(SourceError, match=r"rows \d+ to \d+,? cannot be re.*torn tape"):
        curve_fit(MODEL, x, y, engine=engine, max_retries_per_batch=0, **START)


def rewritten(path, shift):
    """Another file under the name of one."""
    other = path.with_suffix(".new")
    x, y = made(0, N).T
    with h5py.File(other, "w") as file:
        file["x"], file["y"] = x, y + shift
    other.replace(path)


def test_a_file_that_is_replaced_between_fits_is_read_anew(client, tmp_path):
    path = tmp_path / "rows.h5"
    for shift in (0.0, 1.0, 2.0):
        rewritten(path, shift)
        found = curve_fit(MODEL, HDF5Source(path), engine=client, **START)
        assert found.popt[2] == pytest.approx(0.5 + shift, abs=1e-3)
        with h5py.File(path, "r+") as file:  # nobody holds it
            assert file["x"].shape == (N,)


def test_a_file_that_is_replaced_in_mid_fit_ends_it(client, tmp_path):
    path, steps = tmp_path / "rows.h5", []
    rewritten(path, 0.0)

    def replace(*_):
        if not steps:
            rewritten(path, 1.0)
        steps.append(1)

    with pytest.raises(SourceError, match="was changed while it was being fitted"):
        curve_fit(MODEL, HDF5Source(path), engine=client, callback=replace, callback_frequency=1, **START)


def test_few_passes_are_tried_in_vain_where_others_hold_the_blocks(client, expected, monkeypatch):
    x, y = arrays()
    first, second = sorted(client.nthreads())
    held = client.persist(x, workers=[first]), client.persist(y, workers=[second])
    with client.as_current():
        distributed.wait(held)
    asked, plain = [], dask.ask
    monkeypatch.setattr(dask, "ask", lambda *given: asked.append(plain(*given)) or asked[-1])
    assert bits(curve_fit(MODEL, *held, engine=client, **START)) == expected
    assert sum(found is None for found in asked) <= 2


def test_results_outlive_their_client_where_they_can(client, path):
    x, y = made(0, N).T
    local = curve_fit(MODEL, x, y, **START)
    with distributed.Client(client.scheduler.address, set_as_default=False) as mine:
        results = [curve_fit(MODEL, *data, engine=mine, **START) for data in ((path,), arrays())]
        for found in results:
            assert np.array_equal(np.concatenate(list(found.residual_chunks())), local.fun)
    for found in results:
        assert found.confidence_intervals()["b"] == local.confidence_intervals()["b"]
        with pytest.raises(SourceError, match="client of this fit is closed"):
            found.profile("b")
    assert np.array_equal(np.concatenate(list(results[0].residual_chunks())), local.fun)
    with pytest.raises(SourceError, match="client of this fit is closed"):
        next(results[1].residual_chunks())


@pytest.mark.slow
@pytest.mark.long
def test_compiled_kernels_have_the_same_bits_on_workers(client, path):
    x, y = made(0, N).T
    assert bits(curve_fit(MODEL, path, p0=[1, 1, 1], engine=client)) == bits(curve_fit(MODEL, x, y, p0=[1, 1, 1]))
    robust = {"p0": [1, 1, 1], "loss": "huber", "f_scale": 0.05}
    assert bits(curve_fit(MODEL, path, engine=client, **robust)) == bits(curve_fit(MODEL, x, y, **robust))

    def decay(x, a, b, c):
        return a * np.exp(-b * x) + c * (1 if callable(len) else 0)

    found = curve_fit(decay, path, p0=[1, 1, 1], engine=client, jac="3-point")
    assert bits(found) == bits(curve_fit(decay, x, y, p0=[1, 1, 1], jac="3-point"))


@pytest.mark.slow
@pytest.mark.long
def test_a_worker_that_joins_takes_part(client, path, expected):
    seen = []

    def join(*_):
        if not seen:
            client.cluster.scale(3)
            client.wait_for_workers(3)
        seen.append(len(client.nthreads()))

    try:
        assert bits(curve_fit(MODEL, path, engine=client, callback=join, callback_frequency=1, **START)) == expected
        assert max(seen) == 3
    finally:
        client.cluster.scale(2)
