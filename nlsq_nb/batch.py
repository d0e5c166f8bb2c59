"""Phase 2 of many small fits of one shape in native code, in threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.small import compiled_run
from nlsq_nb.backends.small import layout as at
from nlsq_nb.core.chunk import Resident
from nlsq_nb.phases.gauss_newton import GaussNewton
from nlsq_nb.phases.state import FitState

__all__ = ["Ends", "newton_batch"]

Floats = NDArray[np.float64]
_TOGETHER = 256  # fits whose arrays are filled at once: they stay in the cache


@dataclass(frozen=True, slots=True)
class Ends:
    """Where the fits ended.

    Attributes
    ----------
    theta : ndarray, shape (k, p)
        Solutions.
    sums : ndarray, shape (k, sums_size(p, 2))
        Sums there, packed.
    stop : ndarray of int, shape (k,)
        Why, as `NEWTON_STOPS` has it; 0 for fits that are not plain.
    steps, passes : ndarray of int, shape (k,)
        What it took.
    """

    theta: Floats
    sums: Floats
    stop: NDArray[np.int_]
    steps: NDArray[np.int_]
    passes: NDArray[np.int_]


def newton_batch(
    phase: GaussNewton,
    state: FitState,
    rows: Resident,
    varying: NDArray[np.int64],
    signal: Floats,
    starts: tuple[Floats, Floats],
    threads: int,
) -> Ends | None:
    """Fit the same model to many sets of rows.

    Parameters
    ----------
    phase : GaussNewton
        Phase 2.
    state : FitState
        From `setup`, for the first fit: bounds, and which parameters are linear.
    rows : Resident
        The rows of the first fit and their kernel.
    varying : ndarray of int64, shape (k, c)
        Addresses of each fit's last c columns; the others are those of the first fit.
    signal : ndarray, shape (k,)
        Σ w y² of each.
    starts : tuple of ndarray, each (k, p)
        Start, and scales of z, of each.
    threads : int
        How many run at a time.

    Returns
    -------
    Ends or None
        None where nothing can be compiled or linked.
    """
    entry = compiled_run()
    if entry is None:
        return None
    shape = at.layout(state.separable.tobytes(), len(rows.columns), 0, 0)
    count, p, size = len(varying), shape.n_params, shape.n_sums
    bounded = bool(np.isfinite(state.lower).any() or np.isfinite(state.upper).any())
    task = shape.task.copy()
    task[:6] = (rows.kernel, rows.n_rows, False, bounded, 0, phase.max_iterations)
    task[-len(rows.columns) :] = rows.columns
    ends = Ends(
        np.empty((count, p)), np.empty((count, size)), *(np.zeros(count, dtype=np.int_) for _ in range(3))
    )

    def run(some: slice) -> None:
        theta, scales = (part[some] for part in starts)
        space = np.zeros((len(theta), shape.size + len(task)))
        w, tasks = space[:, : shape.size], space.view(np.int64)[:, shape.size :]
        tasks[:] = task
        tasks[:, len(task) - varying.shape[1] :] = varying[some]
        w[:, at.TOL], w[:, at.INITIAL_RADIUS] = phase.tol, phase.initial_radius
        w[:, at.GIVEN_SIGNAL] = signal[some]
        box = (state.lower, state.upper, scales, theta, theta)  # the start is also p0
        w[:, shape.one - 4 * p : shape.one + p] = np.hstack([np.broadcast_to(b, theta.shape) for b in box])
        place, step = space.ctypes.data, space.strides[0]
        behind, call = w.shape[1] * w.itemsize, entry.call
        ends.stop[some] = [
            call(at.GAUSS_NEWTON, here + behind, here) for here in range(place, place + len(theta) * step, step)
        ]
        sums = shape.one + shape.sums
        ends.theta[some] = w[:, shape.one : shape.one + p]
        ends.sums[some] = w[:, sums : sums + size] + w[:, sums + size : sums + 2 * size]
        ends.steps[some], ends.passes[some] = w[:, at.STEPS], w[:, at.PASSES]

    def parts() -> Iterator[slice]:
        return (slice(first, first + _TOGETHER) for first in range(0, count, _TOGETHER))

    if threads == 1 or count <= _TOGETHER:
        for part in parts():
            run(part)
    else:
        with ThreadPoolExecutor(threads, thread_name_prefix="nlsq_nb") as pool:
            list(pool.map(run, parts()))
    return ends
