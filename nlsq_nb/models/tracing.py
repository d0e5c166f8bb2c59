"""A plain NumPy-style `f(x, *params)` → expression graph, by calling it with stand-ins.

The function runs as it is, but on the stand-ins of `stand_ins.py`, which write down what is done to
them. What cannot be written down is refused with the line of the user's code.
"""

from __future__ import annotations

import inspect
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nlsq_nb.codegen.graph import Graph
from nlsq_nb.errors import TracingError
from nlsq_nb.models.stand_ins import Value, Variables, node_of, number_of

if TYPE_CHECKING:
    from collections.abc import Callable

    Arrange = Callable[[list[Any]], list[Any]]

__all__ = ["Traced", "trace"]

_NOT_THE_USERS = (
    "numpy.",
    "scipy.",
    "nlsq_nb.codegen.",
    "nlsq_nb.models.numpy_functions.",
    "nlsq_nb.models.stand_ins.",
    "nlsq_nb.models.tracing.",
)
_WAY_OUT = "or use the function untraced: Model.from_callable(f, jac=...)"


@dataclass(frozen=True, slots=True)
class Traced:
    """The outcome of tracing a function.

    Attributes
    ----------
    graph : Graph
        Holds all outputs.
    roots : tuple of int, length m
        Output nodes.
    n_vars : int
        Number of independent variables.
    params : tuple of str
        Parameter names.
    """

    graph: Graph
    roots: tuple[int, ...]
    n_vars: int
    params: tuple[str, ...]


def trace(
    f: Callable[..., Any],
    n_vars: int | None,
    params: tuple[str, ...] | None,
    variables: tuple[str, ...] = (),
) -> Traced:
    """Turn a NumPy-style function into an expression graph.

    Parameters
    ----------
    f : callable
        `f(x, *params)`; called twice with symbolic stand-ins. With several variables, x offers
        `x[0]`, `x[:, 0]`, `x[..., 0]`, `x["name"]` and unpacking.
    n_vars : int or None
        Number of independent variables; None means one.
    params : tuple of str or None
        Parameter names; None takes the names of all positional arguments after x, those with
        a default included. Names of arguments are matched by name and those left out keep their
        default; other names rename the arguments by position.
    variables : tuple of str
        Names of the independent variables, where they have some.

    Returns
    -------
    Traced
        Graph, output nodes and parameter names.

    Raises
    ------
    TracingError
        With the operation that cannot be traced and its line.
    """
    if isinstance(f, np.ufunc) and f.nin == 1:
        raise TracingError(f"np.{f.__name__} has no parameters to fit; write lambda x, a: a*np.{f.__name__}(x)")
    if not callable(f):
        raise TracingError(f"{type(f).__name__} is not a function f(x, *params)")
    count = 1 if n_vars is None else n_vars
    names, arrange = _arguments(f, params)
    graph, roots = _run(f, count, variables, len(names), arrange)
    again = _run(f, count, variables, len(names), arrange)
    if (again[0].nodes, again[1]) != (graph.nodes, roots):
        raise TracingError(
            f"{_origin(f)}: two calls gave different formulas (a random number, a clock or a "
            f"counter?), of which one would be frozen into the model; remove that, {_WAY_OUT}"
        )
    return Traced(graph, roots, count, names)


# -- calling the function ------------------------------------------------------------------------
def _arguments(
    f: Callable[..., Any], given: tuple[str, ...] | None
) -> tuple[tuple[str, ...], Arrange]:
    """Parameter names, and how to arrange their values into the arguments after x."""
    try:
        found = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        if given is None:
            raise TracingError(f"{_origin(f)}: no signature; give params=(...)") from None
        return given, list
    positional = [p for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    starred = any(p.kind is p.VAR_POSITIONAL for p in found)
    for p in found:
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty:
            raise TracingError(
                f"{_origin(f)}: the keyword-only argument {p.name!r} has no default; "
                "give it one or make it positional"
            )
    if not positional and not starred:
        raise TracingError(f"{_origin(f)}: takes no positional argument; write f(x, *params)")
    own = positional[1:]
    if given is not None:
        return _matched(f, own, given, starred=starred)
    if starred:
        raise TracingError(
            f"{_origin(f)}: the signature has *args, so the parameters have no names; "
            'give them: params=("a", "b", ...)'
        )
    if not own:
        raise TracingError(f"{_origin(f)}: takes no parameter after x; there is nothing to fit")
    return tuple(p.name for p in own), list


def _matched(
    f: Callable[..., Any],
    own: list[inspect.Parameter],
    given: tuple[str, ...],
    *,
    starred: bool,
) -> tuple[tuple[str, ...], Arrange]:
    """Match the given parameter names with the arguments after x."""
    names = [p.name for p in own]
    needed = [p.name for p in own if p.default is p.empty]
    if len(set(given)) != len(given):
        raise TracingError(f"params names a parameter twice: {', '.join(given)}")
    if not starred and set(needed) <= set(given) <= set(names):
        index = {name: k for k, name in enumerate(given)}
        return given, lambda values: [
            values[index[p.name]] if p.name in index else p.default for p in own
        ]
    if len(given) < len(needed) or (len(given) > len(own) and not starred):
        raise TracingError(
            f"{_origin(f)}: params names {len(given)} parameters ({', '.join(given)}) but the "
            f"function takes {len(own)} after x ({', '.join(names)})"
        )
    moved = [name for k, name in enumerate(given) if name in names and names.index(name) != k]
    if moved:
        raise TracingError(
            f"{_origin(f)}: params puts {moved[0]!r} in another place than the function does "
            f"(x, {', '.join(names)}); use all of its names or none in another order"
        )
    return given, list


def _run(
    f: Callable[..., Any], n_vars: int, variables: tuple[str, ...], n_params: int, arrange: Arrange
) -> tuple[Graph, tuple[int, ...]]:
    graph = Graph()
    columns = [Value(graph, graph.variable(k)) for k in range(n_vars)]
    values = [Value(graph, graph.param(k)) for k in range(n_params)]
    x = columns[0] if n_vars == 1 else Variables(tuple(columns), variables)
    place = _origin(f)
    try:
        result = f(x, *arrange(values))
        place += ", what it returns"
        return graph, _roots(graph, result)
    except Exception as error:
        text = str(error)
        if not isinstance(error, TracingError):
            text = f"{type(error).__name__}: {text}"
        raise TracingError(f"{_innermost(error) or place}: {text}; {_WAY_OUT}") from error


def _roots(graph: Graph, result: Any) -> tuple[int, ...]:
    parts = result if isinstance(result, (list, tuple)) else (result,)
    if not parts:
        raise TracingError("an empty list; return at least one output")
    for part in parts:
        if part is None:
            raise TracingError("None; does the function end with a return statement")
        if isinstance(part, (np.ndarray, list, tuple)):
            raise TracingError(
                f"{type(part).__name__} instead of a formula; compute each output from x and the "
                "parameters, return several outputs as one flat list"
            )
    return tuple(number_of(graph, node_of(graph, part)) for part in parts)


def _innermost(error: BaseException) -> str | None:
    """The innermost place in an error's traceback that is the user's code."""
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = f"{frame.f_globals.get('__name__')}."
        if not module.startswith(_NOT_THE_USERS):
            place = f"line {line} of {frame.f_code.co_filename}, in {frame.f_code.co_name}"
    return place


def _origin(f: Callable[..., Any]) -> str:
    name = getattr(f, "__name__", type(f).__name__)
    code = getattr(inspect.unwrap(f), "__code__", None)
    return name if code is None else f"line {code.co_firstlineno} of {code.co_filename}, in {name}"
