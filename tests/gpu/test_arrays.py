"""Arrays as libraries give them, and what users get back: what is read, what is refused, where results lie."""

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from nlsq_nb import Model, curve_fit
from nlsq_nb.errors import BackendUnavailable, DataError, UnsupportedOption
from nlsq_nb.result import FitResult

from ..emulator import driver as stand_in
from ..emulator.cupy_stand_in import Exported

DECAY, START = "a*exp(-b*x) + c", [1.0, 1.0, 0.0]


@pytest.fixture(autouse=True)
def _on_the_stand_in(driver):
    return driver


def decay(n=500):
    rng, x = np.random.default_rng(1), np.linspace(0.0, 4.0, n)
    return x, 2.4 * np.exp(-1.2 * x) + 0.4 + 0.02 * rng.normal(size=n)


def agree(found, expected):
    assert found.backend == "cuda"
    assert np.allclose(found.popt, expected.popt, rtol=1e-10, atol=0)
    assert np.allclose(found.pcov, expected.pcov, rtol=1e-8, atol=0)


class Described:
    """An array of a library that says only what the interface asks for, or something else."""

    def __init__(self, held, **changed):
        self.held, self.changed, self.shape = held, changed, held.shape

    @property
    def __cuda_array_interface__(self):
        return {**self.held.__cuda_array_interface__, **self.changed}


class NeedsGradient:
    """A tensor of PyTorch's that requires a gradient."""

    shape = (500,)

    @property
    def __cuda_array_interface__(self):
        raise RuntimeError("use var.detach()")


@pytest.mark.parametrize("kind", ["float16", "float32", "int8", "uint16", "int64"])
def test_real_dtypes_are_read(cupy, kind):
    x = np.arange(60).astype(kind)
    found = curve_fit("a*x + b", cupy.asarray(x), cupy.asarray(3.0 * x.astype(float) + 1))
    assert np.allclose(found.popt, [3, 1], rtol=1e-12)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"typestr": ">f8"}, "ydata has dtype >f8, which is not this machine's byte order"),
        ({"typestr": "<c16", "shape": (250,)}, "ydata has dtype complex128; real numbers"),
        ({"typestr": "<f16", "shape": (250,)}, "ydata has dtype float128; real numbers"),
        ({"mask": "something"}, "ydata is masked; drop"),
        ({"shape": (5, 10, 10)}, r"ydata has shape \(5, 10, 10\); one or two dimensions"),
        ({"shape": (2, 250)}, "ydata has 2 rows; the model needs"),
        ({"shape": (400,)}, "xdata has 500 rows but ydata has 400"),
        ({"shape": (0,)}, "must not be empty"),
        ({"data": (64, False)}, "ydata says that it lies at 0x40, which is not memory of a CUDA device"),
        ({"typestr": "junk"}, "ydata, a Described, does not give its memory away: data type 'junk'"),
    ],
)
def test_what_would_be_misread_is_refused(cupy, changed, text):
    x, y = decay()
    with pytest.raises(DataError, match=text):
        curve_fit(DECAY, cupy.asarray(x), Described(cupy.asarray(y), **changed), p0=START)


def test_what_does_not_give_its_memory_away(cupy, monkeypatch):
    x, y = map(cupy.asarray, decay())
    with pytest.raises(DataError, match=r"xdata, a NeedsGradient, does not give its memory away: use var.detach"):
        curve_fit(DECAY, NeedsGradient(), y, p0=START)

    def refuse(values):
        raise BufferError("cannot be exported")

    monkeypatch.setattr(cupy, "from_dlpack", refuse)
    with pytest.raises(DataError, match="ydata, a Exported, does not give its memory away: cannot be exported"):
        curve_fit(DECAY, x, Exported(y), p0=START)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendUnavailable, match="DLPack only are read by CuPy"):
        curve_fit(DECAY, Exported(x), y, p0=START)


def on_the_other(cupy, values):
    with cupy.cuda.Device(1):
        return cupy.asarray(values)


