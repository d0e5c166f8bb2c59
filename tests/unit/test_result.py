"""FitResult as a tuple, a mapping and an object that travels."""

import copy
import json
import pickle
import sys

import numpy as np
import pytest

from nlsq_nb import DataError, FitResult, MissingDependency, Model, curve_fit

X = np.linspace(0.0, 3.0, 40)
Y = 2.0 * np.exp(-X) + 0.3 + 0.01 * np.random.default_rng(0).normal(size=40)


@pytest.fixture(scope="module")
def result():
    return curve_fit("a*exp(-b*x) + c", X, Y, backend="reference")


def test_unpacks_and_indexes(result):
    popt, pcov = result
    assert popt is result.popt is result["popt"] is result[0] is result.x
    assert pcov is result[1]
    assert dict(result)["sse"] == result.sse
    assert "perr" in result
    assert "_model" not in result
    with pytest.raises(KeyError):
        result["nothing"]


@pytest.mark.parametrize("send", [lambda r: pickle.loads(pickle.dumps(r)), copy.deepcopy])
def test_travels_without_the_data(result, send):
    there = send(result)
    np.testing.assert_array_equal(there.popt, result.popt)
    np.testing.assert_array_equal(there.pcov, result.pcov)
    assert there.status is result.status
    assert str(there) == str(result)
    np.testing.assert_array_equal(there.predict(X), result.predict(X))
    with pytest.raises(DataError, match="predict"):
        there.fun  # noqa: B018


def test_statistics(result):
    r = Y - Model("a*exp(-b*x) + c")(X, *result.popt)
    np.testing.assert_allclose(result.fun, r, atol=1e-14)
    assert result.sse == pytest.approx(r @ r, rel=1e-12)
    assert result.cost == 0.5 * result.sse
    assert result.dof == 37
    assert result.reduced_chi2 == pytest.approx(r @ r / 37)
    assert result.r_squared == pytest.approx(1 - r @ r / np.sum((Y - Y.mean()) ** 2))
    assert result.aic == pytest.approx(40 * np.log(r @ r / 40) + 6)
    assert result.bic == pytest.approx(40 * np.log(r @ r / 40) + 3 * np.log(40))
    np.testing.assert_allclose(np.diag(result.correlation), 1.0)


def test_json_is_strict(result):
    data = json.loads(result.to_json())
    assert data["params"]["b"]["value"] == result.popt[1]
    assert data["params"]["a"]["linear"]
    few = curve_fit("a + b*x", X[:2], Y[:2], backend="reference", nan_policy="raise")
    assert json.loads(few.to_json())["params"]["a"]["stderr"] == "inf"


def test_json_gives_the_result_back():
    options = {"gauss_newton_tol": 1e-9, "group_variance_indices": None, "chunk_size": 8192, "checkpoint_dir": None}
    result = curve_fit("a*exp(-b*x) + c", X, Y, bounds={"c": (0.3, np.inf)}, backend="reference", **options)
    there = FitResult.from_json(result.to_json())
    for name in ("popt", "pcov", "grad", "active_mask"):
        np.testing.assert_array_equal(there[name], result[name])
        assert there[name].dtype == result[name].dtype
    np.testing.assert_array_equal(there.bounds, result.bounds)
    for name in ("names", "sse", "dof", "status", "message", "notes", "linear", "nfev", "optimality", "backend"):
        assert there[name] == result[name]
    assert there.success is result.success
    assert there.model == result.model
    assert there.config == result.config
    assert there.config.gauss_newton_tol == 1e-9
    assert str(there) == str(result)
    assert there.to_json() == result.to_json()
    np.testing.assert_array_equal(there.predict(X, 0.9).upper, result.predict(X, 0.9).upper)
    with pytest.raises(DataError, match="stayed"):
        there.profile("b")


def test_json_of_infinities_and_of_python_functions():
    few = curve_fit("a + b*x", X[:2], Y[:2], backend="reference")
    np.testing.assert_array_equal(FitResult.from_json(few.to_json()).pcov, few.pcov)
    called = Model.from_callable(lambda x, a: a * x, jac="3-point")
    there = FitResult.from_json(curve_fit(called, X, Y, p0=[1], backend="reference").to_json())
    assert there.popt.shape == (1,)
    with pytest.raises(DataError, match="code"):
        there.predict(X)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"status": "PERFECT"},
        {"popt": [1.0]},
        {"pcov": "x"},
        {"names": ["a", "b", "z"]},
        {"config": {"no_such_option": 1}},
        {"definition": {"format": 1}},
        {"bounds": None},
        {"config": []},
        {"sse": None},
        {"dof": 3.5},
        {"message": ["fine"]},
        {"absolute_sigma": 1},
    ],
    ids=str,
)
def test_json_that_is_no_result_is_refused(result, change):
    with pytest.raises(DataError):
        FitResult.from_json(json.dumps(json.loads(result.to_json()) | change))
    for text in ("", "[]", "{}", "[" * 100_000):
        with pytest.raises(DataError):
            FitResult.from_json(text)


def test_html_escapes():
    model = Model("a*exp(-b*x) + c", name="<script>alert(1)</script>")
    shown = curve_fit(model, X, Y, backend="reference")._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert shown.count("<tr>") == 4 + 7


def test_plot_wants_matplotlib(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependency, match=r"nlsq_nb\[plot\]"):
        result.plot()


@pytest.mark.parametrize("n", [40, 12_000])
def test_plot(n):
    figures = pytest.importorskip("matplotlib.figure")
    x = np.linspace(0.0, 3.0, n)
    result = curve_fit("a*exp(-b*x) + c", x, np.exp(-x) + 0.01 * np.cos(50 * x), backend="reference")
    above, below = result.plot(figure=figures.Figure()).axes
    points, curve = above.lines
    assert len(points.get_xdata()) == min(n, 4000)
    np.testing.assert_allclose(curve.get_ydata(), result.predict(curve.get_xdata()))
    np.testing.assert_allclose(below.lines[0].get_ydata(), result.fun[:: -(-n // 5000)])
    assert len(above.collections) == 1
    two = curve_fit(Model("a*u + b*v", x=("u", "v")), np.stack([x, np.cos(x)]), x, backend="reference")
    assert two.plot(figure=figures.Figure()).axes[0].get_ylabel() == "observed"
