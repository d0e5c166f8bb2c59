"""Stand-ins for x and the parameters while a NumPy-style function is traced.

They answer Python's operators, NumPy's ufuncs (`__array_ufunc__`) and some other NumPy functions
(`__array_function__`) by adding nodes to a graph. What would tie the model to one data set or to one
value of a parameter (`if`, `math.exp`, an index, an array of constants) raises `TracingError`.
"""

from __future__ import annotations

import math
import numbers
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from nlsq_nb.errors import TracingError
from nlsq_nb.models.numpy_functions import LOGICAL, NUMERIC, is_known

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nlsq_nb.codegen.graph import Graph

__all__ = ["Value", "Variables", "node_of", "number_of"]

_NO_ARRAYS = (
    "an array cannot hold values that differ from point to point; add terms with the built-in sum, "
    "return several outputs as a list"
)
_NO_TRUTH = (
    "a traced value is neither true nor false, so if, while, and, or, not, min, max and chained "
    "comparisons cannot use it; write np.where(condition, yes, no), np.minimum, np.maximum, &, |, ~"
)
_NO_FLOAT = (
    "float(), int(), range() or a function of the math module needs a number but got a traced "
    "value; write np.exp instead of math.exp, and so on"
)
_NO_ITEMS = (
    "a traced value stands for one point and has no length or items; where x holds several "
    'variables, name them: x=("u", "v"); to treat some points differently, use np.where'
)
_NO_VECTOR = "x holds {} variables; take them out first, as in x[0], x[:, 0] or u, v = x"


# -- operands -----------------------------------------------------------------------------------
def node_of(graph: Graph, operand: Any) -> int:
    """Find or make the node of anything that may stand in a formula.

    Parameters
    ----------
    graph : Graph
        Where the node is.
    operand : Value, bool, real number or numpy.ndarray of size 1
        What the user's function handed over.

    Returns
    -------
    int
        The node, of a number or a condition.

    Raises
    ------
    TracingError
        When it is something else.
    """
    if isinstance(operand, Value):
        if operand.graph is not graph:
            raise TracingError("a value was kept from an earlier call of the function")
        return operand.node
    if isinstance(operand, (bool, np.bool_)):
        return graph.compare("ne", graph.const(float(operand)), graph.const(0.0))
    if isinstance(operand, numbers.Real):
        return graph.const(float(operand))
    if isinstance(operand, np.ndarray):
        if operand.size == 1:
            return node_of(graph, operand.reshape(-1)[0])
        raise TracingError(
            f"an array of shape {operand.shape} in the formula would tie the model to one data "
            "set; pass it as a further independent variable"
        )
    if isinstance(operand, Variables):
        raise TracingError(_NO_VECTOR.format(len(operand)))
    if isinstance(operand, numbers.Complex):
        raise TracingError("complex numbers are not supported; write the real part out")
    raise TracingError(f"{type(operand).__name__} cannot be an operand of a formula")


def number_of(graph: Graph, node: int) -> int:
    """Turn a condition into 1 where it holds and 0 elsewhere; a number stays as it is.

    Parameters
    ----------
    graph : Graph
        Where the node is.
    node : int
        A number or a condition.

    Returns
    -------
    int
        The node of a number.
    """
    if graph.is_condition(node):
        return graph.where(node, graph.const(1.0), graph.const(0.0))
    return node


def _truth(graph: Graph, node: int) -> int:
    return node if graph.is_condition(node) else graph.compare("ne", node, graph.const(0.0))


def _apply(graph: Graph, name: str, *operands: Any) -> Value:
    """Apply a function of `NUMERIC` or `LOGICAL`."""
    nodes = [node_of(graph, operand) for operand in operands]
    if name in NUMERIC:
        return Value(graph, NUMERIC[name](graph, *(number_of(graph, n) for n in nodes)))
    if not name.startswith("logical") and not all(map(graph.is_condition, nodes)):
        raise TracingError(f"{name} (one of & | ^ ~) joins conditions such as x > 3, not numbers")
    return Value(graph, LOGICAL[name](graph, *(_truth(graph, n) for n in nodes)))


# -- the stand-ins -------------------------------------------------------------------------------
def _refuse(text: str) -> Callable[..., NoReturn]:
    def method(*_: Any) -> NoReturn:
        raise TracingError(text)

    return method


