"""The affine map θ = S z + o between physical and normalised parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nlsq_nb.core.bounds import widths
from nlsq_nb.errors import ConfigError, DataError

__all__ = ["STRATEGIES", "ParameterNormalizer", "scales_at"]

Floats = NDArray[np.float64]
STRATEGIES = ("auto", "bounds", "p0", "none")


def scales_at(
    start: Floats, bounds: tuple[Floats, Floats] | None, strategy: str
) -> tuple[Floats, NDArray[np.bool_] | None]:
    """The scales of `ParameterNormalizer`.

    Parameters
    ----------
    start : ndarray, shape (p,)
        Starting point.
    bounds : (ndarray, ndarray) or None
        Lower and upper bounds, ±inf for none.
    strategy : str
        One of `STRATEGIES`.

    Returns
    -------
    ndarray, shape (p,)
        S.
    ndarray of bool, shape (p,), or None
        Which of them come from bounds; None where none can.
    """
    plain = strategy == "none"
    # lists are faster than arrays of a few numbers
    scales = np.array([1.0 if plain else abs(value) or 1.0 for value in start.tolist()])
    if bounds is None or strategy not in ("auto", "bounds") or all(map(math.isinf, bounds[0].tolist())):
        return scales, None
    width, boxed = widths(start, *bounds)
    return np.where(boxed, width, scales), boxed


class ParameterNormalizer:
    """Scales and offsets of the parameters.

    bounds: S = ub − lb, o = lb where both are finite and differ, and are not absurdly far apart
    (`core.bounds.widths`), else that entry falls to the p0 rule; p0: S = |p0|, o = 0, and S = 1
    where p0 = 0; none: S = 1, o = 0; auto: as bounds.

    Parameters
    ----------
    p0 : array_like, shape (p,)
        Starting point.
    bounds : (array_like, array_like), optional
        Lower and upper bounds, ±inf allowed.
    strategy : {"auto", "bounds", "p0", "none"}
        Where the scales come from.

    Attributes
    ----------
    strategy : str
        As given.
    scales, offsets : ndarray, shape (p,)
        S and o.
    original_bounds : (ndarray, ndarray) or None
        As given.
    n_params : int
        p.

    Raises
    ------
    ConfigError
        For an unknown strategy.
    """

    def __init__(self, p0: ArrayLike, bounds: Any = None, strategy: str = "auto") -> None:
        if strategy not in STRATEGIES:
            raise ConfigError(
                f"normalization_strategy={strategy!r}; choose one of {', '.join(STRATEGIES)}"
            )
        start = np.asarray(p0, dtype=np.float64)
        start = start if start.ndim else start.reshape(1)
        self.strategy = strategy
        self.n_params = len(start)
        self.original_bounds: tuple[Floats, Floats] | None = None
        if bounds is not None:
            lower, upper = both = np.empty((2, self.n_params))
            both[0], both[1] = bounds
            self.original_bounds = (lower, upper)
        self.scales, boxed = scales_at(start, self.original_bounds, strategy)
        self.offsets = np.zeros(self.n_params)
        if boxed is not None:
            self.offsets[boxed] = lower[boxed]

    @property
    def normalization_jacobian(self) -> Floats:
        """dθ/dz, diagonal, shape (p, p)."""
        return np.diag(self.scales)

    def normalize(self, theta: ArrayLike) -> Floats:
        """Physical → normalised.

        Parameters
        ----------
        theta : array_like, shape (p,)
            Physical parameters.

        Returns
        -------
        ndarray, shape (p,)
            z = (θ − o) / S.
        """
        return np.asarray((self._checked(theta, "theta") - self.offsets) / self.scales)

    def denormalize(self, z: ArrayLike) -> Floats:
        """Normalised → physical.

        Parameters
        ----------
        z : array_like, shape (p,)
            Normalised parameters.

        Returns
        -------
        ndarray, shape (p,)
            θ = S z + o.
        """
        return np.asarray(self._checked(z, "z") * self.scales + self.offsets)

    def _checked(self, values: ArrayLike, name: str) -> Floats:
        array = np.asarray(values, float)
        if array.shape[-1:] != self.scales.shape:
            raise DataError(f"{name} has shape {array.shape}; {len(self.scales)} values are needed")
        return array

    def transform_bounds(self) -> tuple[Floats, Floats] | None:
        """The bounds in z.

        Returns
        -------
        (ndarray, ndarray) or None
            Lower and upper, or None when there are none.
        """
        if self.original_bounds is None:
            return None
        lower, upper = self.original_bounds
        return self.normalize(lower), self.normalize(upper)