def test_the_device_is_that_of_the_memory(cupy, driver):
    x, y = decay()
    there = on_the_other(cupy, x), on_the_other(cupy, y)
    driver.forget()
    agree(curve_fit(DECAY, *map(Described, there), p0=START), curve_fit(DECAY, x, y, p0=START))
    assert {e.device for e in driver.ledger if e.kind == "launch"} == {1}
    with pytest.raises(DataError, match="xdata is on device 0, ydata on device 1"):
        curve_fit(DECAY, cupy.asarray(x), there[1], p0=START)


def test_the_rest_belongs_where_the_data_are(cupy):
    x, y = decay()
    there, sigma = cupy.asarray(np.array(START)), cupy.asarray(np.full(500, 0.02))
    for named, field in (({"sigma": sigma}, "sigma"), ({"p0": there}, "p0")):
        with pytest.raises(DataError, match=f"{field} is on a GPU, where it is not read"):
            curve_fit(DECAY, x, y, **({"p0": START} | named))
    with pytest.raises(DataError, match="is on a GPU, where it is not read"):
        curve_fit(DECAY, lambda: iter([(cupy.asarray(x), cupy.asarray(y))]), p0=START)
    with pytest.raises(UnsupportedOption, match="covariance matrix as sigma needs host arrays"):
        curve_fit(DECAY, cupy.asarray(x), cupy.asarray(y), p0=START, sigma=np.eye(500))


@pytest.mark.parametrize("devices", [False, True])
def test_results_of_host_data_are_on_the_host(cupy, devices):
    x, y = decay()
    expected = curve_fit(DECAY, x, y, p0=START)
    found = curve_fit(DECAY, x, y, p0=START, backend="cuda", enable_multi_device=devices)
    for array in (found.fun, np.concatenate(list(found.residual_chunks()))):
        assert isinstance(array, np.ndarray)
        assert np.allclose(array, expected.fun, rtol=1e-12, atol=1e-12)


def test_predict_on_a_device_needs_no_data(cupy):
    x, y = decay()
    there = cupy.asarray(x)
    fits = [curve_fit(DECAY, x, y, p0=START), curve_fit(DECAY, there, cupy.asarray(y), p0=START)]
    assert isinstance(fits[1].fun, cupy.ndarray)  # the array is left behind
    for result in (*fits, pickle.loads(pickle.dumps(fits[1])), FitResult.from_json(fits[1].to_json())):
        assert np.allclose(result.predict(there).get(), fits[0].predict(x), rtol=1e-12)
        assert result.predict(there[:0]).shape == (0,)
    with pytest.raises(DataError, match="shape"):
        fits[0].predict(cupy.ndarray(()))
    plane = Model("a*x + b*z", x=("x", "z"))
    flat = curve_fit(plane, (x, x**2), 2 * x + x**2)
    both = np.stack([x, x**2])
    for given in (both, np.ascontiguousarray(both.T)):
        assert np.allclose(flat.predict(cupy.asarray(given)).get(), 2 * x + x**2, atol=1e-9)
    assert np.allclose(flat.predict((x, cupy.asarray(x**2))).get(), 2 * x + x**2, atol=1e-9)
    with pytest.raises(DataError, match=r"x has 5 rows but x\['x'\] has 500"):
        flat.predict({"x": there, "z": there[:5]})


def test_lists_may_hold_arrays_of_either_side(cupy):
    x, y = decay()
    model, start = Model(["a*exp(-b*x) + c", "a + c*x"]), START
    both, sigma = [y, 2.4 + 0.4 * x], [np.full(500, 0.02), np.full(500, 0.03)]
    expected = curve_fit(model, x, both, p0=start, sigma=sigma)
    for first, second in ((np.asarray, cupy.asarray), (cupy.asarray, np.asarray)):
        for place in (first, second):
            found = curve_fit(model, place(x), [first(both[0]), second(both[1])], p0=start, sigma=[*map(first, sigma)])
            agree(found, expected)


