"""Models as plain data: names and graph nodes, no code, read back through checked constructors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nlsq_nb.codegen.graph import Graph
from nlsq_nb.errors import ModelError
from nlsq_nb.models.names import checked_names

__all__ = ["Definition", "from_data", "to_data"]

_FORMAT = 1
_MAX_OUTPUTS = 1_000


@dataclass(frozen=True, slots=True)
class Definition:
    """An expression and its names.

    Attributes
    ----------
    graph : Graph
        Holds the outputs.
    roots : tuple of int, length m
        Output nodes.
    x, params : tuple of str
        Names of the independent variables and of the parameters.
    name : str or None
        What reports call the model.
    notes : tuple of str
        Readings that the user may not have meant; not stored.
    """

    graph: Graph
    roots: tuple[int, ...]
    x: tuple[str, ...]
    params: tuple[str, ...]
    name: str | None
    notes: tuple[str, ...] = ()


def to_data(definition: Definition) -> dict[str, Any]:
    """A definition as JSON-ready data.

    Parameters
    ----------
    definition : Definition
        What to store.

    Returns
    -------
    dict
        Read back by `from_data`.
    """
    keep = max(definition.roots) + 1  # derivatives stand behind the roots and are made anew
    nodes = definition.graph.nodes[:keep]
    return {
        "format": _FORMAT,
        "name": definition.name,
        "x": list(definition.x),
        "params": list(definition.params),
        "nodes": [[node.op, list(node.args), list(node.numbers)] for node in nodes],
        "roots": list(definition.roots),
    }


def from_data(data: Mapping[str, Any]) -> Definition:
    """Read `to_data`'s data; every node is rebuilt and checked.

    Parameters
    ----------
    data : mapping
        What `to_data` returned.

    Returns
    -------
    Definition
        An equal definition.

    Raises
    ------
    ModelError
        When the data do not describe a model.
    """
    try:
        if data["format"] != _FORMAT:
            raise ModelError(f"model format {data['format']!r} is not known here")
        x, params = checked_names(data["x"], "x"), checked_names(data["params"], "params")
        _check_names(x, params, data["name"])
        limits = {"x": len(x), "p": len(params)}
        graph, made = Graph(), list[int]()
        for op, args, numbers in data["nodes"]:
            if not all(0 <= int(arg) < len(made) for arg in args):
                raise ModelError("the stored model refers to a node that does not exist")
            if op in limits and not 0 <= int(numbers[0]) < limits[op]:
                raise ModelError("the stored model refers to a name that does not exist")
            made.append(graph.rebuild(str(op), [made[int(arg)] for arg in args], numbers))
        if not all(0 <= root < len(made) for root in data["roots"]):
            raise ModelError("the stored model refers to a node that does not exist")
        roots = tuple(made[root] for root in data["roots"])
        if not 0 < len(roots) <= _MAX_OUTPUTS or any(map(graph.is_condition, roots)):
            raise ModelError(f"a model has 1 to {_MAX_OUTPUTS} outputs, each a number")
        return Definition(graph, roots, x, params, data["name"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"the stored data do not describe a model: {error!r}") from None


def _check_names(x: tuple[str, ...], params: tuple[str, ...], name: Any) -> None:
    if set(x) & set(params):
        raise ModelError(f"{sorted(set(x) & set(params))} is variable and parameter")
    if name is not None and not (isinstance(name, str) and name.isprintable()):
        raise ModelError("the stored model's name is not printable text")
