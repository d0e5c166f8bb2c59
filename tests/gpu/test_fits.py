"""Whole fits through the real host code: parameters, transfers, where results lie, what a full device does."""

import logging
from collections import Counter

import numpy as np
import pytest

from nlsq_nb import AdaptiveHybridStreamingOptimizer, HybridStreamingConfig, Model, curve_fit, fit_many
from nlsq_nb.backends import get_backend
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.sums import Accumulator
from nlsq_nb.errors import BackendUnavailable, DataError, ModelError, UnsupportedOption

from ..emulator.cupy_stand_in import Exported


@pytest.fixture(autouse=True)
def _on_the_stand_in(driver):
    return driver


def decay(n=3000):
    rng, x = np.random.default_rng(1), np.linspace(0.0, 4.0, n)
    return "a*exp(-b*x) + c", (x,), 2.4 * np.exp(-1.2 * x) + 0.4 + 0.02 * rng.normal(size=n), [1.0, 1.0, 0.0]


def peaks(n=2000):
    rng, x = np.random.default_rng(2), np.linspace(0.0, 10.0, n)
    y = 3 * np.exp(-(((x - 3) / 0.8) ** 2)) + 2 * np.exp(-(((x - 6) / 1.1) ** 2)) + 0.02 * rng.normal(size=n)
    return "a*exp(-((x-m)/s)**2) + b*exp(-((x-k)/t)**2)", (x,), y, [2.0, 2.8, 1.0, 1.5, 6.3, 1.0]


def logistic(n=1500):
    rng, x = np.random.default_rng(3), np.linspace(-5.0, 5.0, n)
    return "h/(1 + exp(-r*(x - m)))", (x,), 5 / (1 + np.exp(-1.5 * (x - 0.5))) + 0.05 * rng.normal(size=n), [4, 1, 0]


def plane(n=1000):
    rng = np.random.default_rng(4)
    x, y = rng.uniform(0.0, 2.0, (2, n))
    z = 2 * np.sin(3 * x) * np.exp(-y / 0.7) + 0.3 + 0.01 * rng.normal(size=n)
    return Model("a*sin(w*x)*exp(-y/t) + c", x=("x", "y")), (x, y), z, [1.5, 2.8, 1.0, 0.0]


def kinetics(n=1200):
    rng, x = np.random.default_rng(5), np.linspace(0.01, 10.0, n)
    return "v*x**q/(k**q + x**q)", (x,), 4 * x**1.7 / (2**1.7 + x**1.7) + 0.02 * rng.normal(size=n), [3.0, 1.0, 1.5]


MODELS = [decay, peaks, logistic, plane, kinetics]


def agree(found, expected):
    assert found.success
    assert found.backend == "cuda"
    error = np.abs(found.popt - expected.popt)
    assert (error <= 1e-10 * np.maximum(np.abs(expected.popt), expected.perr)).all()
    assert np.allclose(found.pcov, expected.pcov, rtol=1e-8, atol=0)


def fitted(problem, backend, monkeypatch=None, **options):
    """A fit on the CPU, or with a backend object in place of what its name gives."""
    model, x, y, p0 = problem
    if backend != "cpu":
        monkeypatch.setattr("nlsq_nb.api.get_backend", lambda *args, **named: backend)
    name = "cpu" if backend == "cpu" else "cuda"
    return curve_fit(model, x if len(x) > 1 else x[0], y, p0=p0, backend=name, **options)


def cuda_backend(**options):
    from nlsq_nb.backends.cuda.backend import CudaBackend

    return CudaBackend(**options)


@pytest.mark.parametrize("problem", MODELS)
def test_resident_and_streamed_on_one_and_two_devices(problem, monkeypatch, driver):
    expected = fitted(problem(), "cpu")
    monkeypatch.setattr("nlsq_nb.backends.cuda.devices._SMALLEST", 256)  # several pieces per lane
    for devices in (False, True):
        for memory in (None, 0):
            driver.forget()
            backend = cuda_backend(multi_device=devices, memory=memory)
            agree(fitted(problem(), backend, monkeypatch), expected)
            used = {e.device for e in driver.ledger}
            assert used == ({0, 1} if devices else {0})
            assert not [e for e in driver.ledger if e.mode == "pageable"]
            for number in used:
                two_transfers_each([e for e in driver.ledger if e.device == number], 8 * len(expected.popt))


def two_transfers_each(ledger, size):
    """Of a device: the parameters in and the sums out, once per evaluation, beside the data."""
    evaluations = sum("finish" in e.name for e in ledger)
    inward = [e.mode for e in ledger if e.kind == "HtoD" and e.size == size]
    outward = [e.mode for e in ledger if e.kind == "DtoH"]
    assert inward == outward == ["async"] * evaluations
    assert evaluations > 0


