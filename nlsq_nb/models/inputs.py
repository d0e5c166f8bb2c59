"""What `curve_fit` accepts as a model, as a `Model`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nlsq_nb.errors import ModelError
from nlsq_nb.models.opaque import JacobianRule
from nlsq_nb.models.symbolic import Model

__all__ = ["as_model"]


def as_model(
    model: Any, xdata: Any, n_start: int | None = None, jac: JacobianRule | None = None
) -> Model:
    """Read a model, with variables named as the data suggest.

    Parameters
    ----------
    model : Model, str, sympy.Expr, list of expressions, or callable
        A callable is traced, or called as it is when `jac` is given.
    xdata : array_like or mapping
        One variable is called x, several x0, x1, …; columns of a mapping keep their names.
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
        return Model(model, x=_variables(xdata, model))
    names = None if n_start is None else tuple(f"p{k}" for k in range(n_start))
    given = names if _takes_any_number(model) else None
    if jac is not None:
        return Model.from_callable(model, jac=jac, x=_variables(xdata, None), params=given)
    return Model.from_function(model, x=_variables(xdata, None), params=given)


def _variables(xdata: Any, model: Any) -> tuple[str, ...]:
    if isinstance(xdata, Mapping) or hasattr(xdata, "columns"):
        names = tuple(str(key) for key in xdata)
        if model is None:
            return names
        symbols = getattr(model, "free_symbols", None)
        found = {s.name for s in symbols} if symbols is not None else _words(model)
        return tuple(name for name in names if name in found) or names
    shape = np.shape(xdata) if not isinstance(xdata, (list, tuple)) else (len(xdata),)
    if isinstance(xdata, (list, tuple)) and len(xdata) and np.ndim(xdata[0]) == 1:
        shape = (len(xdata), len(xdata[0]))
    count = shape[0] if len(shape) == 2 else 1
    return ("x",) if count == 1 else tuple(f"x{k}" for k in range(count))


def _words(model: Any) -> set[str]:
    import re

    texts: Sequence[Any] = [model] if isinstance(model, str) else model
    return {word for text in texts for word in re.findall(r"[^\W\d]\w*", str(text))}


def _takes_any_number(f: Any) -> bool:
    import inspect

    try:
        arguments = list(inspect.signature(f).parameters.values())[1:]
    except (TypeError, ValueError):
        return True
    return any(a.kind is a.VAR_POSITIONAL for a in arguments)
