"""What `curve_fit` accepts as a model, as a `Model`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.columns import table_names
from nlsq_nb.errors import DataError, ModelError, TracingError
from nlsq_nb.models.names import function_name
from nlsq_nb.models.opaque import JacobianRule
from nlsq_nb.models.symbolic import Model

__all__ = ["as_model"]

_ALIKE = 1e-3  # of the largest value: terms that cancel may differ by more than rounding


def as_model(
    model: Any,
    xdata: Any,
    n_rows: int,
    n_start: int | None = None,
    jac: JacobianRule | None = None,
) -> Model:
    """Read a model, with variables named as the data suggest.

    Parameters
    ----------
    model : Model, str, sympy.Expr, list of expressions, or callable
        A callable is traced, or called as it is when `jac` is given.
    xdata : array_like or mapping
        One variable is called x, several x0, x1, …; columns of a mapping keep their names.
    n_rows : int
        Length of ydata, which tells (k, n) from (n, k).
    n_start : int, optional
        Length of p0, which names the parameters of a function with `*params` p0, p1, ….
    jac : callable or str, optional
        Jacobian of a callable that is not to be traced.

    Returns
    -------
    Model
        The model.

    Raises
    ------
    ModelError
        When it is none of these, or cannot be read or traced.
    TypeError
        When `jac` is given for a model whose exact Jacobian is used.
    """
    if isinstance(model, Model) or not callable(model) or hasattr(model, "free_symbols"):
        if jac is not None:
            raise TypeError("jac goes with a plain function; a model has its exact Jacobian")
        if isinstance(model, Model):
            return model
        if not isinstance(model, (str, list, tuple)) and not hasattr(model, "free_symbols"):
            raise ModelError(
                f"a {type(model).__name__} is not a model; give text, a SymPy expression, a "
                "function f(x, *params) or a Model"
            )
        variables = _variables(xdata, n_rows, _symbols(model))
        return _read(model, variables) if isinstance(model, str) else Model(model, x=variables)
    names = None if n_start is None else tuple(f"p{k}" for k in range(n_start))
    given = names if _takes_any_number(model) else None
    if jac is not None:
        return Model.from_callable(model, jac=jac, x=_variables(xdata, n_rows, None), params=given)
    found = Model.from_function(model, x=_variables(xdata, n_rows, None), params=given)
    _require_same_with_numbers(found, model, xdata, n_rows)
    return found


def _require_same_with_numbers(traced: Model, f: Callable[..., Any], xdata: Any, n_rows: int) -> None:
    """Refuse a function that does something else with arrays than it did with what it was traced by.

    It is called on a few rows, in the shape of the data. What cannot be compared so is left alone: a function for
    x of another orientation, and rows that are not finite (where numbers meet 0·log 0, the formula has its limit).
    """
    x = _few_rows(xdata, n_rows, len(traced.x))
    if x is None:
        return
    theta = [1.0 + 0.1 * k for k in range(traced.n_params)]
    try:
        with np.errstate(all="ignore"):
            given = np.asarray(f(x.T if np.shape(xdata)[-1] != n_rows else x, *theta), dtype=np.float64)
            known = np.asarray(traced(x, *theta))
    except Exception:  # noqa: BLE001 - whatever the function does with so few rows
        return  # it was traced, which is what counts
    if given.shape != known.shape:
        return
    both = np.isfinite(given) & np.isfinite(known)
    apart = np.abs(given - known)[both] > _ALIKE * np.abs(known[both]).max(initial=0.0)
    if 2 * apart.sum() > apart.size:
        raise TracingError(
            f"{function_name(f)}: with an array as x the function gives other values than the formula that was "
            f"traced ({given[both][apart][0]:g} instead of {known[both][apart][0]:g}); does it ask for the type "
            "of x? Write it for any x, or use the function untraced: Model.from_callable(f, jac=...)"
        )


def _few_rows(xdata: Any, n_rows: int, n_vars: int) -> NDArray[np.float64] | None:
    """Some rows of x, (rows,) or (k, rows); None of tables, and where rows and variables cannot be told apart."""
    count = 3 if n_vars != 3 else 4
    if isinstance(xdata, Mapping) or hasattr(xdata, "columns") or n_rows < count or n_rows == n_vars:
        return None
    chosen = np.linspace(0, n_rows - 1, count).astype(np.intp)
    try:
        whole = np.asarray(xdata)
        rows = whole[..., chosen] if whole.shape[-1] == n_rows else whole[chosen].T
        return rows.astype(np.float64) if rows.shape in ((count,), (n_vars, count)) else None
    except (TypeError, ValueError, IndexError):  # the source says what is wrong with x
        return None


@lru_cache(maxsize=256)
def _read(text: str, variables: tuple[str, ...]) -> Model:
    """A text that was read before costs nothing to read again; models do not change."""
    return Model(text, x=variables)


def _variables(xdata: Any, n_rows: int, symbols: set[str] | None) -> tuple[str, ...]:
    """Names of the independent variables; `symbols` are the names in the model, if it has any."""
    if isinstance(xdata, Mapping) or hasattr(xdata, "columns"):
        names = table_names(xdata)
        if not names:
            raise DataError("xdata has no columns; give one per independent variable")
        return tuple(name for name in names if symbols is None or name in symbols) or names
    if symbols is not None and "x" in symbols:
        return ("x",)
    try:
        shape = np.shape(xdata)
    except ValueError:  # ragged: the source says so, with the field's name
        shape = (len(xdata), n_rows)
    if len(shape) < 2:
        return ("x",)
    count = shape[0] if shape[1] == n_rows else shape[1]
    return ("x",) if count == 1 else tuple(f"x{k}" for k in range(count))


def _symbols(model: Any) -> set[str]:
    """Names that occur in text or in SymPy expressions."""
    found: set[str] = set()
    for part in model if isinstance(model, (list, tuple)) else (model,):
        if isinstance(part, str):
            found |= set(re.findall(r"[^\W\d]\w*", part))
        else:
            found |= {symbol.name for symbol in getattr(part, "free_symbols", ())}
    return found


def _takes_any_number(f: Any) -> bool:
    try:
        arguments = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        return True
    return any(a.kind is a.VAR_POSITIONAL for a in arguments)
