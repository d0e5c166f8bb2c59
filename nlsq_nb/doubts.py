"""What speaks against an answer: what its sums leave, and what its residuals look like from row to row."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.small import compiled_run
from nlsq_nb.backends.small.layout import PATTERN
from nlsq_nb.backends.small.pattern import IN_COMMON, IN_ORDER
from nlsq_nb.codegen.evaluate import evaluate
from nlsq_nb.codegen.ir import AnyProgram
from nlsq_nb.core.chunk import Chunk, address_of
from nlsq_nb.core.elsewhere import common_part
from nlsq_nb.problem import Problem
from nlsq_nb.protocols import Source

if TYPE_CHECKING:
    from nlsq_nb.backends.objects import Entry

__all__ = ["Left", "common_parts", "pattern_of", "sorted_rows"]

Floats = NDArray[np.float64]
_CHANCE, _CHANCE_OF_FEW = 11.3, 6.25  # the 99 % and 90 % points of χ² with three degrees of freedom
_WEAK = 0.5  # share of the spread of y that is left where nothing much is explained
_FEW, _POOR = 10, 0.01  # the same where there are so few degrees of freedom that no pattern shows
_SMALL = 25  # degrees of freedom below which a pattern is hard to see
_PART, _MOST_OF_IT = 0.2, 1.0  # Σ ρ² of a pattern that matters, and of one in residuals below `_POOR`
_CANCELLING = 10.0  # size of a linear term, over that of y
_EXACT = 1e-20  # share of Σ w y² that is rounding
_NOTHING = 1e-12  # share of the sse at p0 that counts as nothing where y is constant
_FLOAT = np.dtype(np.float64)
_Task, _Found = ctypes.c_int64 * 6, ctypes.c_double * 2


@dataclass(frozen=True, slots=True)
class Left:
    """What an answer leaves.

    Attributes
    ----------
    sse, first_sse : float
        Σ w r² there, and at p0.
    signal, spread : float
        Σ w y² and Σ w (y − mean)².
    dof : int
        Degrees of freedom of the rows that are looked at.
    """

    sse: float
    first_sse: float
    signal: float
    spread: float
    dof: int

    @property
    def is_exact(self) -> bool:
        """Whether the residuals are nothing but rounding."""
        constant = self.spread == 0.0 and self.sse <= _NOTHING * self.first_sse < math.inf
        return constant or self.sse <= _EXACT * self.signal

    @property
    def is_clear(self) -> bool:
        """Whether there are so few residuals, and so small, that they have no pattern that would count."""
        return self.dof < _SMALL and self.sse <= _POOR * self.spread

    def doubts(self, terms: Iterable[float]) -> Iterator[str]:
        """What the sums say against an answer.

        Parameters
        ----------
        terms : iterable of float
            θ² Σ w (∂f/∂θ)² of the parameters that enter linearly.

        Yields
        ------
        str
            One for each reason; none where the fit is exact.
        """
        if self.is_exact:
            return
        if self.sse > _WEAK * self.spread:
            yield "little of the spread of y is explained"
        elif self.dof < _FEW and self.sse > _POOR * self.spread:
            yield "few residuals, and they are not small"
        limit = _CANCELLING**2 * self.signal
        if any(term > limit for term in terms):
            yield "large terms cancel each other"

    def least_pattern(self, rows: int) -> float:
        """From where on `common_parts` is more than noise leaves, and a model that nearly fits."""
        if self.is_exact:
            return math.inf
        least = rows * (_PART if self.sse > _POOR * self.spread else _MOST_OF_IT)
        return max(_CHANCE if self.dof >= _SMALL else _CHANCE_OF_FEW, least)


def common_parts(problem: Problem, rows: Source, theta: Floats) -> tuple[float, ...]:
    """How much the residuals of neighbouring rows have in common.

    Parameters
    ----------
    problem : Problem
        Model, and what its residuals are whitened by.
    rows : Source
        The rows.
    theta : ndarray, shape (p,)
        Where.

    Returns
    -------
    tuple of float, length m
        See `common_part`; rows in the order of x.
    """
    found = None
    if problem.model.n_outputs == 1 and problem.whitening is None and rows.n_chunks == 1:
        found = pattern_of(problem.model.program, next(iter(rows.chunks())), theta)
    if found is not None:
        return (found,)
    return tuple(common_part(r) for r in sorted_rows(problem, rows, theta)[1])


def pattern_of(program: AnyProgram, chunk: Chunk, theta: Floats) -> float | None:
    """The same of one output over one chunk, in native code.

    Parameters
    ----------
    program : AnyProgram
        The model.
    chunk : Chunk
        The rows.
    theta : ndarray, shape (p,)
        Where.

    Returns
    -------
    float or None
        None where native code cannot read the columns.
    """
    entry, (y,), w = compiled_run(), chunk.y, chunk.w
    if entry is None or not chunk.is_on_host or any(c.dtype != _FLOAT for c in (*chunk.x, y, *(w or ()))):
        return None
    f = evaluate(program, "values", chunk.x, theta)
    columns = (chunk.x[0], y, f, y if w is None else w[0])
    found = _look(entry, columns, w is not None)
    if not found[IN_ORDER]:
        order = np.lexsort(chunk.x[::-1])
        found = _look(entry, tuple(c.take(order) for c in columns), w is not None)
    return found[IN_COMMON]


def _look(entry: Entry, columns: tuple[Floats, ...], weighted: bool) -> ctypes.Array[ctypes.c_double]:
    task, found = _Task(len(columns[0]), weighted, *[address_of(c) for c in columns]), _Found()
    entry.call(PATTERN, ctypes.addressof(task), ctypes.addressof(found))
    return found


def sorted_rows(problem: Problem, rows: Source, theta: Floats) -> tuple[tuple[Floats, ...], Floats]:
    """Some rows in the order of x.

    Parameters
    ----------
    problem : Problem
        Model, and what its residuals are whitened by.
    rows : Source
        The rows.
    theta : ndarray, shape (p,)
        Where.

    Returns
    -------
    tuple of ndarray, each (n,)
        Columns of x, float64.
    ndarray, shape (m, n)
        √w (y − f) by outputs.
    """
    parts = []
    for each in rows.chunks():
        chunk = each.host()
        x = tuple(c.astype(np.float64, copy=False) for c in chunk.x)
        r = np.stack(chunk.y) - evaluate(problem.model.program, "values", x, theta)
        parts.append((x, r if chunk.w is None else np.sqrt(chunk.w) * r))
    x, residuals = parts[0]
    if len(parts) > 1:
        x = tuple(np.concatenate(pieces) for pieces in zip(*(x for x, _ in parts), strict=True))
        residuals = np.concatenate([r for _, r in parts], axis=1)
    if problem.whitening is not None:  # correlated errors are no pattern
        residuals = problem.whitening.apply(residuals.ravel()).reshape(residuals.shape)
    if not (x[0][1:] > x[0][:-1]).all():
        order = np.lexsort(x[::-1])
        x, residuals = tuple(c[order] for c in x), residuals[:, order]
    return x, residuals
