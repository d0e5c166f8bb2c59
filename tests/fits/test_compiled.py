"""Fits in native code and step by step: the same paths, events and results."""

import pickle
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from nlsq_nb import HybridStreamingConfig, Model, api, compiled, curve_fit, quick, stages
from nlsq_nb.errors import NlsqError
from nlsq_nb.observe.telemetry import get_defense_telemetry
from nlsq_nb.phases.gauss_newton import GaussNewton

from .nist import MODELS, problem
from .test_random_problems import FAMILIES

BESIDE = {"start_time", "duration", "timestamp"}
BESIDE |= {"radius", "optimality", "condition"}  # come from differences of nearly equal numbers
X, MANY = np.linspace(0.0, 10.0, 60), np.linspace(0.0, 1.0, 20_000)
RUNS = [(name, start) for name in MODELS for start in (1, 2)]


def fit(*args, way="phases", **kwargs):
    """The result, and what ran in native code to its end.

    The ways: "direct", the whole fit in native code; "phases", each behind observers; "steps", in Python.
    """
    inside = []

    def whole(*given, **options):
        found = direct(*given, **options) if way == "direct" else None
        if found is not None:
            inside.append("whole")
        return found

    def noted(phase, *rest):
        found = compiled.advance(phase, *rest)
        if found is not None:
            inside.append(type(phase).__name__)
        return found

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(api, "fit_plainly", no_plain_fit)
        patch.setattr(api, "fit_directly", whole)
        patch.setattr(stages, "advance", noted)
        if way == "steps":
            patch.setattr(compiled, "LARGEST", 0)
        result = curve_fit(*args, **kwargs)
    return result, inside


direct, plain = api.fit_directly, api.fit_plainly


def no_plain_fit(*given, **options):
    """Leave all to the general way."""
    return


def close(a, b, tolerance):
    """Whether numbers agree, those that are not finite exactly."""
    return np.allclose(a, b, rtol=tolerance, atol=0.0, equal_nan=True)


def differences(a, b):
    """What tells two results apart; nothing for the same path with other rounding errors."""
    known, expected = a.streaming_diagnostics, b.streaming_diagnostics
    tolerance = max(1e-9, 10.0 * np.finfo(float).eps * min(expected["condition"], 1e9))
    found = [name for name in ("status", "message", "notes") if getattr(a, name) != getattr(b, name)]
    found += [name for name in ("popt", "perr", "sse") if not close(getattr(a, name), getattr(b, name), tolerance)]
    scale = np.outer(b.perr, b.perr)
    if np.isfinite(scale).all() and not (np.abs(a.pcov - b.pcov) <= 10.0 * tolerance * scale).all():
        found += ["pcov"]
    found += ["telemetry"] if known["telemetry"].export_metrics() != expected["telemetry"].export_metrics() else []
    # step by step, phase 2 measures its start again where the warm-up took gradients alone; and rounding
    # decides whether the last trial, as good as the point before, has its linear parameters polished
    found += ["nfev"] if abs(a.nfev - b.nfev) > 1 else []
    for mine, other in zip(known["phase_history"], expected["phase_history"], strict=True):
        assert mine.keys() == other.keys()
        for key in mine.keys() - BESIDE:
            number = isinstance(mine[key], float)
            if not (close(mine[key], other[key], tolerance) if number else mine[key] == other[key]):
                found.append(f"{mine['name']}: {key}")
    return found


def shaken(values, seed):
    """The same to rounding."""
    return values * (1.0 + 4e-16 * np.random.default_rng(seed).choice([-1.0, 1.0], len(values)))


def check(model, x, y, start, **options):
    """Compare the ways: what ran in native code, and whether rounding decided the path.

    It does where nearly equal numbers are subtracted. Then all ways must end in the same minimum, or
    the phases themselves in another one from data that are the same to rounding.
    """
    options = {"second_opinion": False} | options  # asked of fewer starts where that goes step by step
    b, _ = fit(model, x, y, start, way="steps", **options)
    ran, decided = [], False
    for way in ("phases", "direct"):
        a, inside = fit(model, x, y, start, way=way, **options)
        found = differences(a, b)
        if found and not (a.success and b.success and close(a.sse, b.sse, 1e-9)):
            again = (fit(model, x, shaken(y, k), shaken(start, k), way="steps", **options)[0] for k in range(10))
            assert any("sse" in differences(other, b) or other.status != b.status for other in again), found
        ran, decided = [*ran, *inside], decided or bool(found)
    return ran, decided


