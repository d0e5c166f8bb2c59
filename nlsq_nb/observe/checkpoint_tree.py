"""Frozen states as trees of plain values, and trees as bytes: exact to the bit, without pickle.

None, bool, int, str, lists and NumPy arrays stand for themselves; everything else is a dict of one
entry that names its kind: "float" (the eight bytes in hex), "scalar" (of NumPy), "tuple", "dict",
"enum" and "class". A document is JSON text, in which an array has left its dtype, shape and order,
followed by the bytes of the arrays one after the other.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.errors import CheckpointError

__all__ = ["Tree", "from_tree", "pack", "to_tree", "unpack"]

Tree = Any
"""What `to_tree` returns."""

_DTYPES = frozenset(
    np.dtype(order + kind).str
    for kind in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
    for order in "<>"
)
_DEPTH = 64  # of nesting; a state has about six levels
_TEXT = 16 << 20  # bytes of JSON: what Python makes of it takes many times its size
_LENGTH = struct.Struct("<Q")
_MALFORMED = (ArithmeticError, LookupError, RecursionError, TypeError, ValueError, struct.error)


def to_tree(value: Any, classes: Collection[type] = ()) -> Tree:
    """Take a value apart.

    Parameters
    ----------
    value : object
        Made of None, bool, int, float, str, arrays and scalars of NumPy (numbers and bools), lists,
        tuples, dicts with str keys, and instances of `classes`.
    classes : collection of type
        Enums, dataclasses, and classes whose instances are all in their `__dict__`; no two of the
        same name. A subclass does not stand for its base.

    Returns
    -------
    Tree
        Shares its arrays with the value.

    Raises
    ------
    CheckpointError
        For a value of another type, naming the field.
    """
    return _take_apart(value, classes, "state", 0)


def _take_apart(value: Any, classes: Collection[type], where: str, depth: int) -> Tree:
    """The node of one value."""
    kind = type(value)
    if depth > _DEPTH:
        raise CheckpointError(f"{where}: nested more than {_DEPTH} deep, so it cannot be kept")

    def inner(part: Any, name: object) -> Tree:
        return _take_apart(part, classes, f"{where}.{name}", depth + 1)

    if kind in (list, tuple):
        items = [inner(part, k) for k, part in enumerate(value)]
        return items if kind is list else {"tuple": items}
    if kind is dict and all(type(name) is str for name in value):
        return {"dict": [[name, inner(part, name)] for name, part in value.items()]}
    if kind in classes and not isinstance(value, Enum):
        parts = [[name, inner(part, name)] for name, part in _fields(value).items()]
        return {"class": [kind.__name__, parts]}
    return _leaf(value, classes, where)


def _leaf(value: Any, classes: Collection[type], where: str) -> Tree:
    """The node of a value that holds no others."""
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return {"float": struct.pack(">d", value).hex()}
    if isinstance(value, np.generic) and value.dtype.str in _DTYPES:
        return {"scalar": np.asarray(value)}
    if kind is np.ndarray and value.dtype.str in _DTYPES:
        return value
    if isinstance(value, Enum) and kind in classes:
        return {"enum": [kind.__name__, value.name]}
    raise CheckpointError(f"{where}: a {kind.__name__} cannot be kept in a checkpoint")


def _fields(value: Any) -> dict[str, Any]:
    """What makes up an instance; of a dataclass its fields only, as the rest follows from them."""
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return dict(vars(value))


def from_tree(tree: Tree, classes: Collection[type] = ()) -> Any:
    """Put a value together again.

    Parameters
    ----------
    tree : Tree
        From `to_tree`; it may come from a file that cannot be trusted.
    classes : collection of type
        Those that may be made; no code of theirs is run.

    Returns
    -------
    object
        Equal to what was taken apart, bit for bit; every float is the same NaN or zero it was.

    Raises
    ------
    CheckpointError
        For another class, fields that the class does not have or that are missing, and nonsense.
    """
    try:
        return _put_together(tree, {cls.__name__: cls for cls in classes}, 0)
    except _MALFORMED as error:
        raise CheckpointError(f"the saved state is malformed: {error!r}") from error


def _put_together(node: Tree, classes: Mapping[str, type], depth: int) -> Any:
    """The value of one node."""
    if depth > _DEPTH:
        raise ValueError("nested too deep")
    if node is None or isinstance(node, (bool, int, str, np.ndarray)):
        return node

    def inner(part: Tree) -> Any:
        return _put_together(part, classes, depth + 1)

    if isinstance(node, list):
        return [inner(part) for part in node]
    ((kind, content),) = node.items()
    if kind == "tuple":
        return tuple([inner(part) for part in content])
    if kind == "dict":
        return {_name(name): inner(part) for name, part in content}
    if kind == "class":
        fields = {_name(name): inner(part) for name, part in content[1]}
        return _instance(classes, content[0], fields)
    return _ATOMS[kind](content, classes)


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a name {name!r}")
    return name


def _float(content: str, _: Mapping[str, type]) -> float:
    (value,) = struct.unpack(">d", bytes.fromhex(content))
    return float(value)


def _scalar(content: NDArray[Any], _: Mapping[str, type]) -> Any:
    return content[()]


def _member(content: list[str], classes: Mapping[str, type]) -> Enum:
    cls = _allowed(classes, content[0])
    if not issubclass(cls, Enum):
        raise TypeError(f"{content[0]} is not an enumeration")
    return cls[content[1]]


_ATOMS: dict[str, Callable[[Any, Mapping[str, type]], Any]] = {
    "float": _float,
    "scalar": _scalar,
    "enum": _member,
}


def _allowed(classes: Mapping[str, type], name: str) -> type:
    if name not in classes:
        raise CheckpointError(f"the saved state holds a {name!r}, which has no place in it")
    return classes[name]


def _instance(classes: Mapping[str, type], name: str, fields: dict[str, Any]) -> Any:
    """An instance with these fields, made without its constructor."""
    cls = _allowed(classes, name)
    if issubclass(cls, Enum):
        raise TypeError(f"{name} is an enumeration")
    if dataclasses.is_dataclass(cls):
        odd = fields.keys() ^ {f.name for f in dataclasses.fields(cls)}
    else:  # nothing may hide a method
        odd = {key for key in fields if not key.isidentifier() or hasattr(cls, key)}
    if odd:
        raise CheckpointError(
            f"the saved {name} was written by another release: it differs in {', '.join(sorted(odd))}"
        )
    made = object.__new__(cls)
    for key, value in fields.items():
        object.__setattr__(made, key, value)  # also where it is frozen
    return made


def pack(tree: Tree) -> bytes:
    """Write a tree as bytes.

    Parameters
    ----------
    tree : Tree
        From `to_tree`.

    Returns
    -------
    bytes
        The same for the same tree.

    Raises
    ------
    CheckpointError
        When it is too large, arrays not counted.
    """
    parts: list[bytes] = []

    def set_aside(array: NDArray[Any]) -> dict[str, Any]:
        # BLAS may round differently for the other memory order
        order: Literal["F", "C"] = "F" if array.flags.fnc else "C"
        parts.append(array.tobytes(order))
        return {"array": [array.dtype.str, list(array.shape), order]}

    text = json.dumps(tree, default=set_aside, separators=(",", ":")).encode("ascii")
    if len(text) > _TEXT:
        raise CheckpointError(f"a state of {len(text)} bytes beside its arrays is too large to keep")
    return b"".join([_LENGTH.pack(len(text)), text, *parts])


def unpack(document: bytes) -> Tree:
    """Read what `pack` wrote.

    Parameters
    ----------
    document : bytes
        It need not be trusted: nothing larger than a small multiple of it is made.

    Returns
    -------
    Tree
        With arrays of its own.

    Raises
    ------
    CheckpointError
        When it is not such a document.
    """
    try:
        return _parse(document)
    except _MALFORMED as error:
        raise CheckpointError(f"its content is malformed: {error!r}") from error


def _parse(document: bytes) -> Tree:
    (length,) = _LENGTH.unpack_from(document)
    if length > min(_TEXT, len(document)):
        raise ValueError(f"{length} bytes of text")
    position = _LENGTH.size + length

    def fetch(node: dict[str, Any]) -> Any:
        """The array of a node that stands for one; arrays follow in the order of their nodes."""
        nonlocal position
        if "array" not in node:
            return node
        name, shape, order = node["array"]
        sound = name in _DTYPES and order in ("C", "F")
        if not sound or not all(type(n) is int and n >= 0 for n in shape):
            raise TypeError(f"an array of {name!r}, shape {shape}, order {order!r}")
        dtype = np.dtype(name)
        array = np.ndarray(shape, dtype, document, position, order=order).copy(order="K")
        if dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
            raise ValueError("a bool that is neither true nor false")
        position += math.prod(shape) * dtype.itemsize
        return array

    text = document[_LENGTH.size : position].decode("ascii")
    tree = json.loads(text, object_hook=fetch, parse_float=_refuse, parse_constant=_refuse)
    if position != len(document):
        raise ValueError(f"{len(document)} bytes, but the arrays end at {position}")
    return tree


def _refuse(number: str) -> None:
    raise ValueError(f"a decimal number {number}")
