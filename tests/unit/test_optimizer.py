"""The optimizer class: how it is called, what it shows before, during and after a fit, weights, stops."""

import gc
import itertools
import time
import weakref

import numpy as np
import pytest

from nlsq_nb import (
    AdaptiveHybridStreamingOptimizer,
    ConfigError,
    DataError,
    HybridStreamingConfig,
    Model,
    NormalizedModelWrapper,
    ParameterNormalizer,
    SourceError,
    StopFit,
    UnsupportedOption,
    curve_fit,
    get_defense_telemetry,
)
from nlsq_nb.phases.state import StopReason
from nlsq_nb.sources.arrays import ArraySource

TEXT = "a*exp(-b*x) + c"
MODEL = Model(TEXT)
RNG = np.random.RandomState(42)
X = np.linspace(0.0, 10.0, 500)
Y = 5.0 * np.exp(-0.5 * X) + 1.0 + RNG.normal(0.0, 0.1, 500)
SIGMA = np.linspace(0.5, 2.0, 500)
P0 = [1.0, 0.1, 5.0]
BOUNDS = ([0.0, 0.0, 0.0], [20.0, 5.0, 10.0])
SSE = 4.788553
TITLES = [
    "Phase 0: Normalization Setup",
    "Phase 1: L-BFGS Warmup",
    "Phase 2: Streaming Gauss-Newton",
    "Phase 3: Denormalization and Covariance",
]
NAMES = ["normalization_setup", "lbfgs_warmup", "gauss_newton", "denormalization_covariance"]


def function(x, a, b, c):
    return a * np.exp(-b * x) + c


def quiet(**fields):
    return AdaptiveHybridStreamingOptimizer(HybridStreamingConfig(verbose=0, **fields))


# -- calling styles ----------------------------------------------------------------------------
EXPECTED = curve_fit(MODEL, X, Y, P0)
STYLES = {
    "data first": lambda fit: fit((X, Y), MODEL, P0),
    "data first, as a list": lambda fit: fit([X, Y], TEXT, P0),
    "data first, a function": lambda fit: fit((X, Y), function, P0),
    "data first, by name": lambda fit: fit(data_source=(X, Y), func=MODEL, p0=P0),
    "data first, half by name": lambda fit: fit((X, Y), func=MODEL, p0=P0),
    "data first, model=": lambda fit: fit((X, Y), model=TEXT, p0=P0),
    "data first, all positional": lambda fit: fit((X, Y), MODEL, P0, None, None, False, None, 0),  # noqa: FBT003
    "model first": lambda fit: fit(MODEL, X, Y, P0),
    "model first, text": lambda fit: fit(TEXT, X, Y, P0),
    "model first, a function": lambda fit: fit(function, X, Y, p0=P0),
    "model first, half by name": lambda fit: fit(MODEL, x_data=X, y_data=Y, p0=P0),
    "model first, y by name": lambda fit: fit(MODEL, X, y_data=Y, p0=P0),
    "model first, lists": lambda fit: fit(MODEL, X.tolist(), Y.tolist(), P0, (-np.inf, np.inf)),
    "keywords": lambda fit: fit(model=MODEL, x_data=X, y_data=Y, p0=P0),
    "keywords, other order": lambda fit: fit(p0=P0, y_data=Y, verbose=0, x_data=X, model=TEXT),
    "a source": lambda fit: fit(ArraySource(X, Y), MODEL, P0),
    "p0 by name": lambda fit: fit(MODEL, X, Y, dict(zip("abc", P0, strict=True))),
}


@pytest.mark.parametrize("style", STYLES)
def test_every_calling_style_is_the_same_fit(style):
    result = STYLES[style](quiet().fit)
    assert result.success
    assert result.popt.tobytes() == EXPECTED.popt.tobytes()
    assert result.pcov.tobytes() == EXPECTED.pcov.tobytes()
    assert result.sse == pytest.approx(SSE, abs=5.1e-7)


