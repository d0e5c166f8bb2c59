"""Modules and functions stay small enough to be read at one sitting."""

import ast
from collections.abc import Iterator
from pathlib import Path

MODULE_LINES = 400
FUNCTION_LINES = 60


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the docstring: numpydoc wants every parameter described, and that is not code to follow."""
    if ast.get_docstring(node, clean=False) is None:
        return 0
    return (node.body[0].end_lineno or 0) - node.body[0].lineno + 1


def long_functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Name and length of each function that is too long, nested ones included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1 - docstring_lines(node)
            if lines > FUNCTION_LINES:
                yield f"{node.name} (line {node.lineno})", lines


def test_modules_are_short(root: Path, modules: dict[str, ast.Module]) -> None:
    lengths = {path: len((root / path).read_text(encoding="utf-8").splitlines()) for path in modules}
    offenders = [f"{path}: {lines} lines" for path, lines in lengths.items() if lines > MODULE_LINES]
    assert not offenders, "\n".join(offenders)


def test_functions_are_short(modules: dict[str, ast.Module]) -> None:
    offenders = [
        f"{path}: {name} has {lines} lines" for path, tree in modules.items() for name, lines in long_functions(tree)
    ]
    assert not offenders, "\n".join(offenders)
