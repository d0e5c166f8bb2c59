"""Passes over parts that are reduced elsewhere have the bits of a pass on one machine."""

import pickle
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import h5py
import numpy as np
import pytest

from nlsq_nb import Model, curve_fit
from nlsq_nb.backends import get_backend
from nlsq_nb.core.layout import BLOCK, SEGMENT
from nlsq_nb.core.losses import Loss
from nlsq_nb.engines.local import LocalEngine
from nlsq_nb.engines.parts import BlockRows, reduce_part
from nlsq_nb.engines.spread import SpreadEngine, spread, spread_rows
from nlsq_nb.errors import ConfigError, DataError, MissingDependency, SourceError, UnsupportedOption
from nlsq_nb.sources.arrays import ArraySource
from nlsq_nb.sources.hdf5 import HDF5Source
from nlsq_nb.sources.retrying import RetryingSource
from nlsq_nb.sources.rows import Reading
from nlsq_nb.sources.weights import GroupWeights, total_weight

MODEL = Model("a*exp(-b*x) + c")
THETA = np.array([2.0, 0.7, 0.3])
N = 12 * SEGMENT + 3 * BLOCK + 77
RNG = np.random.default_rng(8)
X = RNG.uniform(0.0, 4.0, N)
Y = MODEL(X, *THETA) + RNG.normal(size=N) * 10.0 ** RNG.uniform(-3, 0, N)
SIGMA = RNG.uniform(0.5, 2.0, N)
BACKEND = get_backend("reference")


