"""Models given as NumPy functions: values and derivatives on blocks of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.codegen.ir import OpaqueProgram
from nlsq_nb.errors import ModelError

__all__ = ["JacobianRule", "opaque_program"]

_EPS = float(np.finfo(np.float64).eps)
_DIGITS = {"2-point": 1 / 2, "3-point": 2 / 3, "cs": 1.0}  # share of float64's digits that a rule leaves
Columns = tuple[NDArray[np.float64], ...]
JacobianRule = Callable[..., Any] | Literal["2-point", "3-point", "cs"]


def opaque_program(
    f: Callable[..., Any], jac: JacobianRule, n_vars: int, n_params: int
) -> OpaqueProgram:
    """Wrap SciPy-style functions for the backends.

    Parameters
    ----------
    f : callable
        `f(x, *theta)` -> (n,), with x of shape (n,) or (k, n).
    jac : callable or {"2-point", "3-point", "cs"}
        `jac(x, *theta)` -> (n, p), or the finite-difference rule: forward, central, complex step.
    n_vars, n_params : int
        Numbers k of independent variables and p of parameters.

    Returns
    -------
    OpaqueProgram
        The program.

    Raises
    ------
    ModelError
        For an unknown rule; later, when f or jac return a wrong shape or change x in place.
    """
    if not callable(jac) and jac not in ("2-point", "3-point", "cs"):
        raise ModelError(f"jac={jac!r}: give a function, '2-point', '3-point' or 'cs'")

    def argument(columns: Columns) -> NDArray[np.float64]:
        x = columns[0].view() if n_vars == 1 else np.stack(columns)
        x.flags.writeable = False  # these may be the user's own data
        return x

    def call(x: NDArray[np.float64], theta: NDArray[Any], rows: int) -> NDArray[Any]:
        out = _real_array("f", _called("f", f, x, theta), np.iscomplexobj(theta))
        if out.shape not in ((rows,), ()):
            raise ModelError(f"f returned shape {out.shape} for {rows} rows; ({rows},) is needed")
        return np.broadcast_to(out, (rows,))

    def values(columns: Columns, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        out = call(argument(columns), theta, len(columns[0]))
        return np.asarray(out, dtype=np.float64)[None, :]

    def given(columns: Columns, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        assert callable(jac)
        rows = len(columns[0])
        out = _real_array("jac", _called("jac", jac, argument(columns), theta))
        if out.shape != (rows, n_params):
            raise ModelError(f"jac returned shape {out.shape}; ({rows}, {n_params}) is needed")
        return out.T[None, :, :].astype(np.float64)

    def numeric(columns: Columns, theta: NDArray[np.float64]) -> NDArray[np.float64]:
        x, rows = argument(columns), len(columns[0])
        out = np.empty((1, n_params, rows))
        for k in range(n_params):
            out[0, k] = _difference(lambda t: call(x, t, rows), theta, k, str(jac))
        return out

    derivatives = given if callable(jac) else numeric
    return OpaqueProgram(n_vars, n_params, 1, values, derivatives, _rounding_of(jac))


def _rounding_of(jac: JacobianRule) -> float:
    """Relative rounding error of the derivatives."""
    return _EPS if callable(jac) else _EPS ** _DIGITS[jac]


def _called(
    name: str, function: Callable[..., Any], x: NDArray[np.float64], theta: NDArray[Any]
) -> Any:
    try:
        return function(x, *theta)
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise ModelError(
            f"{name} changes its argument x in place ({error}); x holds the data of the fit: compute a "
            "new array from it and return that, or work on x.copy()"
        ) from error


def _real_array(name: str, values: Any, complex_step: bool = False) -> NDArray[Any]:
    try:
        out = np.asarray(values)
    except ValueError:
        raise ModelError(f"{name} returned a ragged {type(values).__name__}; reals are needed") from None
    if out.dtype.kind not in ("fiubc" if complex_step else "fiub"):
        raise ModelError(f"{name} returned {type(values).__name__} of dtype {out.dtype}; reals are needed")
    return out


def _difference(
    f: Callable[[NDArray[Any]], NDArray[Any]], theta: NDArray[np.float64], k: int, rule: str
) -> NDArray[np.float64]:
    """Derivative by the rule's near-optimal step (Press et al., Numerical Recipes, §5.7)."""
    size = abs(float(theta[k])) or 1.0
    if rule == "cs":  # Squire & Trapp 1998: no subtraction, so the step can be tiny
        moved = theta.astype(np.complex128)
        moved[k] += 1e-30j * size
        return np.asarray(f(moved).imag / (1e-30 * size), dtype=np.float64)
    high, low = theta.copy(), theta.copy()
    high[k] += size * _EPS ** (0.5 if rule == "2-point" else 1 / 3)
    if rule == "3-point":
        low[k] -= high[k] - theta[k]
    return np.asarray((f(high) - f(low)) / (high[k] - low[k]), dtype=np.float64)
