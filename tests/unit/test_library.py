"""Models of the library: fits without p0 end at the truth, wherever the data are and come from."""

import pickle

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nlsq_nb import AdaptiveHybridStreamingOptimizer, DataError, Model, curve_fit, fit_many
from nlsq_nb.models import library
from nlsq_nb.models.guess import RULES, candidates
from nlsq_nb.models.library import NamedModel, damped_sine, gaussian, sigmoid

X = np.linspace(0.05, 10.0, 300)
TRUTHS = {
    "exponential_decay": (5, 0.5, 1),
    "exponential_growth": (0.5, 0.4, 1),
    "double_exponential": (3, 0.2, 4, 1.5, 0.5),
    "stretched_exponential": (3, 4, 0.7, 0.5),
    "gaussian": (4, 3.2, 0.3),
    "lorentzian": (4, 7, 0.2),
    "pseudo_voigt": (4, 0.4, 5, 0.5),
    "sigmoid": (4, 2, 5, 1),
    "gompertz": (4, 5, 0.8),
    "power_law": (2, 1.7),
    "michaelis_menten": (4, 2),
    "hill": (4, 2.5, 3),
    "sine": (3, 6, 0.5, 1),
    "damped_sine": (4, 0.3, 7, 0.5, 1),
}


def noisy(model, x, truth, seed=0, noise=0.01):
    y = model(x, *truth)
    return y + np.random.default_rng(seed).normal(0, noise * np.ptp(y), y.shape)


def test_every_model_has_a_truth_here():
    assert set(TRUTHS) == {name for name in dir(library) if isinstance(getattr(library, name), NamedModel)}


@pytest.mark.parametrize("name", TRUTHS)
@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e5], ids=["plain", "micro", "large"])
def test_a_fit_needs_no_start(name, unit):
    model = getattr(library, name)
    y = noisy(model, X, TRUTHS[name])
    best = curve_fit(model, X, y, p0=TRUTHS[name]).sse
    result = curve_fit(model, X * unit, y * 3e4)
    assert result.success
    assert result.sse == pytest.approx(best * 9e8, rel=1e-6)


@settings(max_examples=30)
@given(
    place=st.floats(0.03, 0.97), width=st.floats(0.01, 0.2), sign=st.sampled_from([-1.0, 1.0]), seed=st.integers(0, 99)
)
def test_a_peak_is_found_wherever_it_is(place, width, sign, seed):
    x = np.linspace(2000.0, 3000.0, 400)
    truth = (sign * 7.0, 2000.0 + 1000.0 * place, 1000.0 * width)
    result = curve_fit(gaussian, x, noisy(gaussian, x, truth, seed))
    assert result.success
    assert np.allclose([result.popt[0], result.popt[1], abs(result.popt[2])], truth, rtol=0.05)


def test_a_guess_keeps_what_is_known_and_the_bounds():
    y = noisy(gaussian, X, (4, 3.2, 0.3))
    found = gaussian.guess(X, y, p0={"sigma": 0.5}, bounds=([0, 5, 0], [9, 6, 1]))
    assert found["sigma"] == 0.5
    assert 5 <= found["mu"] <= 6
    assert 0 <= found["amp"] <= 9
    result = curve_fit(gaussian, X, y, p0={"mu": 3.0}, bounds=([0, 2.9, 0], [9, 3.1, 1]))
    assert result.popt[1] == 3.1


def test_what_is_given_is_taken():
    fit = AdaptiveHybridStreamingOptimizer()
    fit.fit((X, noisy(gaussian, X, (4, 3.2, 0.3))), gaussian, p0=[1.5, 2.5, 3.5])
    assert fit.normalizer.scales.tolist() == [1.5, 2.5, 3.5]


def test_weights_count():
    y = noisy(gaussian, X, (4, 3.2, 0.3)) + np.where(X > 6, gaussian(X, 50.0, 8.0, 0.3), 0.0)
    assert curve_fit(gaussian, X, y).popt[1] == pytest.approx(8.0, abs=0.1)
    assert curve_fit(gaussian, X, y, sigma=np.where(X > 6, 1e4, 1.0)).popt[1] == pytest.approx(3.2, abs=0.1)


def test_rows_that_are_not_finite_are_left_out():
    y = noisy(sigmoid, X, TRUTHS["sigmoid"])
    y[::7] = np.nan
    assert curve_fit(sigmoid, X, y, nan_policy="omit").popt[2] == pytest.approx(5.0, abs=0.1)
    with pytest.raises(DataError, match="ydata"):
        curve_fit(sigmoid, X, y)


def test_streams_and_the_optimizer_find_the_same_start():
    y = noisy(gaussian, X, (4, 3.2, 0.3))

    def pieces():
        for k in range(0, len(X), 50):
            yield X[k : k + 50], y[k : k + 50]

    expected = curve_fit(gaussian, X, y).popt
    assert np.allclose(curve_fit(gaussian, pieces).popt, expected, rtol=1e-7)
    assert np.allclose(AdaptiveHybridStreamingOptimizer().fit((X, y), gaussian).popt, expected, rtol=1e-7)


def test_many_fits_begin_where_the_first_set_says():
    places = np.linspace(3.0, 3.5, 20)
    y = np.stack([noisy(gaussian, X, (4, place, 0.3), k) for k, place in enumerate(places)])
    fits = fit_many(gaussian, X, y)
    assert fits.success.all()
    assert np.allclose(fits.popt[:, 1], places, atol=0.02)


def test_a_named_model_is_pickled_with_its_rules():
    again = pickle.loads(pickle.dumps(damped_sine))
    assert again == damped_sine
    assert again.rules == damped_sine.rules
    y = noisy(damped_sine, X, TRUTHS["damped_sine"])
    assert again.guess(X, y) == damped_sine.guess(X, y)


def test_what_is_made_otherwise_is_a_plain_model():
    assert type(NamedModel.from_json(gaussian.to_json())) is Model
    assert type(NamedModel.from_function(lambda x, a, b: a * np.exp(-b * x))) is Model


def test_rules_are_checked():
    with pytest.raises(DataError, match="nonlinear parameters"):
        NamedModel("peak", "a*exp(-((x - m)/s)**2)", m="place")
    with pytest.raises(DataError, match="place"):
        NamedModel("peak", "a*exp(-((x - m)/s)**2)", m="place", s="wide")
    with pytest.raises(AttributeError, match="gaussian"):
        library.gausian  # noqa: B018


def test_lengths_are_checked():
    with pytest.raises(DataError, match="299"):
        gaussian.guess(X[1:], np.zeros(300))


def test_data_without_a_candidate_that_can_be_evaluated_keep_the_usual_start():
    negative = -X
    found = library.power_law.guess(negative, np.ones_like(X))
    assert set(found) == {"a", "b"}
    assert all(np.isfinite(list(found.values())))


@given(
    rule=st.sampled_from(sorted(RULES)),
    rows=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20),
)
@example(rule="frequency", rows=[2.2250738585e-313])
@example(rule="size", rows=[-1.7e308, 1.7e308])
def test_candidates_are_numbers_of_the_size_of_x(rule, rows):
    values = candidates(rule, np.array(rows))
    assert len(values) > 0
    assert np.isfinite(values).all()


def test_a_plain_model_is_left_alone():
    assert not isinstance(Model("a*exp(-b*x)"), NamedModel)
