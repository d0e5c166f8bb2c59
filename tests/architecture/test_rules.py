"""What no module of the package may do: execute text, unpickle, print, or import numba outside the backends."""

import ast
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Offence = tuple[int, str]
Rule = Callable[[str, ast.Module], Iterator[Offence]]

PICKLERS = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
SYMPY_READERS = {"sympify", "parse_expr", "lambdify", "S"}
EXECUTES_SOURCE = "nlsq_nb/codegen/module.py"
CUDA = "nlsq_nb/backends/cuda/"

REQUIRED_AT_TOP = {"setup.cfg", "pyproject.toml", "README.md", "LICENSE", "nlsq_nb", "tests"}
ALLOWED_AT_TOP = REQUIRED_AT_TOP | {"bench", "docs"}


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported, wherever in the module, by statement or by import_module("...")."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def builtins_used(tree: ast.Module, names: set[str]) -> Iterator[Offence]:
    """Each mention of one of these builtins, called or handed on."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) if name in names:
                yield node.lineno, name
            case ast.Attribute(value=ast.Name(id="builtins"), attr=name) if name in names:
                yield node.lineno, f"builtins.{name}"


def pickles(path: str, tree: ast.Module) -> Iterator[Offence]:
    yield from ((line, f"imports {name}") for line, name in imported(tree) if name.split(".")[0] in PICKLERS)
    for node in ast.walk(tree):
        match node:
            case ast.keyword(arg="allow_pickle", value=value) if not (
                isinstance(value, ast.Constant) and value.value is False
            ):
                yield value.lineno, "allow_pickle other than False"


def executes(path: str, tree: ast.Module) -> Iterator[Offence]:
    banned = {"eval"} if path == EXECUTES_SOURCE else {"eval", "exec"}
    yield from ((line, f"uses {name}") for line, name in builtins_used(tree, banned))


def lets_sympy_read_text(path: str, tree: ast.Module) -> Iterator[Offence]:
    for line, name in imported(tree):
        if name.startswith("sympy.") and name.split(".")[-1] in SYMPY_READERS - {"S"}:
            yield line, f"imports {name}"
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in SYMPY_READERS:
                yield node.lineno, f"calls {name}()"


def prints(path: str, tree: ast.Module) -> Iterator[Offence]:
    yield from ((line, f"uses {name}") for line, name in builtins_used(tree, {"print"}))


def imports_numba(path: str, tree: ast.Module) -> Iterator[Offence]:
    for line, name in imported(tree):
        package = name.split(".")[0]
        in_backends = path.startswith("nlsq_nb/backends/")
        cuda_only = package in {"cupy", "numba_cuda", "numba_cuda_mlir"} or name.startswith("numba.cuda")
        if (cuda_only and not path.startswith(CUDA)) or (package in {"numba", "llvmlite"} and not in_backends):
            yield line, f"imports {name}"


RULES: list[Rule] = [pickles, executes, lets_sympy_read_text, prints, imports_numba]


def offences(rule: Rule, modules: dict[str, ast.Module]) -> list[str]:
    return [f"{path}:{line}: {what}" for path, tree in modules.items() for line, what in rule(path, tree)]


@pytest.mark.parametrize("rule", RULES)
def test_package_keeps(rule: Rule, modules: dict[str, ast.Module]) -> None:
    found = offences(rule, modules)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (pickles, "import pickle"),
        (pickles, "def f():\n    from marshal import loads"),
        (pickles, "np.load(path, allow_pickle=True)"),
        (executes, "eval(text)"),
        (executes, "run = exec"),
        (executes, "builtins.exec(text)"),
        (lets_sympy_read_text, "sympy.sympify(text)"),
        (lets_sympy_read_text, "from sympy.parsing.sympy_parser import parse_expr"),
        (lets_sympy_read_text, "sympy.S(text)"),
        (prints, "print(1)"),
        (imports_numba, "from numba import njit"),
        (imports_numba, "import_module('cupy')"),
    ],
)
def test_rule_catches(rule: Rule, source: str) -> None:
    assert offences(rule, {"nlsq_nb/core/sums.py": ast.parse(source)})


@pytest.mark.parametrize("source", ["from numba import cuda", "import cupy"])
def test_cuda_only_in_its_own_backend(source: str) -> None:
    assert not offences(imports_numba, {f"{CUDA}toolkit.py": ast.parse(source)})
    assert offences(imports_numba, {"nlsq_nb/backends/cpu.py": ast.parse(source)})


def test_top_level_of_the_repository(root: Path) -> None:
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
    top = {name.split("/")[0] for name in listed.split("\0") if name}
    visible = {name for name in top if not name.startswith(".")}
    assert visible - ALLOWED_AT_TOP == set(), "these do not belong at the top level"
    assert REQUIRED_AT_TOP - visible == set(), "these are missing at the top level"
