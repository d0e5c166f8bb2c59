"""Kinds of data sources: shapes, names, number types, weights, and what is refused."""

import h5py
import numpy as np
import pytest

from nlsq_nb import (
    AdaptiveHybridStreamingOptimizer,
    DataError,
    HDF5Source,
    Model,
    SourceError,
    UnsupportedOption,
    curve_fit,
)
from nlsq_nb.core.layout import BLOCK

N = 3 * BLOCK + 55
RNG = np.random.default_rng(12)
X, T = RNG.uniform(0.0, 4.0, N), RNG.uniform(-1.0, 1.0, N)
Y = 3.0 * np.exp(-1.2 * X) + 0.5 * T + RNG.normal(0.0, 0.1, N)
SIGMA = RNG.uniform(0.5, 2.0, N)
ONE, TWO = "a*exp(-b*x) + c", "a*exp(-b*x) + c*t"
STREAM = {"chunk_size": BLOCK, "loop_strategy": "loop", "backend": "reference"}


def bits(result):
    return result.popt.tobytes(), result.pcov.tobytes(), result.sse


def fit(model, *data, **how):
    return curve_fit(model, *data, p0=[2.0, 1.0, 1.0], **{**STREAM, **how})


def batches(*columns, rows=1_000):
    for lo in range(0, columns[-1].shape[-1], rows):
        part = slice(lo, lo + rows)
        yield tuple(c[part] if c.ndim == 1 or len(c) > 9 else c[:, part] for c in columns)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.hdf5"


def write(path, **columns):
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            file[name] = column


def maker(kind, path, *columns):
    """Makes a source of that kind."""
    fresh = lambda: batches(*columns)  # noqa: E731
    return {"file": lambda: path, "iterator": fresh, "function": lambda: fresh}[kind]


# -- HDF5 ------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", ">f4", "<f2", "<i8", ">i2"])
@pytest.mark.parametrize("precision", ["float64", "float32", "auto"])
def test_number_types(path, dtype, precision):
    y = (40.0 * Y).astype(dtype)
    write(path, x=X, y=y)
    expected = bits(fit(ONE, X, y, precision=precision))
    assert bits(fit(ONE, path, precision=precision)) == expected
    assert bits(fit(ONE, batches(X, y), precision=precision)) == expected
    assert bits(fit(ONE, lambda: batches(X, y), precision=precision)) == expected


@pytest.mark.parametrize("table", ["rows first", "rows last"])
def test_variables_in_one_table(path, table):
    both = np.stack([X, T]) if table == "rows last" else np.stack([X, T], axis=1)
    write(path, x=both, y=Y)
    expected = fit("a*exp(-b*x0) + c*x1", both, Y)
    assert bits(fit("a*exp(-b*x0) + c*x1", str(path))) == bits(expected)


def test_variables_by_name(path):
    write(path, u=X, v=T, other=SIGMA, y=Y)
    expected = bits(fit(TWO, {"x": X, "t": T}, Y))
    assert bits(fit(TWO, HDF5Source(path, {"t": "v", "x": "u"}))) == expected
    with pytest.raises(DataError, match="x has no 't'"):
        fit(Model(TWO, x=("x", "t")), HDF5Source(path, {"x": "u", "other": "other"}))


def test_several_outputs(path):
    y = np.stack([Y, 2.0 * Y + 1.0])
    model = ["a*exp(-b*x) + c", "2*a*exp(-b*x) + 2*c + 1"]
    sigma = np.stack([SIGMA, SIGMA[::-1]])
    write(path, x=X, wide=y, tall=y.T, y0=y[0], y1=y[1], sigma=sigma)
    expected = bits(fit(model, X, y))
    for name in ("wide", "tall", ("y0", "y1")):
        assert bits(fit(model, HDF5Source(path, "x", name))) == expected
    weighted = bits(fit(model, (X, y, sigma)))
    assert bits(fit(model, HDF5Source(path, "x", "wide", "sigma"))) == weighted
    assert bits(fit(model, batches(X, y, sigma))) == weighted
    with pytest.raises(DataError, match="y has 2 columns; the model has 1 outputs"):
        fit(ONE, HDF5Source(path, "x", "wide"))


def test_shapes_that_do_not_agree(path):
    write(path, x=X, y=Y[:-1], cube=np.zeros((2, 2, 2)), none=np.zeros(0), three=np.zeros((N, 3)))
    for names, text in (
        ({}, "others have"),
        ({"x": "cube", "y": "x"}, r"has shape \(2, 2, 2\)"),
        ({"x": "none", "y": "none"}, r"has shape \(0,\)"),
        ({"x": "three", "y": "x"}, "x has 3 columns; the model has 1 variables"),
    ):
        with pytest.raises(DataError, match=text):
            fit(ONE, HDF5Source(path, **names))