@pytest.mark.parametrize(("name", "start"), RUNS)
def test_certified_problems(name, start):
    p = problem(name)
    _, decided = check(Model(p.model, x=p.variables, params=p.params), p.x, p.y, p.starts[start - 1])
    # sums of exponentials are ill-conditioned, and MGH17 begins where its terms coincide: rounding counts there
    assert not decided or name in ("Lanczos1", "Lanczos2", "Lanczos3", "ENSO") or (name, start) == ("MGH17", 1)


def test_most_certified_problems_are_fitted_in_native_code():
    found = 0
    for name, start in RUNS:
        p = problem(name)
        model = Model(p.model, x=p.variables, params=p.params)
        _, inside = fit(model, p.x, p.y, p.starts[start - 1], way="direct", second_opinion=False)
        found += inside == ["whole"]
    assert found >= 26


def in_bits(result):
    """All numbers of a result, and what else it says."""
    known = result.streaming_diagnostics
    told = [{k: v for k, v in entry.items() if k not in BESIDE} for entry in known["phase_history"]]
    rest = {k: known[k] for k in ("phase_iterations", "data_passes", "sample_passes", "condition")}
    values = {k: v for k, v in dict(result).items() if k not in ("streaming_diagnostics", "model")}
    return repr(values), told, rest, known["telemetry"].export_metrics(), result.fun.tobytes(), result.report()


def same_in_bits(monkeypatch, *given, **errors):
    """Compare a plain fit with the general way; whether it was one."""
    found = []
    monkeypatch.setattr(api, "fit_plainly", lambda *args, **more: found.append(plain(*args, **more)) or found[-1])
    counts = [get_defense_telemetry().export_metrics()]
    mine = curve_fit(*given, **errors)
    counts.append(get_defense_telemetry().export_metrics())
    monkeypatch.setattr(api, "fit_plainly", no_plain_fit)
    other = curve_fit(*given, **errors)
    counts.append(get_defense_telemetry().export_metrics())
    assert len(found) == 1
    assert in_bits(mine) == in_bits(other)
    first, second = ({k: b[k] - a[k] for k in b if k in a} for a, b in pairwise(counts))
    assert first == second
    assert repr(mine.confidence_intervals(method="profile")) == repr(other.confidence_intervals(method="profile"))
    return found[0] is not None


@pytest.mark.parametrize("seed", range(40))
def test_a_plain_fit_has_the_bits_of_the_general_way(seed, monkeypatch):
    (model, x, y, start), _ = drawn(seed)
    start[start == 0.0] = 0.1
    sigma = np.random.default_rng(seed).uniform(0.2, 5.0, len(x)) if seed % 3 == 0 else None
    same_in_bits(monkeypatch, model, x, y, start, sigma=sigma, absolute_sigma=seed % 2 == 1)


@pytest.mark.parametrize("start", [(1.0, 0.1, 5.0), (5.1, 0.505, 0.99), (1.0, 3.0, 0.0)])
@pytest.mark.parametrize("rows", [4096, 4097, 8193, 16_384])
def test_a_plain_fit_of_more_rows_has_them_too(rows, start, monkeypatch):
    x = np.linspace(0.0, 10.0, rows)
    y = 5.0 * np.exp(-0.5 * x) + 1.0 + np.random.default_rng(rows).normal(0.0, 0.1, rows)
    assert same_in_bits(monkeypatch, "a*exp(-b*x) + c", x, y, start)
    sigma = 0.1 * np.linspace(1.0, 2.0, rows)
    assert same_in_bits(monkeypatch, "a*exp(-b*x) + c", x, y, start, sigma=sigma, absolute_sigma=True)


@pytest.mark.parametrize("text", ["a + b*x", "a*exp(-((x - m)/s)**2/2) + c"])
def test_a_plain_fit_of_a_sample_has_them_for_other_models(text, monkeypatch):
    x = np.linspace(0.0, 10.0, 9000)
    model = Model(text)
    truth = np.linspace(1.0, 2.0, model.n_params)
    y = model(x, *truth) + np.random.default_rng(3).normal(0.0, 0.1, 9000)
    assert same_in_bits(monkeypatch, model, x, y, 1.5 * truth)


def test_equal_models_keep_their_own_notes(monkeypatch):
    model, y = Model("a*e**(-b*x) + c"), DECAY + NOISE
    read = pickle.loads(pickle.dumps(model))
    assert read == model
    assert [len(curve_fit(each, X, y, (4.0, 0.4, 1.0)).notes) for each in (model, read, model)] == [1, 0, 1]
    assert same_in_bits(monkeypatch, read, X, y, (4.0, 0.4, 1.0))


