"""Every benchmark runs in its short form, and its figures are finite."""

import importlib
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
FIGURES = {
    "fits.py": {"fits": ("seconds", "ratio", "sse")},
    "kernels.py": {
        "kernels": ("rate", "fraction", "numpy", "tuned", "threads", "rate0", "rate1", "float32"),
        "parameters": ("ns",),
    },
    "memory.py": {
        "memory": ("seconds", "passes", "extra_mb"),
        "growth": ("exponent",),
        "streams": ("seconds", "passes", "extra_mb"),
        "pass": ("file", "arrays", "ratio"),
    },
    "passes.py": {"passes": ("data_passes", "sample_passes")},
    "separable.py": {"separable": ("runs", "solved", "passes")},
    "conditioning.py": {"conditioning": ("condition", "normal", "qr", "auto errors")},
    "summation.py": {"summation": ("error", "seconds")},
    "small.py": {"small": ("passes", "call", "scipy", "ratio")},
}


TAKE_LONG = ("memory.py", "kernels.py", "conditioning.py", "passes.py")


def run(script, *options):
    command = [sys.executable, str(BENCH / script), "--short", *map(str, options)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


@pytest.mark.parametrize(
    "script", [pytest.param(name, marks=pytest.mark.slow) if name in TAKE_LONG else name for name in FIGURES]
)
def test_short_form(script, tmp_path):
    target = tmp_path / "figures.json"
    printed = run(script, "--json", target)
    report = json.loads(target.read_text("utf-8"))
    for name, columns in FIGURES[script].items():
        rows = report["rows"][name]
        assert rows
        for row in rows:
            if row.get("failure") and not row["peer"].startswith(("nlsq_nb", "scipy")):
                continue  # a release of another program that no longer runs is not our fault
            assert all(math.isfinite(row[column]) for column in columns), row
    for table in report["tables"].values():
        assert table in printed
    for floor in report["floors"]:
        assert math.isfinite(floor["measured"]), floor
        assert floor["what"] in printed


def test_driver_writes_tables_and_verdict(tmp_path):
    page = tmp_path / "README.md"
    shutil.copy(BENCH / "README.md", page)
    printed = run("all.py", "--only", "separable.py", "small.py", "--write", "--page", page)
    text = page.read_text("utf-8")
    verdict = re.search(r"<!-- verdict: .*? -->\n(.*?)<!-- end of verdict -->", text, re.DOTALL)[1]
    assert "| whole fit, n = 500, in one process with scipy lm | ≥ 1.5× |" in verdict
    assert verdict.splitlines()[-1] in printed
    assert "| 1.0, 0.1, 5.0 |" in text.split("<!-- small:")[1].split("<!-- end of small -->")[0]
    # a second run replaces what the first has written
    run("all.py", "--only", "small.py", "--write", "--page", page)
    assert page.read_text("utf-8").count("| 1.0, 0.1, 5.0 |") == 1


def test_a_page_without_markers_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    common = importlib.import_module("common")
    page = tmp_path / "page.md"
    page.write_text("nothing", "utf-8")
    with pytest.raises(SystemExit, match="markers of the table 'fits' are missing"):
        common.put(page, "fits", "fits.py", "table")
    assert page.read_text("utf-8") == "nothing"