@pytest.mark.parametrize(
    "call",
    [
        lambda fit: fit((X, Y), MODEL, P0, BOUNDS, SIGMA, True),  # noqa: FBT003
        lambda fit: fit((X, Y, SIGMA), MODEL, P0, BOUNDS, absolute_sigma=True),
        lambda fit: fit(MODEL, X, Y, P0, BOUNDS, SIGMA, True),  # noqa: FBT003
        lambda fit: fit(model=MODEL, x_data=X, y_data=Y, p0=P0, bounds=BOUNDS, sigma=SIGMA, absolute_sigma=True),
        lambda fit: fit(MODEL, X, Y, P0, {n: (lo, hi) for n, lo, hi in zip("abc", *BOUNDS, strict=True)}, SIGMA, True),  # noqa: FBT003
    ],
)
def test_the_other_arguments_reach_the_fit(call):
    result = call(quiet().fit)
    expected = curve_fit(MODEL, X, Y, P0, SIGMA, True, bounds=BOUNDS)  # noqa: FBT003
    assert result.popt.tobytes() == expected.popt.tobytes()
    assert result.pcov.tobytes() == expected.pcov.tobytes()
    for mine, theirs in zip(result.bounds, BOUNDS, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda fit: fit(), TypeError, "needs model"),
        (lambda fit: fit((X, Y)), TypeError, "needs model"),
        (lambda fit: fit(MODEL), TypeError, "needs x_data"),
        (lambda fit: fit(MODEL, X), TypeError, "needs y_data"),
        (lambda fit: fit(model=MODEL, x_data=X), TypeError, "needs y_data"),
        (lambda fit: fit(x_data=X, y_data=Y), TypeError, "needs model"),
        (lambda fit: fit((X, Y), MODEL, P0, model=TEXT), TypeError, "two values for 'model'"),
        (lambda fit: fit((X, Y), MODEL, P0, p0=P0), TypeError, "two values for 'p0'"),
        (lambda fit: fit(MODEL, X, Y, x_data=X), TypeError, "two values for 'x_data'"),
        (lambda fit: fit((X, Y), MODEL, x_data=X), TypeError, "not both"),
        (lambda fit: fit((X, Y), MODEL, P0, stepsize=1), TypeError, "unexpected keyword argument 'stepsize'"),
        (lambda fit: fit((X, Y), MODEL, P0, source=1), TypeError, "unexpected keyword argument 'source'"),
        (lambda fit: fit(MODEL, X, Y, P0, None, None, False, None, 0, "huber", 1.0, 1), TypeError, "at most 11"),  # noqa: FBT003
        (lambda fit: fit((X, Y), MODEL, P0, None, None, False, None, 0, "huber", 1.0, 1), TypeError, "at most 10"),  # noqa: FBT003
        (lambda fit: fit((X, Y, SIGMA), MODEL, P0, sigma=SIGMA), TypeError, "sigma is given twice"),
        (lambda fit: fit(ArraySource(X, Y), MODEL, P0, sigma=SIGMA), TypeError, "its own weights"),
        (lambda fit: fit((X, Y), MODEL, P0, callback=3), TypeError, "callback"),
        (lambda fit: fit(7, MODEL, P0), SourceError, "int"),
        (lambda fit: fit((X, Y, SIGMA, X), MODEL, P0), SourceError, r"\(x, y, sigma\)"),
        (lambda fit: fit((X, Y), MODEL, P0, verbose=7), ConfigError, "verbose"),
        (lambda fit: fit((X, Y), MODEL, [1.0, 2.0]), DataError, "p0 has 2 values"),
        (lambda fit: fit((X, Y[:-1]), MODEL, P0), DataError, "rows"),
        (lambda fit: fit((X, Y), MODEL, [30.0, 1.0, 1.0], BOUNDS), DataError, "'a'"),
    ],
)
def test_wrong_calls_say_what_is_wrong(call, error, text):
    with pytest.raises(error, match=text):
        call(quiet().fit)


