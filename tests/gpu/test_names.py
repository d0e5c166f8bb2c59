"""What is used of CuPy exists in CuPy, where that is installed: the stand-in must not have names of its own."""

import ast
from pathlib import Path

import pytest

BACKEND = Path(__file__).parents[2] / "nlsq_nb" / "backends" / "cuda"


def names_used():
    """Dotted names after `cupy.` in the backend."""
    found = set()
    for path in BACKEND.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("cupy."):
                found.add(ast.unparse(node))
    return sorted(found)


@pytest.mark.parametrize("name", names_used())
def test_name_exists_in_cupy(name):
    cupy = pytest.importorskip("cupy")
    value = cupy
    for part in name.split(".")[1:]:
        value = getattr(value, part)


def test_some_names_are_used():
    assert {"cupy.asarray", "cupy.cuda.Device", "cupy.empty", "cupy.from_dlpack"} <= set(names_used())
