"""Many random problems: never worse than p0, and success is what the reference backend finds it to be."""

import warnings
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from nlsq_nb import Model, curve_fit
from nlsq_nb.backends.reference import ReferenceBackend
from nlsq_nb.core.penalties import group_variance
from nlsq_nb.engines.local import LocalEngine
from nlsq_nb.phases.state import StopReason
from nlsq_nb.sources.arrays import ArraySource

EPS = float(np.finfo(float).eps)
# The library's test is an offset of 1e-8 or less. What is recomputed here comes from the same θ by other sums and by a
# QR factorisation; the parts of the offset that are rounding differ: 1e-6 means a hundredth of a standard error at
# n = 1e8, and no decision of anybody depends on it.
OFFSET = 1e-6


@dataclass(frozen=True)
class Family:
    """A model, where its true parameters lie, and the range of x."""

    text: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    span: tuple[float, float]
    model: Model = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "model", Model(self.text))


FAMILIES = [
    Family("a*exp(-b*x) + c", (0.5, 0.2, -2.0), (10.0, 3.0, 2.0), (0.0, 4.0)),
    Family("a*exp(-(x - m)**2/(2*s**2)) + c", (1.0, -1.0, 0.4, -1.0), (8.0, 2.0, 2.0, 1.0), (-3.0, 4.0)),
    Family("a*x**b", (0.3, -1.5), (5.0, 2.5), (0.3, 5.0)),
    Family("v*x/(k + x)", (1.0, 0.3), (10.0, 5.0), (0.1, 10.0)),
    Family("top/(1 + exp(-k*(x - m)))", (1.0, 0.5, -1.0), (9.0, 4.0, 3.0), (-3.0, 5.0)),
    Family("a*exp(-b*x) + c*exp(-d*x)", (1.0, 0.1, 1.0, 1.0), (5.0, 0.6, 5.0, 4.0), (0.0, 6.0)),
    Family("a*sin(w*x + t) + c", (0.5, 0.5, -1.5, -1.0), (4.0, 2.0, 1.5, 1.0), (0.0, 8.0)),
    Family("(a + b*x)/(1 + c*x)", (-2.0, 0.5, 0.1), (3.0, 5.0, 2.0), (0.0, 6.0)),
    Family("a + b*x + c*x**2", (-3.0, -3.0, -2.0), (3.0, 3.0, 2.0), (-2.0, 2.0)),
]
OPTIONS = [
    {},
    {"separable": False},
    {"separable": False, "lbfgs_line_search": "strong_wolfe"},
    {"lbfgs_line_search": "backtracking", "enable_step_clipping": False},
    {"enable_warm_start_detection": False, "enable_cost_guard": False},
    {"warmup_sample_size": 15},
    {"method": "trf"},
    {"active_switching_criteria": [], "warmup_iterations": 20, "max_warmup_iterations": 40},
    {"active_switching_criteria": ["plateau"]},
    {"active_switching_criteria": ["gradient"], "max_warmup_iterations": 200},
    {"active_switching_criteria": ["plateau", "max_iter"], "separable": False},
    {"enable_multistart": True, "n_starts": 4, "elimination_rounds": 1},
    {"cg_param_threshold": 1},
    {"cg_param_threshold": 1, "enable_warm_start_detection": False, "lbfgs_line_search": "strong_wolfe"},
    {"gradient_clip_value": 1e-3},
    {"gradient_clip_value": 10.0, "separable": False},
    {"normalization_strategy": "none"},
    {"normalization_strategy": "bounds", "separable": False},
    {"normalization_strategy": "p0", "lbfgs_line_search": "backtracking"},
    {"enable_group_variance_regularization": True, "group_variance_indices": [(0, 2)]},
    {
        "enable_group_variance_regularization": True,
        "group_variance_indices": [(0, 2)],
        "group_variance_lambda": 1e3,
        "separable": False,
    },
]


@st.composite
def problems(draw):
    """(family, x, y, sigma, start, bounds, options)."""
    family = draw(st.sampled_from(FAMILIES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(family.model.n_params + 1, 40))
    truth = rng.uniform(family.low, family.high)
    x = np.sort(rng.uniform(*family.span, n))
    noise = draw(st.sampled_from([0.0, 1e-6, 0.01, 0.1, 1.0]))
    clean = family.model(x, *truth)
    y = clean + noise * max(float(np.ptp(clean)), 1e-3) * rng.normal(size=n)
    far = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0]))
    start = truth * np.exp(far * rng.normal(size=len(truth))) * np.where(rng.random(len(truth)) < 0.05 * far, -1.0, 1.0)
    sigma = draw(st.sampled_from([None, "given"])) and rng.uniform(0.2, 5.0, n)
    bounds = None
    if draw(st.integers(0, 3)) == 0:  # some of which keep the optimum out
        middle, reach = np.minimum(truth, start), np.abs(truth - start)
        low = np.where(rng.random(len(truth)) < 0.5, middle - rng.uniform(0.0, 0.5) * (reach + 0.1), -np.inf)
        high = np.where(rng.random(len(truth)) < 0.5, middle + rng.uniform(0.8, 2.0) * (reach + 0.1), np.inf)
        start = np.clip(start, low, high)
        bounds = (low, high)
    return family, x, y, sigma, start, bounds, draw(st.sampled_from(OPTIONS))


