"""Kernels on disk: loaded by the next process, never shared by two models, not trusted where others can write."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FIT = """
import json, sys
import numpy as np
from nlsq_nb import curve_fit
from nlsq_nb.backends import objects
out = {"popt": [], "cached": [], "compiled": []}
link = objects._link
def watched(code, exports, *, cached):
    out["cached" if cached else "compiled"] += list(exports)
    return link(code, exports, cached=cached)
objects._link = watched
for text, truth in json.loads(sys.argv[1]):
    x = np.linspace(0.0, 1.0, 50)
    y = np.array(eval(truth, {"x": x, "exp": np.exp}))
    out["popt"].append([float(v) for v in curve_fit(text, x, y, p0=[0.9, 1.1])[0]])
print(json.dumps(out))
"""
DECAY = ("a*exp(-b*x) + 0.25", "2*exp(-1.5*x) + 0.25")


def fit(folder, *models):
    """Fit models in a process of their own; what it found, and how its kernels were made."""
    drop = {"NUMBA_CACHE_DIR", "NUMBA_DISABLE_JIT"}
    env = {key: value for key, value in os.environ.items() if key not in drop}
    env["NLSQ_NB_CACHE"] = str(folder)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", FIT, json.dumps(models)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def right(found, *expected):
    for popt, wanted in zip(found["popt"], expected or [(2.0, 1.5)], strict=True):
        assert popt == pytest.approx(wanted, rel=1e-7)


def kept(folder):
    return {path.name for path in folder.glob("*.o")}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "cache"
    path.mkdir(mode=0o700)
    return path


def test_second_process_compiles_nothing(folder):
    first = fit(folder, DECAY)
    right(first)
    assert first["compiled"]
    assert not first["cached"]
    second = fit(folder, DECAY)
    assert not second["compiled"]
    assert sorted(second["cached"]) == sorted(first["compiled"])
    assert second["popt"] == first["popt"]


def test_models_that_differ_in_a_literal_share_no_kernel(folder):
    fit(folder, DECAY)
    one = kept(folder)
    other = fit(folder, ("a*exp(-b*x) + 0.75", "2*exp(-1.5*x) + 0.75"))
    right(other)
    assert other["compiled"]
    assert one < kept(folder)
    both = fit(folder, DECAY, ("a*exp(-b*x) + 0.75", "2*exp(-1.5*x) + 0.75"))
    right(both, (2.0, 1.5), (2.0, 1.5))
    assert not both["compiled"]


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o720, 0o1777])
def test_folder_that_others_can_write_is_not_used(folder, mode):
    folder.chmod(mode)
    right(fit(folder, DECAY))
    assert list(folder.iterdir()) == []


def test_folder_that_cannot_be_written_is_not_used(folder):
    if os.geteuid() == 0:
        pytest.skip("root can write everywhere")
    folder.chmod(0o500)
    right(fit(folder, DECAY))
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nlsq_nb_cannot_be_made"])
def test_place_that_cannot_be_a_folder_is_not_used(folder, place):
    (folder / "file").write_text("not a folder")
    right(fit(folder / place, DECAY))
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert (folder / "file").read_text() == "not a folder"


def test_new_folder_is_private(tmp_path):
    right(fit(tmp_path / "new" / "cache", DECAY))
    assert (tmp_path / "new" / "cache").stat().st_mode & 0o077 == 0
    assert kept(tmp_path / "new" / "cache")