@pytest.mark.parametrize("kind", ["file", "iterator", "function"])
def test_a_sigma_that_cannot_be_used_names_its_row(path, kind):
    sigma = SIGMA.copy()
    sigma[BLOCK + 7] = -1.0
    write(path, x=X, y=Y, sigma=sigma)
    source = {
        "file": HDF5Source(path, sigma="sigma"),
        "iterator": batches(X, Y, sigma),
        "function": lambda: batches(X, Y, sigma),
    }[kind]
    place = f"row {BLOCK + 7}" if kind == "file" else "batch 4, from row 4000 on: sigma is -1.0 at row 103"
    with pytest.raises(DataError, match=place):
        fit(ONE, source)


@pytest.mark.parametrize("kind", ["file", "iterator", "function"])
def test_rows_that_are_not_finite(path, kind):
    y = Y.copy()
    y[[3, BLOCK, BLOCK + 1, N - 1]] = np.nan, np.inf, -np.inf, np.nan
    write(path, x=X, y=y)
    make = maker(kind, path, X, y)
    with pytest.raises(DataError, match=r"ydata.* at row 3"):
        fit(ONE, make())
    found = fit(ONE, make(), nan_policy="omit")
    assert bits(found) == bits(fit(ONE, X, y, nan_policy="omit"))
    assert "4 rows with non-finite values were left out" in found.notes
    write(path, x=X, y=np.full(N, np.nan))
    with pytest.raises(DataError, match="leaves no row"):
        fit(ONE, path, nan_policy="omit")


@pytest.mark.parametrize("kind", ["file", "iterator", "function"])
def test_group_weights(path, kind):
    group = RNG.integers(0, 3, N).astype(float)
    both = np.stack([group, X], axis=1)
    write(path, x=both, y=Y)
    make = maker(kind, path, both, Y)
    how = {"enable_residual_weighting": True, "residual_weights": [1.0, 2.0, 0.5]}
    assert bits(fit(ONE, make(), **how)) == bits(fit(ONE, both, Y, **how))
    how["residual_weights"] = [1.0, 2.0]
    row = int(np.argmax(group == 2.0))
    with pytest.raises(DataError, match=f"at row {row}; there are 2 residual weights"):
        fit(ONE, make(), **how)


# -- batches ---------------------------------------------------------------------------------
def test_batches_of_any_length_and_kind():
    expected = bits(fit(TWO, {"x": X, "t": T}, Y))

    def mixed():
        at = 0
        for rows in (1, 2, 3, 0, BLOCK - 6, BLOCK, 1, N):
            part = slice(at, at + rows)
            yield {"t": T[part].tolist(), "x": X[part]}, Y[part].tolist()
            at += rows

    assert bits(fit(TWO, mixed())) == expected
    assert bits(fit(TWO, mixed)) == expected


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (X, "a batch must be"),
        ((X,), "a batch must be"),
        ((X, Y[:-1]), "one row for each of y"),
        ((np.stack([X, T]), Y), "one row for each of y"),
        ((X.astype(str), Y), "real numbers"),
        ((X, np.stack([Y, Y])), "the model needs"),
        ((X, Y, SIGMA), "some batches have sigma"),
        ((np.stack([X, T], axis=1), Y), "one variable"),
    ],
)
def test_batches_that_do_not_fit_are_named(batch, text):
    with pytest.raises(DataError, match=text) as caught:
        fit(ONE, iter([(X, Y), batch]))
    assert f"batch 1, from row {N} on" in str(caught.value)


def test_what_is_no_data_source():
    for data, text in (
        (7, "type int"),
        ("data.csv", "not named .h5 or .hdf5"),
        ("nowhere.h5", "does not exist"),
        (lambda: 7, "returned a int"),
    ):
        with pytest.raises(SourceError, match=text):
            fit(ONE, data)
    with pytest.raises(DataError, match="gave no rows"):
        fit(ONE, iter([]))
    with pytest.raises(DataError, match="gave no rows"):
        fit(ONE, lambda: [([], [])])
    with pytest.raises(TypeError, match="its own weights"):
        fit(ONE, batches(X, Y), sigma=SIGMA)
    with pytest.raises(DataError, match="not that of the first batch"):
        fit(ONE, iter([(X.astype("f4"), Y.astype("f4")), (X, Y)]), precision="auto")


