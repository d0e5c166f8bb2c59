"""`DerivedValues`: what follows from the stored numbers of a fit, and all of them by name."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["DerivedValues"]

Floats = NDArray[np.float64]
# computed when asked for; fun too, but that needs a pass over the data
_DERIVED = (
    *("streaming_diagnostics", "x", "perr", "chi2", "reduced_chi2"),
    *("r_squared", "aic", "bic", "correlation", "params"),
)


class DerivedValues:
    """A base of `FitResult`, which documents the attributes."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    names: tuple[str, ...]
    popt: Floats
    pcov: Floats
    sse: float
    loss: str
    n_points: int
    dof: int
    active_mask: NDArray[np.int_]
    bounds: tuple[Floats, Floats]
    linear: tuple[str, ...]
    spread: float
    weight: float

    def keys(self) -> tuple[str, ...]:
        """Names of the stored values.

        Returns
        -------
        tuple of str
            Keys for `result[key]`.
        """
        stored = [name for name in self.__dataclass_fields__ if not name.startswith("_")]
        return (*stored, *_DERIVED)

    def items(self) -> list[tuple[str, Any]]:
        """Keys and values.

        Returns
        -------
        list of tuple
            `(name, value)` for every key.
        """
        return [(name, self[name]) for name in self.keys()]

    def get(self, key: str, default: Any = None) -> Any:
        """A value by name.

        Parameters
        ----------
        key : str
            An attribute.
        default : Any
            Returned when there is none of that name.

        Returns
        -------
        Any
            The value.
        """
        return self[key] if key in self else default  # noqa: SIM401 - this is that method

    def __getitem__(self, key: str | int) -> Any:
        """An attribute by name, or popt and pcov by 0 and 1."""
        if isinstance(key, int):
            return (self.popt, self.pcov)[key]
        if key not in self:
            raise KeyError(key)
        return getattr(self, key)

    def __contains__(self, key: object) -> bool:
        """Whether `result[key]` exists."""
        return key in self.keys() or key == "fun"

    # -- derived values ----------------------------------------------------------------------
    @property
    def x(self) -> Floats:
        """Same as popt, as SciPy's results name it."""
        return self.popt

    @property
    def perr(self) -> Floats:
        """Standard errors, the roots of pcov's diagonal, shape (p,)."""
        return np.sqrt(np.diagonal(self.pcov))

    @property
    def chi2(self) -> float:
        """Same as sse: Σ ((y − f)/σ)² when sigma was given."""
        return self.sse

    @property
    def reduced_chi2(self) -> float:
        """Sse per degree of freedom; inf without degrees of freedom."""
        return self.sse / self.dof if self.dof > 0 else math.inf

    @property
    def r_squared(self) -> float:
        """1 − sse / Σ w (y − mean)²; nan for constant y."""
        return 1.0 - self.sse / self.spread if self.spread > 0.0 else math.nan

    @property
    def aic(self) -> float:
        """Akaike's criterion n log(sse/n) + 2k for k free parameters; nan under a robust loss."""
        return self._likelihood() + 2.0 * (self.n_points - self.dof)

    @property
    def bic(self) -> float:
        """Bayesian criterion n log(sse/n) + k log n for k free parameters; nan under a robust loss."""
        return self._likelihood() + math.log(self.n_points) * (self.n_points - self.dof)

    def _likelihood(self) -> float:
        if self.loss != "linear":
            return math.nan
        return self.n_points * math.log(self.sse / self.n_points) if self.sse > 0.0 else -math.inf

    @property
    def correlation(self) -> Floats:
        """Correlations of the parameters, shape (p, p); nan where a variance is 0 or inf."""
        with np.errstate(all="ignore"):
            out = self.pcov / np.outer(self.perr, self.perr)
        return np.asarray(np.where(np.isfinite(out), out, np.nan))

    @property
    def params(self) -> dict[str, dict[str, Any]]:
        """Name → value, stderr, bounds, linear, fixed, at_bound ("", "lower" or "upper")."""
        lower, upper = self.bounds
        sides = {-1: "lower", 0: "", 1: "upper"}
        return {
            name: {
                "value": float(self.popt[k]),
                "stderr": float(self.perr[k]),
                "bounds": (float(lower[k]), float(upper[k])),
                "linear": name in self.linear,
                "fixed": bool(lower[k] == upper[k]),
                "at_bound": sides[int(self.active_mask[k])],
            }
            for k, name in enumerate(self.names)
        }

    @property
    def unweighted(self) -> bool:
        """Whether every residual had weight 1."""
        return self.weight == self.n_points