def test_wrong_configurations_are_refused_at_once():
    with pytest.raises(TypeError, match="HybridStreamingConfig, not dict"):
        AdaptiveHybridStreamingOptimizer({"verbose": 0})
    with pytest.raises(UnsupportedOption, match="backend='abacus'"):
        AdaptiveHybridStreamingOptimizer(backend="abacus")


# -- attributes ----------------------------------------------------------------------------------
def test_before_a_fit_there_is_nothing():
    config = HybridStreamingConfig(verbose=0)
    optimizer = AdaptiveHybridStreamingOptimizer(config)
    assert optimizer.config is config
    assert AdaptiveHybridStreamingOptimizer().config == HybridStreamingConfig()
    assert optimizer.current_phase == 0
    assert optimizer.phase_history == []
    assert optimizer.phase_start_time is None
    assert optimizer.phase_status == {
        "current_phase": 0,
        "phase_name": TITLES[0],
        "phase_history": [],
        "total_phases": 4,
    }
    for name in ("normalized_params", "normalizer", "normalized_model", "normalized_bounds",
                 "normalization_jacobian", "best_params_global"):  # fmt: skip
        assert getattr(optimizer, name) is None, name
    assert optimizer.best_cost_global == np.inf


@pytest.mark.parametrize("bounds", [None, BOUNDS])
@pytest.mark.parametrize("separable", ["auto", False])
def test_after_a_fit(bounds, separable):
    optimizer = quiet(separable=separable)
    result = optimizer.fit((X, Y), MODEL, P0, bounds)
    assert optimizer.current_phase == 3
    assert optimizer.phase_status["phase_name"] == TITLES[3]
    normalizer = optimizer.normalizer
    assert isinstance(normalizer, ParameterNormalizer)
    scales = np.subtract(*BOUNDS[::-1]) if bounds else np.abs(P0)
    np.testing.assert_array_equal(normalizer.scales, scales)
    np.testing.assert_array_equal(optimizer.best_params_global, result.popt)
    assert optimizer.best_cost_global == result.sse
    np.testing.assert_allclose(normalizer.denormalize(optimizer.normalized_params), result.popt, rtol=1e-14)
    np.testing.assert_array_equal(optimizer.normalization_jacobian, np.diag(scales))
    lower, upper = optimizer.normalized_bounds
    np.testing.assert_array_equal(lower, 0.0 if bounds else -np.inf)
    np.testing.assert_array_equal(upper, 1.0 if bounds else np.inf)
    assert isinstance(optimizer.normalized_model, NormalizedModelWrapper)
    values = optimizer.normalized_model(X, *optimizer.normalized_params)
    np.testing.assert_allclose(values, MODEL(X, *result.popt), rtol=1e-12)


def test_what_is_shown_cannot_be_used_to_change_the_fit():
    optimizer = quiet()
    result = optimizer.fit((X, Y), MODEL, P0)
    optimizer.best_params_global[:] = 0.0
    optimizer.normalized_params[:] = 0.0
    optimizer.phase_history.clear()
    optimizer.phase_history[0]["phase"] = 9
    np.testing.assert_array_equal(optimizer.best_params_global, result.popt)
    assert [entry["phase"] for entry in optimizer.phase_history] == [0, 1, 2, 3]


def test_during_a_fit():
    optimizer = quiet(callback_frequency=1)
    seen = []

    def callback(params, loss, iteration):
        phase = optimizer.current_phase
        status = optimizer.phase_status
        assert (status["current_phase"], status["phase_name"]) == (phase, TITLES[phase])
        assert [entry["phase"] for entry in optimizer.phase_history] == list(range(phase))
        assert optimizer.phase_start_time <= time.time()
        assert optimizer.normalization_jacobian.shape == (3, 3)
        assert optimizer.normalized_model is not None
        best = optimizer.best_params_global
        np.testing.assert_allclose(optimizer.normalizer.denormalize(optimizer.normalized_params), best, rtol=1e-14)
        seen.append((phase, best, optimizer.best_cost_global, params, loss))

    result = optimizer.fit((X, Y), MODEL, P0, callback=callback)
    assert {phase for phase, *_ in seen} == {1, 2}
    phases = [phase for phase, *_ in seen]
    assert phases == sorted(phases)
    for phase, best, cost, params, loss in seen:
        if phase == 2:
            assert cost == loss
            np.testing.assert_array_equal(best, params)
    costs = [cost for _, _, cost, _, _ in seen]
    assert all(later <= cost * (1.0 + 1e-12) for cost, later in itertools.pairwise(costs))
    assert costs[-1] == result.sse


