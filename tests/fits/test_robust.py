"""Fits with robust losses: SciPy's answers, outliers that do no harm, standard errors that hold."""

import warnings

import numpy as np
import pytest

from nlsq_nb import AdaptiveHybridStreamingOptimizer, FitResult, HybridStreamingConfig, Model, curve_fit
from nlsq_nb.core.losses import LOSSES, rho
from nlsq_nb.errors import UnsupportedOption
from nlsq_nb.phases.state import StopReason

from .test_compiled import differences, fit

LONG = (pytest.mark.slow, pytest.mark.long)
ROBUST = LOSSES[1:]
DECAY = Model("a*exp(-b*x) + c")
# truth, start, range of x, noise
PROBLEMS = {
    "decay": (DECAY, {"a": 5, "b": 0.5, "c": 1}, [2, 0.3, 0.5], (0, 10), 0.1),
    "peak": (Model("a*exp(-((x - m)/s)**2) + c + d*x", params=("a", "m", "s", "c", "d")),
             {"a": 3, "m": 4, "s": 1.2, "c": 1, "d": 0.1}, [2, 4.3, 1, 0.5, 0], (0, 10), 0.1),
    "sine": (Model("a*sin(w*x + f)"), {"a": 3, "w": 1.3, "f": 0.5}, [2, 1.25, 0.3], (0, 10), 0.2),
    "saturation": (Model("v*x/(k + x)"), {"v": 10, "k": 2}, [5, 1], (0.1, 20), 0.2),
    "line": (Model("a*x + b"), {"a": 2, "b": -1}, [1, 1], (-5, 5), 0.3),
    "logistic": (Model("a/(1 + exp(-k*(x - m)))"), {"a": 4, "k": 1.5, "m": 5}, [3, 1, 4], (0, 10), 0.1),
    "two decays": (Model("a*exp(-b*x) + c*exp(-d*x)"),
                   {"a": 4, "b": 2, "c": 3, "d": 0.3}, [3, 3, 2, 0.2], (0, 8), 0.02),
}  # fmt: skip


def scale_of(kind, noise):
    """A usual f_scale: nearly efficient for normal residuals."""
    return {"huber": 1.345, "soft_l1": 1.5, "cauchy": 2.385, "arctan": 2.0, "tukey": 4.685}[kind] * noise


def data_of(name, seed, n=300, share=0.2, reach=30.0):
    """x, y and the truth: noise of which a share is replaced by outliers, most of them upwards."""
    model, truth, _, (low, high), noise = PROBLEMS[name]
    rng, theta = np.random.default_rng(seed), np.array([truth[k] for k in model.params], dtype=float)
    x = np.linspace(low, high, n)
    y = model(x, *theta) + rng.normal(0.0, noise, n)
    bad = rng.choice(n, int(share * n), replace=False)
    y[bad] += rng.uniform(-0.3, 1.0, len(bad)) * reach * noise
    return x, y, theta


def scipys(kind):
    """The loss as SciPy wants it."""
    return (lambda z: np.array(rho(kind, z))) if kind == "tukey" else kind


def least_squares(model, x, y, p0, kind, f_scale, sigma=1.0):
    from scipy.optimize import least_squares as scipy_fit

    order = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15, "max_nfev": 5000, "x_scale": "jac"}
    return scipy_fit(
        lambda theta: (model(x, *theta) - y) / sigma,
        p0,
        jac=lambda theta: model.jacobian(x, *theta) / np.reshape(sigma, (-1, 1)),
        loss=scipys(kind),
        f_scale=f_scale,
        **order,
    )


def robust(name, kind, x, y, p0, **options):
    model, *_, noise = PROBLEMS[name]
    return curve_fit(model, x, y, p0, loss=kind, **{"f_scale": scale_of(kind, noise), **options})


# -- the same optimum as SciPy's -----------------------------------------------------------------
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ROBUST)
@pytest.mark.parametrize(
    "name", [k if k in {"line", "decay"} else pytest.param(k, marks=LONG) for k in PROBLEMS]
)
def test_agrees_with_scipy(name, kind, weighted):
    model, _, p0, _, noise = PROBLEMS[name]
    for seed in range(3):
        x, y, theta = data_of(name, seed)
        sigma, f_scale = np.ones_like(x), scale_of(kind, noise)
        if weighted:
            sigma, f_scale = np.random.default_rng(seed).uniform(0.5, 2.0, len(x)) * noise, scale_of(kind, 1.0)
        found = robust(name, kind, x, y, p0, sigma=sigma, f_scale=f_scale)
        # from several starts: SciPy may end in a higher minimum, or early, by xtol after steps that rounding rejects
        starts = (theta, p0, found.popt * 1.01)
        scipys = [least_squares(model, x, y, start, kind, f_scale, sigma) for start in starts]
        right = min(scipys, key=lambda fit: (fit.cost > found.cost * (1.0 + 1e-9), fit.optimality))
        assert found.success
        assert np.allclose(found.popt, right.x, rtol=1e-8, atol=0.0)
        assert np.isclose(found.cost, right.cost, rtol=1e-12)
        assert all(found.cost <= fit.cost * (1.0 + 1e-12) for fit in scipys)


