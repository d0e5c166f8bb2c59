"""Fits that end early, and fits side by side: telemetry stays complete and apart, and a killed fit resumes."""

import itertools
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from nlsq_nb import (
    AdaptiveHybridStreamingOptimizer,
    CheckpointError,
    HybridStreamingConfig,
    Model,
    NumericsError,
    StopFit,
    api,
    curve_fit,
    get_defense_telemetry,
    quick,
    reset_defense_telemetry,
    resuming,
)
from nlsq_nb.native_run import NativeRun
from nlsq_nb.observe.checkpoint_file import write
from nlsq_nb.phases.state import StopReason

MODEL = Model("a*exp(-b*x) + c")
RNG = np.random.RandomState(42)
X = np.linspace(0.0, 10.0, 500)
Y = 5.0 * np.exp(-0.5 * X) + 1.0 + RNG.normal(0.0, 0.1, 500)
OPTIMAL, GOOD, CAREFUL, POOR = [5.1, 0.505, 0.99], [4.5, 0.45, 1.1], [6.0, 0.4, 1.3], [1.0, 0.1, 5.0]
KINDS = {
    "warm": (OPTIMAL, {}),
    "refined": (GOOD, {}),
    "careful": (CAREFUL, {}),
    "poor": (POOR, {}),
    "poor, all parameters": (POOR, {"separable": False}),
    "memory of two": (POOR, {"separable": False, "lbfgs_history_size": 2}),
    "without layers": (POOR, HybridStreamingConfig.defense_disabled),
    "guarded": ([4.9, 0.49, 1.0], {"warmup_sample_size": 10, "separable": False, "enable_warm_start_detection": False}),
}


@pytest.fixture(autouse=True)
def fresh():
    reset_defense_telemetry()


def watch(*_):
    """A callback that sees every step, so that none is made in native code, whose last bits may differ."""


def fit(kind, callback=watch):
    p0, options = KINDS[kind]
    if callable(options):
        return curve_fit(MODEL, X, Y, p0, config=options(), verbose=0, callback=callback)
    return curve_fit(MODEL, X, Y, p0, callback=callback, **options)


def counted(telemetry):
    return telemetry.export_metrics(), [(e["type"], e["data"]) for e in telemetry.get_recent_events(1000)]


def own(result):
    return result.streaming_diagnostics["telemetry"]


def added(metrics):
    return {name: sum(m[name] for m in metrics) for name in get_defense_telemetry().export_metrics()}


# -- side by side --------------------------------------------------------------------------------
def test_the_kinds_are_of_different_character():
    metrics = {kind: counted(own(fit(kind)))[0] for kind in KINDS}
    assert len({tuple(m.values()) for m in metrics.values()}) >= 6
    assert metrics["warm"]["nlsq_defense_layer1_triggers_total"] == 1
    assert metrics["memory of two"]["nlsq_defense_lbfgs_history_fill_total"] == 1
    assert metrics["guarded"]["nlsq_defense_layer3_triggers_total"] == 1
    assert all(m["nlsq_defense_warmup_calls_total"] == 1 for m in metrics.values())


def test_fits_in_threads_never_mix_their_telemetry():
    expected = {kind: counted(own(fit(kind))) for kind in KINDS}
    answers = {kind: fit(kind).popt.tobytes() for kind in KINDS}
    reset_defense_telemetry()
    repeats = 12
    barrier = threading.Barrier(len(KINDS))

    def many(kind):
        barrier.wait()
        return [fit(kind) for _ in range(repeats)]

    with ThreadPoolExecutor(len(KINDS)) as pool:
        found = dict(zip(KINDS, pool.map(many, KINDS), strict=True))
    for kind, results in found.items():
        for result in results:
            assert counted(own(result)) == expected[kind], kind
            assert result.popt.tobytes() == answers[kind]
    shared = get_defense_telemetry()
    assert shared.total_warmup_calls == repeats * len(KINDS)
    assert shared.export_metrics() == {
        name: repeats * sum(metrics[name] for metrics, _ in expected.values()) for name in shared.export_metrics()
    }
    clipped = sum(metrics["nlsq_defense_layer4_triggers_total"] > 0 for metrics, _ in expected.values())
    assert shared.get_trigger_rates()["layer4_clipped_fits_rate"] == pytest.approx(100.0 * clipped / len(KINDS))


