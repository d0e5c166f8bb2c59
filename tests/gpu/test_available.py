"""What is said where there is no CUDA; runs everywhere."""

import importlib.util

import pytest

from nlsq_nb import curve_fit
from nlsq_nb.errors import BackendUnavailable

from .conftest import MISSING, has_compiler


def test_the_path_is_tested():
    if not has_compiler():
        pytest.skip(MISSING)


def test_without_a_compiler_the_extra_is_named(monkeypatch):
    from nlsq_nb.backends.cuda import toolkit

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    toolkit.toolkit.cache_clear()
    with pytest.raises(BackendUnavailable, match=r"numba-cuda, which is not installed.*nlsq_nb\[gpu\]"):
        curve_fit("a*x", [1.0, 2.0], [1.0, 2.0], backend="cuda")
    toolkit.toolkit.cache_clear()


def test_a_compiler_that_cannot_be_imported_is_named(monkeypatch):
    from nlsq_nb.backends.cuda import toolkit

    def fail(name):
        raise AttributeError("half of it is there")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "numba_cuda")
    monkeypatch.setattr(importlib, "import_module", fail)
    toolkit.toolkit.cache_clear()
    with pytest.raises(BackendUnavailable, match="numba_cuda cannot be imported: half of it is there"):
        toolkit.toolkit()
    toolkit.toolkit.cache_clear()
