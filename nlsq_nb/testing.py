"""`BackendTests`: what every backend must do, as a class that a backend's tests inherit.

`EXPRESSIONS` is the one table of models that all backends are run on. The oracle is the NumPy text of
the program, evaluated per row and multiplied out in extended precision. Nothing here needs pytest to
be imported; pytest finds the tests in a subclass by their names.

Errors are scaled: a column of values or derivatives by `max(|value|, root mean square of the column)`
row by row, an element of JᵀWJ by `sqrt(JᵀWJ_ii JᵀWJ_jj)`, of JᵀWr by `sqrt(sse JᵀWJ_ii)`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.codegen.evaluate import evaluate
from nlsq_nb.codegen.ir import AnyProgram
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.layout import BLOCK
from nlsq_nb.core.sums import Accumulator, NormalSums
from nlsq_nb.models.symbolic import Model
from nlsq_nb.protocols import Backend

__all__ = ["EXPRESSIONS", "TOLERANCE", "BackendTests", "Data", "Entry", "scaled_error", "sums_error"]

Floats = NDArray[np.float64]
TOLERANCE = 1e-13
"""Largest scaled error of a value, a derivative or a sum."""

ROWS = (1, 7, 3 * BLOCK + 17)
"""Numbers of rows: fewer than one vector register, and blocks with a rest."""


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
)
"""Models that every backend must compute: all functions of models, in all shapes of kernels."""


def scaled_error(found: Floats, expected: Floats) -> float:
    """Largest error of columns, scaled by max(|value|, root mean square of the column).

    Parameters
    ----------
    found, expected : ndarray, shape (..., n)
        Columns along the last axis.

    Returns
    -------
    float
        0 for equal arrays; inf where only one of the two is finite.
    """
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    if not np.isfinite(found[~same]).all() or not np.isfinite(expected[~same]).all():
        return float("inf")
    finite = np.where(np.isfinite(expected), expected, 0.0)
    rms = np.sqrt(np.mean(finite**2, axis=-1, keepdims=True))
    scale = np.maximum(np.abs(finite), rms)
    error = np.where(same, 0.0, np.where(same, 0.0, found) - np.where(same, 0.0, expected))
    return float(np.max(np.abs(error) / np.where(scale == 0.0, 1.0, scale), initial=0.0))


def sums_error(found: NormalSums, expected: NormalSums) -> float:
    """Largest error of sums, scaled by the diagonal of the expected ones.

    Parameters
    ----------
    found : NormalSums
        Of any order.
    expected : NormalSums
        Of order 2.

    Returns
    -------
    float
        inf when the numbers of rows differ or a sum is not finite.
    """
    if found.n_rows != expected.n_rows or not found.is_finite:
        return float("inf")
    root = np.sqrt(np.diag(expected.jtj))
    size = np.sqrt(expected.sse)
    scales = np.concatenate([[size * size], size * root, np.outer(root, root)[np.triu_indices(len(root))]])
    scales[scales < np.finfo(np.float64).tiny] = 1.0  # a backend may flush subnormal products to zero
    count = len(found.packed)
    return float(np.max(np.abs(found.packed - expected.packed[:count]) / scales[:count]))


def _expected(program: AnyProgram, data: Data, theta: Floats, weighted: bool) -> NormalSums:
    """The sums of order 2 from the reference text, in extended precision."""
    x = tuple(c.astype(np.float64) for c in data.x)
    y, w = (np.stack(group).astype(np.longdouble) for group in (data.y, data.w))
    r = (y - evaluate(program, "values", x, theta)).ravel()
    jac = evaluate(program, "derivatives", x, theta).astype(np.longdouble)
    flat = np.moveaxis(jac, 1, 0).reshape(jac.shape[1], -1)
    wj = flat * w.ravel() if weighted else flat
    wr = r * w.ravel() if weighted else r
    sse, jtr, jtj = np.sum(r * wr), flat @ wr, wj @ flat.T
    return NormalSums.from_arrays(float(sse), jtr.astype(float), jtj.astype(float), len(y[0]))


class BackendTests:
    """Conformance tests of a backend.

    A subclass gives `backend` and `rows`; its name starts with Test, so that pytest collects it.

    Attributes
    ----------
    compiles : bool
        Whether a kernel takes seconds to make: then what is not of a core entry is marked slow,
        except values and derivatives of all, and the sums of order 2 of every fourth.
    """

    compiles = True

    def backend(self) -> Backend:
        """Make the backend under test."""
        raise NotImplementedError

    def rows(self, kernel: Any, x: tuple[Floats, ...], theta: Floats) -> tuple[Floats, Floats]:
        """Values (m, n) and derivatives (m, p, n) as the backend's own kernel computes them."""
        raise NotImplementedError

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Fan out over the table; called by pytest.

        Parameters
        ----------
        metafunc : pytest.Metafunc
            The test and what it takes.
        """
        if "entry" not in metafunc.fixturenames:
            return
        import pytest

        if "weighted" not in metafunc.fixturenames:
            metafunc.parametrize("entry", EXPRESSIONS, ids=str)
            return
        every = metafunc.function.__name__ == "test_sums"
        cases = []
        for index, entry in enumerate(EXPRESSIONS):
            for weighted in (False, True):
                in_turn = every and index % 8 == (4 if weighted else 0)
                fast = entry.core or in_turn or not self.compiles
                label = f"{entry}-{'weighted' if weighted else 'plain'}"
                marks = [] if fast else [pytest.mark.slow]
                cases.append(pytest.param(entry, weighted, id=label, marks=marks))
        metafunc.parametrize(["entry", "weighted"], cases)

    def total(self, kernel: Any, data: Data, theta: Floats, order: int, *, weighted: bool) -> NormalSums:
        """The sums of one pass over the data in one chunk."""
        backend = self.backend()
        into = Accumulator(len(theta), order)
        chunk = backend.put(data.chunk(weighted), kernel.dtype)
        backend.reduce(kernel, chunk, theta, order, into)
        return into.result()

    # -- tests -------------------------------------------------------------------------------
    def test_values_and_derivatives(self, entry: Entry) -> None:
        """Per point, against the reference text."""
        program, theta = entry.model().program, np.array(entry.theta)
        kernel = self.backend().compile(program, np.float64)
        for n in ROWS:
            x = entry.data(n).x
            values, derivatives = self.rows(kernel, x, theta)
            expected = evaluate(program, "values", x, theta), evaluate(program, "derivatives", x, theta)
            for what, found, right in zip(("values", "derivatives"), (values, derivatives), expected, strict=True):
                assert np.isfinite(right).all(), f"the table must hold models with finite {what}"
                assert scaled_error(found, right) <= TOLERANCE, f"{what}, {n} rows"

    def test_sums(self, entry: Entry, weighted: bool) -> None:
        """Cost, gradient and JᵀWJ."""
        self._compare(entry, weighted, (2,))

    def test_sums_of_lower_order(self, entry: Entry, weighted: bool) -> None:
        """Cost alone, and cost with the gradient."""
        self._compare(entry, weighted, (0, 1))

    def _compare(self, entry: Entry, weighted: bool, orders: tuple[int, ...]) -> None:
        program, theta = entry.model().program, np.array(entry.theta)
        kernel = self.backend().compile(program, np.float64)
        for n in ROWS:
            data = entry.data(n)
            expected = _expected(program, data, theta, weighted)
            for order in orders:
                found = self.total(kernel, data, theta, order, weighted=weighted)
                assert found.order == order
                assert sums_error(found, expected) <= TOLERANCE, f"order {order}, {n} rows"

    def test_matvec(self, entry: Entry, weighted: bool) -> None:
        """JᵀWJ·v is JᵀWJ times v."""
        program, theta = entry.model().program, np.array(entry.theta)
        backend = self.backend()
        kernel = backend.compile(program, np.float64)
        v = np.cos(np.arange(1.0, len(theta) + 1.0))
        for n in ROWS:
            data = entry.data(n)
            jtj = _expected(program, data, theta, weighted).jtj
            chunk = backend.put(data.chunk(weighted), kernel.dtype)
            found = backend.matvec(kernel, chunk, theta, v)
            root = np.sqrt(np.diag(jtj))
            scale = root * (root @ np.abs(v))
            error = np.abs(found - jtj @ v) / np.where(scale == 0.0, 1.0, scale)
            assert error.max() <= TOLERANCE, f"{n} rows"

    def test_what_is_not_finite_stays_visible(self) -> None:
        """Infinities and nan come through as NumPy makes them, in values and in sums."""
        model, theta = Model("a*log(x) + b/x + c*Max(x, 0) + sign(x)*exp(c*x)"), np.array([1.0, 0.5, 2.0])
        kernel = self.backend().compile(model.program, np.float64)
        x = np.array([1.0, 0.0, -1.0, 800.0, np.inf, -np.inf, np.nan, 2.0])
        values, derivatives = self.rows(kernel, (x,), theta)
        assert scaled_error(values, evaluate(model.program, "values", (x,), theta)) <= TOLERANCE
        assert scaled_error(derivatives, evaluate(model.program, "derivatives", (x,), theta)) <= TOLERANCE
        for row in range(1, 7):
            data = Data((x[[0, row]],), (np.ones(2),), (np.ones(2),))
            assert not self.total(kernel, data, theta, 2, weighted=False).is_finite, f"x = {x[row]}"