def test_the_best_point_is_up_to_date_during_the_warmup():
    optimizer = quiet(callback_frequency=1, separable=False)
    seen = []

    def callback(params, loss, iteration):
        if optimizer.current_phase == 1:
            seen.append((optimizer.best_params_global, optimizer.best_cost_global, params, loss))

    optimizer.fit((X, Y), MODEL, P0, callback=callback)
    assert len(seen) > 3
    for best, cost, params, loss in seen[:-1]:
        np.testing.assert_allclose(best, params, rtol=1e-12)
        assert cost == pytest.approx(loss)


# -- the phases ------------------------------------------------------------------------------------
KEYS = {"phase", "name", "start_time", "duration", "timestamp", "reason", "iterations"}
FOUND = [
    {"strategy", "n_rows", "free_parameters", "eliminated"},
    {"relative_loss", "mode", "loss", "clips", "line_search_failures"},
    {"sse", "optimality", "radius", "probes"},
    {"condition", "method", "corrections", "undetermined"},
]


def test_phase_history_has_four_entries_per_fit():
    optimizer = quiet()
    for _ in range(2):
        begin = time.time()
        result = optimizer.fit((X, Y), MODEL, P0)
        end = time.time()
        history = optimizer.phase_history
        assert [entry["phase"] for entry in history] == [0, 1, 2, 3]
        assert [entry["name"] for entry in history] == NAMES
        for entry, found in zip(history, FOUND, strict=True):
            assert set(entry) == KEYS | found
            assert begin <= entry["start_time"] <= entry["timestamp"] <= end
            assert 0.0 <= entry["duration"] <= end - begin
            assert entry["duration"] == pytest.approx(entry["timestamp"] - entry["start_time"], abs=0.05)
        starts = [entry["start_time"] for entry in history]
        assert starts == sorted(starts)
        d = result.streaming_diagnostics
        assert d["phase_history"] == history
        assert d["phase_timings"] == {entry["name"]: entry["duration"] for entry in history}
        assert d["total_time"] >= sum(d["phase_timings"].values())
        assert d["phase_iterations"] == {e["name"]: e["iterations"] for e in history[1:3]}
        assert result.nit == sum(d["phase_iterations"].values())
        assert d["warmup_diagnostics"] == history[1]
        assert d["gauss_newton_diagnostics"] == history[2]
        assert history[2]["reason"] == result.message
        assert history[2]["sse"] == result.sse
        assert history[0]["n_rows"] == 500
        assert history[0]["eliminated"] == ("a", "c")


def test_a_skipped_warmup_is_in_the_history_too():
    optimizer = quiet()
    optimizer.fit((X, Y), MODEL, [5.0, 0.5, 1.0])
    history = optimizer.phase_history
    assert [entry["phase"] for entry in history] == [0, 1, 2, 3]
    assert "skipped" in history[1]["reason"]
    assert history[1]["iterations"] == 0


def test_a_failed_fit_shows_how_far_it_came():
    optimizer = quiet()
    with pytest.raises(DataError, match="row 7"):
        optimizer.fit((X, np.where(np.arange(500) == 7, np.nan, Y)), MODEL, P0)
    assert (optimizer.current_phase, optimizer.phase_history) == (0, [])
    result = optimizer.fit((X, Y), MODEL, P0)
    assert (optimizer.current_phase, len(optimizer.phase_history)) == (3, 4)
    assert result.success


