"""Kernels on disk: a second process compiles nothing, and what cannot be trusted is compiled anew."""

import numpy as np
import pytest

from nlsq_nb import Model
from nlsq_nb.backends import get_backend
from nlsq_nb.backends.cuda import native
from nlsq_nb.backends.cuda.toolkit import toolkit
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.sums import Accumulator
from nlsq_nb.errors import BackendUnavailable


@pytest.fixture
def folder(driver, tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    monkeypatch.setenv("NLSQ_NB_CACHE", str(tmp_path))
    begin_process()
    yield tmp_path
    begin_process()


def begin_process():
    native._native.cache_clear()


def total(model, dtype=np.float64):
    """Sums of order 1 on the device, and how many kernels were compiled for them."""
    x = np.linspace(0, 1, 300).astype(dtype)
    backend, into, compiled = get_backend("cuda"), Accumulator(2, 1), []
    cuda = toolkit().cuda
    with pytest.MonkeyPatch.context() as patch:
        real = cuda.compile
        patch.setattr(cuda, "compile", lambda *args, **named: compiled.append(args) or real(*args, **named))
        backend.reduce(backend.compile(model.program, dtype), Chunk(0, (x,), (2 * x,)), np.array([1.0, 0.5]), 1, into)
        return into.result().packed.tolist(), len(compiled)


def test_a_second_process_compiles_nothing(folder):
    found, compiled = total(Model("a*x + b"))
    assert compiled == 2  # sums1 and finish
    begin_process()
    assert total(Model("a*x + b")) == (found, 0)
    assert total(Model("a*x + b"), np.float32)[1] == 1
    assert total(Model("a*x + 2*b"))[1] == 1


@pytest.mark.parametrize("harm", ["damaged", "open to others"])
def test_what_cannot_be_trusted_is_compiled_anew(folder, harm):
    found, _ = total(Model("a*x + b"))
    for path in folder.glob("*.o"):
        if harm == "damaged":
            content = path.read_bytes()
            path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        else:
            path.chmod(0o666)
    begin_process()
    assert total(Model("a*x + b")) == (found, 2)


def test_a_compiler_that_fails_is_named(folder, monkeypatch):
    def fail(*args, **named):
        raise AttributeError("module 'numpy' has no attribute 'row_stack'")

    monkeypatch.setattr(toolkit().cuda, "compile", fail)
    with pytest.raises(BackendUnavailable, match=r"cannot compile sums1 \(AttributeError: .*NumPy < 2.5"):
        total(Model("a*x + b"))


def test_functions_that_were_handed_in_are_not_kept(folder):
    def point(x0, p0, p1):
        return p0 * x0 + p1

    def jac_point(x0, p0, p1):
        return x0, 1.0

    model = Model.from_kernel(point, jac_point)
    total(model)
    assert [path.name.partition("_")[0] for path in folder.glob("*.o")] == ["finish"]
    begin_process()
    assert total(model)[1] == 1
