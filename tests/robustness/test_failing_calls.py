"""The n-th open, read, write, fsync, rename, allocation … of a checkpointing fit fails, whoever calls it.

Python's own calls, NumPy's and those of the HDF5 library fail alike, since what is between them and the C library
is preloaded. Each time there is an error of ours (or a lack of memory as it is) or the very same result.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KINDS = ("arrays", "memmap", "file", "in place", "packed", "generator", "function")
CALLS = ("open", "read", "write", "fsync", "rename", "allocate", "map", "stat")
OFTEN = ("arrays", "file", "generator")  # sources whose calls fail one in some in every run; the others are long
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    built = tmp_path_factory.mktemp("preloaded") / "failing_calls.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", built, HERE / "failing_calls.c", "-ldl"], check=True)
    return built


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("kind", "every"),
    [pytest.param(kind, "some", marks=[] if kind in OFTEN else pytest.mark.long) for kind in KINDS]
    + [pytest.param(kind, "every", marks=pytest.mark.long) for kind in KINDS],
)
def test_the_nth_call_fails(tmp_path, library, kind, call, every):
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", HERE / "failing_fits.py", tmp_path, kind, call, every],
        env=os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": str(HERE.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["same bits"] > 0
