"""What a process has imported after what: start-up is short because packages are left out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARIES = {"sympy", "scipy.linalg", "scipy.stats", "scipy.special", "h5py", "pandas", "matplotlib", "dask", "numba"}
DATA = """
import numpy as np
x = np.linspace(0.0, 10.0, 200)
y = 5.0 * np.exp(-0.5 * x) + 1.0
"""
FIT = (
    DATA
    + """
from nlsq_nb import curve_fit
result = curve_fit("a*exp(-b*x) + c", x, y, p0=[1.0, 0.1, 5.0], backend={backend!r})
assert result.success
"""
)
KERNEL = (
    DATA
    + """
from nlsq_nb import Model
from nlsq_nb.backends.entries import bind
from nlsq_nb.core.chunk import Chunk
state = np.zeros((2, 10))
sums = bind(Model("a*exp(-b*x) + c").program, "sums2", Chunk(0, (x,), (y,)), "float64")
sums(0, 200, np.array([5.0, 0.5, 1.0]), state)
assert state[0, 0] < 1e-20 < state[0, 9]
"""
)


def imported(code: str, folder: Path) -> set[str]:
    """Names of modules after some code in a process of its own."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")}
    variables["NLSQ_NB_CACHE"] = str(folder)
    variables["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "kernels"
    path.mkdir(mode=0o700)
    return path


def test_import_brings_nothing_along(folder):
    found = imported("import nlsq_nb", folder)
    assert found & (LIBRARIES | {"numpy", "scipy", "llvmlite"}) == set()
    assert {name for name in found if name.startswith("nlsq_nb.")} == set()


def test_public_names_import_no_optional_or_slow_package(folder):
    found = imported("import nlsq_nb\nfor name in nlsq_nb.__all__: getattr(nlsq_nb, name)", folder)
    assert found & (LIBRARIES | {"llvmlite", "importlib.metadata"}) == set()


def test_fit_of_text_needs_no_sympy(folder):
    found = imported(FIT.format(backend="reference"), folder)
    assert found & (LIBRARIES | {"llvmlite"}) == set()


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """A folder with the kernels of KERNEL and FIT, and what the process that made them had imported."""
    path = tmp_path_factory.mktemp("kernels")
    path.chmod(0o700)
    return path, imported(KERNEL + FIT.format(backend="cpu"), path)


def test_fit_with_a_new_kernel_imports_numba_alone(kernels):
    found = kernels[1]
    assert "numba" in found
    assert found & {"sympy", "scipy.stats", "h5py", "pandas", "matplotlib", "dask"} == set()


@pytest.mark.parametrize("code", [KERNEL, FIT.format(backend="cpu")], ids=["kernel", "fit"])
def test_cached_kernel_needs_no_numba(kernels, code):
    found = imported(code, kernels[0])
    assert "llvmlite" in found
    assert found & LIBRARIES == set()


WITHOUT_GPU = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.split(".")[0] in {"cupy", "numba_cuda", "numba_cuda_mlir"} or name.startswith("numba.cuda")
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
import importlib, pkgutil, nlsq_nb
for module in pkgutil.walk_packages(nlsq_nb.__path__, "nlsq_nb."):
    importlib.import_module(module.name)
"""


def test_without_gpu_packages_all_modules_import_and_fits_run(kernels):
    said = """
from nlsq_nb.errors import BackendUnavailable
try:
    curve_fit("a*x", x, y, backend="cuda")
except BackendUnavailable as error:
    assert "nlsq_nb[gpu]" in str(error)
else:
    raise AssertionError("there is a CUDA backend")
"""
    found = imported(WITHOUT_GPU + FIT.format(backend="cpu") + said, kernels[0])
    assert found & {"cupy", "numba_cuda", "numba_cuda_mlir"} == set()
