"""Tests of the CUDA path: on the stand-in driver, or with `-m gpu` on a device.

Without numba-cuda or numba-cuda-mlir they are skipped. The stand-in takes the place of libcuda in the whole process,
so these tests run in a process of their own: `pytest tests/gpu`.
"""

import faulthandler
import importlib.util
import sys

import pytest

MISSING = "needs numba-cuda: pip install 'numba-cuda[cu13]' 'numpy<2.5'"
COMPILERS = ("numba_cuda", "numba_cuda_mlir")


def has_compiler():
    return any(importlib.util.find_spec(name) for name in COMPILERS)


def pytest_ignore_collect(collection_path, config):
    """Without the package there is nothing to import, but something to say: see test_available."""
    if not has_compiler():
        return collection_path.name.startswith("test_") and collection_path.name != "test_available.py"
    return None


def stand_in(*, device):
    """The driver of this process, installed at the first call; None where tests for a device were asked for."""
    from ..emulator.driver import Driver
    from ..emulator.entry_points import install, load_ptx_into_the_driver

    if device:
        return None
    if "numba.cuda.cudadrv.driver" in sys.modules:
        pytest.exit("numba.cuda was imported before the stand-in driver: run `pytest tests/gpu` on its own", 3)
    faulthandler.enable()
    driver = Driver(devices=2)
    install(driver)
    load_ptx_into_the_driver()
    return driver


@pytest.fixture(scope="session")
def _session_driver(request):
    chosen = request.config.option.markexpr
    return stand_in(device="gpu" in chosen and "not gpu" not in chosen)


@pytest.fixture
def driver(_session_driver, monkeypatch):
    """The stand-in driver with an empty ledger; what its entry points raise fails the test."""
    driver = _session_driver
    if driver is None:
        pytest.skip("runs on the stand-in driver; -m gpu chose a device")
    monkeypatch.delitem(sys.modules, "cupy", raising=False)  # the real one needs a real driver
    driver.forget()
    driver.error, driver.order, driver.memory, driver.largest, driver.pooled = None, "random", 1 << 31, 1 << 31, 0
    yield driver
    assert driver.error is None


@pytest.fixture
def cupy(driver, monkeypatch):
    """A strict stand-in for CuPy in the driver's memory."""
    from ..emulator.cupy_stand_in import make_cupy

    module = make_cupy(driver)
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module