def test_standard_deviations_may_be_written_over_after_a_fit():
    sigma = np.full(X.size, 0.1)
    result = curve_fit("a*exp(-b*x) + c", X, DECAY + NOISE, (4.0, 0.4, 1.0), sigma)
    sigma[:] = np.nan
    assert np.isclose(((result.fun / 0.1) ** 2).sum(), result.sse)
    assert result.streaming_diagnostics["data_passes"] > 1


def test_models_beyond_those_that_are_kept_are_read_anew(monkeypatch):
    monkeypatch.setattr(quick, "_prepared", {})
    models = [Model("a*exp(-b*x) + c") for _ in range(70)]
    found = {curve_fit(each, X, DECAY + NOISE, (4.0, 0.4, 1.0)).popt.tobytes() for each in models + models}
    assert len(found) == 1
    assert 0 < len(quick._prepared) <= 64


def test_plain_fits_follow_no_error_state_of_numpy(monkeypatch):
    y = 1e-150 * (3.0 * X + np.random.default_rng(0).normal(0.0, 0.01, X.size))
    with np.errstate(all="raise"):  # squares, and the variance, are below the smallest normal number
        assert same_in_bits(monkeypatch, "a*x", X, y, (3e-150,))


class Refusing(float):
    """A number that is none."""

    def __float__(self):
        raise ValueError("no")


def test_most_plain_fits_are_quick():
    found = [plain(model, x, y, start) for (model, x, y, start), _ in map(drawn, range(40))]
    assert sum(result is not None for result in found) >= 25


@pytest.mark.parametrize(
    "given",
    [
        {"f": lambda x, a, b: a * np.exp(-b * x)}, {"f": ["a*x", "b*x"]}, {"f": "a*exp(-b*x) + q*z"},
        {"x": X.astype(np.float32)}, {"x": X.tolist()}, {"x": X[::-1]}, {"x": np.full_like(X, np.nan)},
        {"x": np.frombuffer(b"-" + X.tobytes(), offset=1)}, {"p0": [1.0, Refusing(1.0)]},
        {"x": np.ma.masked_array(X)}, {"x": np.stack([X, X])}, {"x": X[1:]}, {"x": MANY, "y": np.sqrt(MANY)},
        {"y": np.zeros_like(X)}, {"y": np.full_like(X, np.inf)}, {"y": np.full_like(X, 1e-170)},
        {"y": np.random.default_rng(1).normal(size=len(X))}, {"y": 2.0 * np.exp(-0.5 * X)},
        {"sigma": 0.1}, {"sigma": X}, {"sigma": X[1:]}, {"sigma": 1e-160 + X}, {"sigma": np.eye(60)},
        {"x": X[:0], "y": X[:0], "sigma": X[:0]},
        {"p0": None}, {"p0": {"a": 1.0, "b": 1.0}}, {"p0": [1.0]}, {"p0": [1.0, np.nan]}, {"p0": [1.0, 10**400]},
        {"p0": [1.0, -800.0]}, {"p0": ["1", "2"]}, {"p0": [1.0, 1j]}, {"p0": np.ones((1, 2))},
    ],
)  # fmt: skip
def test_what_is_not_plain_is_for_the_general_way(given):
    y = 2.0 * np.exp(-0.5 * X) + np.random.default_rng(0).normal(0.0, 0.01, len(X))
    usual = {"f": "a*exp(-b*x)", "x": X, "y": y, "p0": [1.0, 1.0]}
    assert plain(**usual) is not None
    assert plain(**{**usual, **given}) is None


def quiet(config):
    config.verbose = 0
    return config


def drawn(seed):
    """Arguments of one random fit."""
    rng = np.random.default_rng(seed)
    family = FAMILIES[(0, 1, 5, 6, 7)[seed % 5]]
    n = int(rng.integers(3 * family.model.n_params, 60))
    truth = rng.uniform(family.low, family.high)
    x = np.sort(rng.uniform(*family.span, n))
    clean = family.model(x, *truth)
    y = clean + rng.choice([0.01, 0.1]) * np.ptp(clean) * rng.normal(size=n)
    start = truth * np.exp(rng.choice([0.1, 0.3, 0.6]) * rng.normal(size=len(truth)))
    start[rng.random(len(truth)) < 0.05] = 0.0
    options = [
        {},
        {"separable": False},
        {"precision": "float32"} if seed % 5 == 0 else {},  # few kernels: each is compiled
        {"gauss_newton_tol": 1e-5},
        {"gauss_newton_tol": 1e-11, "separable": False},
        {"config": quiet(HybridStreamingConfig.defense_strict())},
        {"config": quiet(HybridStreamingConfig.defense_disabled())},
        {"config": quiet(HybridStreamingConfig.aggressive())},
        {"lbfgs_history_size": 2, "gradient_clip_value": 0.1},
        {"active_switching_criteria": ["plateau"], "enable_cost_guard": False},
        {"max_warmup_step_size": 1.0, "separable": False},
        {"cost_increase_tolerance": 0.0, "enable_adaptive_warmup_lr": False, "trust_region_initial": 0.1},
        {"max_warmup_iterations": 0, "warmup_iterations": 0},
        {"normalization_strategy": "none", "enable_warm_start_detection": False},
        {"gauss_newton_max_iterations": 2},
        {"verbose": 1},
    ][rng.integers(16)]
    options = {**options, "sigma": rng.uniform(0.2, 5.0, n)} if seed % 5 == 1 else options
    if rng.random() < 0.3:
        reach = (0.5 + np.abs(truth) + np.abs(start)) * rng.choice([0.5, 20.0])
        options = {**options, "bounds": (np.minimum(truth, start) - reach, np.maximum(truth, start) + reach)}
    return (family.model, x, y, start), options