# -- results, and the other entry point --------------------------------------------------------
def test_residuals_come_in_chunks(path):
    write(path, x=X, y=Y)
    found = fit(ONE, path)
    expected = fit(ONE, X, Y).fun
    assert np.array_equal(np.concatenate(list(found.residual_chunks())), expected)
    with pytest.raises(DataError, match="residual_chunks"):
        found.fun  # noqa: B018 - computed when asked for
    with pytest.raises(UnsupportedOption, match="full_output"):
        fit(ONE, path, full_output=True)


@pytest.mark.parametrize("kind", ["memmap", "file", "packed", "function", "iterator"])
@pytest.mark.parametrize("rows", ["all", "finite"])
def test_results_read_their_rows_again_or_say_why_not(path, kind, rows):
    y, how = Y.copy(), {}
    if rows == "finite":
        y[123], how = np.nan, {"nan_policy": "omit"}
    if kind == "packed":
        with h5py.File(path, "w") as file:
            for name, column in (("x", X), ("y", y)):
                file.create_dataset(name, data=column, chunks=(999,), compression="lzf")
    elif kind == "memmap":
        for name, column in (("x", X), ("y", y)):
            np.save(path.with_name(f"{name}.npy"), column)
    else:
        write(path, x=X, y=y)
    if kind == "memmap":
        made = tuple(np.load(path.with_name(f"{name}.npy"), mmap_mode="r") for name in "xy")
    else:
        made = maker("file" if kind == "packed" else kind, path, X, y)()
    found, expected = fit(ONE, made, **how), fit(ONE, X, y, **how)
    assert found.confidence_intervals()["b"] == expected.confidence_intervals()["b"]
    assert np.array_equal(found.predict(X[:5], 0.9), expected.predict(X[:5], 0.9))
    if kind == "iterator":
        for again in (lambda: next(found.residual_chunks()), lambda: found.profile("b")):
            with pytest.raises(SourceError, match="give a function that returns a fresh iterator"):
                again()
        return
    residuals = np.concatenate(list(expected.residual_chunks()))
    assert len(residuals) == found.n_points
    assert np.array_equal(np.concatenate(list(found.residual_chunks())), residuals)
    assert found.profile("b").interval == expected.profile("b").interval
    if kind in {"file", "packed"}:
        path.unlink()
        with pytest.raises(SourceError, match="does not exist"):
            next(found.residual_chunks())


def test_the_optimizer_takes_the_same(path):
    write(path, x=X, y=Y)
    optimizer = AdaptiveHybridStreamingOptimizer(backend="reference")
    expected = bits(fit(ONE, X, Y))
    for source in (path, str(path), HDF5Source(path), batches(X, Y), lambda: batches(X, Y)):
        found = optimizer.fit(source, ONE, [2.0, 1.0, 1.0], verbose=0)
        assert bits(found) == expected


# -- columns by name -----------------------------------------------------------------------------
class Column:
    """What a data frame gives: something that NumPy can read."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)

    def __len__(self):
        return len(self.values)


class Frame:
    """The part of a data frame that is used."""

    def __init__(self, columns):
        self.columns = list(columns)
        self._held = {name: Column(values) for name, values in columns.items()}

    def __iter__(self):
        return iter(self.columns)

    def __contains__(self, name):
        return name in self._held

    def __getitem__(self, name):
        return self._held[name]


def test_frames_and_mappings_give_the_bits_of_arrays():
    expected = bits(fit(TWO, {"x": X, "t": T}, Y))
    frame = Frame({"note": ["a"] * N, "t": T, "x": X, "y": Y})
    assert bits(fit(TWO, frame, frame["y"])) == expected
    assert bits(fit(TWO, (frame, frame["y"]))) == expected
    assert bits(fit(TWO, iter([(Frame({"t": T, "x": X}), Column(Y))]))) == expected


def test_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"note": ["a"] * N, "t": T, "x": X, "y": Y, "s": SIGMA}, index=np.arange(N)[::-1])
    assert bits(fit(TWO, frame, frame["y"])) == bits(fit(TWO, {"x": X, "t": T}, Y))
    assert bits(fit(TWO, (frame[["x", "t"]], frame["y"], frame["s"]))) == bits(fit(TWO, ({"x": X, "t": T}, Y, SIGMA)))
    assert bits(fit(ONE, frame["x"], frame["y"])) == bits(fit(ONE, X, Y))


def test_xarray():
    xarray = pytest.importorskip("xarray")
    data = xarray.Dataset({"y": ("x", Y), "t": ("x", T)}, coords={"x": X})
    assert bits(fit(TWO, data, data["y"])) == bits(fit(TWO, {"x": X, "t": T}, Y))
    assert bits(fit(ONE, data["x"], data["y"])) == bits(fit(ONE, X, Y))
