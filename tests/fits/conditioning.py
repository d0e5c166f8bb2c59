"""Least-squares problems of known condition, and their solutions to 50 digits.

The condition is that of J with its columns scaled to length 1; JᵀJ has its square.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import mpmath
import numpy as np

DIGITS = 50
ROWS = 60
NOISE = 1e-6  # relative to the largest value


@dataclass(frozen=True)
class Problem:
    """Data, the model as text, and the certain answer."""

    name: str
    condition: float
    model: str
    x: np.ndarray
    y: np.ndarray
    start: np.ndarray
    values: np.ndarray
    deviations: np.ndarray


def digits(found: np.ndarray, certain: np.ndarray) -> float:
    """Correct digits of the worst entry, 0 for nonsense; 15 at most."""
    error = np.max(np.abs(found - certain) / np.abs(certain))
    return float(np.clip(-np.log10(max(error, 1e-15)), 0.0, 15.0)) if np.isfinite(error) else 0.0


def polynomial(degree: int, first: float, last: float) -> Problem:
    """Monomials on an interval away from zero: the narrower, the more alike they are."""
    x = np.linspace(first, last, ROWS)
    coefficients = [(-1.0) ** k * (1.0 + 0.3 * k) for k in range(degree + 1)]
    model = " + ".join(["c0", *(f"c{k}*x**{k}" for k in range(1, degree + 1))])
    columns = [lambda t, k=k: t**k for k in range(degree + 1)]
    return _solved(f"degree {degree} on [{first:g}, {last:g}]", model, x, np.array(coefficients), columns)


def collinear(gap: float) -> Problem:
    """Two exponentials of nearly the same rate beside a constant, all three linear."""
    x = np.linspace(0.0, 3.0, ROWS)
    rate = 1.0 + gap
    model = f"a*exp(-x) + b*exp(-{rate!r}*x) + c"
    columns = [lambda t: mpmath.exp(-t), lambda t: mpmath.exp(-mpmath.mpf(rate) * t), lambda t: mpmath.mpf(1)]
    return _solved(f"exp(-x), exp(-{rate!r}·x), 1", model, x, np.array([2.0, 1.5, 0.7]), columns)


def curved(gap: float) -> Problem:
    """The rate of one of two nearly equal decays is unknown as well: a nonlinear problem."""
    x = np.linspace(0.0, 3.0, ROWS)
    rate = 1.0 + gap
    model = f"a*exp(-x) + b*exp(-{rate!r}*x) + c*exp(-d*x)"
    return _refined(f"… + c·exp(−d·x), gap {gap:g}", model, x, np.array([2.0, 1.5, 0.7, 0.2]), rate)


@cache
def problems() -> tuple[Problem, ...]:
    """From a condition of some tens to 1e12."""
    return (
        polynomial(2, 0.0, 1.0),
        polynomial(3, 0.0, 1.0),
        polynomial(3, 1.0, 2.0),
        polynomial(4, 1.0, 2.0),
        polynomial(5, 1.0, 2.0),
        polynomial(5, 2.0, 3.0),
        polynomial(6, 2.0, 3.0),
        polynomial(6, 3.0, 4.0),
        polynomial(6, 5.0, 6.0),
        polynomial(7, 4.0, 5.0),
        polynomial(7, 5.0, 6.0),
        polynomial(7, 6.0, 7.0),
        *(collinear(gap) for gap in (3e-2, 3e-4, 3e-6, 3e-8, 3e-10, 3e-12)),
        *(curved(gap) for gap in (3e-2, 3e-3, 3e-4, 3e-5)),
    )


def _observed(x: np.ndarray, clean: list[mpmath.mpf]) -> np.ndarray:
    exact = np.array([float(v) for v in clean])
    return exact + NOISE * np.abs(exact).max() * np.random.default_rng(len(x)).normal(size=len(x))


def _solved(
    name: str, model: str, x: np.ndarray, truth: np.ndarray, functions: list[Callable[[mpmath.mpf], mpmath.mpf]]
) -> Problem:
    """A problem that is linear in all parameters."""
    with mpmath.workdps(DIGITS):
        jac = [[f(mpmath.mpf(float(t))) for f in functions] for t in x]
        y = _observed(x, [mpmath.fdot(row, map(float, truth)) for row in jac])
        step, deviations = _step(jac, [mpmath.mpf(float(v)) for v in y])
    return _problem(name, model, (x, y), np.ones(len(truth)), jac, (step, deviations))


def _refined(name: str, model: str, x: np.ndarray, truth: np.ndarray, rate: float) -> Problem:
    """A problem whose last parameter is a rate: Gauss–Newton to 50 digits from the truth."""
    with mpmath.workdps(DIGITS):
        point = [mpmath.mpf(float(v)) for v in truth]

        def rows(at: list[mpmath.mpf]) -> tuple[list[mpmath.mpf], list[list[mpmath.mpf]]]:
            a, b, c, d = at
            values, jac = [], []
            for t in map(float, x):
                first, second, third = mpmath.exp(-t), mpmath.exp(-mpmath.mpf(rate) * t), mpmath.exp(-d * t)
                values.append(a * first + b * second + c * third)
                jac.append([first, second, third, -c * t * third])
            return values, jac

        y = _observed(x, rows(point)[0])
        for _ in range(60):
            values, jac = rows(point)
            step, deviations = _step(jac, [mpmath.mpf(float(v)) - f for v, f in zip(y, values, strict=True)])
            point = [v + s for v, s in zip(point, step, strict=True)]
            if max(abs(s / v) for s, v in zip(step, point, strict=True)) < mpmath.mpf(10) ** -30:
                break
        else:
            raise AssertionError("Gauss–Newton to 50 digits did not converge")
    return _problem(name, model, (x, y), truth, jac, (point, deviations))


def _step(jac: list[list[mpmath.mpf]], right: list[mpmath.mpf]) -> tuple[list[mpmath.mpf], list[mpmath.mpf]]:
    """Least-squares solution and standard deviations by the normal equations, exact enough at 50 digits."""
    matrix = mpmath.matrix(jac)
    inverse = (matrix.T * matrix) ** -1
    solution = inverse * (matrix.T * mpmath.matrix(right))
    rest = mpmath.matrix(right) - matrix * solution
    p = matrix.cols
    variance = mpmath.fdot(rest, rest) / (matrix.rows - p)
    return list(solution), [mpmath.sqrt(variance * inverse[k, k]) for k in range(p)]


def _problem(
    name: str,
    model: str,
    data: tuple[np.ndarray, np.ndarray],
    start: np.ndarray,
    jac: list[list[mpmath.mpf]],
    answer: tuple[list[mpmath.mpf], list[mpmath.mpf]],
) -> Problem:
    rounded = np.array(jac, dtype=np.float64)
    condition = float(np.linalg.cond(rounded / np.linalg.norm(rounded, axis=0)))
    values, deviations = (np.array([float(v) for v in part]) for part in answer)
    return Problem(name, condition, model, *data, start, values, deviations)
