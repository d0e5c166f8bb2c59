"""Kernels on disk: loaded by the next process, never shared by two models, not trusted where others can write."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FIT = """
import json, os, sys
import numpy as np
from nlsq_nb import curve_fit
from nlsq_nb.backends import objects
out = {"popt": [], "cached": [], "compiled": []}
link = objects._link
def watched(code, exports, *, cached):
    out["cached" if cached else "compiled"] += list(exports)
    return link(code, exports, cached=cached)
objects._link = watched
for place, text, truth in json.loads(sys.argv[1]):
    os.environ["NLSQ_NB_CACHE"] = place
    x = np.linspace(0.0, 1.0, 50)
    y = np.array(eval(truth, {"x": x, "exp": np.exp}))
    out["popt"].append([float(v) for v in curve_fit(text, x, y, p0=[0.9, 1.1])[0]])
print(json.dumps(out))
"""


def hyperbola(literal):
    """A model with a literal of its own, quickly compiled, and what it is fitted to."""
    return f"a/(b + x) + {literal}", f"2/(1.5 + x) + {literal}"


def fit(*fits):
    """Fit (folder, model) pairs in a process of their own; what it found, and how its kernels were made."""
    drop = {"NUMBA_CACHE_DIR", "NUMBA_DISABLE_JIT"}
    env = {key: value for key, value in os.environ.items() if key not in drop}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", FIT, json.dumps([(str(folder), *model) for folder, model in fits])]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for popt in found["popt"]:
        assert popt == pytest.approx((2.0, 1.5), rel=1e-7)
    return found


def kept(folder):
    return {path.name for path in folder.glob("*.o")}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "cache"
    path.mkdir(mode=0o700)
    return path


def test_another_process_compiles_nothing_and_models_that_differ_in_a_literal_share_no_kernel(folder):
    one, other = hyperbola(0.25), hyperbola(0.75)
    first = fit((folder, one))
    assert first["compiled"]
    assert not first["cached"]
    held = kept(folder)
    second = fit((folder, other))
    assert second["compiled"]
    assert held < kept(folder)
    third = fit((folder, one), (folder, other))
    assert not third["compiled"]
    assert set(third["cached"]) == set(first["compiled"])
    assert third["popt"] == first["popt"] + second["popt"]


def test_only_a_folder_that_is_the_users_own_is_used_and_a_new_one_is_private(tmp_path):
    """Each fit has a literal, and so a kernel, of its own: the process holds none that could take its place."""
    open_to_others = []
    for mode in (0o777, 0o770, 0o720, 0o1777):
        open_to_others.append(tmp_path / f"{mode:o}")
        open_to_others[-1].mkdir()
        open_to_others[-1].chmod(mode)
    (tmp_path / "file").write_text("not a folder")
    no_folders = [tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nlsq_nb_cannot_be_made")]
    new, before = tmp_path / "new" / "cache", {*tmp_path.iterdir()}
    places = [*open_to_others, *no_folders, new]
    fit(*((place, hyperbola(0.25 + k)) for k, place in enumerate(places)))
    assert [place for place in open_to_others if list(place.iterdir())] == []
    assert {*tmp_path.iterdir()} - before == {tmp_path / "new"}
    assert (tmp_path / "file").read_text() == "not a folder"
    assert new.stat().st_mode & 0o077 == 0
    assert kept(new)


def test_folder_that_cannot_be_written_is_not_used(folder):
    if os.geteuid() == 0:
        pytest.skip("root can write everywhere")
    folder.chmod(0o500)
    fit((folder, hyperbola(0.25)))
    assert list(folder.iterdir()) == []