def strength(options):
    """λ of the penalty on the variance of the first two parameters."""
    on = options.get("enable_group_variance_regularization", False)
    return options.get("group_variance_lambda", 0.01) if on else 0.0


def sums_at(family, source, theta, options):
    backend = ReferenceBackend()
    sums = LocalEngine(backend, backend.compile(family.model.program, source.dtype), source).run(theta, 2)
    return sums + group_variance(theta, [(0, 2)], strength(options), source.n_rows)


def offset(sums, free):
    """√(reduction of a full step of the free parameters / sse): the sine of the angle to the tangent plane."""
    norms = np.sqrt(np.diagonal(sums.jtj))
    used = free & (norms > 0.0)
    if not used.any() or sums.sse == 0.0:
        return 0.0
    scaled = sums.jtj[np.ix_(used, used)] / np.outer(norms[used], norms[used])
    gradient = sums.jtr[used] / norms[used]
    values, vectors = np.linalg.eigh(scaled)
    keep = values > 1e-14 * len(values) * values[-1]  # what is below is rounding, not a direction
    parts = (vectors.T @ gradient)[keep] ** 2 / values[keep]
    return float(np.sqrt(np.sum(parts) / sums.sse))


def offset_within(family, source, result, options):
    """The same where a bound cuts the full step short: the best of the tangent plane within the bounds."""
    x, y = source._columns.x[0], source._columns.y[0]
    w = np.broadcast_to(source.root_weights(), y.shape)
    r, jac = w * (y - family.model(x, *result.popt)), w[:, None] * family.model.jacobian(x, *result.popt)
    if weight := strength(options) * source.n_rows:  # the penalty as a row, since two members have one deviation
        row = np.zeros(len(result.popt))
        row[:2] = 0.5 * np.sqrt(weight), -0.5 * np.sqrt(weight)
        r, jac = np.append(r, -row @ result.popt), np.vstack([jac, row])
    norms = np.linalg.norm(jac, axis=0)
    used = (norms > 0.0) & (result.bounds[0] < result.bounds[1])
    room = [np.minimum(((side - result.popt) * norms)[used], 1e300) for side in result.bounds]
    step = lsq_linear(jac[:, used] / norms[used], r, room, method="bvls", tol=1e-15).x
    return float(np.linalg.norm(jac[:, used] / norms[used] @ step) / np.linalg.norm(r))


def is_stationary(family, source, result, options):
    """The projected-gradient test, recomputed."""
    sums, (low, high) = sums_at(family, source, result.popt, options), result.bounds
    held = ((result.popt == low) & (sums.jtr < 0.0)) | ((result.popt == high) & (sums.jtr > 0.0))
    free = (low < high) & ~held
    w = source.root_weights() ** 2
    y = source._columns.y[0]
    signal = float(np.sum(w * y * y))
    found = offset(sums, free)
    if found > OFFSET and np.isfinite([low, high]).any():
        found = offset_within(family, source, result, options)
    if found <= OFFSET:
        return True
    # a gain that the sse cannot show: √sse·√signal is what rounding of y leaves in it; linear terms that cancel leave
    # as much of their own size
    terms = np.max((result.popt**2 * np.diagonal(sums.jtj))[free], initial=signal)
    noise = 16.0 * EPS * (np.sqrt(sums.sse * terms) + sums.sse)
    if result.status is StopReason.ROUNDING:
        return found**2 * sums.sse <= noise
    # residuals at rounding level have no direction
    return sums.sse <= (16.0 * EPS) ** 2 * max(signal, terms) * len(y)


def check(problem):
    family, x, y, sigma, start, bounds, options = problem
    source = ArraySource(x, y, sigma)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = curve_fit(family.model, x, y, start, sigma, bounds=bounds or (-np.inf, np.inf), **options)
    low, high = result.bounds
    assert ((low <= result.popt) & (result.popt <= high)).all()
    at_start, at_end = (sums_at(family, source, theta, options).sse for theta in (start, result.popt))
    penalty = group_variance(result.popt, [(0, 2)], strength(options), len(y)).sse
    signal = float(np.sum((source.root_weights() * y) ** 2))
    noise = 16.0 * EPS * np.sqrt(signal * min(at_start, at_end)) + (16.0 * EPS) ** 2 * signal  # of an sse near zero
    assert at_end - penalty == pytest.approx(result.sse, rel=1e-9, abs=noise + 16.0 * EPS * penalty)
    assert at_end <= at_start * (1.0 + 1e-12) + (noise if at_start <= 1e-24 * signal else 0.0)
    assert result.success is result.status.success
    if result.success:
        assert is_stationary(family, source, result, options)
    assert_none_beside_a_bound(result, sums_at(family, source, result.popt, options))
    return result


