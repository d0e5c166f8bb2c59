"""Several starts in the open: what is told of them, what stops them, what judges them, and what a checkpoint knows."""

import logging
import math
import warnings
from pathlib import Path

import numpy as np
import pytest

from nlsq_nb import AdaptiveHybridStreamingOptimizer, HybridStreamingConfig, Model, NumericsError, StopFit, curve_fit
from nlsq_nb.phases.state import StopReason

X = np.linspace(0.0, 10.0, 300)
Y = 2.0 * np.sin(3.0 * X + 0.4) + np.random.default_rng(3).normal(0.0, 0.2, X.size)
WAVE = Model("a*sin(w*x + phi)")
BOUNDS = ([0.0, 0.0, -np.pi], [10.0, 10.0, np.pi])
POOR, GOOD = [1.0, 1.0, 0.0], [1.9, 2.99, 0.43]
SEVERAL = {"enable_multistart": True, "n_starts": 8, "second_opinion": False}
KINDS = {"all rows": {}, "a sample": {"warmup_sample_size": 200}, "all parameters": {"separable": False}}


def wave(x, a, w, phi):
    return a * np.sin(w * x + phi)


def sse(theta):
    return float(np.sum((Y - wave(X, *theta)) ** 2))


def fit(p0=POOR, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a stopped fit is announced as not converged
        return curve_fit(WAVE, X, Y, p0, bounds=BOUNDS, **SEVERAL | options)


def starts(result):
    return result.streaming_diagnostics["multistart"]


# -- what is told ----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_diagnostics(kind):
    result = fit(**KINDS[kind])
    found = starts(result)
    assert result.success
    assert result.sse <= found["p0_sse"] == pytest.approx(sse(POOR), rel=1e-12)
    assert found["candidates"].shape == (9, 3)
    np.testing.assert_array_equal(found["candidates"][0], POOR)
    assert found["rounds"] == len(found["survivors"]) - 1 >= 1
    assert found["survivors"][0] == tuple(range(9))
    rounds = zip(found["survivors"], found["survivors"][1:], strict=False)
    assert all(set(later) < set(earlier) for earlier, later in rounds)
    left = found["survivors"][-1]
    assert max(found["losses"][list(left)]) <= min(np.delete(found["losses"], list(left)))
    rows = [entry["candidate"] for entry in found["fitted"]]
    assert 0 in rows
    assert set(rows) - {0} <= set(left)
    for entry in found["fitted"]:
        assert entry["sse"] == pytest.approx(sse(entry["theta"]), rel=0.3 if kind == "a sample" else 1e-9)
        assert 0 <= entry["iterations"] <= 30
        assert "gauss_newton_max_iterations" not in entry["reason"]
    assert found["taken"] == min(found["fitted"], key=lambda entry: entry["sse"])["candidate"]
    assert 0.0 < found["seconds"] < result.streaming_diagnostics["total_time"]


def test_without_several_starts_there_is_nothing():
    assert starts(curve_fit(WAVE, X, Y, GOOD)) is None


def test_log_lines(caplog):
    with caplog.at_level(logging.INFO, logger="nlsq_nb"):
        result = fit(verbose=1)
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        fit(verbose=0)
    assert caplog.records == []
    found = starts(result)
    begin, end = lines.index("Multi-start: 9 candidates, the first is p0"), lines.index("Phase 1: L-BFGS Warmup")
    assert lines[:begin] == ["Phase 0: Normalization Setup"]
    told = lines[begin + 1 : end]
    fits = ["Short"] * len(found["fitted"])
    assert [line.split()[0] for line in told] == ["Round"] * found["rounds"] + fits + ["The"]
    for line, entry in zip(told[found["rounds"] :], found["fitted"], strict=False):
        assert f"candidate {entry['candidate']}: cost={entry['sse']:.6e}, {entry['iterations']} iteration" in line
    assert told[-1] == f"  The fit begins from candidate {found['taken']} (cost at p0: {sse(POOR):.6e})"


@pytest.mark.parametrize("kind", KINDS)
def test_the_callback_hears_of_each_start_and_goes_on_counting(kind):
    heard = []
    optimizer = AdaptiveHybridStreamingOptimizer(
        HybridStreamingConfig(verbose=0, callback_frequency=1, **SEVERAL | KINDS[kind])
    )

    def callback(params, loss, iteration):
        assert optimizer.phase_status["current_phase"] == optimizer.current_phase
        heard.append((optimizer.current_phase, params, loss, iteration, optimizer.best_params_global))
        assert optimizer.normalized_params.shape == (3,)

    result = optimizer.fit((X, Y), WAVE, POOR, BOUNDS, callback=callback)
    fitted = starts(result)["fitted"]
    assert [iteration for *_, iteration, _ in heard] == list(range(1, len(heard) + 1))
    assert len(heard) == len(fitted) + result.nit
    best = math.inf, None
    for (phase, params, loss, _, shown), entry in zip(heard, fitted, strict=False):
        assert phase == 0
        assert (tuple(params), loss) == (entry["theta"], entry["sse"])
        best = min(best, (loss, tuple(params)))
        assert tuple(shown) == best[1]


def test_the_first_step_is_told_whatever_the_frequency():
    heard = []
    result = fit(warmup_iterations=0, max_warmup_iterations=0, gauss_newton_tol=1e-12, trust_region_initial=1e-3,
                 callback=lambda *told: heard.append(told[2]), callback_frequency=1000)  # fmt: skip
    fitted = len(starts(result)["fitted"])
    assert heard == list(range(1, fitted + 1 + (result.nit > 0)))


# -- what stops them --------------------------------------------------------------------------------
def stopped(result, reason):
    """A result that is honest about having been stopped before phase 1."""
    assert result.status is reason
    assert not result.success
    assert result.sse == pytest.approx(sse(result.popt), rel=1e-12)  # of all data, at the point that is returned
    assert result.sse <= sse(POOR)
    assert np.all((BOUNDS[0] <= result.popt) & (result.popt <= BOUNDS[1]))
    history = result.streaming_diagnostics["phase_history"]
    assert [entry["phase"] for entry in history] == [0, 1, 2, 3]
    assert history[1]["reason"] == "left out: the fit was stopped before"
    assert result.nit == 0
    assert set(result.streaming_diagnostics["telemetry"].export_metrics().values()) == {0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [StopFit, KeyboardInterrupt])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_the_best_start_so_far_is_returned(kind, error, at):
    whole = starts(fit(**KINDS[kind]))["fitted"]

    def callback(params, loss, iteration):
        if iteration == at:
            raise error

    result = fit(callback=callback, **KINDS[kind])
    stopped(result, StopReason.CALLBACK if error is StopFit else StopReason.INTERRUPTED)
    found = starts(result)
    assert found["fitted"] == whole[:at]
    best = min(whole[:at], key=lambda entry: entry["sse"])
    assert found["taken"] == best["candidate"]
    assert result.sse <= sse(best["theta"]) * (1.0 + 1e-12)


def test_returning_true_stops_the_starts_too():
    stopped(fit(callback=lambda *_: True), StopReason.CALLBACK)


@pytest.mark.parametrize("separable", ["auto", False])
def test_ctrl_c_at_any_moment_gives_the_best_point_so_far(separable):
    calls, reached = [], []

    def run(at):
        def model(x, a, w, phi):
            calls.append(None)
            if len(calls) == at:
                raise KeyboardInterrupt
            return wave(x, a, w, phi)

        calls.clear()
        reached.clear()
        options = {"callback": lambda *_: reached.append(len(calls)), "callback_frequency": 1, "separable": separable}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return curve_fit(model, X, Y, POOR, bounds=BOUNDS, jac="3-point", **options, **SEVERAL)

    fitted = starts(run(0))["fitted"]
    first, last = reached[0], reached[len(fitted) - 1]
    assert last > first > 100
    found = []
    for at in np.linspace(first // 10, last - 5, 25).astype(int).tolist():
        result = run(at)
        stopped(result, StopReason.INTERRUPTED)
        found.append(result.sse)
    assert found[-1] <= min(entry["sse"] for entry in fitted[:-1]) * (1.0 + 1e-12)
    assert found[-1] < found[0]  # it was worth having waited


def test_ctrl_c_where_nothing_is_known_is_passed_on():
    def model(x, a, b):
        if a < 0.9 * 1e3:  # a candidate, not p0
            raise KeyboardInterrupt
        return np.exp(a + b * x)

    with pytest.raises(KeyboardInterrupt):
        curve_fit(model, X, Y, [1e3, 1e3], jac="3-point", **SEVERAL)


def test_a_callback_may_stop_where_no_start_is_finite():
    with pytest.raises(NumericsError, match="row 0"):
        curve_fit("a + log(x - 100 - b**2)", X, Y, [1.0, 1.0], callback=lambda *_: True, **SEVERAL)


@pytest.mark.parametrize("error", [ZeroDivisionError, OverflowError, KeyError])
def test_an_error_of_the_users_function_reaches_the_user(error):
    def model(x, a, w, phi):
        if w > 5.0:
            raise error("mine")
        return wave(x, a, w, phi)

    with pytest.raises(error, match="mine"):
        curve_fit(model, X, Y, POOR, bounds=BOUNDS, jac="3-point", **SEVERAL)


# -- what is judged ----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p0", [POOR, GOOD, [1.0, 3.0, 0.4]])
def test_the_layers_judge_p0(kind, p0):
    result = fit(p0, **KINDS[kind])
    warmup, telemetry = (result.streaming_diagnostics[key] for key in ("warmup_diagnostics", "telemetry"))
    relative = sse(p0) / X.size / np.var(Y)
    assert warmup["relative_loss"] == pytest.approx(relative, rel=1e-9)
    mode = "refinement" if relative < 0.1 else "careful" if relative < 1.0 else "exploration"
    assert warmup["mode"] == mode
    assert telemetry.layer2_lr_mode_counts[mode] == 1


def test_layer_1_skips_the_warmup_of_a_good_p0_only():
    options = {"warm_start_threshold": 0.05}
    for p0, fires in ((GOOD, 1), (POOR, 0)):
        alone = fit(p0, enable_multistart=False, **options)
        several = fit(p0, **options)
        for result in (alone, several):
            assert result.streaming_diagnostics["telemetry"].layer1_warm_start_triggers == fires
    # the start that was found would have passed for a good one
    assert min(entry["sse"] for entry in starts(several)["fitted"]) / X.size < 0.05 * np.var(Y)


def test_where_the_model_is_not_finite_at_p0_the_start_that_was_found_is_judged():
    y = 3.0 * np.log(X + 2.0)
    model = Model("a*log(x + b)")
    result = curve_fit(model, X, y, [1.0, -0.5], bounds=([0.0, -1.0], [10.0, 10.0]), separable=False, **SEVERAL)
    assert result.success
    assert starts(result)["p0_sse"] == math.inf
    assert starts(result)["taken"] != 0
    assert math.isfinite(result.streaming_diagnostics["warmup_diagnostics"]["relative_loss"])


def test_a_sample_that_misleads_cannot_make_the_fit_worse_than_p0():
    """The sample sees nothing of the peak that the data are about."""
    x = np.linspace(0.0, 1.0, 4000)
    y = np.where(np.abs(x - 0.5) < 1e-3, 1e3, 0.0) + 0.1 * np.sin(40.0 * x)
    p0 = [1e3, 0.5, 1e-3]
    options = {"warmup_sample_size": 64, "separable": False, "bounds": ([0.0, 0.0, 1e-4], [2e3, 1.0, 1.0])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = curve_fit("a*exp(-((x - m)/s)**2)", x, y, p0, **options, **SEVERAL)
    at_p0 = float(np.sum((y - 1e3 * np.exp(-(((x - 0.5) / 1e-3) ** 2))) ** 2))
    assert result.sse <= at_p0 * (1.0 + 1e-12)


# -- what a checkpoint knows -------------------------------------------------------------------------
def same_starts(one, other):
    assert {**one, "candidates": None, "losses": None} == {**other, "candidates": None, "losses": None}
    for name in ("candidates", "losses"):
        assert one[name].tobytes() == other[name].tobytes()


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_killed_fit_resumes_without_looking_for_a_start_again(tmp_path, after):
    options = {"separable": False, "gauss_newton_tol": 1e-12, "callback_frequency": 1}
    whole = fit(**options)
    first = len(starts(whole)["fitted"])
    assert whole.nit >= 3

    def callback(params, loss, iteration):
        if iteration == first + max(after, 1):
            raise LookupError("killed")

    with pytest.raises(LookupError, match="killed"):
        fit(callback=callback, checkpoint_dir=tmp_path, checkpoint_frequency=1 if after else 1000, **options)
    heard = []
    result = fit(callback=lambda *told: heard.append(told), resume_from_checkpoint=tmp_path, **options)
    assert len(heard) == whole.nit - max(after, 1)
    assert result.popt.tobytes() == whole.popt.tobytes()
    assert (result.sse, result.nit, result.nfev) == (whole.sse, whole.nit, whole.nfev)
    found, expected = starts(result), starts(whole)
    same_starts(found | {"seconds": 0.0}, expected | {"seconds": 0.0})


def test_a_start_that_is_the_answer_leaves_a_checkpoint(tmp_path):
    options = {"gauss_newton_tol": 1e-6}
    whole = fit(checkpoint_dir=tmp_path, **options)
    assert whole.nit == 0
    files = sorted(path.name for path in Path(tmp_path).iterdir())
    assert files == ["checkpoint_phase1_iter0.h5", "checkpoint_phase2_iter0.h5"]
    for name in files:
        result = fit(resume_from_checkpoint=tmp_path / name, **options)
        assert result.popt.tobytes() == whole.popt.tobytes()
        assert starts(result)["taken"] == starts(whole)["taken"]
