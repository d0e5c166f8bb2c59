"""What is asked of the data before a fit: moments, finite values, a model that takes rows one by one."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.small import compiled_run, moments
from nlsq_nb.backends.small.layout import MOMENTS
from nlsq_nb.codegen.evaluate import evaluate
from nlsq_nb.codegen.ir import AnyProgram, Instruction, OpaqueProgram, Program
from nlsq_nb.core.chunk import Chunk, address_of, on_host
from nlsq_nb.core.columns import require_finite_column
from nlsq_nb.core.layout import BLOCK
from nlsq_nb.core.sums import Accumulator, NormalSums
from nlsq_nb.core.whitening import Whitening
from nlsq_nb.engines.spread import SpreadEngine, engine_over, spread_rows
from nlsq_nb.errors import DataError, ModelError, NumericsError
from nlsq_nb.protocols import Backend, Source
from nlsq_nb.sources.sample import sample

__all__ = ["FEW", "DataSummary", "curvature_at", "require_finite", "require_rowwise", "summarize", "survey", "whitened"]

FEW = 4 * BLOCK
"""Rows up to which native code, or NumPy, is fast enough for their moments, so that no kernel is compiled for them."""

Floats = NDArray[np.float64]
_FLOAT = np.dtype(np.float64)
_DERIVATIVES = 1_000_000  # numbers that a look at the derivatives may hold


@dataclass(frozen=True, slots=True)
class DataSummary:
    """What one pass over the data alone tells.

    Attributes
    ----------
    n_rows : int
        Rows n.
    n_residuals : int
        n times the number of outputs.
    signal : float
        Σ w y².
    spread : float
        Σ w (y − mean)², the sse of a constant.
    weight : float
        Σ w.
    """

    n_rows: int
    n_residuals: int
    signal: float
    spread: float
    weight: float


def summarize(source: Source, variables: Sequence[str], check: bool, backend: Backend) -> DataSummary:
    """Scan the data once.

    The moments of y are the sums of the model f = c, taken at c = the first y: that is near enough to
    the mean for Σ w (y − mean)² = S₂ − S₁²/S₀ to keep its digits, and exactly zero for constant y.

    Parameters
    ----------
    source : Source
        The rows.
    variables : sequence of str
        Names of the independent variables, for messages.
    check : bool
        Whether non-finite values are refused.
    backend : Backend
        Where the sums are computed.

    Returns
    -------
    DataSummary
        Counts and moments.

    Raises
    ------
    DataError
        Names the column and the first row with a non-finite value.
    """
    labels = [f"xdata {name!r}" for name in variables] if len(variables) > 1 else ["xdata"]
    if spread_rows(source) is not None:
        return _summarize_there(source, labels if check else [], backend)
    few, native = source.n_rows <= FEW, backend.name == "cpu"
    parts, into = list[tuple[float, float, float]](), None
    n_rows, outputs, c = 0, 1, 0.0
    with np.errstate(all="ignore"):
        for chunk in source.chunks():
            if n_rows == 0:
                c, outputs = _centre(chunk), len(chunk.y)
                if not few or not chunk.is_on_host:
                    into = Accumulator(1, 2)
                    kernel = backend.compile(_constant(len(chunk.x), outputs, reads=check), source.dtype)
            n_rows += chunk.n_rows
            if into is not None:
                backend.reduce(kernel, backend.put(chunk, source.dtype), np.array([c]), 2, into)
                continue
            known = _in_native_code(chunk, c) if native else None
            if check and not (known is not None and known[1]):
                _require_finite_x(labels, chunk)
            parts += _moments(chunk, c) if known is None else known[0]
        found = _added(parts) if into is None else _moments_of(into.result())
        if check and into is not None and not math.isfinite(found[0]):
            for chunk in source.chunks():
                _require_finite_x(labels, chunk)
        return _summary(source, (n_rows, outputs), c, found, check)


def _require_finite_x(labels: Sequence[str], chunk: Chunk) -> None:
    for label, column in zip(labels, chunk.x, strict=True):
        require_finite_column(label, on_host(column), chunk.start)


def _centre(chunk: Chunk) -> float:
    """The first y, unless it is not finite."""
    return first if math.isfinite(first := float(on_host(chunk.y[0][:1])[0])) else 0.0


def _summarize_there(source: Source, labels: Sequence[str], backend: Backend) -> DataSummary:
    """The same of rows on a cluster, which stay there."""
    row = next(iter(sample(source, [(0, 1)]).chunks()))
    c, outputs = _centre(row), len(row.y)
    engine = engine_over(backend, _constant(len(row.x), outputs, reads=False), source)
    assert isinstance(engine, SpreadEngine)
    sums = engine.run(np.array([c]), 2, labels)
    with np.errstate(all="ignore"):
        return _summary(source, (sums.n_rows, outputs), c, _moments_of(sums), bool(labels))


def survey(chunk: Chunk, backend: Backend) -> DataSummary | None:
    """What `summarize` finds for rows in memory, if there is nothing to complain of.

    Parameters
    ----------
    chunk : Chunk
        All rows, more than `FEW`; float64.
    backend : Backend
        Where the sums are computed.

    Returns
    -------
    DataSummary or None
        None where a number is not finite, or squares underflow.
    """
    into, c = Accumulator(1, 2), _centre(chunk)
    kernel = backend.compile(_constant(len(chunk.x), len(chunk.y), reads=True), _FLOAT)
    backend.reduce(kernel, chunk, np.array([c]), 2, into)
    found = _told((chunk.n_rows, len(chunk.y)), c, _moments_of(into.result()))
    return found if sys.float_info.min <= found.signal < math.inf else None


def _told(shape: tuple[int, int], c: float, moments: tuple[float, float, float]) -> DataSummary:
    """What the sums of the model f = c tell of y."""
    sse, apart, weight = moments
    signal = sse + 2.0 * c * apart + c * c * weight
    spread = max(sse - apart * (apart / weight), 0.0)
    return DataSummary(shape[0], shape[0] * shape[1], signal, spread, weight)


def _summary(
    source: Source, shape: tuple[int, int], c: float, moments: tuple[float, float, float], check: bool
) -> DataSummary:
    """The same, unless it shows that y cannot be fitted."""
    found = _told(shape, c, moments)
    if check and not math.isfinite(found.signal):
        _require_finite_outputs(source)
    if found.signal < sys.float_info.min and any(on_host(y).any() for part in source.chunks() for y in part.y):
        raise DataError("the squares of ydata (over sigma) underflow float64; rescale them")
    return found


def whitened(summary: DataSummary, source: Source, whitening: Whitening) -> DataSummary:
    """The moments of y in coordinates in which its errors are independent.

    Parameters
    ----------
    summary : DataSummary
        Of the rows as they are.
    source : Source
        The rows.
    whitening : Whitening
        Of the residuals.

    Returns
    -------
    DataSummary
        With L⁻¹y and L⁻¹1 in the place of √w y and √w.
    """
    y = np.concatenate([np.stack(chunk.y).astype(np.float64) for chunk in source.chunks()], axis=1).ravel()
    ones, above, whole = whitening.apply(np.stack([np.ones_like(y), y - y[0], y], axis=1)).T
    weight, apart = float(ones @ ones), float(ones @ above)
    spread = max(float(above @ above) - apart * (apart / weight), 0.0)
    return replace(summary, signal=float(whole @ whole), spread=spread, weight=weight)


def _in_native_code(chunk: Chunk, c: float) -> tuple[list[tuple[float, float, float]], bool] | None:
    """What `_moments` gives, and whether x is finite; None where native code cannot read the chunk."""
    entry, columns = compiled_run(), (*chunk.x, *chunk.y, *(chunk.w or ()))
    if entry is None:
        return None
    for column in columns:
        if column.dtype != _FLOAT:
            return None
    asked = (chunk.n_rows, len(chunk.x), len(chunk.y), chunk.w is not None, *[address_of(a) for a in columns])
    task = (ctypes.c_int64 * len(asked))(*asked)
    end = moments.FOUND + 3 * len(chunk.y) * -(-chunk.n_rows // BLOCK)
    w = (ctypes.c_double * end)(c)
    entry.call(MOMENTS, ctypes.addressof(task), ctypes.addressof(w))
    found = w[moments.FOUND : end]
    return list(zip(found[::3], found[1::3], found[2::3], strict=True)), w[moments.ODD] == 0.0


def _moments(chunk: Chunk, c: float) -> Iterator[tuple[float, float, float]]:
    """The sums of the model f = c over the blocks of a chunk, without a kernel."""
    for number, column in enumerate(chunk.y):
        apart = np.subtract(column, c, dtype=np.float64)
        for k in range(0, len(apart), BLOCK):
            part = apart[k : k + BLOCK]
            if chunk.w is None:
                yield float(part.dot(part)), float(np.add.reduce(part)), float(len(part))
            else:
                w = chunk.w[number][k : k + BLOCK].astype(np.float64)
                weighted = w * part
                yield float(part.dot(weighted)), float(np.add.reduce(weighted)), float(np.add.reduce(w))


def _added(parts: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    """The sums of all blocks."""
    if len(parts) == 1:
        return parts[0]
    sse, apart, weight = (_fsum(column) for column in zip(*parts, strict=True))
    return sse, apart, weight


def _fsum(values: tuple[float, ...]) -> float:
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # of infinities
        return sum(values)


def _moments_of(sums: NormalSums) -> tuple[float, float, float]:
    return sums.sse, float(sums.jtr[0]), float(sums.jtj[0, 0])


@lru_cache(maxsize=16)
def _constant(n_vars: int, n_outputs: int, *, reads: bool) -> AnyProgram:
    """The model f = c of so many variables and outputs; one that reads x is f = c + Σ 0·x: nan unless x is finite."""
    body, value = list[Instruction](), "p0"
    for k in range(n_vars if reads else 0):
        body += [Instruction(f"t{2 * k}", "mul", ("0.0", f"x{k}"))]
        body += [Instruction(f"t{2 * k + 1}", "add", (value, f"t{2 * k}"))]
        value = f"t{2 * k + 1}"
    return Program(n_vars, 1, (), tuple(body), (value,) * n_outputs, (("1.0",),) * n_outputs)


def _require_finite_outputs(source: Source) -> None:
    """Say why Σ w y² is not finite."""
    for chunk in source.chunks():
        for y in chunk.y:
            require_finite_column("ydata", on_host(y), chunk.start)
    raise DataError("the sum of squares of ydata (over sigma) overflows float64; rescale them")


def curvature_at(program: AnyProgram, source: Source, theta: Floats) -> Floats:
    """The mean of w (∂f/∂θ)² over the residuals, or what it is where parameters matter.

    From rows all over the first chunk. A start may be so poor that the model hardly changes with a
    parameter there; at a better one a change by all of its size makes about all of y.

    Parameters
    ----------
    program : AnyProgram
        The model.
    source : Source
        The rows.
    theta : ndarray, shape (p,)
        Where.

    Returns
    -------
    ndarray, shape (p,)
        The diagonal of JᵀWJ over the number of residuals, about; not finite where J is not.
    """
    chunk = next(iter(source.chunks())).host()
    wanted = max(16, _DERIVATIVES // (len(theta) * program.n_outputs))
    rows = slice(0, None, -(-chunk.n_rows // wanted))
    columns = tuple(c[rows].astype(np.float64) for c in chunk.x)
    squares = evaluate(program, "derivatives", columns, theta) ** 2
    signal = np.stack([y[rows].astype(np.float64) for y in chunk.y]) ** 2
    if chunk.w is not None:
        weights = np.stack([w[rows].astype(np.float64) for w in chunk.w])
        squares, signal = squares * weights[:, None, :], signal * weights
    size = np.where(theta != 0.0, theta, 1.0)
    return np.asarray(np.maximum(squares.mean(axis=(0, 2)), signal.mean() / size**2))


def require_rowwise(program: AnyProgram, source: Source, theta: Floats) -> None:
    """Refuse a NumPy function whose value at a row depends on other rows.

    Parameters
    ----------
    program : AnyProgram
        The model; only functions that are called as they are need the check.
    source : Source
        The rows; looked at when there is more than one block of them.
    theta : ndarray, shape (p,)
        The start.

    Raises
    ------
    ModelError
        When two blocks together give other values than one by one.
    """
    if not isinstance(program, OpaqueProgram) or source.n_rows <= BLOCK:
        return
    chunk = next(iter(source.chunks()))
    columns = tuple(c[: 2 * BLOCK].astype(np.float64, copy=False) for c in chunk.x)
    whole = program.values(columns, theta)
    parts = [
        program.values(tuple(c[rows] for c in columns), theta)
        for rows in (slice(0, BLOCK), slice(BLOCK, None))
        if len(columns[0][rows])
    ]
    apart = np.concatenate(parts, axis=1)
    if not np.allclose(whole, apart, rtol=1e-9, atol=0.0, equal_nan=True):
        raise ModelError(
            "the model function gives other values for all rows together than block by block (a "
            "mean, a sort, a cumulative sum?); compute what needs all rows before the fit"
        )


def require_finite(
    program: AnyProgram, source: Source, theta: Floats, params: Sequence[str]
) -> None:
    """Explain why the sums at the start are not finite.

    Parameters
    ----------
    program : AnyProgram
        The model.
    source : Source
        The rows.
    theta : ndarray, shape (p,)
        The start.
    params : sequence of str
        Parameter names.

    Raises
    ------
    NumericsError
        Names the first row where the model, a derivative or a square is not finite.
    """
    start = ", ".join(f"{name}={value:g}" for name, value in zip(params, theta, strict=True))
    sse, squares = 0.0, np.zeros(len(params))
    for rows in source.chunks():
        chunk = rows.host()
        columns = tuple(c.astype(np.float64, copy=False) for c in chunk.x)
        f = evaluate(program, "values", columns, theta)
        jac = evaluate(program, "derivatives", columns, theta)
        data = np.isfinite(np.stack([*columns, *chunk.y])).all(axis=0)
        if not data.all():
            row = chunk.start + int(np.argmin(data))
            raise DataError(f"xdata or ydata is not finite at row {row}; remove it or use nan_policy")
        bad = np.flatnonzero(~np.isfinite(f).all(axis=0))
        if len(bad):
            row = int(bad[0])
            x = ", ".join(f"{c[row]:g}" for c in columns)
            raise NumericsError(
                f"the model is not finite at row {chunk.start + row} (x = {x}) for p0 {start}; "
                "choose another p0"
            )
        where = np.argwhere(~np.isfinite(jac))
        if len(where):
            _, k, row = (int(v) for v in where[np.argmin(where[:, 2])])
            x = ", ".join(f"{c[row]:g}" for c in columns)
            raise NumericsError(
                f"the derivative by parameter {params[k]!r} is not finite at row "
                f"{chunk.start + row} (x = {x}) for p0 {start}; choose another p0"
            )
        sse += float(((np.stack(chunk.y) - f) ** 2).sum())
        squares += (jac**2).sum(axis=(0, 2))
    if math.isfinite(sse) and not np.isfinite(squares).all():
        name = params[int(np.argmin(np.isfinite(squares)))]
        raise NumericsError(
            f"the squares of the derivative by parameter {name!r} overflow for p0 {start}; choose another p0, "
            "or other units of the data"
        )
    raise NumericsError(f"the sum of squares overflows for p0 {start}; choose another p0")
