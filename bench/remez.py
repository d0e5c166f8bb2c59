"""Coefficients of nlsq_nb/codegen/vecmath: minimax polynomials by the Remez exchange in mpmath.

Run `python bench/remez.py` for all, or with names for some: each is printed as a tuple, lowest
power first, after its largest weighted error. The exchange runs on a dense Chebyshev grid in 60
digits; weights make the error the one that the function's result feels. Sources: J.-M. Muller,
Elementary Functions, 3rd ed. 2016, ch. 3; W. J. Cody and W. Waite, Software Manual for the
Elementary Functions, 1980.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import mpmath as mp

mp.mp.dps = 60
_GRID = 500
Function = Callable[[Any], Any]


def remez(f: Function, weight: Function, count: int, lo: Any, hi: Any) -> tuple[list[Any], Any]:
    """Coefficients c of Σ cᵢ zⁱ that minimise the largest weight·|f − Σ| on [lo, hi].

    Parameters
    ----------
    f, weight : callable
        Of an mpf.
    count : int
        Number of coefficients.
    lo, hi : number
        Interval; the ends are left out by the grid.

    Returns
    -------
    coefficients : list of mpf
    error : mpf
        The largest weighted error.
    """
    lo, hi = mp.mpf(lo), mp.mpf(hi)
    grid = [
        (lo + hi) / 2 - (hi - lo) / 2 * mp.cos(mp.pi * (2 * i + 1) / (2 * _GRID))
        for i in range(_GRID)
    ]
    values = [f(z) for z in grid]
    weights = [weight(z) for z in grid]
    chosen = [round(i * (_GRID - 1) / count) for i in range(count + 1)]
    for _ in range(60):
        rows = [
            [grid[i] ** j for j in range(count)] + [(-1) ** n / weights[i]]
            for n, i in enumerate(chosen)
        ]
        solved = mp.lu_solve(mp.matrix(rows), mp.matrix([values[i] for i in chosen]))
        coefficients = list(solved)[:count]
        errors = [
            w * (v - mp.polyval(coefficients[::-1], z))
            for z, v, w in zip(grid, values, weights, strict=True)
        ]
        largest = max(abs(e) for e in errors)
        if largest <= abs(solved[count]) * mp.mpf("1.001"):
            break
        chosen = _extrema(errors, count + 1)
    return coefficients, largest


def _extrema(errors: list[Any], count: int) -> list[int]:
    """Places of the largest error in each run of one sign; the smaller end is dropped."""
    best: list[int] = []
    for i, error in enumerate(errors):
        if best and (error > 0) == (errors[best[-1]] > 0):
            if abs(error) > abs(errors[best[-1]]):
                best[-1] = i
        else:
            best.append(i)
    while len(best) > count:
        best.pop(0 if abs(errors[best[0]]) < abs(errors[best[-1]]) else -1)
    if len(best) < count:
        raise RuntimeError("the error oscillates too little: too few digits or too many terms")
    return best


def _even(function: Function, start: int, lead: Function) -> Function:
    """(function(t) − lead(t))/tᵏ as a function of z = t²."""

    def quotient(z: Any) -> Any:
        t = mp.sqrt(z)
        return (function(t) - lead(t)) / t**start

    return quotient


def _erfcx(q: Any) -> Any:
    """(1 + 2a)·exp(a²)·erfc(a) at a = 4(1 + q)/(1 − q)."""
    a = 4 * (1 + q) / (1 - q)
    return (1 + 2 * a) * mp.exp(a * a) * mp.erfc(a)


_HALF_LN2 = mp.log(2) / 2 * mp.mpf("1.0005")
_S = (mp.sqrt(2) - 1) / (mp.sqrt(2) + 1) * mp.mpf("1.0005")
_QUARTER = mp.mpf("0.855")  # beyond π/4: near 1e15 the quotient is rounded from one that is a little off
_TAN = (mp.sqrt(2) - 1) * mp.mpf("1.0005")
FITS: dict[str, tuple[Function, Function, tuple[int, int], Any, Any]] = {
    # name: function, weight, coefficients in float64 and float32, interval
    "EXP": (lambda r: (mp.expm1(r) - r) / r**2, abs, (10, 5), -_HALF_LN2, _HALF_LN2),
    "LOG": (
        _even(lambda s: 2 * mp.atanh(s) / s, 2, lambda s: mp.mpf(2)),
        lambda z: z,
        (7, 3),
        0,
        _S**2,
    ),
    "POW": (
        _even(lambda s: mp.atanh(s) / s, 4, lambda s: 1 + s * s / 3),
        lambda z: z**2,
        (8, 3),
        0,
        _S**2,
    ),
    "SIN": (_even(mp.sin, 3, lambda t: t), lambda z: z, (6, 3), 0, _QUARTER**2),
    "COS": (_even(mp.cos, 4, lambda t: 1 - t * t / 2), lambda z: z**2, (6, 3), 0, _QUARTER**2),
    "SINH": (_even(mp.sinh, 3, lambda t: t), lambda z: z, (5, 2), 0, _HALF_LN2**2),
    "COSH": (_even(mp.cosh, 4, lambda t: 1 + t * t / 2), lambda z: z**2, (5, 2), 0, _HALF_LN2**2),
    "ATAN": (_even(mp.atan, 3, lambda t: t), lambda z: z, (11, 5), 0, _TAN**2),
    "ASIN": (_even(mp.asin, 3, lambda t: t), lambda z: z, (12, 5), 0, mp.mpf("0.2501")),
    "ERF": (_even(lambda t: mp.erf(t) / t, 0, lambda t: mp.mpf(1)), lambda z: mp.mpf(1), (12, 6), 0, 1),
    "ERF_TAIL": (lambda a: -mp.log(mp.erfc(a)), mp.erfc, (18, 9), mp.mpf("0.99"), mp.mpf("6.0")),
    "ERFC": (_erfcx, lambda q: 1 / _erfcx(q), (23, 12), -1, (mp.mpf("27.3") - 4) / (mp.mpf("27.3") + 4)),
}


def main(names: list[str]) -> None:
    """Print the fits that were asked for, all by default."""
    for name in names or FITS:
        f, weight, counts, lo, hi = FITS[name]
        for count, bits in zip(counts, (64, 32), strict=True):
            coefficients, error = remez(f, weight, count, lo, hi)
            print(f"# {name} float{bits}: largest weighted error {mp.nstr(error, 3)}")
            print(f"{name}_{bits} = (")
            for c in coefficients:
                print(f"    {float(c)!r}," if bits == 64 else f"    {mp.nstr(c, 11)},")
            print(")", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