@pytest.mark.parametrize("count", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_random_problems(count):
    plain, decided = 0, 0
    for seed in range(count):
        args, options = drawn(seed)
        try:
            inside, by_rounding = check(*args, **options)
        except NlsqError:  # the model is not finite at the start
            continue
        plain += inside == ["Warmup", "GaussNewton", "whole"]
        decided += by_rounding
    assert plain > 0.75 * count
    assert decided < 0.1 * count


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_bounds_in_the_way(count):
    whole, held, decided = 0, 0, 0
    for seed in range(count):
        (model, x, y, start), options = drawn(seed)
        options.pop("bounds", None)
        rng = np.random.default_rng(seed)
        try:
            best = fit(model, x, y, start, **options)[0].popt
            # some parameters may not get as far, others nearly
            inside = np.where(rng.random(len(best)) < 0.3, -0.1, rng.uniform(0.01, 2.0, len(best)))
            low, high = best - inside * np.abs(best), best + 3.0 * np.abs(best) + 1.0
            args = (model, x, y, np.clip(start, low, high))
            ran, by_rounding = check(*args, **options, bounds=(low, high))
        except NlsqError:  # the model is not finite at the start
            continue
        whole += "whole" in ran
        held += np.isin(fit(*args, **options, bounds=(low, high))[0].popt, low).any()
        decided += by_rounding
    assert whole > 0.8 * count
    assert held > 0.6 * count
    assert decided < 0.1 * count


NUMBER = r"-?\d+\.?\d*(?:e[+-]\d+)?"
NOISE = np.random.default_rng(5).normal(0.0, 0.05, X.size)
DECAY = 5.0 * np.exp(-0.5 * X) + 1.0


@pytest.mark.parametrize(
    ("model", "y", "start", "options"),
    [
        ("a*exp(-b*x) + c", DECAY + NOISE, (1.0, 0.1, 5.0), {"bounds": ([0, 0, 2], [9, 9, 9])}),  # ends on a bound
        ("a*exp(-b*x) + c", DECAY + NOISE, (1.0, 0.1, 5.0), {"bounds": ([0, 0, 5], [9, 9, 9])}),  # begins on one
        ("a*exp(-b*x) + c", DECAY + NOISE, (1.0, 0.1, 5.0), {"bounds": ([0, 0.1, 0], [9, 0.1, 9])}),  # fixed
        # a term that vanishes, and its rate with it
        ("a*exp(-b*x) + d*exp(-k*x)", 5 * np.exp(-X) - np.exp(-2 * X) + NOISE, (3, 0.3, 1, 4), {"bounds": (0, 9)}),
        ("a*exp(-b*x) + d*exp(-k*x)", 5 * np.exp(-X) - np.exp(-2 * X) + NOISE, (3, 0.3, 0, 4), {"bounds": (0, 9)}),
        ("a*exp(-b*x) + c + d", DECAY + NOISE, (1.0, 0.1, 5.0, 1.0), {}),  # singular everywhere
        ("a*exp(-b*x) + c*exp(-d*x)", DECAY + NOISE, (2.0, 0.3, 2.0, 0.3), {}),  # singular at the start
        ("a*exp(-b*x)", 5.0 * np.exp(-0.5 * X), (1.0, 0.1), {}),  # exact
        ("a*exp(-b*x)", 5.0 * np.exp(-0.5 * X), (5.0, 0.5), {}),  # from the start
        ("a*exp(-b*x)", np.zeros(X.size), (5.0, 0.5), {}),  # y without a scale
        ("a*exp(-b*x)", np.full(X.size, 2.0), (5.0, 0.5), {}),  # or without a variance
        ("a*log(b*x + 1)", np.log(X + 1.0) + NOISE, (1.0, 0.01), {"max_warmup_step_size": 50.0}),  # not finite beyond
        ("a*sqrt(x + b)", np.sqrt(X + 1e-3) + NOISE, (1.0, 3.0), {"enable_step_clipping": False}),
        ("a*exp(-b*x) + c", DECAY + NOISE, (1.0, 0.1, 5.0), {"lbfgs_line_search": "backtracking"}),
        ("a*exp(-b*x) + c", DECAY + NOISE, (1.0, 0.1, 5.0), {"gauss_newton_max_iterations": 1}),
        ("a + b*x", 1.0 + 2.0 * X + NOISE, (0.0, 0.0), {}),
        ("a*x**b", X**1.5 + 1e150 * NOISE, (1.0, 1.0), {}),  # squares overflow
    ],
)
def test_what_is_not_plain_ends_as_step_by_step(model, y, start, options):
    check(Model(model), X, y, np.array(start), **options)


def test_only_trials_that_need_the_general_way_are_made_in_python(monkeypatch):
    steps, step = [], GaussNewton.step
    monkeypatch.setattr(GaussNewton, "step", lambda *given: (steps.append(1), step(*given))[1])
    p = problem("Lanczos3")
    for way, most in (("direct", 5), ("steps", 100)):
        steps.clear()
        result, inside = fit(Model(p.model, params=p.params), p.x, p.y, p.starts[1], way=way)
        assert result.success
        assert result.nit > 20
        assert most // 20 <= len(steps) <= most
        assert inside == ["whole"] * (way == "direct")
    assert len(steps) > 20


@pytest.mark.parametrize("n", [16_384, 16_385, 40_000])
def test_several_segments(n):
    x = np.linspace(0.0, 10.0, n)
    y = 5.0 * np.exp(-0.5 * x) + 1.0 + np.random.default_rng(1).normal(0.0, 0.1, n)
    start, options = np.array([1.0, 0.1, 5.0]), {"warmup_sample_size": n}
    inside, decided = check(Model("a*exp(-b*x) + c"), x, y, start, **options)
    assert inside == ["Warmup", "GaussNewton", "whole"]
    assert not decided


def test_what_a_log_is_told_is_the_same(caplog):
    """Every step, its numbers and their order."""
    words, numbers = [], []
    for way in ("phases", "steps"):
        caplog.clear()
        with caplog.at_level("DEBUG", logger="nlsq_nb"):
            start, options = (1.0, 0.1, 5.0), {"lbfgs_history_size": 3, "verbose": 2}
            _, inside = fit("a*exp(-b*x) + c", X, DECAY + NOISE, start, way=way, **options)
        assert len(inside) == 2 * (way == "phases")
        text = re.sub(r"(time|reduction)=[^,s]*", "", "\n".join(caplog.messages))
        words.append(re.split(NUMBER, text))
        numbers.append([float(number) for number in re.findall(NUMBER, text)])
    assert len(numbers[0]) > 100
    assert words[0] == words[1]
    assert np.allclose(*numbers, rtol=1e-5, atol=1e-9)


def test_events_come_in_the_order_of_the_steps():
    """Clipped steps are counted many at a time, yet before and after what came between."""
    kinds = []
    for way in ("direct", "phases", "steps"):
        start, options = (1.0, 0.1, 5.0), {"lbfgs_history_size": 3}
        result, _ = fit("a*exp(-b*x) + c", X, DECAY + NOISE, start, way=way, **options)
        recent = result.streaming_diagnostics["telemetry"].get_recent_events(1000)
        kinds.append([(event["type"], event["data"].get("iteration")) for event in recent])
    assert kinds[0] == kinds[1] == kinds[2]
    assert ("lbfgs_history_fill", 3) in kinds[0][2:-1]


def test_threads_get_the_same_bits():
    model, y = Model("a*exp(-b*x) + c"), DECAY + NOISE
    starts = [(1.0, 0.1 * k, 5.0) for k in range(1, 9)]

    def bits(start):
        result = curve_fit(model, X, y, start)
        return result.popt.tobytes() + result.pcov.tobytes()

    alone = [bits(start) for start in starts]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            assert list(pool.map(bits, starts)) == alone


def test_whoever_looks_at_every_step_gets_python():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen = []
        curve_fit(
            "a*exp(-b*x) + c", X, DECAY + NOISE, (1.0, 0.1, 5.0),
            callback=lambda theta, loss, step: seen.append(step), callback_frequency=1,
        )
    assert seen == sorted(seen)
    assert len(seen) > 5