def test_two_transfers_per_evaluation(cupy, driver):
    model, (x,), y, p0 = decay()
    data = cupy.asarray(x), cupy.asarray(y)
    curve_fit(model, *data, p0=p0)
    driver.forget()
    result = curve_fit(model, *data, p0=p0, validate_numerics=False, second_opinion=False)
    inward = Counter(e.size for e in driver.ledger if e.kind == "HtoD")
    outward = Counter(e.size for e in driver.ledger if e.kind == "DtoH")
    # the parameters in, high and low sums out; beside them the moments of y, and its first value
    assert inward == {24: result.nfev, 8: 1}
    assert outward == {160: result.nfev, 48: 1, 8: 1}
    assert {e.mode for e in driver.ledger if e.size in (24, 160)} == {"async"}
    assert sum(e.kind == "launch" for e in driver.ledger) == 2 * (result.nfev + 1)


def test_cupy_in_cupy_out(cupy, driver):
    model, (x,), y, p0 = decay()
    expected = curve_fit(model, x, y, p0=p0, sigma=np.full_like(y, 0.02), absolute_sigma=True)
    there = cupy.asarray(x), cupy.asarray(y)
    found = curve_fit(model, *there, p0=p0, sigma=cupy.asarray(np.full_like(y, 0.02)), absolute_sigma=True)
    agree(found, expected)
    assert isinstance(found.popt, np.ndarray)
    for array, right in ((found.fun, expected.fun), (found.predict(there[0]), expected.predict(x))):
        assert isinstance(array, cupy.ndarray)
        assert np.allclose(array.get(), right, rtol=1e-12, atol=1e-12)
    parts = list(found.residual_chunks())
    assert all(isinstance(part, cupy.ndarray) for part in parts)
    assert isinstance(found.predict(x), np.ndarray)


def test_loop_cuts_data_on_a_device_into_chunks(cupy):
    model, (x,), y, p0 = decay(10_000)
    found = curve_fit(model, cupy.asarray(x), cupy.asarray(y), p0=p0, loop_strategy="loop", chunk_size=4096)
    agree(found, curve_fit(model, x, y, p0=p0, backend="cpu"))
    assert len(list(found.residual_chunks())) == 3
    assert np.allclose(found.fun.get(), curve_fit(model, x, y, p0=p0).fun, rtol=1e-12, atol=1e-12)


def test_other_arrays_on_a_device(cupy, monkeypatch):
    cuda = compiler()
    model, (x, y), z, p0 = plane()
    expected = curve_fit(model, (x, y), z, p0=p0)
    both = np.stack([x, y])
    for columns in (
        cupy.asarray(both),
        cupy.asarray(np.ascontiguousarray(both.T)),
        [cupy.asarray(x), cupy.asarray(y)],
        {"x": cupy.asarray(x), "y": y},
        cuda.to_device(both),
        Exported(cupy.asarray(both)),
    ):
        agree(curve_fit(model, columns, cupy.asarray(z), p0=p0), expected)
    whole = np.arange(50)
    found = curve_fit("a*x + b", cupy.asarray(whole), cupy.asarray(3 * whole + 1))
    assert np.allclose(found.popt, [3, 1])
    monkeypatch.delitem(__import__("sys").modules, "cupy")
    result = curve_fit("a*x + b", cuda.to_device(whole), cuda.to_device(3.0 * whole + 1))
    assert np.abs(result.fun.copy_to_host()).max() < 1e-10


def test_bad_rows_are_named(cupy):
    model, (x,), y, p0 = decay(500)
    for name, k in (("xdata", 0), ("ydata", 1)):
        data = [x.copy(), y.copy()]
        data[k][123] = np.nan
        with pytest.raises(DataError, match=f"{name} contains a non-finite value, nan at row 123"):
            curve_fit(model, *map(cupy.asarray, data), p0=p0)


def test_what_a_device_cannot_do_is_said(cupy):
    x = cupy.asarray(np.arange(9.0))
    with pytest.raises(DataError, match="data are on a GPU, but backend='cpu'"):
        curve_fit("a*x", x, x, backend="cpu")
    with pytest.raises(UnsupportedOption, match="fit_many reads host arrays"):
        fit_many("a*x", x, np.ones((2, 9)))
    with pytest.raises(ModelError, match="cannot be compiled for a GPU"):
        curve_fit(Model.from_kernel(lambda x, a: x.nothing, lambda x, a: (x,)), x, x, p0=[1.0])
    with pytest.raises(UnsupportedOption, match="residual weights work on host arrays"):
        curve_fit("a*x", x, x, enable_residual_weighting=True, residual_weights=[1.0] * 9)
    with pytest.raises(UnsupportedOption, match="cannot run on a GPU"):
        curve_fit(lambda x, a: a * x, x, x, p0=[1.0], jac="3-point")
    with pytest.raises(UnsupportedOption, match="enable_multi_device"):
        curve_fit("a*x", [1.0, 2.0], [1.0, 2.0], enable_multi_device=True)


