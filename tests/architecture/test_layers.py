"""The import contracts of setup.cfg hold."""

import subprocess
import sys
from pathlib import Path

LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"


def test_import_contracts(root: Path) -> None:
    # A process of its own: import-linter puts the working directory on sys.path and configures logging.
    result = subprocess.run([sys.executable, "-c", LINT], cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