def test_a_call_that_cannot_be_read_leaves_the_last_fit_alone():
    optimizer = quiet()
    optimizer.fit((X, Y), MODEL, P0)
    shown = optimizer.normalized_model(X[:3], *optimizer.normalized_params)
    with pytest.raises(DataError):
        optimizer.fit((X, Y[:-1]), MODEL, P0)
    assert len(optimizer.phase_history) == 4
    np.testing.assert_array_equal(optimizer.normalized_model(X[:3], *optimizer.normalized_params), shown)


# -- residual weights --------------------------------------------------------------------------------
GROUP = np.arange(500) % 3
TABLE = np.column_stack([GROUP, X])
WEIGHTS = np.array([4.0, 1.0, 0.25])


def weighted(weights=None, **fields):
    return quiet(enable_residual_weighting=True, residual_weights=weights, **fields)


def close(result, weights, **options):
    expected = curve_fit(MODEL, X, Y, P0, 1.0 / np.sqrt(weights[GROUP]), **options)
    np.testing.assert_allclose(result.popt, expected.popt, rtol=1e-9)
    np.testing.assert_allclose(result.pcov, expected.pcov, rtol=1e-6)
    assert result.sse == pytest.approx(expected.sse, rel=1e-10)
    assert result.success


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("separable", ["auto", False])
def test_weights_are_sigmas(absolute, separable):
    options = {"absolute_sigma": absolute}
    result = weighted(WEIGHTS, separable=separable).fit((TABLE, Y), MODEL, P0, **options)
    close(result, WEIGHTS, **options)
    later = weighted(separable=separable)
    later.set_residual_weights(WEIGHTS)
    assert later.fit((TABLE, Y), MODEL, P0, **options).popt.tobytes() == result.popt.tobytes()
    unset = weighted(separable=separable).fit((TABLE, Y), MODEL, P0, **options)
    close(unset, np.ones(3), **options)


def test_weights_beside_sigma():
    result = weighted(WEIGHTS).fit((TABLE, Y, SIGMA), MODEL, P0)
    expected = curve_fit(MODEL, X, Y, P0, SIGMA / np.sqrt(WEIGHTS[GROUP]))
    np.testing.assert_allclose(result.popt, expected.popt, rtol=1e-9)
    np.testing.assert_allclose(result.perr, expected.perr, rtol=1e-7)


def test_weights_hold_for_later_fits():
    optimizer = weighted(np.ones(3))
    close(optimizer.fit((TABLE, Y), MODEL, P0), np.ones(3))
    optimizer.set_residual_weights(WEIGHTS)
    close(optimizer.fit((TABLE, Y), MODEL, P0), WEIGHTS)
    close(optimizer.fit(MODEL, TABLE, Y, P0), WEIGHTS)


@pytest.mark.parametrize("separable", ["auto", False])
@pytest.mark.parametrize("at", [1, 3, "last"])
def test_weights_set_by_a_callback_decide_the_answer(at, separable):
    optimizer = weighted(callback_frequency=1, separable=separable)
    told = []
    if at == "last":
        weighted(callback_frequency=1, separable=separable).fit(
            (TABLE, Y), MODEL, P0, callback=lambda *event: told.append(event)
        )
        at = len(told)

    def callback(params, loss, iteration):
        if iteration == at:
            optimizer.set_residual_weights(WEIGHTS)

    result = optimizer.fit((TABLE, Y), MODEL, P0, callback=callback)
    close(result, WEIGHTS)
    w = WEIGHTS[GROUP]
    mean = np.average(Y, weights=w)
    assert result.r_squared == pytest.approx(1.0 - result.sse / np.sum(w * (Y - mean) ** 2), rel=1e-9)


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ([1.0, -2.0, 3.0], r"residual_weights\[1\] is -2"),
        ([1.0, 2.0, 0.0], r"residual_weights\[2\] is 0"),
        ([np.nan, 2.0, 1.0], r"residual_weights\[0\] is nan"),
        ([np.inf, 2.0, 1.0], r"residual_weights\[0\] is inf"),
        ([[1.0, 2.0, 3.0]], r"shape \(1, 3\)"),
        ([], "shape"),
        (2.0, "shape"),
        (["heavy"], "residual_weights"),
    ],
)
def test_wrong_weights_are_named_and_change_nothing(weights, text):
    optimizer = weighted(WEIGHTS)
    with pytest.raises(DataError, match=text):
        optimizer.set_residual_weights(weights)
    close(optimizer.fit((TABLE, Y), MODEL, P0), WEIGHTS)


