"""Names of variables and parameters: which are usable, and where functions keep theirs."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable, Sequence
from typing import Any

from nlsq_nb.errors import ModelError

__all__ = ["argument_names", "checked_names", "function_name"]

_MOST = 20_000


def checked_names(names: str | Sequence[str], field: str) -> tuple[str, ...]:
    """Names as a tuple, each a distinct identifier that is not a keyword.

    Parameters
    ----------
    names : str or sequence of str
        One name or several; SymPy symbols count by their name.
    field : str
        For messages.

    Returns
    -------
    tuple of str
        The names.

    Raises
    ------
    ModelError
        For a name that is not usable, or given twice.
    """
    try:
        listed = (names,) if isinstance(names, str) else tuple(names)
    except TypeError:
        raise ModelError(f"{field}={names!r}: give a name or a tuple of names") from None
    found = tuple(getattr(name, "name", name) for name in listed)
    for name in found:
        if type(name) is not str or not name.isidentifier() or keyword.iskeyword(name):
            raise ModelError(f"{field}: {str(name)[:40]!r} is not a usable name; use an identifier")
    if len(found) > _MOST:
        raise ModelError(f"{field}: {len(found)} names; at most {_MOST} are supported")
    if not found or len(set(found)) != len(found):
        raise ModelError(f"{field}: names must be given and differ, got {found}")
    return found


def argument_names(
    f: Callable[..., Any], params: Sequence[str] | None, skip: int
) -> tuple[str, ...]:
    """The parameter names of a function.

    Parameters
    ----------
    f : callable
        Its arguments after the first `skip` are parameters.
    params : sequence of str, optional
        Names to use instead.
    skip : int
        Number of independent variables among the arguments.

    Returns
    -------
    tuple of str
        The names.

    Raises
    ------
    ModelError
        When the function does not name them.
    """
    if not callable(f):
        raise ModelError(f"{f!r} is not a function f(x, *params)")
    if params is not None:
        return checked_names(params, "params")
    try:
        arguments = list(inspect.signature(f).parameters.values())[skip:]
    except (TypeError, ValueError):
        arguments = []
    if not arguments or any(a.kind in (a.VAR_POSITIONAL, a.KEYWORD_ONLY) for a in arguments):
        raise ModelError("the function does not name its parameters; pass params=(…)")
    return tuple(a.name for a in arguments)


def function_name(f: Callable[..., Any]) -> str:
    """What reports call a function.

    Parameters
    ----------
    f : callable
        The function.

    Returns
    -------
    str
        Its name.
    """
    return getattr(f, "__name__", "function").strip("<>")
