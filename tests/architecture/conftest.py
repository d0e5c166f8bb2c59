"""What the architecture tests look at: the repository and the parsed modules of the package."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def parse_package(package: Path) -> dict[str, ast.Module]:
    """Return the syntax tree of every module, by path relative to the folder that holds the package."""
    return {
        path.relative_to(package.parent).as_posix(): ast.parse(path.read_text(encoding="utf-8"), str(path))
        for path in sorted(package.rglob("*.py"))
    }


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def modules() -> dict[str, ast.Module]:
    """Syntax trees of nlsq_nb, by path such as ``nlsq_nb/core/sums.py``."""
    found = parse_package(ROOT / "nlsq_nb")
    assert found, "no module of nlsq_nb was found"
    return found