def test_wrong_weights_in_a_callback_end_the_fit_with_their_error():
    optimizer = weighted(WEIGHTS, callback_frequency=1)
    with pytest.raises(DataError, match=r"residual_weights\[1\]"):
        optimizer.fit((TABLE, Y), MODEL, P0, callback=lambda *_: optimizer.set_residual_weights([1.0, -1.0, 1.0]))


@pytest.mark.parametrize(
    ("bad", "text"), [(3, "3.0 at row 11"), (-1, "-1.0 at row 11"), (0.5, "0.5 at row 11"), (np.nan, "nan at row 11")]
)
def test_a_group_without_a_weight_names_the_row(bad, text):
    table = TABLE.copy()
    table[11, 0] = bad
    with pytest.raises(DataError, match=text):
        weighted(WEIGHTS).fit((table, Y), MODEL, P0)


def test_too_few_weights_in_a_callback_name_the_row():
    optimizer = weighted(WEIGHTS, callback_frequency=1)
    with pytest.raises(DataError, match="row 2; there are 2 residual weights"):
        optimizer.fit((TABLE, Y), MODEL, P0, callback=lambda *_: optimizer.set_residual_weights([1.0, 2.0]))


def test_weights_need_their_flag():
    with pytest.raises(ConfigError, match="enable_residual_weighting"):
        quiet().set_residual_weights(WEIGHTS)


# -- clear_cache, verbose --------------------------------------------------------------------------
def test_clear_cache_forgets_the_data_and_nothing_else():
    optimizer = quiet()
    optimizer.clear_cache()
    result = optimizer.fit((X, Y), MODEL, P0)
    optimizer.clear_cache()
    optimizer.clear_cache()
    np.testing.assert_array_equal(optimizer.best_params_global, result.popt)
    assert len(optimizer.phase_history) == 4
    assert optimizer.fit((X, Y), MODEL, P0).popt.tobytes() == result.popt.tobytes()
    np.testing.assert_allclose(result.fun, Y - MODEL(X, *result.popt), rtol=1e-12)


def test_clear_cache_lets_go_of_the_arrays():
    y = Y + 0.0
    optimizer = quiet()
    optimizer.fit((X, y), MODEL, P0)
    watch = weakref.ref(y)
    del y
    optimizer.clear_cache()
    gc.collect()
    assert watch() is None


@pytest.mark.parametrize(
    ("config", "argument", "lines"),
    [(0, None, False), (1, None, True), (1, 0, False), (0, 1, True), (0, 2, True), (2, 0, False)],
)
def test_the_verbose_argument_overrides_the_configuration(config, argument, lines, capfd):
    options = {} if argument is None else {"verbose": argument}
    AdaptiveHybridStreamingOptimizer(HybridStreamingConfig(verbose=config)).fit((X, Y), MODEL, P0, **options)
    out, err = capfd.readouterr()
    assert out == ""
    assert bool(err) is lines
    assert ("params:" in err) is (argument == 2)