@pytest.mark.parametrize("kind", ROBUST)
def test_bounds(kind):
    x, y, _ = data_of("decay", 1)
    f_scale = scale_of(kind, 0.1)
    found = curve_fit(DECAY, x, y, [4.0, 0.4, 1.2], bounds=([0, 0, 1.1], [4.5, 9, 9]), loss=kind, f_scale=f_scale)
    assert found.success
    assert np.isfinite(found.perr).all()
    assert {k for k, info in found.params.items() if info["at_bound"]} == {"a", "c"}
    # what is left is a fit of b alone
    only = least_squares(Model("4.5*exp(-b*x) + 1.1"), x, y, [0.5], kind, f_scale)
    assert np.isclose(found.popt[1], only.x[0], rtol=1e-8)


@pytest.mark.parametrize("kind", ["cauchy", *(pytest.param(k, marks=LONG) for k in ("huber", "tukey"))])
def test_many_parameters_without_matrices(kind):
    x, y, _ = data_of("decay", 1)
    found = robust("decay", kind, x, y, [4.0, 0.4, 1.2], cg_param_threshold=1)
    right = robust("decay", kind, x, y, [4.0, 0.4, 1.2])
    assert found.success
    assert np.allclose(found.popt, right.popt, rtol=1e-6)
    assert np.allclose(found.perr, right.perr, rtol=1e-4)


# -- one fit, whichever way it runs ----------------------------------------------------------------
@pytest.mark.parametrize("kind", ROBUST)
@pytest.mark.parametrize("name", ["decay", *(pytest.param(k, marks=LONG) for k in ("sine", "logistic"))])
def test_native_and_step_by_step(name, kind):
    model, _, p0, _, noise = PROBLEMS[name]
    x, y, _ = data_of(name, 3)
    options = {"loss": kind, "f_scale": scale_of(kind, noise), "verbose": 0}
    fast, inside = fit(model, x, y, p0, **options)
    slow, _ = fit(model, x, y, p0, way="steps", **options)
    assert inside.count("GaussNewton") >= 2
    assert not differences(fast, slow)


def test_reference_backend():
    x, y, _ = data_of("decay", 2)
    for kind in ROBUST:
        pair = [robust("decay", kind, x, y, [2, 0.3, 0.5], backend=name) for name in ("cpu", "reference")]
        assert np.allclose(pair[0].popt, pair[1].popt, rtol=1e-9)
        assert np.allclose(pair[0].pcov, pair[1].pcov, rtol=1e-7)


def test_threads_and_chunks_do_not_change_bits():
    x, y, _ = data_of("decay", 2, n=150_000)
    found = [
        robust("decay", "cauchy", x, y, [2, 0.3, 0.5], n_threads=threads, chunk_size=rows, loop_strategy="loop")
        for threads, rows in ((1, 200_000), (2, 200_000), (2, 5000))
    ]
    assert len({(f.popt.tobytes(), f.pcov.tobytes(), f.cost, f.sse) for f in found}) == 1
    assert found[0].nfev <= 25


def test_float32_storage():
    x, y, _ = (np.asarray(v, dtype=np.float32) for v in data_of("decay", 2))
    stored = robust("decay", "tukey", x, y, [2, 0.3, 0.5], precision="float32")
    wide = robust("decay", "tukey", x.astype(float), y.astype(float), [2, 0.3, 0.5])
    assert np.allclose(stored.popt, wide.popt, rtol=1e-9)


@pytest.mark.parametrize("kind", [pytest.param("huber", marks=pytest.mark.slow), "tukey"])
def test_resumed_at_any_step_with_the_same_bits(tmp_path, kind):
    x, y, _ = data_of("decay", 4)
    whole = robust("decay", kind, x, y, [9, 0.05, 3], checkpoint_dir=str(tmp_path), checkpoint_frequency=1)
    files = sorted(tmp_path.glob("checkpoint_phase*.h5"))
    assert files
    for path in files:
        again = robust("decay", kind, x, y, [9, 0.05, 3], resume_from_checkpoint=str(path))
        assert again.popt.tobytes() == whole.popt.tobytes()
        assert again.pcov.tobytes() == whole.pcov.tobytes()
        assert again.nfev == whole.nfev
    with pytest.raises(Exception, match="loss"):
        robust("decay", kind, x, y, [9, 0.05, 3], resume_from_checkpoint=str(path), f_scale=0.77)