def test_two_fits_step_by_step_in_two_threads():
    """The threads take turns at every iteration, so that events of the two fits alternate."""
    kinds = ("poor", "memory of two")
    expected = {kind: counted(own(fit(kind))) for kind in kinds}
    reset_defense_telemetry()
    barrier = threading.Barrier(2)

    def run(kind):
        p0, options = KINDS[kind]

        def take_turns(*_):
            try:
                barrier.wait(timeout=20)
            except threading.BrokenBarrierError:
                return  # the other fit is done

        result = curve_fit(MODEL, X, Y, p0, callback=take_turns, callback_frequency=1, **options)
        barrier.abort()
        return counted(own(result))

    with ThreadPoolExecutor(2) as pool:
        assert dict(zip(kinds, pool.map(run, kinds), strict=True)) == expected
    assert get_defense_telemetry().export_metrics() == added([metrics for metrics, _ in expected.values()])


# -- stopped and failed ---------------------------------------------------------------------------
def stopped(at, error=None):
    """The telemetry of the process after a fit that ended at a call of its callback, and its result."""
    reset_defense_telemetry()

    def callback(params, loss, iteration):
        if iteration == at:
            raise error or StopFit

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = None
        try:
            result = curve_fit(MODEL, X, Y, POOR, separable=False, callback=callback, callback_frequency=1)
        except LookupError:
            assert error is not None
    return counted(get_defense_telemetry()), result


@pytest.mark.parametrize("at", [1, 2, 7, 30, 76])
def test_telemetry_of_a_stopped_fit_is_complete(at):
    whole = fit("poor, all parameters")
    events = own(whole).get_recent_events(1000)
    (metrics, seen), result = stopped(at)
    assert result.status is StopReason.CALLBACK
    assert counted(own(result)) == (metrics, seen)
    assert metrics["nlsq_defense_warmup_calls_total"] == 1
    assert metrics["nlsq_defense_layer2_exploration_total"] == 1
    # what had happened until then, that step's own events included, and nothing else
    assert seen == [(e["type"], e["data"]) for e in events][: len(seen)]
    assert metrics["nlsq_defense_layer4_triggers_total"] == sum(kind == "layer4_clip" for kind, _ in seen)
    warmup = result.streaming_diagnostics["warmup_diagnostics"]
    assert warmup["clips"] == metrics["nlsq_defense_layer4_triggers_total"]
    if at >= 76:
        assert len(seen) == len(events)


@pytest.mark.parametrize("at", [1, 7, 76])
def test_telemetry_of_a_fit_that_its_callback_killed_is_complete(at):
    expected, _ = stopped(at)
    got, result = stopped(at, LookupError("mine"))
    assert result is None
    assert got == expected
    after = fit("careful")
    assert get_defense_telemetry().export_metrics() == added([expected[0], counted(own(after))[0]])


def test_telemetry_of_fits_that_fail_at_the_start():
    with pytest.raises(NumericsError, match="row 0"):
        curve_fit("a*log(x) + b", X, Y, [1.0, 1.0])
    shared = get_defense_telemetry()
    # no warm-up had begun, since the start cannot be judged
    assert set(shared.export_metrics().values()) == {0}
    assert shared.get_recent_events() == []
    with pytest.raises(ValueError, match="row 3"):
        curve_fit(MODEL, X, np.where(np.arange(500) == 3, np.inf, Y), POOR)
    assert set(shared.get_trigger_rates().values()) == {0.0}
    fit("warm")
    assert (shared.total_warmup_calls, shared.layer1_warm_start_triggers) == (1, 1)


def test_a_mixed_batch_adds_up():
    expected = [counted(own(fit(kind)))[0] for kind in ("warm", "careful")]
    expected += [stopped(at, error)[0][0] for at, error in ((3, None), (3, LookupError()), (76, LookupError()))]
    reset_defense_telemetry()
    fit("warm")
    fit("careful")
    for at, error in ((3, StopFit), (3, LookupError), (76, LookupError)):

        def callback(params, loss, iteration, at=at, error=error):
            if iteration == at:
                raise error

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with suppress(LookupError):
                curve_fit(MODEL, X, Y, POOR, separable=False, callback=callback, callback_frequency=1)
    with pytest.raises(NumericsError):
        curve_fit("a*log(x) + b", X, Y, [1.0, 1.0])
    shared = get_defense_telemetry()
    assert shared.export_metrics() == added(expected)
    modes = sum(shared.layer2_lr_mode_counts.values())
    assert shared.total_warmup_calls == shared.layer1_warm_start_triggers + modes == 5


