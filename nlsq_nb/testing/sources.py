"""`SourceTests`: what every source must do, as a class that a source's tests inherit."""

from __future__ import annotations

import gc
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends import get_backend
from nlsq_nb.config.given import config_from
from nlsq_nb.core.layout import BLOCK
from nlsq_nb.core.sums import Accumulator
from nlsq_nb.errors import SourceError
from nlsq_nb.fitting import Fit
from nlsq_nb.models.symbolic import Model
from nlsq_nb.problem import Problem
from nlsq_nb.protocols import Source
from nlsq_nb.sources.arrays import ArraySource
from nlsq_nb.sources.retrying import RetryingSource, close
from nlsq_nb.sources.sample import sample

__all__ = ["SourceTests"]

Floats = NDArray[np.float64]
_MODEL = Model("a*exp(-b*x) + c*t", x=("x", "t"))
_THETA = np.array([2.5, 0.8, 0.4])
_FDS = Path("/proc/self/fd")


class SourceTests:
    """Conformance tests of a source: the same rows in any source give the same bits.

    A subclass gives `source`; its name starts with Test, so that pytest collects it.

    Attributes
    ----------
    n_rows : int
        Rows of the tests: some blocks and a rest.
    chunk_rows : tuple of int
        Rows per chunk that are tried; a source that cuts chunks as it likes may leave them unheeded.
    """

    n_rows = 25 * BLOCK + 123
    chunk_rows: tuple[int, ...] = (1, 6 * BLOCK, 1_000_000)

    def source(
        self, x: tuple[Floats, ...], y: Floats, sigma: Floats | None, chunk_rows: int
    ) -> Source:
        """Make a source of the rows.

        Parameters
        ----------
        x : tuple of ndarray, length 2
            Independent variables, each (n,).
        y : ndarray, shape (n,)
            Observations.
        sigma : ndarray or None
            Standard deviations, (n,).
        chunk_rows : int
            Rows per chunk, to be rounded up to whole blocks.

        Returns
        -------
        Source
            New at every call.
        """
        raise NotImplementedError

    # -- tests -------------------------------------------------------------------------------
    def test_grid(self) -> None:
        """Chunks are consecutive, of whole blocks but the last, of ready columns."""
        for rows in self.chunk_rows:
            found, at, count = self._made(rows), 0, 0
            for chunk in found.chunks():
                assert chunk.start == at
                assert chunk.start % BLOCK == 0
                at, count = at + chunk.n_rows, count + 1
                assert chunk.n_rows % BLOCK == 0 or at == found.n_rows
                columns = (*chunk.x, *chunk.y, *(chunk.w or ()))
                assert [c.shape for c in columns] == [(chunk.n_rows,)] * 4
                assert all(c.dtype == found.dtype for c in columns)
                assert all(c.flags.c_contiguous and c.flags.aligned for c in columns)
            assert (at, count) == (self.n_rows, found.n_chunks)
            assert found.revision == 0
            close(found)

    def test_rows(self) -> None:
        """Every row is there, with weights 1/sigma² if there are any."""
        x, y, sigma = _data(self.n_rows)
        for given in (sigma, None):
            found = self.source(x, y, given, 2 * BLOCK)
            columns = _held(found)
            expected = _held(ArraySource(x, y, given, variables=_MODEL.x))
            assert len(columns) == len(expected)
            assert all(np.array_equal(a, b) for a, b in zip(columns, expected, strict=True))
            close(found)

    def test_passes_are_alike(self) -> None:
        """A pass leaves no trace, nor does one that is given up."""
        found = self._made(BLOCK)
        first = _held(found)
        for chunk in found.chunks():
            if chunk.start > 0:
                break
        assert all(np.array_equal(a, b) for a, b in zip(first, _held(found), strict=True))
        close(found)

    def test_chunks_in_any_order(self) -> None:
        """A reader gives any chunk, also again; without one a source is read in order only."""
        found: Any = self._made(3 * BLOCK)
        if hasattr(found, "reader"):
            reader = found.reader()
            chunks = list(range(found.n_chunks))
            first = [reader.read(k).y[0].copy() for k in chunks]
            for k in (*reversed(chunks), 0, 0, *chunks):
                assert np.array_equal(reader.read(k).y[0], first[k])
                lo, hi = reader.rows(k)
                assert len(first[k]) == hi - lo
        close(found)

    def test_sums_have_the_bits_of_arrays(self) -> None:
        """Any chunks, cost, gradient and JᵀWJ."""
        expected = _sums(_arrays(self.n_rows))
        for rows in self.chunk_rows:
            found = self._made(rows)
            assert _sums(found) == expected
            close(found)

    def test_sample_has_the_rows_of_arrays(self) -> None:
        """Runs of rows within and across chunks, by a pass and from where they are."""
        near = [(5, 9), (BLOCK - 2, BLOCK + 2), (3 * BLOCK, 5 * BLOCK + 1), (self.n_rows - 1, self.n_rows)]
        for ranges in (near, [(0, self.n_rows)], [(self.n_rows - BLOCK - 3, self.n_rows)]):
            expected = _held(sample(_arrays(self.n_rows), ranges))
            for rows in self.chunk_rows:
                found = RetryingSource(self._made(rows))
                columns = _held(sample(found, ranges))
                assert all(np.array_equal(a, b) for a, b in zip(columns, expected, strict=True))
                found.close()

    def test_fit_has_the_bits_of_arrays(self) -> None:
        """Parameters, covariance and sse of a whole fit, with its sample and its passes."""
        assert _fit(self._made(10 * BLOCK)) == _fit_of_arrays(self.n_rows)

    def test_nothing_stays_open(self) -> None:
        """Files and threads are let go by `close`, after which a source is read anew or says why not."""
        close(self._made(4 * BLOCK))  # what is loaded once stays
        before = _open()
        found = self._made(4 * BLOCK)
        expected = _held(found)
        close(found)
        del found
        assert _open() == before
        found = self._made(4 * BLOCK)
        close(found)
        try:
            again = _held(found)
        except SourceError:
            again = expected
        assert all(np.array_equal(a, b) for a, b in zip(again, expected, strict=True))
        close(found)

    def _made(self, chunk_rows: int) -> Source:
        return self.source(*_data(self.n_rows), chunk_rows)


