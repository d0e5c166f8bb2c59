"""The package passes ``mypy --strict`` as pyproject.toml sets it up."""

import subprocess
import sys
from pathlib import Path


def test_mypy_strict(root: Path) -> None:
    result = subprocess.run([sys.executable, "-m", "mypy"], cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
