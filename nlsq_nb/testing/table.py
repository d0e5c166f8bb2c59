"""`EXPRESSIONS`: the one table of models that all backends are run on."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.codegen.evaluate import evaluate
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.models.symbolic import Model

__all__ = ["EXPRESSIONS", "Data", "Entry"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Data:
    """Rows for one model; weights are there whether they are used or not."""

    x: tuple[Floats, ...]
    y: tuple[Floats, ...]
    w: tuple[Floats, ...]

    def chunk(self, weighted: bool, rows: slice = slice(None), start: int = 0) -> Chunk:
        """Some of the rows as a chunk.

        Parameters
        ----------
        weighted : bool
            Whether the chunk has weights.
        rows : slice
            Which rows.
        start : int
            Index of the first of them.

        Returns
        -------
        Chunk
            Views of the columns.
        """
        x, y, w = (tuple(c[rows] for c in group) for group in (self.x, self.y, self.w))
        return Chunk(start, x, y, w if weighted else None)


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the table.

    Attributes
    ----------
    text : str or tuple of str
        The model; a tuple has one text per output.
    theta : tuple of float
        Parameter values, in order of appearance.
    ranges : tuple of (float, float)
        Where each independent variable lies; they are called x, or x, y, z for several.
    edges : tuple of float
        Values that the first variable takes in the first rows: limits that must be right.
    core : bool
        Whether every entry point is compiled for it in the fast tests: one per kernel shape.
    """

    text: str | tuple[str, ...]
    theta: tuple[float, ...]
    ranges: tuple[tuple[float, float], ...] = ((0.1, 2.0),)
    edges: tuple[float, ...] = ()
    core: bool = False

    def __str__(self) -> str:
        text = self.text if isinstance(self.text, str) else "; ".join(self.text)
        return text if len(text) <= 60 else f"{text[:50]}...(p={len(self.theta)})"

    def model(self) -> Model:
        """The model of the text."""
        text = self.text if isinstance(self.text, str) else list(self.text)
        return Model(text, x=("x", "y", "z")[: len(self.ranges)])

    def data(self, rows: int) -> Data:
        """Random rows, the same for the same text: residuals of the size of the values.

        Parameters
        ----------
        rows : int
            Number of rows n.

        Returns
        -------
        Data
            Columns in float64.
        """
        model = self.model()
        rng = np.random.default_rng([zlib.crc32(str(self.text).encode()), rows])
        x = tuple(rng.uniform(low, high, rows) for low, high in self.ranges)
        edges = self.edges[:rows]
        x[0][: len(edges)] = edges
        values = evaluate(model.program, "values", x, np.array(self.theta))
        size = np.sqrt(np.mean(values**2, axis=1, keepdims=True))
        size[size == 0.0] = 1.0
        shape = values.shape
        noise = size * rng.uniform(0.5, 1.5, shape) * rng.choice([-1.0, 1.0], shape)
        weights = rng.uniform(0.2, 5.0, shape)
        return Data(x, tuple(values + noise), tuple(weights))


def _wave(terms: int) -> str:
    return " + ".join(f"a{k}*cos({k}*x)" for k in range(terms))


