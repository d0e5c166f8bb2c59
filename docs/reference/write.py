"""Write `api.md` beside this file from the docstrings: `python docs/reference/write.py`. A test compares the two."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nlsq_nb
from nlsq_nb.models import library

PAGE = Path(__file__).with_name("api.md")
HEAD = """# Public names

Written by `docs/reference/write.py` from the docstrings, whose first lines stand here; `help(nlsq_nb.curve_fit)` has
shapes, dtypes, units and errors raised.
"""


def first_line(thing: Any) -> str:
    """What the docstring begins with, as one paragraph."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split()).replace("|", "\\|")


def signature(thing: Any) -> str:
    """Names of the arguments, with a star where only names are taken."""
    try:
        arguments = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return ""
    shown = []
    for a in arguments:
        if a.name in {"self", "cls"} or a.name.startswith("_"):
            continue
        if a.kind is a.KEYWORD_ONLY and not any(s.startswith("*") for s in shown):
            shown.append("*")
        star = {a.VAR_POSITIONAL: "*", a.VAR_KEYWORD: "**"}.get(a.kind, "")
        shown.append(f"{star}{a.name}")
    return f"({', '.join(shown)})"


def members(kind: type) -> Iterator[tuple[str, str, str]]:
    """Public methods and properties: name, arguments, first line."""
    known = [base for base in kind.__mro__[1:] if getattr(nlsq_nb, base.__name__, None) is base]  # has its own section
    bases = [base for base in kind.__mro__ if base.__module__.startswith("nlsq_nb")]
    names = {name for base in bases if not any(issubclass(k, base) for k in known) for name in vars(base)}
    for name in sorted(names):
        if name.startswith("_"):
            continue
        found = inspect.getattr_static(kind, name)
        plain = getattr(kind, name)
        if callable(plain):
            yield name, signature(plain), first_line(plain)
        elif isinstance(found, property) or hasattr(found, "func"):
            yield name, "", first_line(getattr(found, "fget", None) or found.func)


def section(name: str, thing: Any) -> str:
    """A heading, a sentence, and a table of members for classes that have more than fields."""
    shown = "" if inspect.isclass(thing) and dataclasses.is_dataclass(thing) else signature(thing)
    lines = [f"## `{name}{shown}`", "", first_line(thing)]
    rows = list(members(thing)) if inspect.isclass(thing) and not issubclass(thing, Exception) else []
    if rows:
        lines += ["", "| member | |", "|---|---|", *(f"| `{n}{s}` | {d} |" for n, s, d in rows)]
    return "\n".join(lines)


def page() -> str:
    """The whole text."""
    public = {name: getattr(nlsq_nb, name) for name in nlsq_nb.__all__}
    wrong = {name: kind for name, kind in public.items() if inspect.isclass(kind) and issubclass(kind, Exception)}
    parts = [HEAD, *(section(name, thing) for name, thing in public.items() if name not in wrong)]
    rows = [
        f"| `{name}` | {', '.join(base.__name__ for base in kind.__bases__)} | {first_line(kind)} |"
        for name, kind in wrong.items()
    ]
    parts.append("\n".join(["## Errors and warnings", "", "| name | is a | |", "|---|---|---|", *rows]))
    models = [m for name in library.__all__ if isinstance(m := getattr(library, name), library.NamedModel)]
    parts.append(section("models.library.NamedModel", library.NamedModel))
    rows = [f"| `{m.name}` | {', '.join(f'`{p}`' for p in m.params)} |" for m in models]
    parts.append("\n".join(["## Models of the library", "", "| name | parameters |", "|---|---|", *rows]))
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
