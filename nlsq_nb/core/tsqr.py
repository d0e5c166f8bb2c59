"""Tall-skinny QR: the triangular factor of √W [J | r] over all rows, JᵀWJ never formed.

Squaring J squares its condition: a direction that the data determine a millionth as well as the best
one is known to 4 digits from JᵀJ, and to 10 from R of J = QR. The blocks of the fixed grid are
factorised one by one and their triangles merged in pairs (Demmel, Grigori, Hoemmen & Langou 2012,
SIAM J. Sci. Comput. 34, A206), in an order that the number of blocks alone decides; so any chunks and
threads give the same bits, and rounding grows with the logarithm of the number of blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core import lapack

__all__ = ["EPS", "Triangle", "TriangleAccumulator", "triangle_of"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
EPS = float(np.finfo(np.float64).eps)
"""Relative rounding error of derivatives that are taken exactly."""

_TALL = 4  # rows of a piece over its columns: less is lost in merging than is gained in cache
_LEAST = 128  # rows of a piece
_SINGLE = 9216  # numbers up to which OpenBLAS does not spread a matrix over threads of its own
_RANK = 8.0  # units of rounding: exactly collinear columns leave less than one


@dataclass(frozen=True, slots=True)
class Triangle:
    """R of √W J, and the residuals in the same orthonormal coordinates.

    Attributes
    ----------
    r : ndarray, shape (p, p)
        Upper triangle; RᵀR = JᵀWJ.
    z : ndarray, shape (p,)
        Qᵀ√W r: a Gauss–Newton step δ solves R δ = z.
    rest : float
        Norm of the residuals outside the tangent plane; the sse is ‖z‖² + rest².
    rounding : float
        Relative rounding error of J's elements.
    """

    r: Floats
    z: Floats
    rest: float
    rounding: float = EPS

    @property
    def norms(self) -> Floats:
        """Column norms of √W J, (p,)."""
        return np.asarray(np.sqrt(np.einsum("ij,ij->j", self.r, self.r)))

    @property
    def sse(self) -> float:
        """Σ w r²."""
        return float(self.z.dot(self.z)) + self.rest * self.rest

    @property
    def is_finite(self) -> bool:
        """Whether every number is finite."""
        return bool(np.isfinite(self.r).all() and np.isfinite(self.z).all() and np.isfinite(self.rest))

    @property
    def offset(self) -> float:
        """The relative offset ‖z‖/√sse of Bates & Watts, without the rounding of JᵀWJ."""
        sse = self.sse
        return float(np.sqrt(self.z.dot(self.z) / sse)) if sse > 0.0 else 0.0

    def of(self, mask: Mask) -> Triangle:
        """The triangle of some columns of J alone.

        Parameters
        ----------
        mask : ndarray of bool, shape (p,)
            The parameters to keep.

        Returns
        -------
        Triangle
            Itself when all are kept.
        """
        if mask.all():
            return self
        count = int(mask.sum())
        whole = np.zeros((len(self.z) + 1, count + 1))
        whole[:-1, :-1], whole[:-1, -1], whole[-1, -1] = self.r[:, mask], self.z, self.rest
        small = triangle_of(whole)
        return Triangle(small[:-1, :-1], small[:-1, -1], abs(float(small[-1, -1])), self.rounding)

    def decompose(self) -> tuple[Floats, Floats, Floats, Mask]:
        """Singular values of the column-scaled R, and which of them are more than rounding.

        Returns
        -------
        tuple of ndarray
            u (p, p), values (p,) falling, vᵀ (p, p), and a mask (p,) of the values that count.
        """
        u, values, vt = np.linalg.svd(self.r / self.norms)
        return u, values, vt, values > len(values) * _RANK * self.rounding * values[0]

    def step(self) -> Floats:
        """The Gauss–Newton step δ; directions that are not determined stay as they are.

        Returns
        -------
        ndarray, shape (p,)
            In the units of the parameters; every column must have a norm > 0.
        """
        norms = self.norms
        u, values, vt, keep = self.decompose()
        if keep.all():
            scaled, _ = lapack.dtrtrs(self.r / norms, self.z)
            return np.asarray(scaled / norms)
        share = u.T @ self.z
        return np.asarray(vt[keep].T @ (share[keep] / values[keep]) / norms)


def triangle_of(rows: Floats) -> Floats:
    """R of a matrix, piece by piece.

    Parameters
    ----------
    rows : ndarray, shape (n, k)
        The matrix.

    Returns
    -------
    ndarray, shape (k, k)
        Upper triangle; the signs of its rows are arbitrary.
    """
    count, width = rows.shape
    tall = max(_LEAST, _TALL * width)
    while 2 * tall * width <= _SINGLE:
        tall *= 2
    whole = count // tall
    if whole > 1:
        pieces = _factor(rows[: whole * tall].reshape(whole, tall, width))
        return triangle_of(np.concatenate([pieces.reshape(-1, width), rows[whole * tall :]]))
    found = _factor(rows)
    if count >= width:
        return found
    return np.concatenate([found, np.zeros((width - count, width))])


def _factor(stack: Floats) -> Floats:
    """R of one matrix or of each of a stack."""
    return np.asarray(np.linalg.qr(stack, mode="r"))


class TriangleAccumulator:
    """Collects the triangles of one pass, block by block in row order.

    Parameters
    ----------
    n_params : int
        p.
    rounding : float
        Relative rounding error of J's elements.
    first : int
        Number of the first block; those before it are for others.

    Attributes
    ----------
    merged : list of (int, ndarray)
        What has been taken: log₂ of the number of blocks and their triangle, in row order.
    """

    def __init__(self, n_params: int, rounding: float = EPS, first: int = 0) -> None:
        self._width = n_params + 1
        self._rounding = rounding
        self._next = first
        self.merged: list[tuple[int, Floats]] = []

    def add(self, triangles: Iterable[Floats]) -> None:
        """Take the next blocks.

        Parameters
        ----------
        triangles : iterable of ndarray, each (p + 1, p + 1)
            R of √W [J | r] of each block.
        """
        self.join((0, triangle) for triangle in triangles)

    def join(self, parts: Iterable[tuple[int, Floats]]) -> None:
        """Take what others have merged of the next blocks.

        Parameters
        ----------
        parts : iterable of (int, ndarray)
            Their `merged`.
        """
        for level, part in parts:
            self._next += 1 << level
            at, merged = level, part
            # pairs lie on the grid of all blocks, wherever this accumulator begins
            while self.merged and self.merged[-1][0] == at and self._next % (2 << at) == 0:
                at, merged = at + 1, triangle_of(np.concatenate([self.merged.pop()[1], merged]))
            self.merged.append((at, merged))

    def result(self, extra: Floats | None = None) -> Triangle:
        """The triangle of everything taken.

        Parameters
        ----------
        extra : ndarray, shape (k, p + 1), optional
            Further rows of [J | r], such as those of a penalty.

        Returns
        -------
        Triangle
            Of all rows.
        """
        total = np.zeros((0, self._width)) if extra is None else extra
        for _, merged in self.merged:
            total = triangle_of(np.concatenate([total, merged]))
        total = triangle_of(total) if not self.merged else total
        return Triangle(total[:-1, :-1], total[:-1, -1], abs(float(total[-1, -1])), self._rounding)
