"""What `curve_fit` accepts as a model, as a `Model`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from nlsq_nb.core.columns import table_names
from nlsq_nb.errors import DataError, ModelError
from nlsq_nb.models.opaque import JacobianRule
from nlsq_nb.models.symbolic import Model

__all__ = ["as_model"]


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
    return Model.from_function(model, x=_variables(xdata, n_rows, None), params=given)


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