# -- killed and resumed ----------------------------------------------------------------------------
BOUNDS = ([0.0, 0.0, 0.0], [50.0, 3.0, 10.0])
PROBLEMS = {
    "separable": ({}, {}),
    "all parameters": ({"separable": False}, {}),
    "bounds": ({"separable": False}, {"bounds": BOUNDS}),
    "sample": ({"warmup_sample_size": 100, "separable": False}, {}),
    "sigma, float32": ({"precision": "float32"}, {"sigma": np.linspace(0.5, 2.0, 500)}),
    "many parameters": ({"cg_param_threshold": 2}, {}),
}


def fit_with(options, extra, callback=watch, **more):
    return curve_fit(MODEL, X, Y, POOR, callback_frequency=1, callback=callback, **extra, **options, **more)


def killed(folder, options, extra, at):
    def callback(params, loss, iteration):
        if iteration == at:
            raise LookupError("killed")

    with pytest.raises(LookupError, match="killed"):
        fit_with(options, extra, checkpoint_dir=folder, checkpoint_frequency=1, callback=callback)
    return sorted(Path(folder).glob("checkpoint_phase*_iter*.h5"))


def same(result, whole):
    for name in ("popt", "pcov", "grad"):
        assert getattr(result, name).tobytes() == getattr(whole, name).tobytes(), name
    assert (result.sse, result.status, result.optimality) == (whole.sse, whole.status, whole.optimality)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("phase", [1, 2])
def test_a_killed_fit_resumes_to_the_same_bits(tmp_path, problem, phase):
    options, extra = PROBLEMS[problem]
    whole = fit_with(options, extra)
    steps = whole.streaming_diagnostics["phase_iterations"]
    at = min(3, steps["lbfgs_warmup"]) if phase == 1 else steps["lbfgs_warmup"] + min(2, steps["gauss_newton"])
    files = killed(tmp_path, options, extra, at)
    assert 1 <= len(files) <= 3
    assert f"phase{phase}" in max(files, key=lambda f: f.stat().st_mtime_ns).name
    for start in (tmp_path, max(files, key=lambda f: f.stat().st_mtime_ns)):
        count = itertools.count()
        result = fit_with(options, extra, resume_from_checkpoint=start, callback=lambda *_, c=count: next(c) < 0)
        same(result, whole)
        assert result.nfev == whole.nfev
        assert 0 <= next(count) < whole.nit


@pytest.mark.parametrize("phase", [1, 2])
def test_a_resumed_fit_reports_its_iterations_and_findings(tmp_path, phase):
    options, extra = PROBLEMS["all parameters"]
    whole = fit_with(options, extra)
    iterations = whole.streaming_diagnostics["phase_iterations"]
    killed(tmp_path, options, extra, 3 if phase == 1 else iterations["lbfgs_warmup"] + 2)
    result = fit_with(options, extra, resume_from_checkpoint=tmp_path)
    found = result.streaming_diagnostics
    assert found["phase_iterations"] == iterations
    assert result.nit == whole.nit
    assert [entry["phase"] for entry in found["phase_history"]] == [0, 1, 2, 3]
    for name in ("warmup_diagnostics", "gauss_newton_diagnostics"):
        mine, theirs = found[name], whole.streaming_diagnostics[name]
        times = {"start_time", "duration", "timestamp", "reason"}
        assert {k: v for k, v in mine.items() if k not in times} == {k: v for k, v in theirs.items() if k not in times}


@pytest.mark.parametrize("at", [1, 5, 30])
def test_resuming_from_any_iteration(tmp_path, at):
    options, extra = PROBLEMS["all parameters"]
    whole = fit_with(options, extra)
    killed(tmp_path, options, extra, at)
    same(fit_with(options, extra, resume_from_checkpoint=tmp_path), whole)


def test_a_resumed_fit_may_be_killed_and_resumed_again(tmp_path):
    options, extra = PROBLEMS["all parameters"]
    whole = fit_with(options, extra)
    killed(tmp_path, options, extra, 5)
    for _ in range(3):
        count = iter(range(1, 100))

        def callback(*_, count=count):
            if next(count) == 10:
                raise LookupError("killed")

        with pytest.raises(LookupError):
            fit_with(
                options,
                extra,
                resume_from_checkpoint=tmp_path,
                checkpoint_dir=tmp_path,
                checkpoint_frequency=1,
                callback=callback,
            )
    result = fit_with(options, extra, resume_from_checkpoint=tmp_path)
    same(result, whole)
    assert result.nfev == whole.nfev


def test_what_does_not_reach_the_answer_may_differ(tmp_path):
    options, extra = PROBLEMS["all parameters"]
    whole = fit_with(options, extra)
    killed(tmp_path, options, extra, 5)
    result = curve_fit(MODEL, X, Y, POOR, separable=False, resume_from_checkpoint=tmp_path, checkpoint_frequency=7)
    same(result, whole)