def _unary(name: str) -> Callable[[Any], Value]:
    return lambda self: _apply(self.graph, name, self)


def _binary(name: str) -> tuple[Callable[[Any, Any], Value], Callable[[Any, Any], Value]]:
    """Return an operator and its reflection."""
    return (
        lambda self, other: _apply(self.graph, name, self, other),
        lambda self, other: _apply(self.graph, name, other, self),
    )


class Value:
    """Stands for one number (or condition) at one point.

    Parameters
    ----------
    graph : Graph
        Where operations on the value are written down.
    node : int
        Its node.
    """

    __slots__ = ("graph", "node")

    def __init__(self, graph: Graph, node: int) -> None:
        self.graph = graph
        self.node = node

    def __repr__(self) -> str:
        return "<traced value>"

    __hash__ = object.__hash__
    __add__, __radd__ = _binary("add")
    __sub__, __rsub__ = _binary("subtract")
    __mul__, __rmul__ = _binary("multiply")
    __truediv__, __rtruediv__ = _binary("divide")
    __pow__, __rpow__ = _binary("power")
    __mod__, __rmod__ = _binary("remainder")
    __and__, __rand__ = _binary("bitwise_and")
    __or__, __ror__ = _binary("bitwise_or")
    __xor__, __rxor__ = _binary("bitwise_xor")
    __lt__, __gt__ = _binary("less")[0], _binary("greater")[0]
    __le__, __ge__ = _binary("less_equal")[0], _binary("greater_equal")[0]
    __neg__, __pos__ = _unary("negative"), _unary("positive")
    __abs__, __invert__ = _unary("absolute"), _unary("invert")
    __bool__ = _refuse(_NO_TRUTH)
    __float__ = __int__ = __index__ = __complex__ = _refuse(_NO_FLOAT)
    __len__ = __iter__ = __contains__ = __getitem__ = __setitem__ = _refuse(_NO_ITEMS)
    __floordiv__ = __rfloordiv__ = _refuse("// is not traced; write np.floor(a / b)")
    __matmul__ = __rmatmul__ = _refuse("@ is not traced; write the products out")

    def __eq__(self, other: object) -> Any:
        return _apply(self.graph, "equal", self, other)

    def __ne__(self, other: object) -> Any:
        return _apply(self.graph, "not_equal", self, other)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f".{name} of a traced value: a model may use only the numbers of one point, "
            "not the array they come in"
        )

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        # A parameter is one number in a real call too, so an array of parameters means the same.
        if self.graph.varies(self.node):
            raise TracingError(_NO_ARRAYS)
        holder = np.empty((), dtype=object)
        holder[()] = self
        return holder

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Value:
        name = str(ufunc.__name__)
        if method != "__call__" or not is_known(ufunc, name):
            suffix = "" if method == "__call__" else f".{method}"
            raise TracingError(f"the NumPy function {name}{suffix} is not traced")
        if options:
            raise TracingError(f"the option {', '.join(options)} of {name} is not traced")
        return _apply(self.graph, name, *inputs)

    def __array_function__(self, func: Any, types: Any, args: Any, options: Any) -> Value:
        if func in (np.stack, np.vstack, np.hstack, np.column_stack, np.concatenate):
            raise TracingError(f"np.{func.__name__}: {_NO_ARRAYS}")
        if func not in _ARRAY_FUNCTIONS:
            raise TracingError(f"the function {func.__module__}.{func.__name__} is not traced")
        return _ARRAY_FUNCTIONS[func](self.graph, *args, **options)