@pytest.mark.parametrize("stop_at", [1, 5, 9, 13])
def test_stopped_by_a_callback(stop_at):
    x, y, _ = data_of("decay", 4)
    seen = []

    def callback(theta, loss, iteration):
        seen.append((loss, iteration))
        return len(seen) >= stop_at

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = robust("decay", "cauchy", x, y, [9, 0.05, 3], callback=callback, callback_frequency=1)
    assert found.status is StopReason.CALLBACK
    assert [k for _, k in seen] == sorted({k for _, k in seen})
    exact = 0.5 * 0.2385**2 * rho("cauchy", ((y - DECAY(x, *found.popt)) / 0.2385) ** 2)[0].sum()
    assert np.isclose(found.cost, exact, rtol=1e-12)
    start = 0.5 * 0.2385**2 * rho("cauchy", ((y - DECAY(x, 9, 0.05, 3)) / 0.2385) ** 2)[0].sum()
    assert found.cost <= start


# -- starts --------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ROBUST)
def test_linear_parameters_need_no_start(kind):
    x, y, _ = data_of("decay", 5)
    y = 1e6 * y
    bare = robust("decay", kind, x, y, None, f_scale=scale_of(kind, 1e5))
    right = robust("decay", kind, x, y, [5e6, 0.5, 1e6], f_scale=scale_of(kind, 1e5))
    assert np.allclose(bare.popt, right.popt, rtol=1e-8)


@pytest.mark.parametrize("kind", ROBUST)
def test_a_good_start_is_not_lost_to_gross_outliers(kind):
    """Least squares ends far away; the loss begins at p0."""
    x, y, theta = data_of("logistic", 6, reach=1e7)
    found = robust("logistic", kind, x, y, theta * 1.02)
    assert found.success
    assert np.all(np.abs(found.popt - theta) < 5.0 * found.perr)