CONFIG = "options, start, bounds or loss"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"y": Y + 1e-12}, "data"),
        ({"x": X[::-1]}, "data"),
        ({"rows": 499}, "data"),
        ({"sigma": np.linspace(1.0, 2.0, 500)}, "data"),
        ({"model": Model("a*exp(-x/b) + c")}, "model"),
        ({"model": Model("a*exp(-b*x) + d")}, "model"),
        ({"gauss_newton_tol": 1e-9}, CONFIG),
        ({"separable": "auto"}, CONFIG),
        ({"lbfgs_history_size": 3}, CONFIG),
        ({"p0": [1.0, 0.1, 5.0001]}, CONFIG),
        ({"bounds": BOUNDS}, CONFIG),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_checkpoint_of_another_fit_is_refused_by_name(tmp_path, change, name):
    options, extra = PROBLEMS["all parameters"]
    killed(tmp_path, options, extra, 5)
    given = {"model": MODEL, "x": X, "y": Y, "p0": POOR, "separable": False, "rows": 500} | change
    rows = given.pop("rows")
    model, x, y, p0 = (given.pop(key) for key in ("model", "x", "y", "p0"))
    with pytest.raises(CheckpointError, match="another fit") as caught:
        curve_fit(model, x[:rows], y[:rows], p0, resume_from_checkpoint=tmp_path, **given)
    assert f"another fit: other {name};" in str(caught.value)


def test_the_rows_are_read_once_for_what_a_checkpoint_belongs_to(tmp_path, monkeypatch):
    options, extra = PROBLEMS["all parameters"]
    killed(tmp_path, options, extra, 5)
    told, plain = [], resuming._fingerprint
    monkeypatch.setattr(resuming, "_fingerprint", lambda *given: told.append(1) or plain(*given))
    fit_with(options, extra, resume_from_checkpoint=tmp_path, checkpoint_dir=tmp_path)
    assert len(told) == 1
    fit_with(options, extra)
    assert len(told) == 1


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no valid checkpoint"):
        curve_fit(MODEL, X, Y, POOR, resume_from_checkpoint=tmp_path)


def everything(result):
    telemetry = own(result)
    return counted(telemetry), telemetry.get_trigger_rates(), telemetry.get_summary()


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_telemetry_of_a_resumed_fit_is_that_of_the_whole_fit(tmp_path, problem, share):
    options, extra = PROBLEMS[problem]
    whole = fit_with(options, extra)
    reset_defense_telemetry()
    killed(tmp_path, options, extra, max(1, round(share * whole.nit)))
    result = fit_with(options, extra, resume_from_checkpoint=tmp_path)
    assert own(result).total_warmup_calls == 1
    assert everything(result) == everything(whole)
    # the process has seen each event once, before the kill or after the resumption
    assert counted(get_defense_telemetry()) == counted(own(whole))


