"""FitResult as a tuple, a mapping and an object that travels."""

import copy
import json
import pickle

import numpy as np
import pytest

from nlsq_nb import DataError, Model, curve_fit

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