@lru_cache(maxsize=2)
def _data(n: int) -> tuple[tuple[Floats, Floats], Floats, Floats]:
    """Rows of very different sizes, so that any change in the order of addition changes bits."""
    rng = np.random.default_rng(4)
    x, t, sigma = rng.uniform(0.0, 4.0, n), rng.uniform(-1.0, 1.0, n), rng.uniform(0.5, 2.0, n)
    return (x, t), _MODEL(np.stack([x, t]), *_THETA) + rng.normal(size=n) * 10.0 ** rng.uniform(-4, 0, n), sigma


def _arrays(n: int) -> ArraySource:
    x, y, sigma = _data(n)
    return ArraySource(x, y, sigma, variables=_MODEL.x)


def _held(source: Source) -> list[Floats]:
    """All columns of a source, in copies."""
    parts = [[c.copy() for c in (*chunk.x, *chunk.y, *(chunk.w or ()))] for chunk in source.chunks()]
    return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]


def _sums(source: Source) -> bytes:
    backend = get_backend("reference")
    kernel: Any = backend.compile(_MODEL.program, source.dtype)
    into = Accumulator(3, 2)
    for chunk in source.chunks():
        backend.reduce(kernel, backend.put(chunk, source.dtype), _THETA, 2, into)
    found = into.result()
    return found.high.tobytes() + found.low.tobytes()


def _fit(source: Source) -> tuple[bytes, bytes, float]:
    wide = np.full(3, np.inf)
    problem = Problem(_MODEL, source, np.ones(3), (-wide, wide))
    found = Fit(config_from(None, {"verbose": 0}), get_backend("reference"), problem).run()
    return found.popt.tobytes(), found.pcov.tobytes(), found.sse


@lru_cache(maxsize=2)
def _fit_of_arrays(n: int) -> tuple[bytes, bytes, float]:
    return _fit(_arrays(n))


def _open() -> tuple[int, int]:
    """Open files and threads."""
    gc.collect()
    return len(list(_FDS.iterdir())) if _FDS.exists() else 0, threading.active_count()
