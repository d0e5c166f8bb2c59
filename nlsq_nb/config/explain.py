"""A configuration in words: the groups, with what differs from the defaults marked."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from nlsq_nb.config.groups import OWNERS
from nlsq_nb.config.rules import Unasked

__all__ = ["describe", "same"]

_NAME, _VALUE = 38, 24  # widths of columns


def same(one: Any, other: Any) -> bool:
    """Whether two values of an option mean the same.

    Parameters
    ----------
    one, other : object
        Arrays, lists and tuples are compared by their entries.

    Returns
    -------
    bool
        A default that takes effect only when asked for differs from the same number asked for.
    """
    if isinstance(one, Unasked) is not isinstance(other, Unasked):
        return False
    return bool(_plain(one) == _plain(other))


def _plain(value: Any) -> Any:
    """Arrays, lists and tuples as tuples of plain values."""
    if hasattr(value, "__array__"):
        value = np.asarray(value).tolist()
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def describe(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The options by group.

    Parameters
    ----------
    values, defaults : mapping
        Option -> value, for all options.

    Returns
    -------
    str
        A line per option; those that differ from the default begin with an asterisk and end with
        the default.
    """
    changed = {name for name in values if not same(values[name], defaults[name])}
    lines = [f"{len(changed)} of {len(values)} options differ from the defaults{', marked *' * bool(changed)}"]
    heading = ""
    for name, (group, _) in OWNERS.items():
        if group != heading:
            heading = group
            lines.append(f"{heading}:")
        mark, note = ("*", f"default {_shown(defaults[name])}") if name in changed else (" ", "")
        lines.append(f"  {mark} {name:<{_NAME}} {_shown(values[name]):<{_VALUE}} {note}".rstrip())
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, Unasked):
        return f"{value!r} when asked for"
    return " ".join(reprlib.repr(value).split())
