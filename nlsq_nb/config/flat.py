"""`HybridStreamingConfig`: every option under its public, flat name, with its default."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from nlsq_nb.config.groups import Groups

__all__ = ["HybridStreamingConfig", "config_from"]

# what SciPy's solvers call them
_SCIPY = {
    "maxfev": "gauss_newton_max_iterations",
    "max_nfev": "gauss_newton_max_iterations",
    "ftol": "gauss_newton_tol",
    "xtol": "gauss_newton_tol",
    "gtol": "gauss_newton_tol",
}


@dataclass(slots=True)
class HybridStreamingConfig:
    """Options of a fit.

    Parameters
    ----------
    normalize : bool
        Whether parameters are scaled before phases that depend on their scale.
    normalization_strategy : {"auto", "bounds", "p0", "none"}
        Where the scales come from; auto: finite bounds, else p0.
    separable : bool or "auto"
        Whether parameters that enter linearly are eliminated (variable projection).
    gauss_newton_max_iterations : int
        Largest number of Gauss–Newton trials.
    gauss_newton_tol : float
        Relative offset (sine of the angle between residuals and tangent plane) at which the fit
        has converged.
    trust_region_initial : float
        Longest first step, in normalised parameters.
    regularization_factor : float
        Relative ridge where JᵀWJ is numerically singular.
    chunk_size : int
        Rows handed to the backend at a time, rounded up to whole blocks; arrays in memory, where
        nothing has to be read, are handed over in chunks of 4,194,304 rows at least.
    precision : {"float64", "float32", "auto"}
        Storage of the data; auto keeps the dtype of the data. Sums are float64 always.
    validate_numerics : bool
        Whether the data are checked for non-finite values before the fit.
    n_threads : int, optional
        Threads; the cores available by default. Any number gives the same bits.
    callback_frequency : int
        Iterations between calls of the callback.
    verbose : {0, 1, 2}
        0 silent, 1 a line per iteration, 2 with the parameters.
    log_frequency : int
        Iterations between log lines.

    Raises
    ------
    ConfigError
        For an invalid value; the text contains the field's name.
    """

    normalize: bool = True
    normalization_strategy: str = "auto"
    separable: bool | str = "auto"
    gauss_newton_max_iterations: int = 100
    gauss_newton_tol: float = 1e-8
    trust_region_initial: float = 1.0
    regularization_factor: float = 1e-10
    chunk_size: int = 10_000
    precision: str = "float64"
    validate_numerics: bool = True
    n_threads: int | None = None
    callback_frequency: int = 10
    verbose: int = 1
    log_frequency: int = 1

    def __post_init__(self) -> None:
        """Validate by grouping."""
        self.groups()

    def groups(self) -> Groups:
        """The frozen groups that the library reads.

        Returns
        -------
        Groups
            Validated anew, since fields may have been assigned to.
        """
        return Groups.from_flat(self)


_generated = HybridStreamingConfig.__init__


@functools.wraps(_generated)
def _init(self: HybridStreamingConfig, *args: Any, **named: Any) -> None:
    _known(named)
    _generated(self, *args, **named)


HybridStreamingConfig.__init__ = _init  # type: ignore[method-assign]


def _known(names: Iterable[str]) -> None:
    """Refuse a name that is not a field, naming the closest one."""
    known = [f.name for f in fields(HybridStreamingConfig)]
    for name in names:
        if name not in known:
            close = [_SCIPY[name]] if name in _SCIPY else difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"unexpected keyword argument {name!r}{hint}")


def config_from(base: HybridStreamingConfig | None, overrides: dict[str, Any]) -> Groups:
    """Options from a configuration and keyword overrides.

    Parameters
    ----------
    base : HybridStreamingConfig or None
        The configuration, None for the defaults.
    overrides : dict
        Field name -> value.

    Returns
    -------
    Groups
        Validated.

    Raises
    ------
    TypeError
        For a name that is not a field; names the closest one.
    ConfigError
        For an invalid value.
    """
    _known(overrides)
    if base is not None and not isinstance(base, HybridStreamingConfig):
        raise TypeError(f"config must be a HybridStreamingConfig, not {type(base).__name__}")
    source = base or HybridStreamingConfig()
    merged = {f.name: getattr(source, f.name) for f in fields(source)} | overrides
    return HybridStreamingConfig(**merged).groups()