class Variables:
    """Stands for x where there are several independent variables.

    Parameters
    ----------
    columns : tuple of Value
        One per variable.
    names : tuple of str
        What they are called.
    """

    __slots__ = ("columns", "names")
    __hash__ = object.__hash__

    def __init__(self, columns: tuple[Value, ...], names: tuple[str, ...]) -> None:
        self.columns = columns
        self.names = names

    def __len__(self) -> int:
        return len(self.columns)

    def __iter__(self) -> Iterator[Value]:
        return iter(self.columns)

    def __getitem__(self, key: Any) -> Value:
        if isinstance(key, str):  # of a table
            if key in self.names:
                return self.columns[self.names.index(key)]
            raise TracingError(f"x[{key!r}] but the variables are {', '.join(self.names)}")
        parts = key if isinstance(key, tuple) else (key,)
        whole = (slice(None), Ellipsis)
        chosen = [k for k in parts if not (isinstance(k, (slice, type(...))) and k in whole)]
        if len(chosen) == 1 and isinstance(chosen[0], (int, np.integer)) and len(parts) <= 2:
            if -len(self.columns) <= chosen[0] < len(self.columns):
                return self.columns[chosen[0]]
            raise TracingError(f"x[{chosen[0]}] but x holds {len(self.columns)} variables")
        raise TracingError("of x only x[0], x[:, 0], x[..., 0], x['name'] and unpacking are traced")

    @property
    def T(self) -> Variables:  # noqa: N802 - NumPy's name
        """Return x itself: both orientations of the data trace alike."""
        return self

    def _as_operand(self, *_: Any, **__: Any) -> NoReturn:
        raise TracingError(_NO_VECTOR.format(len(self.columns)))

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = _as_operand
    __rtruediv__ = __pow__ = __rpow__ = __mod__ = __rmod__ = __floordiv__ = __matmul__ = _as_operand
    __neg__ = __pos__ = __abs__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = _as_operand
    __eq__ = __ne__ = __float__ = _as_operand
    __array__ = __array_ufunc__ = __array_function__ = _as_operand


# -- NumPy functions that are not ufuncs ---------------------------------------------------------
def _where(graph: Graph, condition: Any, *choices: Any) -> Value:
    if len(choices) != 2:
        raise TracingError("np.where needs three arguments: np.where(condition, yes, no)")
    yes, no = (number_of(graph, node_of(graph, choice)) for choice in choices)
    return Value(graph, graph.where(_truth(graph, node_of(graph, condition)), yes, no))


def _select(graph: Graph, conditions: Any, choices: Any, default: Any = 0.0) -> Value:
    if len(conditions) != len(choices):
        raise TracingError("np.select needs as many choices as conditions")
    value: Any = default
    for condition, choice in reversed(list(zip(conditions, choices, strict=True))):
        value = _where(graph, condition, choice, value)
    return Value(graph, number_of(graph, node_of(graph, value)))


def _clip(graph: Graph, a: Any, a_min: Any = None, a_max: Any = None, **named: Any) -> Value:
    lower, upper = named.pop("min", a_min), named.pop("max", a_max)
    if named:
        raise TracingError(f"the option {', '.join(named)} of np.clip is not traced")
    value = _apply(graph, "positive", a)
    if lower is not None:
        value = _apply(graph, "maximum", value, lower)
    return value if upper is None else _apply(graph, "minimum", value, upper)


def _sum(graph: Graph, a: Any, **options: Any) -> Value:
    if not isinstance(a, Value) or options or graph.varies(a.node):
        raise TracingError("np.sum over the points of x; a model may use only one point at a time")
    return a


def _sinc(graph: Graph, x: Any) -> Value:
    scaled = _apply(graph, "multiply", math.pi, x)  # NumPy's sinc is sin(πx)/(πx)
    return Value(graph, graph.call("sinc", scaled.node))


def _polyval(graph: Graph, p: Any, x: Any) -> Value:
    value = _apply(graph, "multiply", 0.0, x)
    for coefficient in p:
        value = _apply(graph, "add", _apply(graph, "multiply", value, x), coefficient)
    return value


def _full_like(graph: Graph, _: Any, fill_value: Any, dtype: Any = None) -> Value:
    if dtype is not None and np.dtype(dtype) != np.float64:
        raise TracingError("only float64 is traced; leave dtype out")
    return _apply(graph, "positive", fill_value)


_ARRAY_FUNCTIONS: dict[Any, Callable[..., Value]] = {
    np.where: _where,
    np.select: _select,
    np.clip: _clip,
    np.sum: _sum,
    np.sinc: _sinc,
    np.polyval: _polyval,
    np.full_like: _full_like,
    np.zeros_like: lambda graph, a, dtype=None: _full_like(graph, a, 0.0, dtype),
    np.ones_like: lambda graph, a, dtype=None: _full_like(graph, a, 1.0, dtype),
}
