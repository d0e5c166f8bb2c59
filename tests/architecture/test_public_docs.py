"""Everything reachable from ``nlsq_nb.__all__`` and every public module is documented in numpydoc's form.

The checks asked for are those of ``[tool.numpydoc_validation]`` in pyproject.toml.
"""

import ast
import inspect
import tomllib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType

import pytest
from numpydoc.validate import validate

import nlsq_nb

PARAMETER_CHECKS = {"PR01", "PR02"}
Documented = tuple[str, object]


def is_public(name: str) -> bool:
    return not name.startswith("_")


def owned(thing: object, package: str) -> bool:
    """Whether the package itself defines this module, class or function."""
    module = getattr(thing, "__name__" if inspect.ismodule(thing) else "__module__", None) or ""
    return module == package or module.startswith(f"{package}.")


def exported(module: ModuleType) -> list[str]:
    """The public names of a module: its ``__all__``, else what it defines itself."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__]
    return [name for name in names if is_public(name)]


def members(name: str, cls: type) -> Iterator[Documented]:
    """The public methods and properties that a class defines itself, and the classes within."""
    for attribute, thing in vars(cls).items():
        function = thing.fget if isinstance(thing, property) else getattr(thing, "__func__", thing)
        function = thing.func if isinstance(thing, cached_property) else function
        nested = inspect.isclass(thing) and thing.__qualname__ == f"{cls.__qualname__}.{attribute}"
        if is_public(attribute) and inspect.isroutine(function):
            yield f"{name}.{attribute}", function
        elif is_public(attribute) and nested:
            yield from documented(f"{name}.{attribute}", thing, cls.__module__)


def documented(name: str, thing: object, package: str) -> Iterator[Documented]:
    """Yield what must have a docstring: the object, and whatever is reached through it."""
    if not owned(thing, package):
        return
    if inspect.ismodule(thing):
        yield name, thing
        for attribute in exported(thing):
            yield from documented(f"{name}.{attribute}", getattr(thing, attribute), package)
    elif inspect.isclass(thing):
        yield name, thing
        yield from members(name, thing)
    elif inspect.isroutine(thing):
        yield name, thing


def builds_its_own(cls: type, package: str) -> bool:
    """Whether the package wrote the constructor: that of a plain Enum, exception or Protocol is Python's."""
    return any(owned(vars(base).get(name), package) for base in cls.__mro__ for name in ("__init__", "__new__"))


def faults(name: str, thing: object, checks: set[str], package: str) -> list[str]:
    """Numpydoc's complaints about one object, of the checks asked for."""
    if inspect.ismodule(thing):  # numpydoc stumbles over a module that defines nothing itself
        return [] if thing.__doc__ else [f"{name}: GL08 The module does not have a docstring"]
    if inspect.isclass(thing) and not builds_its_own(thing, package):
        checks = checks - PARAMETER_CHECKS
    return [f"{name}: {code} {text}" for code, text in validate(name)["errors"] if code in checks]


@pytest.fixture(scope="module")
def checks(root: Path) -> set[str]:
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return set(settings["tool"]["numpydoc_validation"]["checks"])


def test_all_lists_real_public_names() -> None:
    assert nlsq_nb.__all__
    assert sorted(set(nlsq_nb.__all__)) == sorted(nlsq_nb.__all__)
    missing = [name for name in nlsq_nb.__all__ if not hasattr(nlsq_nb, name)]
    assert not missing
    assert set(nlsq_nb.__all__) <= set(dir(nlsq_nb))


@pytest.mark.parametrize("name", nlsq_nb.__all__)
def test_public_name_is_documented(name: str, checks: set[str]) -> None:
    # A lazily imported module and a re-exported one are both reached through the package.
    found = documented(f"nlsq_nb.{name}", getattr(nlsq_nb, name), "nlsq_nb")
    complaints = [fault for path, thing in found for fault in faults(path, thing, checks, "nlsq_nb")]
    assert not complaints, "\n".join(complaints)


def test_public_modules_are_documented(modules: dict[str, ast.Module]) -> None:
    bare = [path for path, tree in modules.items() if is_public_module(path) and not ast.get_docstring(tree)]
    assert not bare, "no module docstring:\n" + "\n".join(bare)


def is_public_module(path: str) -> bool:
    parts = Path(path).with_suffix("").parts
    return all(is_public(part) for part in parts if part != "__init__")
