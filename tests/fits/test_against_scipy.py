"""A thousand random problems against SciPy's best effort: our sse is as low, or we do not claim success."""

import warnings

import numpy as np
import pytest
from scipy.optimize import least_squares

from nlsq_nb import Model, curve_fit

EPS = float(np.finfo(float).eps)
# text, lowest and highest truths, and whether a start scatters by a factor or by that much (where given)
FAMILIES = [
    ("a*exp(-b*x) + c", (0.5, 0.1, -2.0), (9.0, 2.0, 2.0), (None, None, None)),
    ("a*exp(-(x - m)**2/(2*s**2)) + c", (1.0, 2.0, 0.4, -1.0), (9.0, 8.0, 2.0, 1.0), (None, 1.5, None, None)),
    ("a*g**2/((x - m)**2 + g**2) + c + d*x",
     (2.0, 2.0, 0.3, -1, -0.2), (9.0, 8.0, 1.5, 1, 0.2), (None, 1.5, None, 1.0, 0.1)),
    ("a*x**b", (0.3, -1.0), (5.0, 2.0), (None, 1.0)),
    ("v*x/(k + x)", (1.0, 0.3), (9.0, 5.0), (None, None)),
    ("top/(1 + exp(-k*(x - m))) + c", (1.0, 0.5, 2.0, -1.0), (9.0, 4.0, 8.0, 1.0), (None, None, 2.0, 1.0)),
    ("a*exp(-b*x) + c*exp(-d*x)", (1.0, 0.1, 1.0, 1.0), (5.0, 0.5, 5.0, 4.0), (None, None, None, None)),
    ("a*sin(w*x + t) + c", (0.5, 0.5, -1.5, -1.0), (4.0, 3.0, 1.5, 1.0), (None, 0.4, 1.0, 1.0)),
    ("a*exp(-b*x)*sin(w*x + t)", (1.0, 0.05, 1.0, -1.0), (5.0, 0.4, 4.0, 1.0), (None, None, 0.3, 1.0)),
    ("(a + b*x)/(1 + c*x)", (-2.0, 0.5, 0.1), (3.0, 5.0, 2.0), (None, None, None)),
    ("d + (a - d)/(1 + (x/c)**b)", (-1.0, 1.0, 1.0, 3.0), (0.5, 4.0, 7.0, 9.0), (1.0, None, None, None)),
    ("a*(1 - exp(-b*x))**c", (1.0, 0.2, 0.5), (9.0, 2.0, 3.0), (None, None, None)),
    ("a*exp(-(x - m)**2/(2*s**2)) + b*exp(-(x - n)**2/(2*t**2)) + c",
     (2, 1, 0.2, 2, 5, 0.2, -1), (9, 4, 1.0, 9, 9, 1.0, 1), (None, 0.7, None, None, 0.7, None, 1.0)),
    ("a + b*x + c*x**2", (-3.0, -3.0, -1.0), (3.0, 3.0, 1.0), (1.0, 1.0, 1.0)),
]  # fmt: skip
MODELS = [Model(family[0]) for family in FAMILIES]


def drawn(seed):
    """Model, x, y and start of a problem; in one of four each linear parameter starts at 1."""
    rng = np.random.default_rng([20250805, seed])
    number = seed % len(FAMILIES)
    _, low, high, scatter = FAMILIES[number]
    model = MODELS[number]
    truth = rng.uniform(low, high)
    n = int(rng.choice([3 * len(truth), 40, 100, 300]))
    x = np.sort(rng.uniform(0.05, 10.0, n))
    clean = model(x, *truth)
    y = clean + rng.choice([0.0, 1e-4, 0.02, 0.1]) * max(float(np.ptp(clean)), 1e-3) * rng.normal(size=n)
    drift = rng.choice([0.1, 0.5, 1.0]) * rng.normal(size=len(truth))
    moved = [t * np.exp(z) if s is None else t + s * z for t, s, z in zip(truth, scatter, drift, strict=True)]
    if seed % 4 == 0:
        moved = [1.0 if name in model.linear_params else v for name, v in zip(model.params, moved, strict=True)]
    return model, x, y, np.array(moved)


def by_scipy(model, x, y, start):
    """The sse of `least_squares` at its most careful; inf where it fails."""
    try:
        found = least_squares(
            lambda p: model(x, *p) - y, start, lambda p: model.jacobian(x, *p),
            method="trf", x_scale="jac", ftol=1e-15, xtol=1e-15, gtol=1e-15, max_nfev=2000,
        )  # fmt: skip
    except ValueError:  # the model left the finite numbers
        return np.inf
    return 2.0 * float(found.cost)


def compare(seed):
    """What is wrong with our answer, or None; and our result with SciPy's sse."""
    model, x, y, start = drawn(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = curve_fit(model, x, y, start), by_scipy(model, x, y, start)
    noise = 64.0 * EPS**2 * float(y @ y)  # of an sse that is rounding alone
    wrong = ours.success and ours.sse > theirs * (1.0 + 1e-9) + noise
    return (f"{seed} {model.text}: {ours.sse:.12g} against {theirs:.12g}" if wrong else None), ours, theirs


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("part", range(10))
def test_random_problems(part):
    wrong, lower = [], 0
    for seed in range(100 * part, 100 * (part + 1)):
        problem, ours, theirs = compare(seed)
        wrong += [problem] if problem else []
        lower += ours.sse < theirs * (1.0 - 1e-6)
    assert not wrong, wrong
    assert lower >= 3


def test_some_random_problems():
    assert not [problem for seed in range(1000, 1042) if (problem := compare(seed)[0])]


BOXES = {"c": {"c": (1.2, np.inf)}, "a": {"a": (-np.inf, 4.5)}, "both": {"c": (1.2, np.inf), "a": (-np.inf, 4.5)}}


@pytest.mark.parametrize("strategy", ["auto", "bounds", "p0", "none"])
@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("separable", ["auto", False])
def test_active_bounds(box, strategy, separable):
    x = np.linspace(0.0, 10.0, 2000)
    y = 5.0 * np.exp(-0.5 * x) + 1.0 + np.random.RandomState(42).normal(0.0, 0.1, 2000)
    low, high = np.array([BOXES[box].get(name, (-np.inf, np.inf)) for name in "abc"]).T
    model = Model("a*exp(-b*x) + c")
    ours = curve_fit(
        model, x, y, [4.0, 0.4, 1.5], bounds=(low, high), normalization_strategy=strategy, separable=separable
    )
    theirs = least_squares(
        lambda p: model(x, *p) - y, [4.0, 0.4, 1.5], lambda p: model.jacobian(x, *p), bounds=(low, high),
        method="trf", x_scale="jac", ftol=1e-15, xtol=1e-15, gtol=1e-15,
    )  # fmt: skip
    assert ours.success
    assert (ours.active_mask != 0).tolist() == [name in BOXES[box] for name in "abc"]
    assert ours.sse == pytest.approx(2.0 * theirs.cost, rel=1e-9)
    np.testing.assert_allclose(ours.popt, theirs.x, rtol=1e-7)