# -- callbacks -------------------------------------------------------------------------------------
@pytest.mark.parametrize("separable", ["auto", False])
@pytest.mark.parametrize("bounds", [None, BOUNDS])
def test_callbacks_get_physical_parameters_the_sse_and_a_rising_count(separable, bounds):
    optimizer = quiet(callback_frequency=1, separable=separable)
    told = []

    def callback(params, loss, iteration):
        told.append((params.copy(), loss, iteration, optimizer.current_phase))
        params[:] = np.nan  # it is a copy

    result = optimizer.fit((X, Y), MODEL, P0, bounds, callback=callback)
    assert result.success
    assert [iteration for _, _, iteration, _ in told] == list(range(1, len(told) + 1))
    assert len(told) == result.nit
    assert {phase for *_, phase in told} == {1, 2}
    for params, loss, _, _ in told:
        assert params.shape == (3,)
        r = Y - MODEL(X, *params)
        assert loss == pytest.approx(r @ r, rel=1e-6)
    np.testing.assert_array_equal(told[-1][0], result.popt)
    assert told[-1][1] == result.sse


@pytest.mark.parametrize("every", [1, 2, 7, 10_000])
def test_callback_frequency(every):
    told = []
    result = quiet(callback_frequency=every).fit(
        (X, Y), MODEL, P0, callback=lambda _, __, iteration: told.append(iteration)
    )
    assert told == list(range(1, result.nit + 1, every))


def stopping(at, how):
    def callback(params, loss, iteration):
        callback.seen.append((params, loss))
        if iteration == at:
            if how == "raise":
                raise StopFit
            return how
        return None

    callback.seen = []
    return callback


@pytest.mark.parametrize("separable", ["auto", False])
@pytest.mark.parametrize("how", [True, np.True_, "raise"])
@pytest.mark.parametrize("at", [1, 5, "last"])
def test_a_callback_ends_the_fit_with_the_best_point(at, how, separable):
    optimizer = quiet(callback_frequency=1, separable=separable)
    if at == "last":
        at = optimizer.fit((X, Y), MODEL, P0).nit
    callback = stopping(at, how)
    with pytest.warns(UserWarning, match="stopped by callback"):
        result = optimizer.fit((X, Y), MODEL, P0, callback=callback)
    assert result.status is StopReason.CALLBACK
    assert result.message == "stopped by callback"
    assert not result.success
    assert len(callback.seen) == at == result.nit
    least = min(loss for _, loss in callback.seen)
    # the last step of all brings digits of the parameters where the sse has none left
    best = [params for params, loss in callback.seen if loss <= least * (1.0 + 1e-12)]
    assert any(np.array_equal(result.popt, params) for params in best)
    assert result.sse == pytest.approx(least, rel=1e-9)
    assert np.isfinite(result.pcov).all()
    assert [entry["phase"] for entry in optimizer.phase_history] == [0, 1, 2, 3]
    np.testing.assert_array_equal(optimizer.best_params_global, result.popt)
    assert optimizer.best_cost_global == result.sse


@pytest.mark.parametrize("answer", [1, "stop", 0.0, [], None, False])
def test_only_true_ends_a_fit(answer):
    result = quiet(callback_frequency=1).fit((X, Y), MODEL, P0, callback=lambda *_: answer)
    assert result.success


def test_an_exception_of_a_callback_is_passed_on():
    def callback(*_):
        raise LookupError("mine")

    optimizer = quiet()
    with pytest.raises(LookupError, match="mine"):
        optimizer.fit((X, Y), MODEL, P0, callback=callback)
    assert optimizer.current_phase == 1
    assert [entry["phase"] for entry in optimizer.phase_history] == [0]


def test_one_optimizer_fits_again_and_again():
    optimizer = quiet()
    first = optimizer.fit((X, Y), MODEL, P0)
    other = optimizer.fit((X, 2.0 * Y), "a/(1 + b*x)", [1.0, 1.0])
    again = optimizer.fit((X, Y), MODEL, P0)
    assert first.popt.tobytes() == again.popt.tobytes()
    assert other.names == ("a", "b")
    assert optimizer.normalizer.n_params == 3
    calls = {r.streaming_diagnostics["telemetry"].total_warmup_calls for r in (first, other, again)}
    assert calls == {1}
    assert get_defense_telemetry() is not again.streaming_diagnostics["telemetry"]