_FAR = ((-400.0, 400.0),)
_BOTH = ((-2.0, 2.0),)
_UNIT = ((-0.9, 0.9),)
_PLANE = ((-2.0, 2.0), (0.5, 3.0))
EXPRESSIONS: tuple[Entry, ...] = (
    # kernel shapes: linear, one parameter, 6 | 7 | 25 parameters, outputs, absent derivatives
    Entry("a*x + b", (1.5, -0.5), _BOTH),
    Entry("exp(-k*x)", (0.7,), core=True),
    Entry("mu", (2.5,)),
    Entry("a*exp(-b*x) + c", (2.5, 1.3, 0.5)),
    Entry(_wave(6), tuple(1.0 / (k + 1) for k in range(6)), _BOTH),
    Entry(_wave(7), tuple(1.0 / (k + 1) for k in range(7)), _BOTH),
    Entry(_wave(25), tuple((-1.0) ** k / (k + 1) for k in range(25)), _BOTH),
    Entry(
        ("a*exp(-((x - m)/s)**2) + b", f"b*x + ({_wave(10).replace('a', 'g')})"),
        (1.0, 0.3, 0.8, 0.1, *(0.5 - 0.1 * k for k in range(10))),
        _BOTH,
        core=True,
    ),
    Entry(("a*cos(w*x)", "a*sin(w*x) + c"), (1.2, 2.5, 0.3)),
    Entry(("a*x", "b*x**2", "c*y + a"), (1.0, 2.0, 3.0), _PLANE, core=True),
    Entry("floor(a*x) + b + ceil(c*x) + d*x", (3.3, 0.5, 2.1, 0.7), _BOTH),
    Entry("a**b*x + b**a + log(c)*c", (1.7, 2.3, 0.6)),
    # one or more entries for every function
    Entry("a*abs(x - b) + Abs(c*x)", (1.5, 0.3, -0.7), _BOTH),
    Entry("a*acos(b*x) + arccos(c)*x", (1.5, 0.8, 0.3), _UNIT),
    Entry("acosh(a + b*x) + arccosh(2 + x**2)*c", (1.5, 0.8, 0.3)),
    Entry("a*asin(b*x) + arcsin(c*x/2)", (1.5, 0.8, -0.6), _UNIT),
    Entry("a*asinh(b*x) + arcsinh(x/c)", (1.5, 0.8, 0.6), _BOTH),
    Entry("a*atan(b*x) + arctan((x - c)/0.1)", (1.5, 0.8, 0.6), _BOTH),
    Entry("atan2(a*x, y - b) + c*arctan2(y, x)", (1.5, 0.2, 0.6), _PLANE),
    Entry("a*atanh(b*x) + arctanh(c*x)", (1.5, 0.8, 0.6), _UNIT),
    Entry("a*cosh(b*x) - sinh(c*x)", (0.5, 1.3, 0.8), _BOTH),
    Entry("a*digamma(x) + digamma(-0.35 - 2*x)*b", (0.7, 0.3), ((0.1, 0.3),)),
    Entry("a*erf((x - b)/c)", (1.5, 0.2, 0.7), _BOTH),
    Entry("a*erfc(b*x) + erfc(-c*x)*x", (1.5, 0.8, 0.7), _BOTH),
    Entry("a*expm1(-b*x)", (1.5, 1e-3), _BOTH),
    Entry("gamma(a + x) + b/gamma(c*x)", (0.5, 0.8, 1.7)),
    Entry("lgamma(a + x)*b + gammaln(c*x) + loggamma(x)", (0.5, 0.8, 1.7)),
    Entry("a*log(x + b) + ln(c*x)", (0.5, 0.8, 1.7)),
    Entry("log10(a*x) + log2(b + x)*c", (0.5, 0.8, 1.7)),
    Entry("log(a + x, 3) + log(b*x, c)", (0.5, 0.8, 1.7)),
    Entry("a*log1p(b*x)", (1.5, 0.3), ((-1e-3, 1e-3),)),
    Entry("minimum(a*x, b) + maximum(c*x, x**2) + minimum(2*x, x**3 + a)", (1.5, 0.9, 0.7), _BOTH),
    Entry("Min(a*x, b, c*x**2) - Max(x, a, b - x)", (1.5, 0.9, 0.7), _BOTH),
    Entry("pow(a + x, b) + power(x, c)", (1.5, 0.9, -0.7)),
    Entry("a*sign(x - b) + c*sign(a*x)*x", (1.5, 0.3, 0.4), _BOTH),
    Entry("a*sinc(b*x) + sinc(x - c)", (1.5, 3.1, 0.3), _BOTH, (0.0, 0.3, 1e-9)),
    Entry("a*sqrt(b + x) + c/sqrt(x)", (1.5, 0.3, 0.4)),
    Entry("a*tan(b*x) + tan(c)", (1.5, 0.7, 0.4), _UNIT),
    Entry("sin(a*x)*cos(b*x)*tan(c*x)", (3.5, 2.7, 0.4), _UNIT),
    Entry("a*Heaviside(x - b) + Heaviside(x - 0.25, 0.75)*c", (1.5, 0.3, 0.4), _BOTH, (0.25,)),
    # choices, comparisons, logic
    Entry("where(x < a, b*x, c*x**2 + b)", (0.8, 1.5, 0.4), _BOTH),
    Entry("where(x > 0, a*log(abs(x)), b*x) + where(x >= 1, c, 0)", (0.8, 1.5, 0.4), _BOTH, (0.0,)),
    Entry("where(x > 0, a*x*log(x), b*x)", (0.8, 1.5), _BOTH, (0.0, -1.0), core=True),
    Entry("Piecewise((a*x, x < -0.5), (b, x <= 0.5), (c*x, True))", (0.8, 1.5, 0.4), _BOTH, (0.5,)),
    Entry("where(-1 < x <= 0.5 and not (x == 0), a, b*x)", (0.8, 1.5), _BOTH, (0.0, 0.5)),
    Entry("where((x < a) & (y > 1) | (x != 0), b*x, a*y)", (0.8, 1.5), _PLANE, (0.0,)),
    Entry("where(~(x < 0) or y >= 2, a*x, where(y < 1, b, c*y))", (0.8, 1.5, 0.4), _PLANE),
    # powers
    Entry("a*x**3 - b*x**2 + c*x**5", (0.8, 1.5, 0.4), _BOTH, (0.0,)),
    Entry("(a + b*x)**-3 + c*x**-1", (0.8, 1.5, 0.4)),
    Entry("(a + b*x)**1.5 + c*x**0.5 + x**-2.5", (0.8, 1.5, 0.4)),
    Entry("a*x**0.7 + b*(x + c)**-1.3", (0.8, 1.5, 0.4)),
    Entry("a*x**b", (2.0, 1.7), ((0.0, 3.0),), (0.0,)),
    Entry("a*(x/e0)**b", (2.0, 1.5, 1.7), ((0.0, 3.0),), (0.0,)),
    Entry("a/(1 + (x/k)**n)", (2.0, 1.5, 2.7), ((0.0, 3.0),), (0.0,)),
    Entry("2**(a*x) + b**x + e**(c*x)", (0.8, 1.5, 0.4), _BOTH),
    Entry("(1 + a*x/50)**64 + (1 + b*x/50)**65 + (x*c)**7", (0.8, 1.5, 0.4), _BOTH),
    Entry("(a + x)**(b - x) + (a*x)**(x + c)", (0.8, 1.5, 0.4)),
    # several variables, division, constants
    Entry("a*exp(-((x - b)**2 + (y - c)**2)/(2*d**2)) + f", (2.0, 0.2, 1.5, 0.8, 0.1), _PLANE),
    Entry("a*x*y/(1 + b*x**2 + c*y*z) + z", (1.0, 0.3, 0.2), (*_PLANE, (0.0, 1.0))),
    Entry("v*x/(k + x + x**2/i)", (2.0, 0.5, 3.0)),
    Entry("pi*a*x + e**2*b + 1e-3*c/x - 2.5e2", (2.0, 0.5, 3.0)),
    Entry("(a + b*x + c*x**2)/(1 + d*x + f*x**2)", (1.0, 0.5, 0.3, 0.2, 0.1), _BOTH),
    Entry("-a/-x - (-b)*+x - -c", (1.0, 0.5, 0.3)),
    # nesting, and the same part many times
    Entry("sin(cos(tanh(exp(sin(a*x + cos(b*x + sqrt(c + x)))))))", (1.0, 0.5, 0.3), ((0.0, 2.0),)),
    Entry("log(1 + exp(log(1 + exp(log(1 + exp(a*x + b))))))", (1.0, 0.5), _BOTH),
    Entry("a*exp(-b*x)/(1 + exp(-b*x))**2 + exp(-b*x)*sin(exp(-b*x))", (1.0, 0.5), _BOTH),
    Entry("1/(1 + 1/(1 + 1/(1 + 1/(a + b*x))))", (1.0, 0.5)),
    # far out: saturated, underflowing, next to overflow
    Entry("a*tanh(b*x) + c", (1.0, 1.5, 0.3), _FAR),
    Entry("a*erf(x/b) + c*erfc(x)", (1.0, 1.5, 0.3), _FAR),
    Entry("a/(1 + exp(-b*(x - c)))", (1.0, 1.5, 0.3), _FAR),
    Entry("a*exp(-x**2) + b*exp(-(x/c)**2)", (1.0, 1.5, 3.0), _FAR, (0.0, 0.5)),
    Entry("a*atan(x/b) + c*asinh(x**3)", (1.0, 1.5, 0.3), ((-1e6, 1e6),)),
    # limits: poles, roots and logarithms at 0, exp that overflows
    Entry("a*exp(-b/x) + c*(1 - exp(-d*x))**0.6", (1.0, 0.5, 0.3, 1.2), ((0.0, 3.0),), (0.0,)),
    Entry("d + (a - d)/(1 + (x/c)**b)", (1.0, 3.0, 0.7, -1.3), ((0.0, 3.0),), (0.0,)),
    Entry("a*sqrt(b*x) + c*x*log(x)", (1.0, 0.5, 0.3), ((0.0, 3.0),), (0.0,)),
    Entry("a*exp(b*x)/(1 + exp(b*x))**2 + c*log(1 + exp(b*x))", (1.0, 7.0, 0.3), _FAR),
    Entry("a*exp(-b*exp(-c*x)) + d*sin(b*x)/x", (1.0, 1.5, 2.3, 0.4), _FAR, (0.0,)),
)
"""Models that every backend must compute: all functions of models, in all shapes of kernels."""
