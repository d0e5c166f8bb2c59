"""Native code on disk: it gives the sums that Numba gives, and only a file that is intact and one's own is executed."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nlsq_nb import Model
from nlsq_nb.backends.entries import SIGNATURE, bind, kernel_entry
from nlsq_nb.backends.objects import make_entry
from nlsq_nb.codegen.module import load
from nlsq_nb.codegen.skeletons import render
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.layout import SEGMENT, sums_size

PLUS = '''
from numba import carray


def add(n, unused, table, theta, state):
    """state += theta + {literal}"""
    t = carray(theta, (n,))
    s = carray(state, (n,))
    for i in range(n):
        s[i] += t[i] + {literal}
'''
NEEDS_RUNTIME = """
import math
import numpy as np
from numba import carray


def add(n, unused, table, theta, state):
    t = carray(theta, (n,))
    s = carray(state, (n,))
    kept = [t[i] for i in range(n)]
    for i in range(len(kept)):
        s[i] += math.gamma(kept[i])
"""
RAISES = '''
def add(n, unused, table, theta, state):
    """Refuse."""
    if n > 1:
        raise ValueError
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    path = tmp_path / "kernels"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("NLSQ_NB_CACHE", str(path))
    return path


def add(entry, n=3):
    theta, state = np.arange(1.0, 1.0 + n), np.zeros(n)
    failed = entry.call(n, 0, None, theta.ctypes.data, state.ctypes.data)
    return failed, state.tolist()


def plus(literal=0.5):
    return make_entry(PLUS.format(literal=literal), "add", SIGNATURE)


def columns(dtype, weighted, n=SEGMENT + 700):
    rng = np.random.default_rng(3)
    x, y, w = (rng.uniform(0.5, 2.0, n).astype(dtype) for _ in range(3))
    return Chunk(0, (x,), (y,), (w,) if weighted else None)


@pytest.mark.parametrize(("dtype", "weighted"), [("float64", False), ("float64", True), ("float32", True)])
@pytest.mark.parametrize("text", ["a*exp(-b*x) + c", " + ".join(f"a{i}*exp(-b{i}*x)" for i in range(4))])
@pytest.mark.slow
def test_sums_are_those_of_numba(text, dtype, weighted):
    program, chunk = Model(text).program, columns(dtype, weighted)
    p, n = program.n_params, chunk.n_rows
    module, arrays = load(render(program, "cpu", weighted), {}), (*chunk.x, *chunk.y, *(chunk.w or ()))
    theta, v = np.linspace(1.0, 2.0, p), np.linspace(-1.0, 1.0, p)
    for name, rest in (("sums1", ()), ("sums2", ()), ("matvec", (v,))):
        width = p if name == "matvec" else sums_size(p, int(name[-1]))
        found, wanted = np.zeros((4, width)), np.zeros((4, width))
        bind(program, name, chunk, dtype, *rest)(0, n, theta, found)
        getattr(module, name)(0, n, *arrays, theta, *rest, wanted)
        for high, low in ((0, 1), (2, 3)):  # high and low parts of a segment
            assert found[high] == pytest.approx(wanted[high], rel=1e-11, abs=1e-12 * np.abs(wanted[high]).max())
            assert np.abs(found[low]).max() <= 1e-13 * np.abs(found[high]).max()
        assert np.count_nonzero(found[2]) == width
    values, slopes = np.empty((1, n)), np.empty((1, p, n))
    bind(program, "rows", chunk, dtype, slopes)(0, n, theta, values)
    x = chunk.x[0].astype(float)
    assert values[0] == pytest.approx(Model(text)(x, *theta), rel=1e-13)
    assert slopes[0] == pytest.approx(Model(text).jacobian(x, *theta).T, rel=1e-13)


def test_arrays_are_checked_before_native_code_sees_them():
    program, chunk = Model("a*x + b").program, columns("float64", weighted=False)
    n, theta, state = chunk.n_rows, np.ones(2), np.zeros((4, 6))
    call = bind(program, "sums2", chunk, "float64")
    call(0, n, theta, state)
    with pytest.raises(ValueError, match="contiguous array of 2 float64"):
        call(0, n, np.ones(3), state)
    with pytest.raises(ValueError, match="contiguous array of 6 float64"):
        call(0, n, theta, np.zeros((4, 12))[:, ::2])
    with pytest.raises(ValueError, match="room for 1 segments"):
        call(0, n, theta, np.zeros((2, 6)))
    with pytest.raises(ValueError, match="rows 0 to"):
        call(0, n + 1, theta, state)
    with pytest.raises(ValueError, match="float32"):
        bind(program, "sums2", chunk, "float32")


def test_one_entry_for_equal_programs():
    first, second = (kernel_entry(Model("a*x + b").program, "sums0", "float64", weighted=False) for _ in range(2))
    assert first is second


def test_code_comes_from_disk_the_second_time(folder):
    first, second = plus(), plus()
    assert (first.cached, second.cached) == (False, True)
    assert add(first) == add(second) == (0, [1.5, 2.5, 3.5])
    assert first.address != second.address
    (path,) = folder.iterdir()
    assert path.stat().st_mode & 0o077 == 0


def test_address_can_be_called_from_native_code(folder):
    entry = plus()
    theta, state = np.ones(1), np.zeros(1)
    native = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, *[ctypes.c_void_p] * 3)(entry.address)
    native(1, 0, None, theta.ctypes.data, state.ctypes.data)
    assert state.tolist() == [1.5]


def test_texts_that_differ_in_a_literal_share_nothing(folder):
    assert add(plus(0.5)) != add(plus(0.25))
    assert len(list(folder.iterdir())) == 2


def test_settings_of_numba_are_part_of_the_name(folder):
    call = f"make_entry({PLUS.format(literal=1)!r}, 'add', {SIGNATURE})"
    code = f"from nlsq_nb.backends.objects import make_entry\n{call}"
    for level in ("3", "1"):
        variables = os.environ | {"NUMBA_OPT": level, "PYTHONPATH": str(Path(__file__).parents[2])}
        subprocess.run([sys.executable, "-c", code], env=variables, check=True, timeout=120)
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:100],
        lambda content: content[:-1],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: content.replace(b"object 1", b"object 0"),
        lambda content: b"\x7fELF" + content,
    ],
)
def test_damaged_file_is_replaced(folder, damage):
    add(plus())
    (path,) = folder.iterdir()
    intact = path.read_bytes()
    path.write_bytes(damage(intact))
    entry = plus()
    assert not entry.cached
    assert add(entry) == (0, [1.5, 2.5, 3.5])
    assert path.read_bytes() != damage(intact)
    assert plus().cached


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_file_that_others_can_write_is_not_executed(folder, mode):
    plus()
    (path,) = folder.iterdir()
    path.chmod(mode)
    assert not plus().cached
    assert path.stat().st_mode & 0o022 == 0


def test_link_is_not_followed(folder, tmp_path):
    plus()
    (path,) = folder.iterdir()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert not plus().cached
    assert not path.is_symlink()


@pytest.mark.parametrize("mode", [0o770, 0o777])
def test_folder_that_others_can_write_is_not_used(folder, mode):
    plus()
    folder.chmod(mode)
    assert not plus().cached


def test_no_folder_no_file(folder, monkeypatch):
    monkeypatch.setenv("NLSQ_NB_CACHE", "/proc/nlsq_nb_cannot_be_made")
    assert add(plus()) == (0, [1.5, 2.5, 3.5])
    assert list(folder.iterdir()) == []


def test_injected_objects_are_not_kept(folder):
    entry = make_entry(PLUS.format(literal="HALF"), "add", SIGNATURE, {"HALF": 0.5})
    assert add(entry) == (0, [1.5, 2.5, 3.5])
    assert list(folder.iterdir()) == []


def test_an_exception_is_told(folder):
    entry = make_entry(RAISES, "add", SIGNATURE)
    assert add(entry, 1)[0] == 0
    assert add(entry, 2)[0] == 1


def test_code_that_needs_the_runtime_of_numba_finds_it_in_a_new_process(folder):
    code = f"""