class Here:
    """A cluster that is this process: its workers take their parts one after the other."""

    def __init__(self, n_workers):
        self.n_workers = n_workers
        self.jobs = []

    def reduce(self, job, rows, fields, on_progress):
        self.jobs.append(job)
        assert not isinstance(rows, BlockRows)
        n_chunks = -(-rows.n_rows // rows.reading.chunk_rows)
        edges = [i * n_chunks // self.n_workers for i in range(self.n_workers + 1)]
        parts = [reduce_part(job, rows, [span], 1) for span in pairwise(edges) if span[0] < span[1]]
        return [found for part in parts for found in part]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    found = tmp_path_factory.mktemp("spread") / "rows.h5"
    with h5py.File(found, "w") as file:
        file["x"], file["y"], file["sigma"], file["group"] = X, Y, SIGMA, RNG.integers(0, 3, N)
    return found


def engines(path, n_workers, **reading):
    """An engine over the file on a cluster, and one over it here."""
    asked = Reading(("x",), **reading)
    data = HDF5Source(path, x=("group", "x") if "group_weights" in reading else "x", sigma="sigma")
    there = RetryingSource(spread(data, asked, Here(n_workers)))
    here = RetryingSource(data.open(asked))
    return SpreadEngine("reference", MODEL.program, there), LocalEngine(
        BACKEND, BACKEND.compile(MODEL.program, np.float64), here
    )


@pytest.mark.parametrize("n_workers", [1, 2, 3, 20])
def test_same_bits(path, n_workers):
    there, here = engines(path, n_workers)
    for loss in (Loss("linear"), Loss("huber", 0.1)):
        a, b = there.under(loss), here.under(loss)
        for order in (0, 1, 2):
            found, expected = a.run(THETA, order), b.run(THETA, order)
            assert found.n_rows == expected.n_rows == N
            assert found.high.tobytes() == expected.high.tobytes()
            assert found.low.tobytes() == expected.low.tobytes()
    found, expected = there.triangle(THETA), here.triangle(THETA)
    assert found.r.tobytes() == expected.r.tobytes()
    assert found.z.tobytes() == expected.z.tobytes()
    assert there.weight() == here.weight() == total_weight(here.source)
    v = np.array([1.0, -2.0, 0.5])
    assert np.allclose(there.matvec(THETA, v), here.run(THETA, 2).jtj @ v, rtol=1e-12)
    assert there.resident() is None


def test_weights_of_groups_are_those_of_the_moment(path):
    weights = GroupWeights([1.0, 2.0, 3.0])
    there, here = engines(path, 2, group_weights=weights)
    for values in ([1.0, 2.0, 3.0], [5.0, 0.1, 1.0]):
        weights.set(values)
        assert there.run(THETA, 2).high.tobytes() == here.run(THETA, 2).high.tobytes()
        assert there.weight() == here.weight()


def test_fit_has_the_bits_of_arrays(path):
    cluster = Here(2)
    found = curve_fit(MODEL, HDF5Source(path, sigma="sigma"), p0=[1, 1, 1], engine=cluster, backend="reference")
    expected = curve_fit(MODEL, X, Y, p0=[1, 1, 1], sigma=SIGMA, backend="reference")
    assert found.popt.tobytes() == expected.popt.tobytes()
    assert found.pcov.tobytes() == expected.pcov.tobytes()
    assert found.sse == expected.sse
    # the first pass looks at the data, the others at the model
    assert len(cluster.jobs) == found.nfev + 1
    assert cluster.jobs[0].labels == ("xdata",)
    assert {job.token for job in cluster.jobs[1:]} == {cluster.jobs[1].token}


@pytest.mark.parametrize("engine", ["local", Here(3)], ids=["here", "there"])
def test_a_fit_interrupted_on_a_cluster_goes_on_anywhere(path, tmp_path, engine):
    class Interrupted(Here):
        def reduce(self, *given):
            if len(self.jobs) == 3:
                raise KeyboardInterrupt
            return super().reduce(*given)

    options = {"p0": [1, 1, 1], "backend": "reference", "separable": False}
    whole = curve_fit(MODEL, path, checkpoint_dir=tmp_path / "whole", **options)
    with pytest.warns(UserWarning, match="interrupted"):
        curve_fit(MODEL, path, engine=Interrupted(2), checkpoint_dir=tmp_path / "part", **options)
    found = curve_fit(MODEL, path, engine=engine, resume_from_checkpoint=tmp_path / "part", **options)
    assert found.popt.tobytes() == whole.popt.tobytes()
    assert found.pcov.tobytes() == whole.pcov.tobytes()
    assert (found.sse, found.nfev) == (whole.sse, whole.nfev)
    assert found.profile("b").interval == whole.profile("b").interval


@pytest.mark.parametrize(("column", "bad"), [("x", np.inf), ("y", np.nan)])
def test_values_that_are_not_finite_are_named(tmp_path, column, bad):
    columns = {"x": X.copy(), "y": Y.copy()}
    columns[column][150_000] = bad
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file["x"], file["y"] = columns["x"], columns["y"]
    with pytest.raises(DataError, match=rf"{column}data contains a non-finite value, {bad} at row 150000"):
        curve_fit(MODEL, tmp_path / "bad.h5", p0=[1, 1, 1], engine=Here(2), backend="reference")


def test_what_cannot_be_spread_is_refused(path):
    with pytest.raises(UnsupportedOption, match="x and y are in this process"):
        curve_fit(MODEL, X, Y, engine=Here(2))
    with pytest.raises(UnsupportedOption, match="are in this process"):
        curve_fit(MODEL, lambda: iter([(X, Y)]), engine=Here(2))
    with pytest.raises(UnsupportedOption, match="drop the rows before"):
        curve_fit(MODEL, path, engine=Here(2), nan_policy="omit")
    with pytest.raises(UnsupportedOption, match=r"min_success_rate=0\.9 on a cluster: rows that cannot be read end"):
        curve_fit(MODEL, path, engine=Here(2), min_success_rate=0.9)
    with pytest.raises(ConfigError, match="'local', 'dask' or"):
        curve_fit(MODEL, path, engine="cluster")


def test_missing_package_is_named(path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(MissingDependency, match=r"pip install 'nlsq_nb\[dask\]'"):
        curve_fit(MODEL, path, engine="dask")


def test_another_file_on_a_worker_is_refused(path, tmp_path):
    data = HDF5Source(path)
    rows = spread(data, Reading(("x",)), Here(1))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"], file["y"] = X[:-1], Y[:-1]
    object.__setattr__(rows._rows, "file", HDF5Source(tmp_path / "other.h5"))
    with pytest.raises(SourceError, match=f"has {N - 1} rows there and {N} here"):
        SpreadEngine("reference", MODEL.program, RetryingSource(rows)).run(THETA, 0)


def test_a_file_that_changes_is_noticed(tmp_path):
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["x"], file["y"] = X, Y
    rows = spread(HDF5Source(tmp_path / "rows.h5"), Reading(("x",)), Here(2))
    engine = SpreadEngine("reference", MODEL.program, RetryingSource(rows))
    engine.run(THETA, 0)
    with (tmp_path / "rows.h5").open("ab") as file:
        file.write(b"more")
    with pytest.raises(SourceError, match="was changed while it was being fitted"):
        engine.run(THETA, 0)
    rows.close()


def test_arrays_are_no_spread_rows():
    assert spread_rows(RetryingSource(ArraySource(X, Y))) is None


# -- the recipe for MPI, with ranks that are threads ------------------------------------------
class Ranks(threading.local):
    """A communicator per thread; `bcast` and `gather` carry pickles, as MPI does."""

    size = 3
    everywhere = threading.Barrier(3)
    box: ClassVar = [b""] * 3

    def exchange(self, value):
        self.box[self.rank] = pickle.dumps(value)
        self.everywhere.wait(20.0)
        found = [pickle.loads(data) for data in self.box]
        self.everywhere.wait(20.0)
        return found

    def bcast(self, value):
        return self.exchange(value)[0]

    def gather(self, value):
        found = self.exchange(value)
        return found if self.rank == 0 else None


@pytest.mark.parametrize("rows", [N, 100])  # with 100, two ranks have none
def test_the_recipe_for_mpi(tmp_path, monkeypatch, rows):
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "dask-cluster.md").read_text("utf-8")
    text = re.search(r"^```text\n(from mpi4py .*?)^```", page, re.MULTILINE | re.DOTALL)[1]
    assert len(text.splitlines()) <= 45
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["x"], file["y"] = X[:rows], Y[:rows]
    ranks, found = Ranks(), []
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=SimpleNamespace(COMM_WORLD=ranks)))
    program = compile(text.replace("/scratch/rows.h5", str(tmp_path / "rows.h5")), "fit.py", "exec")

    def run(rank):
        ranks.rank = rank
        exec(program, {"__name__": "fit", "print": found.append})

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(run, rank) for rank in range(3)]:
            done.result()
    (result,) = found
    expected = curve_fit("a*exp(-b*x) + c", X[:rows], Y[:rows], p0=[1, 1, 1])
    assert result.popt == pytest.approx(expected.popt, rel=1e-9)
    if rows == N:
        assert result.popt.tobytes() == expected.popt.tobytes()
        assert result.pcov.tobytes() == expected.pcov.tobytes()
        assert result.sse == expected.sse