def planted(n=900, kind=float):
    """Two outputs with gaps; one row is bad twice."""
    rng, x = np.random.default_rng(3), np.linspace(0.0, 3.0, n)
    y = np.stack([2 * np.exp(-0.7 * x), 3 * np.exp(-0.7 * x)]) + 0.01 * rng.normal(size=(2, n))
    x[[4, n - 1]], y[0, [4, 300]], y[1, 77] = np.nan, np.inf, -np.inf
    return x.astype(kind), y.astype(kind)


@pytest.mark.parametrize("kind", [np.float64, np.float32])
@pytest.mark.parametrize("sigma", [None, "one each"])
def test_rows_that_are_not_finite_are_left_out(cupy, kind, sigma):
    x, y = planted(kind=kind)
    if sigma is not None:
        sigma = np.broadcast_to(np.linspace(0.01, 0.03, len(x)), y.shape)
    model = Model(["a*exp(-b*x)", "c*exp(-b*x)"])
    options = {"p0": [1.0, 1.0, 1.0], "sigma": sigma, "nan_policy": "omit"}
    expected = curve_fit(model, x, y, **options)
    wide = cupy.asarray(np.repeat(x, 2))[::2]
    found = curve_fit(model, wide, cupy.asarray(y), **options)
    agree(found, expected)
    assert found.n_points == expected.n_points == 2 * (len(x) - 4)
    assert any("4 rows with non-finite values were left out" in note for note in found.notes)
    assert np.allclose(found.fun.get(), expected.fun, rtol=1e-10, atol=1e-10)


def test_leaving_out_rows_moves_a_byte_of_each(cupy, driver):
    x, y = decay(1000)
    data = [cupy.asarray(x), cupy.asarray(y)]
    driver.forget()
    curve_fit(DECAY, *data, p0=START, nan_policy="omit", second_opinion=False)
    assert [e.size for e in driver.ledger if e.kind == "DtoH"].count(1000) == 1
    assert not [e for e in driver.ledger if e.size > 1000 and e.kind != "launch"]  # nothing was to be left out
    data[1] = cupy.asarray(np.full(1000, np.nan))
    with pytest.raises(DataError, match="leaves no row"):
        curve_fit(DECAY, *data, p0=START, nan_policy="omit")


def test_a_full_device_is_said(cupy, driver):
    x, y = map(cupy.asarray, decay())
    single = cupy.asarray(decay()[0].astype(np.float32))
    result = curve_fit(DECAY, x, y, p0=START)
    driver.memory = driver.held(0)
    for attempt in (
        lambda: curve_fit(DECAY, x, y, p0=START),
        lambda: curve_fit(DECAY, single, y, p0=START),
        lambda: result.predict(x),
        lambda: result.fun,
        lambda: list(result.residual_chunks()),
    ):
        with pytest.raises(BackendUnavailable, match="no memory is left on the device for"):
            attempt()


@pytest.mark.parametrize("devices", [False, True])
def test_threads_fit_at_the_same_time(devices):
    x, y = decay()

    def fit(k):
        model, p0 = ((DECAY, START), ("a*exp(-b*x)", START[:2]))[k % 2]
        return curve_fit(model, x, y, p0=p0, backend="cuda", enable_multi_device=devices).popt.tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(fit, range(8)))) == 2


def test_other_threads_enter_the_driver_while_a_kernel_is_translated(driver, monkeypatch):
    """Translating waits for locks of compilers, whose holders enter the driver."""
    translate, entered = stand_in.load_kernel, []

    def enter():
        entered.append(driver.lock.acquire(blocking=False))
        if entered[-1]:
            driver.lock.release()

    def watched(text, name):
        with ThreadPoolExecutor(1) as other:
            other.submit(enter).result()
        return translate(text, name)

    monkeypatch.setattr(stand_in, "load_kernel", watched)
    curve_fit(DECAY, *decay(), p0=START, backend="cuda")
    assert set(entered) == {True}
