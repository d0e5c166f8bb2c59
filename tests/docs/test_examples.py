"""Every Python example in the README, the documentation and the docstrings runs."""

import doctest
import importlib
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = [
    pytest.param(text, id=f"{page.relative_to(ROOT)}:{number}")
    for page in PAGES
    for number, text in enumerate(FENCED.findall(page.read_text("utf-8")), 1)
]


def test_the_readme_has_examples():
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("text", BLOCKS)
def test_example_runs(text, capsys):
    exec(compile(text, "example", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(
    "name", ["nlsq_nb", "nlsq_nb.api", "nlsq_nb.many", "nlsq_nb.models.library", "nlsq_nb.models.symbolic"]
)
def test_docstring_examples(name):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried > 0
    assert failed == 0


def test_readme_begins_with_two_shell_blocks():
    fences = re.findall(r"^```(\w*)$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert fences[0] == "sh"
    assert fences[2] == "sh"


def test_the_reference_is_what_the_docstrings_say():
    written = ROOT / "docs" / "reference" / "api.md"
    namespace = runpy.run_path(str(written.with_name("write.py")))
    assert written.read_text("utf-8") == namespace["page"](), "run python docs/reference/write.py"
