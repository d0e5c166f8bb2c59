"""`Model`: an expression, its names, and everything derived from it on demand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from nlsq_nb.codegen.ir import AnyProgram, OpaqueProgram, PointProgram, Program
from nlsq_nb.codegen.lower import build_program
from nlsq_nb.errors import ModelError
from nlsq_nb.models.base import ModelBase
from nlsq_nb.models.describe import algebra, explanation
from nlsq_nb.models.names import argument_names, checked_names, function_name
from nlsq_nb.models.opaque import JacobianRule, opaque_program
from nlsq_nb.models.parser import parse
from nlsq_nb.models.storage import Definition, from_data, to_data
from nlsq_nb.models.structure import linear_parameters
from nlsq_nb.models.tracing import trace

if TYPE_CHECKING:
    import sympy

__all__ = ["Model"]


class Model(ModelBase):
    """A model function written once, as algebra.

    Parameters
    ----------
    expr : str, sympy.Expr, or a list of them
        The model; several expressions are several outputs, with y of shape (m, n).
    x : str or tuple of str
        Names of the independent variables.
    params : tuple of str, optional
        Parameter names in the order of p0 and popt. By default every other name: in order of first
        appearance for text, sorted by name for SymPy expressions (which do not keep the order they
        were written in).
    name : str, optional
        What reports call the model.

    Raises
    ------
    ModelError
        When the expression cannot be read; the message has the column of the fault.

    Examples
    --------
    >>> from nlsq_nb import Model
    >>> decay = Model("a*exp(-b*x) + c")
    >>> decay.params
    ('a', 'b', 'c')
    >>> decay.linear_params
    ('a', 'c')
    """

    _rebuild: _Rebuild

    def __init__(
        self,
        expr: str | sympy.Expr | Sequence[str | sympy.Expr],
        *,
        x: str | Sequence[str] = "x",
        params: Sequence[str] | None = None,
        name: str | None = None,
    ) -> None:
        variables = checked_names(x, "x")
        given = None if params is None else checked_names(params, "params")
        if given is not None and set(given) & set(variables):
            raise ModelError(f"{sorted(set(given) & set(variables))} is variable and parameter")
        parts = tuple(expr) if isinstance(expr, (list, tuple)) else (expr,)
        if not parts:
            raise ModelError("a model needs at least one expression")
        notes: tuple[str, ...] = ()
        if all(isinstance(part, str) for part in parts):
            parsed = parse(tuple(str(part) for part in parts), variables, given)
            graph, roots, found = parsed.graph, parsed.roots, parsed.params
            notes = parsed.notes
        else:
            from nlsq_nb.models.sympy_bridge import from_sympy

            graph, roots, found = from_sympy(parts, variables, given)
        if not found:
            raise ModelError("the model has no parameters to fit")
        names = checked_names(found, "params")
        self._set(Definition(graph, roots, variables, names, name, notes))

    def _set(self, definition: Definition) -> None:
        self._definition: Definition | None = definition
        self._functions: OpaqueProgram | PointProgram | None = None
        self._name(definition.x, definition.params, definition.name)
        varies = any(definition.graph.varies(root) for root in definition.roots)
        if not varies and len(self.params) > 1:
            raise ModelError(
                f"the independent variable {', '.join(self.x)} does not occur in the model, whose "
                f"parameters are {', '.join(self.params)}; name the variable: "
                'Model(..., x="t"), or give xdata as a mapping of columns'
            )

    @classmethod
    def _assemble(cls, definition: Definition) -> Model:
        model = Model.__new__(Model)
        model._set(definition)  # noqa: SLF001 - a second constructor
        return model

    @classmethod
    def _wrap(cls, program: OpaqueProgram | PointProgram, rebuild: _Rebuild) -> Model:
        """A model of Python functions; `rebuild` is how it is made again when unpickled."""
        model = Model.__new__(Model)
        vars(model).update(_definition=None, _functions=program, _rebuild=rebuild)
        model._name(rebuild.x, rebuild.params, rebuild.name)  # noqa: SLF001
        return model

    # -- other ways in -----------------------------------------------------------------------
    @classmethod
    def from_function(
        cls,
        f: Callable[..., Any],
        *,
        x: str | Sequence[str] = "x",
        params: Sequence[str] | None = None,
        name: str | None = None,
    ) -> Model:
        """Trace a plain NumPy function `f(x, *params)` into algebra.

        Parameters
        ----------
        f : callable
            Uses operators and NumPy functions only; with several variables, `x[0]`, `x[1]`, … or `x["name"]`.
        x : str or tuple of str
            Names of the independent variables.
        params : tuple of str, optional
            Parameter names; the function's own argument names by default.
        name : str, optional
            What reports call the model; the function's name by default.

        Returns
        -------
        Model
            The traced model.

        Raises
        ------
        TracingError
            Names the operation and line that cannot be traced.
        """
        variables = checked_names(x, "x")
        given = None if params is None else checked_names(params, "params")
        traced = trace(f, len(variables), given, variables)
        label = name or function_name(f)
        names = checked_names(traced.params, "params")
        return cls._assemble(Definition(traced.graph, traced.roots, variables, names, label))

    @classmethod
    def from_callable(
        cls,
        f: Callable[..., Any],
        *,
        jac: JacobianRule = "3-point",
        x: str | Sequence[str] = "x",
        params: Sequence[str] | None = None,
        name: str | None = None,
    ) -> Model:
        """Use a NumPy function as it is, called on blocks of rows, without tracing.

        Parameters
        ----------
        f : callable
            `f(x, *theta)` -> (n,), x of shape (n,) or (k, n); must treat rows independently.
        jac : callable or {"2-point", "3-point", "cs"}
            `jac(x, *theta)` -> (n, p), or a finite-difference rule.
        x : str or tuple of str
            Names of the independent variables.
        params : tuple of str, optional
            Parameter names; the function's own argument names by default.
        name : str, optional
            What reports call the model.

        Returns
        -------
        Model
            A model without an expression; it runs in NumPy on the CPU.

        Raises
        ------
        ModelError
            When the parameter names cannot be found or the rule is unknown.
        """
        variables, names = checked_names(x, "x"), argument_names(f, params, 1)
        program = opaque_program(f, jac, len(variables), len(names))
        label = name or function_name(f)
        return cls._wrap(program, _Rebuild("callable", f, jac, variables, names, label))

    @classmethod
    def from_kernel(
        cls,
        point: Callable[..., float],
        jac_point: Callable[..., tuple[float, ...]],
        *,
        x: str | Sequence[str] = "x",
        params: Sequence[str] | None = None,
        name: str | None = None,
    ) -> Model:
        """Compile hand-written scalar functions into the fused kernels.

        Parameters
        ----------
        point : callable
            `point(x0, …, p0, …)` -> float, in the Python that Numba compiles.
        jac_point : callable
            `jac_point(x0, …, p0, …)` -> tuple of p floats, the derivatives of `point`.
        x : str or tuple of str
            Names of the independent variables.
        params : tuple of str, optional
            Parameter names; the argument names of `point` by default.
        name : str, optional
            What reports call the model.

        Returns
        -------
        Model
            A model without an expression; compiled anew in every process.

        Raises
        ------
        ModelError
            When the parameter names cannot be found.
        """
        variables = checked_names(x, "x")
        names = argument_names(point, params, len(variables))
        program = PointProgram(len(variables), len(names), point, jac_point)
        label = name or function_name(point)
        return cls._wrap(program, _Rebuild("kernel", point, jac_point, variables, names, label))

    # -- attributes --------------------------------------------------------------------------
    @property
    def n_outputs(self) -> int:
        """Number of outputs m."""
        if self._functions is not None:
            return self._functions.n_outputs
        return len(self._defined().roots)

    @cached_property
    def program(self) -> AnyProgram:
        """What backends compile."""
        if self._functions is not None:
            return self._functions
        d = self._defined()
        return build_program(d.graph, d.roots, len(d.x), len(d.params))

    @cached_property
    def linear_params(self) -> tuple[str, ...]:
        """Names of the parameters that enter linearly, jointly."""
        if self._definition is None:
            return ()
        found = linear_parameters(self._definition.graph, self._definition.roots, self.n_params)
        return tuple(self.params[k] for k in found)

    @cached_property
    def expr(self) -> Any:
        """The model as a SymPy expression (a list of them for several outputs)."""
        from nlsq_nb.models.sympy_writer import to_sympy

        d = self._defined()
        found = to_sympy(d.graph, d.roots, d.x, d.params)
        return found[0] if len(found) == 1 else found

    def _defined(self) -> Definition:
        if self._definition is None:
            raise ModelError("this model was given as Python functions and has no expression")
        return self._definition

    # -- looking inside ----------------------------------------------------------------------
    def explain(self) -> str:
        """Derivatives, operation counts and the linear/nonlinear split, as text.

        Returns
        -------
        str
            Several lines.

        Raises
        ------
        ModelError
            When the model was given as Python functions.
        """
        definition = self._defined()
        assert isinstance(self.program, Program)
        return explanation(definition, self.program, self.linear_params)

    @property
    def notes(self) -> tuple[str, ...]:
        """Readings of the text that may not have been meant; results repeat them."""
        return () if self._definition is None else self._definition.notes

    @cached_property
    def text(self) -> str:
        """The model as algebra, or the name of its function."""
        if self.name is not None:
            return self.name
        return "; ".join(algebra(self._defined(), root) for root in self._defined().roots)

    def __repr__(self) -> str:
        """The constructor call, or the name of a model of Python functions."""
        if self._definition is None:
            return f"Model(<{self.name}>, params={self.params})"
        texts = [algebra(self._definition, root) for root in self._definition.roots]
        shown = repr(texts[0]) if len(texts) == 1 else repr(texts)
        return f"Model({shown}, x={self.x}, params={self.params})"

    def __eq__(self, other: object) -> bool:
        """Same expression and names; models of Python functions are equal to themselves only."""
        if not isinstance(other, Model) or self._definition is None or other._definition is None:
            return self is other
        return to_data(self._definition) == to_data(other._definition)

    def __hash__(self) -> int:
        """By names: equal models have equal ones."""
        return hash((self.x, self.params))

    # -- storage -----------------------------------------------------------------------------
    def to_json(self) -> str:
        """The model as JSON data: names and graph nodes, no code.

        Returns
        -------
        str
            One line, read back by `from_json`.

        Raises
        ------
        ModelError
            When the model was given as Python functions.
        """
        return json.dumps(to_data(self._defined()))

    @classmethod
    def from_json(cls, text: str) -> Model:
        """Read `to_json`'s text; every node is rebuilt through the checked constructors.

        Parameters
        ----------
        text : str
            What `to_json` returned.

        Returns
        -------
        Model
            An equal model.

        Raises
        ------
        ModelError
            When the text does not describe a model.
        """
        try:
            data = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise ModelError(f"the model's JSON cannot be read: {error}") from None
        return cls._assemble(from_data(data))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as data; a model of Python functions by reference to them."""
        if self._definition is not None:
            return Model.from_json, (self.to_json(),)
        return _rebuilt, (self._rebuild,)


class _Rebuild(NamedTuple):
    """The call that makes a model of Python functions again."""

    kind: str
    f: Any
    jac: Any
    x: tuple[str, ...]
    params: tuple[str, ...]
    name: str


def _rebuilt(call: _Rebuild) -> Model:
    """A pickled model of Python functions."""
    names: dict[str, Any] = {"x": call.x, "params": call.params, "name": call.name}
    if call.kind == "kernel":
        return Model.from_kernel(call.f, call.jac, **names)
    return Model.from_callable(call.f, jac=call.jac, **names)