import json, sys
import numpy as np
from nlsq_nb.backends.objects import make_entry
entry = make_entry({NEEDS_RUNTIME!r}, "add", {SIGNATURE})
theta, state = np.arange(3.0, 6.0), np.zeros(3)
failed = entry.call(3, 0, None, theta.ctypes.data, state.ctypes.data)
print(json.dumps([entry.cached, failed, state.tolist()]))
"""
    variables = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for cached in (False, True):
        done = subprocess.run(
            [sys.executable, "-c", code], env=variables, check=True, capture_output=True, text=True, timeout=120
        )
        assert json.loads(done.stdout) == [cached, 0, [2.0, 6.0, 24.0]]


FAR = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
assert libc.mmap(None, 1 << 36, 0, 0x4022, -1, 0) != ctypes.c_void_p(-1).value  # private, without memory behind it
from nlsq_nb import curve_fit
import numpy as np
x = np.linspace(0.0, 4.0, 500)
print(curve_fit("a*exp(-b*x) + c", x, 3.0 * np.exp(-x) + 1.0, p0=[1.0, 1.0, 0.0]).popt.round(6).tolist())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="maps as Linux does")
def test_a_large_mapping_may_lie_between_the_parts_of_a_kernel(tmp_path):
    """With offsets of 32 bits between them LLVM aborts the process."""
    env = {**os.environ, "NLSQ_NB_CACHE": str(tmp_path)}
    for _ in range(3):  # compiled, then from the cache
        run = subprocess.run([sys.executable, "-c", FAR], env=env, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr[-500:]
        assert run.stdout.strip() == "[3.0, 1.0, 1.0]"