def assert_none_beside_a_bound(result, sums):
    """A parameter that its bound stops stands on it, and not beside it by rounding."""
    pull = sums.jtr / np.maximum(np.sqrt(np.diagonal(sums.jtj) * sums.sse), 1e-300)
    for bound, outward in zip(result.bounds, (-pull, pull), strict=True):
        apart = np.abs(np.where(np.isfinite(bound), result.popt - bound, np.inf))
        stopped = (outward > OFFSET) & (apart <= 1e-12 * (1.0 + np.abs(result.popt)))
        assert (apart[stopped] == 0.0).all()


SETTINGS = settings(
    max_examples=1000, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def success_rate(examples):
    """Of problems that all passed the checks."""
    found = []

    @settings(SETTINGS, max_examples=examples)
    @given(problems())
    def note(problem):
        family, x, y, sigma, start, _, options = problem
        # else it is an error, of other tests
        assume(sums_at(family, ArraySource(x, y, sigma), start, options).is_finite)
        found.append(check(problem).success)

    note()
    return np.mean(found)


@pytest.mark.slow
def test_some_random_problems():
    assert success_rate(150) > 0.8  # else the checks of success would say little


@pytest.mark.slow
def test_a_thousand_random_problems():
    assert success_rate(1000) > 0.8


def test_a_gain_that_rounding_makes_negative_is_no_convergence():
    """Two rows far from the rest cannot tell three parameters: JᵀJ is singular, and the gain of a full step noise."""
    x = [-2.683073642682884, -2.6586960249098235, -2.622485083328405, -0.3164178345013724, -0.14068756206000943]
    y = [-0.35688636081961206, -0.39486522521235157, -0.43604483590013515, 1.9606901810074062, 2.5515664477075704]
    sigma = [4.4223256320076265, 0.5082292990985169, 3.4600713585025518, 4.376424811172016, 1.2911289207723589]
    start = [6.635020466217661, 1.4238223692094811, 1.224520897667427, -0.4283972398237168]
    options = {"enable_warm_start_detection": False, "enable_cost_guard": False}
    check((FAMILIES[1], np.array(x), np.array(y), np.array(sigma), np.array(start), None, options))


def test_the_offset_sees_what_it_should():
    family = FAMILIES[0]
    x = np.linspace(0.0, 4.0, 40)
    y = family.model(x, 5.0, 1.3, 1.0) + 0.1 * np.sin(30.0 * x)
    source = ArraySource(x, y)
    result = curve_fit(family.model, x, y, [3.0, 1.0, 0.0])
    every = np.ones(3, dtype=bool)
    assert is_stationary(family, source, result, {})
    assert offset(sums_at(family, source, result.popt, {}), every) < 1e-8
    for k in range(3):
        theta = result.popt.copy()
        theta[k] += 1e-3 * result.perr[k]
        assert offset(sums_at(family, source, theta, {}), every) > 1e-5


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 10_000))
def test_parameters_that_end_on_a_bound_equal_it(seed):
    """Of separable models whose optimum lies outside the bounds."""
    rng = np.random.default_rng(seed)
    family = FAMILIES[rng.integers(len(FAMILIES))]
    p = family.model.n_params
    x = np.sort(rng.uniform(0.01, 5.0, rng.integers(p + 1, 60)))
    truth = rng.uniform(0.3, 3.0, p) * (rng.choice([1.0, 1.0, -1.0], p) if rng.random() < 0.5 else 1.0)
    y = family.model(x, *truth) + rng.choice([1e-3, 0.05, 0.5]) * rng.normal(size=len(x))
    assume(np.isfinite(y).all())
    low, high = np.full(p, -np.inf), np.full(p, np.inf)
    for k in range(p):
        kind = rng.integers(4)
        if kind == 0:
            low[k] = truth[k] + rng.uniform(0.01, 0.5)
        elif kind == 1:
            high[k] = truth[k] - rng.uniform(0.01, 0.5)
    start = np.clip(truth * np.exp(0.4 * rng.normal(size=p)), low, high)
    options = {
        "lbfgs_line_search": ["wolfe", "strong_wolfe", "backtracking"][rng.integers(3)],
        "normalization_strategy": ["auto", "p0", "bounds", "none"][rng.integers(4)],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = curve_fit(family.model, x, y, start, bounds=(low, high), **options)
    assert_none_beside_a_bound(result, sums_at(family, ArraySource(x, y), result.popt, {}))
