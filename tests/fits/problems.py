"""Ten seeded, well-posed problems, each written four ways: text, SymPy, NumPy and a Jacobian derived by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import sympy
from numpy import cos, exp, log, sin

ROWS = 120
_SEED = 20250731


@dataclass(frozen=True)
class Problem:
    """A model in four forms with its data; `truth` made the data, `start` is 10 to 20 % away from it."""

    name: str
    text: str
    algebra: Callable[..., sympy.Expr]
    function: Callable[..., np.ndarray]
    jacobian: Callable[..., list]
    params: tuple[str, ...]
    truth: np.ndarray
    x: np.ndarray
    y: np.ndarray
    sigma: np.ndarray
    start: np.ndarray

    def jac(self, x, *theta):
        """The Jacobian (n, p)."""
        columns = [np.broadcast_to(column, self.y.shape) for column in self.jacobian(x, *theta)]
        return np.stack(columns, axis=1)

    @property
    def expression(self):
        """The model as a SymPy expression of x, or of x0 and x1."""
        x = sympy.Symbol("x") if self.x.ndim == 1 else sympy.symbols("x0 x1")
        return self.algebra(x, *sympy.symbols(self.params))


def exponential(x, a, b, c):
    return a * exp(-b * x) + c


def gaussian(x, a, m, s, c):
    return a * exp(-((x - m) ** 2) / (2 * s**2)) + c


def _gaussian_jac(x, a, m, s, c):
    g = exp(-((x - m) ** 2) / (2 * s**2))
    return [g, a * g * (x - m) / s**2, a * g * (x - m) ** 2 / s**3, 1.0]


def sine(x, a, w, t, c):
    return a * sin(w * x + t) + c


def logistic(x, top, k, m):
    return top / (1 + exp(-k * (x - m)))


def _logistic_jac(x, top, k, m):
    s = 1 / (1 + exp(-k * (x - m)))
    return [s, top * s * (1 - s) * (x - m), -top * s * (1 - s) * k]


def power(x, a, b):
    return a * x**b


def rational(x, a, b, c):
    return (a + b * x) / (1 + c * x)


def plane(x, a, b, c, d):
    return (a + b * x[0] + c * x[1]) * exp(-d * x[1])


def _plane_jac(x, a, b, c, d):
    g = exp(-d * x[1])
    return [g, x[0] * g, x[1] * g, -x[1] * (a + b * x[0] + c * x[1]) * g]


def lorentzian(x, a, m, g, c):
    return a * g**2 / ((x - m) ** 2 + g**2) + c


def _lorentzian_jac(x, a, m, g, c):
    q = (x - m) ** 2 + g**2
    return [g**2 / q, 2 * a * g**2 * (x - m) / q**2, 2 * a * g * (x - m) ** 2 / q**2, 1.0]


def michaelis(x, v, k):
    return v * x / (k + x)


def polynomial(x, a, b, c, d):
    return a + b * x + c * x**2 + d * x**3


# name: text, SymPy form, NumPy form, Jacobian, names, truth, range of x
_TABLE = {
    "exponential": (
        "a*exp(-b*x) + c",
        lambda x, a, b, c: a * sympy.exp(-b * x) + c,
        exponential,
        lambda x, a, b, c: [exp(-b * x), -a * x * exp(-b * x), 1.0],
        ("a", "b", "c"),
        (3.0, 0.8, 0.5),
        (0.0, 5.0),
    ),
    "gaussian": (
        "a*exp(-(x - m)**2/(2*s**2)) + c",
        lambda x, a, m, s, c: a * sympy.exp(-((x - m) ** 2) / (2 * s**2)) + c,
        gaussian,
        _gaussian_jac,
        ("a", "m", "s", "c"),
        (4.0, 1.5, 0.9, 1.0),
        (-3.0, 6.0),
    ),
    "sine": (
        "a*sin(w*x + t) + c",
        lambda x, a, w, t, c: a * sympy.sin(w * x + t) + c,
        sine,
        lambda x, a, w, t, c: [sin(w * x + t), a * x * cos(w * x + t), a * cos(w * x + t), 1.0],
        ("a", "w", "t", "c"),
        (2.0, 1.3, 0.7, 0.4),
        (0.0, 8.0),
    ),
    "logistic": (
        "top/(1 + exp(-k*(x - m)))",
        lambda x, top, k, m: top / (1 + sympy.exp(-k * (x - m))),
        logistic,
        _logistic_jac,
        ("top", "k", "m"),
        (5.0, 1.2, 3.0),
        (-2.0, 8.0),
    ),
    "power": (
        "a*x**b",
        lambda x, a, b: a * x**b,
        power,
        lambda x, a, b: [x**b, a * x**b * log(x)],
        ("a", "b"),
        (1.7, 1.6),
        (0.2, 5.0),
    ),
    "rational": (
        "(a + b*x)/(1 + c*x)",
        lambda x, a, b, c: (a + b * x) / (1 + c * x),
        rational,
        lambda x, a, b, c: [1 / (1 + c * x), x / (1 + c * x), -(a + b * x) * x / (1 + c * x) ** 2],
        ("a", "b", "c"),
        (1.0, 3.0, 0.6),
        (0.0, 6.0),
    ),
    "plane": (
        "(a + b*x0 + c*x1)*exp(-d*x1)",
        lambda x, a, b, c, d: (a + b * x[0] + c * x[1]) * sympy.exp(-d * x[1]),
        plane,
        _plane_jac,
        ("a", "b", "c", "d"),
        (2.0, 1.5, 0.7, 0.5),
        (0.0, 3.0),
    ),
    "lorentzian": (
        "a/(1 + ((x - m)/g)**2) + c",
        lambda x, a, m, g, c: a * g**2 / ((x - m) ** 2 + g**2) + c,
        lorentzian,
        _lorentzian_jac,
        ("a", "m", "g", "c"),
        (6.0, 0.8, 0.7, 0.3),
        (-5.0, 6.0),
    ),
    "michaelis": (
        "v*x/(k + x)",
        lambda x, v, k: v * x / (k + x),
        michaelis,
        lambda x, v, k: [x / (k + x), -v * x / (k + x) ** 2],
        ("v", "k"),
        (8.0, 1.4),
        (0.1, 10.0),
    ),
    "polynomial": (
        "a + b*x + c*x**2 + d*x**3",
        lambda x, a, b, c, d: a + b * x + c * x**2 + d * x**3,
        polynomial,
        lambda x, a, b, c, d: [1.0, x, x**2, x**3],
        ("a", "b", "c", "d"),
        (1.0, -2.0, 0.5, 0.3),
        (-2.0, 3.0),
    ),
}
NAMES = tuple(_TABLE)


@cache
def problem(name: str) -> Problem:
    """Make the data of a problem: the same in every run."""
    text, algebra, function, jacobian, params, truth, (low, high) = _TABLE[name]
    rng = np.random.default_rng([_SEED, NAMES.index(name)])
    shape = (2, ROWS) if name == "plane" else (ROWS,)
    x = np.sort(rng.uniform(low, high, shape), axis=-1) if len(shape) == 1 else rng.uniform(low, high, shape)
    theta = np.array(truth)
    sigma = 0.02 * rng.uniform(0.5, 2.0, ROWS)
    y = function(x, *theta) + sigma * rng.normal(size=ROWS)
    start = theta * (1.0 + rng.uniform(0.1, 0.2, len(theta)) * rng.choice([-1, 1], len(theta)))
    return Problem(name, text, algebra, function, jacobian, params, theta, x, y, sigma, start)
