"""One Cholesky factor of JᵀWJ, the linear parameters first, answers all that a step asks.

With H = L Lᵀ in column-scaled coordinates, split into linear (1) and nonlinear (2) parameters, and
y = L⁻¹g: ‖y₁‖² is what relaxing the linear parameters takes off the sse, ‖y₂‖² what a full step
takes off after that, L₂₂L₂₂ᵀ is the Schur complement of the linear block and L₂₂y₂ its right-hand
side (Golub & Van Loan, "Matrix Computations", §4.2). Only a damped step needs another factor, of
the Schur complement. Where the matrix is ill-conditioned, or a bound acts, `varpro` is the
general way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core import lapack
from nlsq_nb.core.linsolve import cholesky, column_scaled, length
from nlsq_nb.core.trust_region import SLACK, Step, limited

__all__ = ["Factor", "Split", "factorize", "split"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
_PIVOT = 1e-4  # below, half of the digits of what is left after elimination are rounding errors


@dataclass(frozen=True, slots=True)
class Split:
    """The order in which parameters are eliminated.

    Attributes
    ----------
    order : ndarray of int, shape (k,)
        The parameters that may move, linear ones first.
    n_inner : int
        How many of them are linear.
    n_params : int
        p ≥ k.
    is_plain : bool
        Whether `order` is 0, …, p − 1.
    """

    order: NDArray[np.intp]
    n_inner: int
    n_params: int
    is_plain: bool

    def gather(self, values: Floats) -> Floats:
        """The values of the parameters that may move, in `order`."""
        return values if self.is_plain else values.take(self.order)

    def scatter(self, values: Floats) -> Floats:
        """The inverse of `gather`, zero at the others."""
        if self.is_plain:
            return values
        spread = np.zeros(self.n_params)
        spread[self.order] = values
        return spread


def split(linear: Mask, free: Mask) -> Split:
    """The split for two masks; the same object for the same masks.

    Parameters
    ----------
    linear : ndarray of bool, shape (p,)
        Linear parameters, all of them free.
    free : ndarray of bool, shape (p,)
        Parameters that may move.

    Returns
    -------
    Split
        The order of elimination.
    """
    return _split(linear.tobytes(), free.tobytes())


@lru_cache(maxsize=64)
def _split(linear: bytes, free: bytes) -> Split:
    inner = np.flatnonzero(np.frombuffer(linear, np.bool_))
    outer = np.flatnonzero(np.frombuffer(free, np.bool_) & ~np.frombuffer(linear, np.bool_))
    order = np.concatenate([inner, outer])
    return Split(order, len(inner), len(free), order.tolist() == list(range(len(free))))


@dataclass(frozen=True, slots=True)
class Factor:
    """A well-conditioned JᵀWJ and its right-hand side, factorised.

    Attributes
    ----------
    split : Split
        The k parameters that it is about.
    norms : ndarray, shape (k,)
        Column norms of J.
    lower : ndarray, shape (k, k)
        L of the column-scaled matrix.
    y : ndarray, shape (k,)
        L⁻¹ times the column-scaled JᵀWr.
    u : ndarray, shape (k,)
        The full step in column-scaled coordinates.
    delta : ndarray, shape (p,)
        The full Gauss–Newton step of all these parameters.
    gain : float
        Reduction of the sse that it promises.
    """

    split: Split
    norms: Floats
    lower: Floats
    y: Floats
    u: Floats
    delta: Floats
    gain: float

    def condition(self, count: int) -> float:
        """An upper bound on the condition of a leading block of the matrix, from its pivots.

        m eigenvalues with sum m and product d: the least is at least d·((m−1)/m)^(m−1) > d/e, as
        the geometric mean of the others is at most their mean.

        Parameters
        ----------
        count : int
            Size m of the block: the parameters that come first in `split.order`.

        Returns
        -------
        float
            ≥ 1; may be far too large for many parameters.
        """
        root = math.prod(self.lower.diagonal().tolist()[:count])
        return max(count, 1) * math.e / (root * root) if root * root > 0.0 else math.inf

    def relaxed_gain(self) -> float:
        """Reduction of the sse when the linear parameters take their best values.

        Returns
        -------
        float
            ‖y₁‖², ≥ 0.
        """
        y = self.y[: self.split.n_inner]
        return float(y.dot(y))

    def relaxed(self) -> Step:
        """The step of the linear parameters alone, to their best values.

        Returns
        -------
        Step
            `delta` (p,), zero at the others.
        """
        m, gain = self.split.n_inner, self.relaxed_gain()
        if m == len(self.y):
            return Step(self.delta, length(self.u), 0.0, gain, gain)
        u = np.zeros(len(self.y))
        if m:
            u[:m] = lapack.dtrtrs(self.lower[:m, :m], self.y[:m], lower=1, trans=1)[0]
        return Step(self.split.scatter(u / self.norms), length(u), 0.0, gain, gain)

    def solve(self, right: Floats) -> Floats:
        """The full step for another right-hand side.

        Parameters
        ----------
        right : ndarray, shape (p,)
            In the place of JᵀWr.

        Returns
        -------
        ndarray, shape (p,)
            Zero at parameters that may not move.
        """
        y, _ = lapack.dtrtrs(self.lower, self.split.gather(right) / self.norms, lower=1)
        u, _ = lapack.dtrtrs(self.lower, y, lower=1, trans=1)
        return self.split.scatter(u / self.norms)

    def reduced_norms(self) -> Floats:
        """Column norms of J, with the linear parameters eliminated for the nonlinear ones.

        Returns
        -------
        ndarray, shape (p,)
            Zero at parameters that may not move.
        """
        m = self.split.n_inner
        if m in (0, len(self.y)):
            return self.split.scatter(self.norms)
        tail = self.lower[m:, m:]
        norms = self.norms.copy()
        norms[m:] *= np.sqrt(np.einsum("ij,ij->i", tail, tail))
        return self.split.scatter(norms)

    def step(self, scale: Floats, radius: float) -> Step:
        """A step without bounds whose trust region limits the nonlinear parameters.

        Parameters
        ----------
        scale : ndarray, shape (p,)
            D.
        radius : float
            Δ; inf for the full step. A model without nonlinear parameters needs none.

        Returns
        -------
        Step
            As `varpro.reduced_step`.
        """
        m = self.split.n_inner
        if m == len(self.y):
            m, radius = 0, math.inf
        y, u = self.y[m:], self.u[m:]
        q = self.split.gather(scale)[m:] / self.norms[m:]
        norm = length(q * u)
        if norm <= SLACK * radius:
            gain = float(y.dot(y))
            return Step(self.delta, norm, 0.0, gain, gain)
        tail = self.lower[m:, m:]
        schur = tail.dot(tail.T)
        size = np.sqrt(schur.diagonal())
        found, damping = limited(
            column_scaled(schur, size), tail.dot(y) / size, q / size, radius, size * u
        )
        outer = found / size
        moved = outer.dot(tail)
        slope = float(y.dot(moved))
        if m:
            left = self.y[:m] - outer.dot(self.lower[m:, :m])
            inner, _ = lapack.dtrtrs(self.lower[:m, :m], left, lower=1, trans=1)
            whole = np.concatenate([inner, outer])
        else:
            whole = outer
        delta = self.split.scatter(whole / self.norms)
        return Step(delta, length(q * outer), damping, slope, 2.0 * slope - float(moved.dot(moved)))


def factorize(h: Floats, g: Floats, order: Split) -> Factor | None:
    """Factorise the matrix of some parameters.

    Parameters
    ----------
    h, g : ndarray, shape (p, p) and (p,)
        JᵀWJ and JᵀWr.
    order : Split
        Which parameters, in which order.

    Returns
    -------
    Factor or None
        None where the matrix is ill-conditioned, not finite, or has no rows.
    """
    square = order.gather(h.diagonal())
    if not len(square) or not all(0.0 < value < math.inf for value in square.tolist()):
        return None
    norms = np.sqrt(square)
    block = h if order.is_plain else h.take(order.order, 0).take(order.order, 1)
    lower = cholesky(column_scaled(block, norms), _PIVOT)
    if lower is None:
        return None
    y, _ = lapack.dtrtrs(lower, order.gather(g) / norms, lower=1)
    u, _ = lapack.dtrtrs(lower, y, lower=1, trans=1)
    return Factor(order, norms, lower, y, u, order.scatter(u / norms), float(y.dot(y)))