def test_all_residuals_beyond_the_scale():
    x, y, _ = data_of("decay", 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = robust("decay", "tukey", x, y + 1e9 * np.sign(np.sin(7 * x)), [2, 0.3, 0.5], f_scale=1e-3)
    assert not found.success
    assert found.status is StopReason.SATURATED
    assert np.isinf(found.perr).all()


def test_exact_data():
    x = np.linspace(0, 4, 50)
    for kind in ROBUST:
        assert np.allclose(curve_fit(DECAY, x, DECAY(x, 3, 1.5, 0.5), loss=kind).popt, [3, 1.5, 0.5], rtol=1e-9)


# -- what is reported ------------------------------------------------------------------------------
def test_result():
    x, y, _ = data_of("decay", 7)
    found = robust("decay", "huber", x, y, [2, 0.3, 0.5])
    assert (found.loss, found.f_scale) == ("huber", scale_of("huber", 0.1))
    r = y - DECAY(x, *found.popt)
    assert np.isclose(found.sse, np.sum(r**2), rtol=1e-12)
    assert np.allclose(found.fun, r)
    assert np.isclose(found.cost, 0.5 * found.f_scale**2 * rho("huber", (r / found.f_scale) ** 2)[0].sum(), rtol=1e-12)
    assert np.isnan(found.aic)
    assert "huber, f_scale 0.1345" in found.report()
    again = FitResult.from_json(found.to_json())
    assert (again.loss, again.f_scale, again.cost) == (found.loss, found.f_scale, found.cost)
    with pytest.raises(UnsupportedOption, match="no likelihood to profile"):
        found.profile("b")
    with pytest.raises(UnsupportedOption, match="second_opinion=True"):
        robust("decay", "huber", x, y, [2, 0.3, 0.5], second_opinion=True)


def test_linear_ignores_the_scale():
    x, y, _ = data_of("decay", 7)
    assert curve_fit(DECAY, x, y, f_scale=0.1).popt.tobytes() == curve_fit(DECAY, x, y).popt.tobytes()
    assert curve_fit(DECAY, x, y, f_scale=0.1).f_scale == 1.0


def test_optimizer():
    x, y, _ = data_of("decay", 7)
    optimizer = AdaptiveHybridStreamingOptimizer(HybridStreamingConfig(verbose=0))
    found = optimizer.fit((x, y), DECAY, [2, 0.3, 0.5], loss="tukey", f_scale=0.4685)
    assert found.popt.tobytes() == robust("decay", "tukey", x, y, [2, 0.3, 0.5], f_scale=0.4685).popt.tobytes()
    assert optimizer.best_cost_global == 2.0 * found.cost


# -- standard errors and outliers -------------------------------------------------------------------
@pytest.mark.parametrize("kind", ROBUST)
def test_sandwich(kind):
    """H⁻¹ M H⁻¹ n/(n − p) from the residuals, whatever absolute_sigma is."""
    x, y, _ = data_of("decay", 8)
    found = robust("decay", kind, x, y, [2, 0.3, 0.5])
    f, jac, r = found.f_scale, DECAY.jacobian(x, *found.popt), y - DECAY(x, *found.popt)
    _, first, second = rho(kind, (r / f) ** 2)
    h, m = ((jac * v[:, None]).T @ jac for v in (first + 2.0 * (r / f) ** 2 * second, (first * r) ** 2))
    expected = np.linalg.inv(h) @ m @ np.linalg.inv(h) * 300 / 297
    assert np.allclose(found.pcov, expected, rtol=1e-7)
    assert robust("decay", kind, x, y, [2, 0.3, 0.5], absolute_sigma=True).pcov.tobytes() == found.pcov.tobytes()


def pulls(name, kind, seeds, **options):
    """(θ − truth)/perr of many fits, (seeds, p)."""
    rows = []
    for seed in seeds:
        x, y, theta = data_of(name, seed, **options)
        found = robust(name, kind, x, y, theta)
        assert found.success
        rows.append((found.popt - theta) / found.perr)
    return np.array(rows)


@pytest.mark.parametrize("kind", ROBUST)
def test_standard_errors_without_bias(kind):
    """Without outliers the errors are those of the simulation: pulls of variance 1 to some per cent."""
    found = pulls("decay", kind, range(150), share=0.0)
    assert np.abs(found.mean()) < 0.25
    assert 0.85 < found.std() < 1.15


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", ["decay", "peak", "sine", "saturation", "line", "logistic"])
@pytest.mark.parametrize("kind", ROBUST)
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_standard_errors(name, kind, share):
    """Symmetric outliers leave no bias: the root mean square of the pulls is 1."""
    rows = []
    for seed in range(600):
        x, y, theta = data_of(name, seed, share=0.0)
        rng, noise = np.random.default_rng(10_000 + seed), PROBLEMS[name][-1]
        bad = rng.choice(len(x), int(share * len(x)), replace=False)
        y[bad] += rng.uniform(-1.0, 1.0, len(bad)) * 30.0 * noise
        found = robust(name, kind, x, y, theta)
        rows.append((found.popt - theta) / found.perr)
    assert np.allclose(np.sqrt(np.mean(np.square(rows), axis=0)), 1.0, atol=0.12)


# redescending losses leave of one-sided outliers hardly any bias; huber and soft_l1 keep some, a share of f_scale
@pytest.mark.parametrize("kind", ["cauchy", "arctan", "tukey"])
@pytest.mark.parametrize("name", ["decay", "logistic"])
def test_outliers_leave_the_fit_within_its_errors(name, kind):
    seeds = range(20)
    found = pulls(name, kind, seeds)
    assert np.mean(np.abs(found) < 2.0) > 0.8
    plain = [curve_fit(PROBLEMS[name][0], *data_of(name, seed)) for seed in seeds]
    truth = data_of(name, 0)[2]
    worst = [np.max(np.abs((fit.popt - truth) / fit.perr)) for fit in plain]
    assert np.median(worst) > 2.0  # least squares does not bear them


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("kind", ROBUST)
@pytest.mark.parametrize("name", PROBLEMS)
def test_symmetric_outliers_leave_the_fit_within_two_errors(name, kind):
    """20 % of outliers to both sides: two standard errors hold the truth as often as they should."""
    rows = []
    for seed in range(500):
        x, y, theta = data_of(name, seed, share=0.0)
        rng, noise = np.random.default_rng(seed + 77), PROBLEMS[name][-1]
        bad = rng.choice(len(x), len(x) // 5, replace=False)
        y[bad] += rng.uniform(-1.0, 1.0, len(bad)) * 100.0 * noise
        found = robust(name, kind, x, y, theta)
        rows.append(np.abs(found.popt - theta) < 2.0 * found.perr)
    assert np.all(np.abs(np.mean(rows, axis=0) - 0.954) < 0.03)
