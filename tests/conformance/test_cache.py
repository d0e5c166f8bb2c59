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
out = {"popt": [], "hits": 0, "misses": 0, "modules": {}}
for text, truth in json.loads(sys.argv[1]):
    x = np.linspace(0.0, 1.0, 50)
    y = np.array(eval(truth, {"x": x, "exp": np.exp}))
    out["popt"].append([float(v) for v in curve_fit(text, x, y, p0=[0.9, 1.1])[0]])
for name, module in sorted(sys.modules.items()):
    if name.startswith("nlsq_nb_generated_"):
        out["modules"][name] = module.__file__
        for function in vars(module).values():
            stats = getattr(function, "stats", None)
            if stats is not None:
                out["hits"] += sum(stats.cache_hits.values())
                out["misses"] += sum(stats.cache_misses.values())
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


def generated(folder):
    return sorted(folder.glob("nlsq_nb_generated_*.py"))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "cache"
    path.mkdir(mode=0o700)
    return path


def test_second_process_compiles_nothing(folder):
    first = fit(folder, DECAY)
    right(first)
    assert first["misses"] > 0
    assert first["hits"] == 0
    assert generated(folder)
    second = fit(folder, DECAY)
    assert second["misses"] == 0
    assert second["hits"] > 0
    assert second["modules"] == first["modules"]
    assert second["popt"] == first["popt"]


def test_models_that_differ_in_a_literal_share_nothing(folder):
    other = ("a*exp(-b*x) + 0.75", "2*exp(-1.5*x) + 0.75")
    both = fit(folder, DECAY, other)
    right(both, (2.0, 1.5), (2.0, 1.5))
    alone = [fit(folder, model) for model in (DECAY, other)]
    for found in alone:
        right(found)
        assert found["misses"] == 0
        assert found["hits"] > 0
    assert not set(alone[0]["modules"]) & set(alone[1]["modules"])
    assert set(alone[0]["modules"]) | set(alone[1]["modules"]) == set(both["modules"])


def test_a_later_model_with_another_literal_compiles_anew(folder):
    fit(folder, DECAY)
    found = fit(folder, ("a*exp(-b*x) + 0.5", "2*exp(-1.5*x) + 0.5"))
    right(found)
    assert found["misses"] > 0
    assert found["hits"] == 0


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
    assert generated(tmp_path / "new" / "cache")


def evil(marker):
    return f"open({str(marker)!r}, 'w').write('executed')\nraise SystemExit(3)\n"


def test_tampered_file_is_not_executed(folder, tmp_path):
    fit(folder, DECAY)
    before = {path: path.read_text() for path in generated(folder)}
    for path in before:
        path.write_text(evil(tmp_path / "marker"))
    right(fit(folder, DECAY))
    assert not (tmp_path / "marker").exists()
    assert {path: path.read_text() for path in generated(folder)} == before


@pytest.mark.parametrize("same_text", [False, True])
def test_symlinked_file_is_not_followed(folder, tmp_path, same_text):
    fit(folder, DECAY)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    targets = {}
    for path in generated(folder):
        target = elsewhere / path.name
        target.write_text(path.read_text() if same_text else evil(tmp_path / "marker"))
        targets[target] = target.read_text()
        path.unlink()
        path.symlink_to(target)
    right(fit(folder, DECAY))
    assert not (tmp_path / "marker").exists()
    assert {target: target.read_text() for target in targets} == targets
    assert sorted(elsewhere.iterdir()) == sorted(targets)
    assert not any(path.is_symlink() for path in generated(folder))


@pytest.mark.parametrize("cut", [0, 100])
def test_damaged_compiled_code_does_not_break_a_fit(folder, cut):
    fit(folder, DECAY)
    for path in [*folder.rglob("*.nbi"), *folder.rglob("*.nbc")]:
        path.write_bytes(path.read_bytes()[:cut])
    right(fit(folder, DECAY))