@pytest.mark.parametrize("every", [1, 4, 100])
def test_telemetry_of_a_fit_resumed_after_ctrl_c_has_no_event_twice(tmp_path, every):
    """The last state is written when Ctrl-C comes, amid the passes of the next step."""
    calls = []

    def model(x, a, b, c):
        calls.append(None)
        if len(calls) == at:
            raise KeyboardInterrupt
        return a * np.exp(-b * x) + c

    def run(**more):
        calls.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return curve_fit(model, X, Y, POOR, jac="3-point", separable=False, **more)

    at = 0
    whole = run()
    for moment in (len(calls) // 5, len(calls) // 2):
        at = moment
        stopped = run(checkpoint_dir=tmp_path, checkpoint_frequency=every)
        assert stopped.status is StopReason.INTERRUPTED
        at = 0
        result = run(resume_from_checkpoint=tmp_path)
        same(result, whole)
        assert everything(result) == everything(whole)
        assert result.nfev == whole.nfev


def test_a_checkpoint_of_another_release_is_refused(tmp_path, monkeypatch):
    options, extra = PROBLEMS["all parameters"]
    with monkeypatch.context() as patch:
        patch.setattr("nlsq_nb.fitting.beside", lambda *_: {"passes": 3, "history": []})
        killed(tmp_path, options, extra, 5)
    with pytest.raises(CheckpointError, match=r"another release .*multistart.* start afresh"):
        fit_with(options, extra, resume_from_checkpoint=tmp_path)


@pytest.mark.parametrize("p0", [[4.97480136, 0.49754672, 1.00100807], "optimum"])
def test_a_fit_without_steps_leaves_a_checkpoint(tmp_path, p0):
    options = {"separable": False, "gauss_newton_tol": 1e-4}
    start = curve_fit(MODEL, X, Y, POOR).popt if p0 == "optimum" else p0
    whole = curve_fit(MODEL, X, Y, start, callback=watch, **options)
    assert whole.nit == 0
    curve_fit(MODEL, X, Y, start, checkpoint_dir=tmp_path, **options)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["checkpoint_phase1_iter0.h5", "checkpoint_phase2_iter0.h5"]
    for name in files:
        result = curve_fit(MODEL, X, Y, start, resume_from_checkpoint=tmp_path / name, **options)
        same(result, whole)
        assert everything(result) == everything(whole)


# -- Ctrl-C ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("at", [2, 76])
def test_ctrl_c_gives_the_best_point_and_leaves_a_checkpoint(tmp_path, at):
    options, extra = PROBLEMS["all parameters"]
    whole = fit_with(options, extra)
    told = []

    def callback(params, loss, iteration):
        told.append((params, loss))
        if iteration == at:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted"):
        result = fit_with(options, extra, callback=callback, checkpoint_dir=tmp_path)
    assert result.status is StopReason.INTERRUPTED
    assert len(told) == at
    np.testing.assert_array_equal(result.popt, min(told, key=lambda pair: pair[1])[0])
    same(fit_with(options, extra, resume_from_checkpoint=tmp_path), whole)


@pytest.mark.parametrize("options", [{"separable": False}, {"loss": "soft_l1", "f_scale": 0.1}])
@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_ctrl_c_in_any_pass_gives_a_result_that_goes_on(tmp_path, options, every):
    """But for the first passes, in which the data are seen and nothing is known."""
    calls, at, few = itertools.count(1), 0, {"warmup_iterations": 8, "max_warmup_iterations": 8}

    def model(x, a, b, c):
        if next(calls) == at:
            raise KeyboardInterrupt
        return a * np.exp(-b * x) + c

    def run(**more):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return curve_fit(model, X, Y, GOOD, jac="2-point", **few, **options, **more)

    whole = run()
    last = next(calls)
    statuses = []
    for at in range(1, last, every):
        calls, folder = itertools.count(1), tmp_path / str(at)
        try:
            found = run(checkpoint_dir=folder, checkpoint_frequency=5)
        except KeyboardInterrupt:
            assert not statuses  # nothing was known
            continue
        statuses.append(found.status)
        assert np.isfinite(found.sse)
        assert found.sse <= run_sse(GOOD)
        calls, begun = itertools.count(last + 1), any(folder.glob("checkpoint_*"))
        same(run(resume_from_checkpoint=folder if begun else None), whole)
    assert len(statuses) > (last - 12) // every
    assert set(statuses) == {StopReason.INTERRUPTED}


def run_sse(theta):
    return float(np.sum((Y - MODEL(X, *theta)) ** 2))


@pytest.mark.parametrize("phase", [1, 2])
def test_ctrl_c_while_a_checkpoint_is_written(tmp_path, monkeypatch, phase):
    options, extra = PROBLEMS["all parameters"]
    whole = fit_with(options, extra)

    def interrupted(*args):
        if args[1] == phase:
            raise KeyboardInterrupt
        return write(*args)

    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr("nlsq_nb.observe.checkpoint.write", interrupted)
        found = fit_with(options, extra, checkpoint_dir=tmp_path, checkpoint_frequency=1)
    assert found.status is StopReason.INTERRUPTED
    assert np.isfinite(found.sse)
    if phase == 2:
        same(fit_with(options, extra, resume_from_checkpoint=tmp_path), whole)


@pytest.mark.parametrize("where", [(NativeRun, "go"), (quick, "pattern_of")])
def test_ctrl_c_in_native_code_gives_a_result(monkeypatch, where):
    def interrupted(*args):
        native(*args)
        signal.raise_signal(signal.SIGINT)

    native = getattr(*where)
    monkeypatch.setattr(*where, interrupted)
    if where[0] is not quick:
        monkeypatch.setattr(api, "fit_plainly", lambda *given, **options: None)
    ways = [
        lambda: curve_fit(MODEL, X, Y, POOR),
        lambda: curve_fit(MODEL, X, Y, POOR, method="lm"),
        lambda: AdaptiveHybridStreamingOptimizer().fit((X, Y), MODEL, POOR, verbose=0),
    ]
    for way in ways if where[0] is not quick else ways[:1]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = way()
        assert result.status is StopReason.INTERRUPTED
        assert result.popt.tolist() == POOR
        assert np.isfinite(result.sse)
        assert [entry["phase"] for entry in result.streaming_diagnostics["phase_history"]] == [0, 1, 2, 3]