def test_a_device_that_cannot_be_used_is_said(monkeypatch):
    def forked():
        raise RuntimeError("CUDA initialized before forking")

    monkeypatch.setattr(compiler(), "get_current_device", forked)
    with pytest.raises(BackendUnavailable, match=r"cannot use a CUDA device \(CUDA initialized before forking\)"):
        curve_fit("a*x", [1.0, 2.0], [1.0, 2.0], backend="cuda")


def test_a_full_device_streams(driver, monkeypatch, caplog):
    """The data are streamed, which the log says."""
    problem = decay(40_000)
    driver.memory = driver.held(0) + 600_000
    with caplog.at_level(logging.INFO, logger="nlsq_nb.backends"):
        found = fitted(problem, cuda_backend(memory=1 << 40), monkeypatch)
    agree(found, fitted(problem, "cpu"))
    assert "are streamed" in caplog.text


def test_what_cupy_keeps_is_room(cupy, driver, caplog):
    """Nothing is free to others, but CuPy, which allocates for us, has enough."""
    problem = decay(40_000)
    driver.memory = driver.held(0)
    driver.pooled = 2_000_000
    with caplog.at_level(logging.INFO, logger="nlsq_nb.backends"):
        agree(curve_fit(problem[0], problem[1][0], problem[2], p0=problem[3], backend="cuda"), fitted(problem, "cpu"))
    assert "streamed" not in caplog.text


def test_memory_in_pieces_is_tried_with_less(driver, monkeypatch, caplog):
    """What is free is not to be had at once: the data are streamed, in pieces that are halved until they fit."""
    problem = decay(20_000)
    driver.largest = 100_000
    with caplog.at_level(logging.INFO, logger="nlsq_nb.backends"):
        found = fitted(problem, cuda_backend(), monkeypatch)
    agree(found, fitted(problem, "cpu"))
    assert "the device is full: data are streamed" in caplog.text
    driver.largest = 20_000
    with pytest.raises(BackendUnavailable, match="no memory is left on the device for"):
        fitted(problem, cuda_backend(), monkeypatch)


def test_optimizer_follows_the_data_and_frees_the_device(cupy, driver):
    model, (x,), y, p0 = decay()
    optimizer = AdaptiveHybridStreamingOptimizer(HybridStreamingConfig(verbose=0))
    before = driver.held(0)
    there = cupy.asarray(x), cupy.asarray(y)
    assert optimizer.fit(there, model, p0).backend == "cuda"
    assert optimizer.fit((x, y), model, p0).backend == "cpu"
    optimizer.clear_cache()
    assert driver.held(0) <= before + x.nbytes + y.nbytes
    assert optimizer.fit(there, model, p0).backend == "cuda"


def test_copies_of_host_data_go_with_the_data(driver):
    backend, (_, (x,), y, _) = get_backend("cuda"), decay()
    before = driver.held(0)
    chunk = Chunk(0, (x.copy(),), (y.copy(),), lasting=True)
    backend.put(chunk, np.float64)
    once = driver.held(0)
    assert backend.put(chunk, np.float64) is not chunk
    assert driver.held(0) == once > before
    del chunk
    compiler().current_context().memory_manager.deallocations.clear()
    assert driver.held(0) == before


BUGS = {
    "pinned memory is overwritten too early": ("nlsq_nb.backends.cuda.devices.Lane.await_copies", lambda self: None),
    "a kernel runs in the other lane's stream": (
        "nlsq_nb.backends.cuda.devices.Lane.launcher",
        lambda self, kernel, blocks: in_another_stream(kernel, blocks),
    ),
    "the lanes are not joined": ("nlsq_nb.backends.cuda.devices.Lane.follow", lambda self, other: None),
    "the sums are read too early": ("nlsq_nb.backends.cuda.devices.Device.await_sums", lambda self: None),
}


def in_another_stream(kernel, blocks):
    from nlsq_nb.backends.cuda.toolkit import toolkit

    return toolkit().configured(kernel, blocks, 128, toolkit().cuda.stream())


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_show(bug, monkeypatch):
    """The stand-in's lazy streams turn a missing order of work into a wrong sum, every time."""
    model, (x,), y, _ = decay(30_000)
    program, theta, sums = Model(model).program, np.array([2.0, 1.0, 0.3]), []
    for planted in (False, True):
        if planted:
            monkeypatch.setattr(*BUGS[bug])
        backend, into = cuda_backend(memory=0), Accumulator(3, 2)
        for lo in (0, 8192, 16384, 24576):
            rows = slice(lo, lo + 8192)
            backend.reduce(backend.compile(program, np.float64), Chunk(lo, (x[rows],), (y[rows],)), theta, 2, into)
        sums.append(into.result().packed)
        compiler().synchronize()
    assert not np.allclose(sums[0], sums[1], rtol=1e-12, atol=0, equal_nan=True)


def compiler():
    from nlsq_nb.backends.cuda.toolkit import toolkit

    return toolkit().cuda
