"""`BackendTests`: what every backend must do, as a class that a backend's tests inherit.

The oracle is the NumPy text of the program, evaluated per row and multiplied out in extended precision.

Errors are scaled: a column of values or derivatives by `max(|value|, root mean square of the column)`
row by row, an element of JᵀWJ by `sqrt(JᵀWJ_ii JᵀWJ_jj)`, of JᵀWr by `sqrt(sse JᵀWJ_ii)`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.codegen.evaluate import evaluate
from nlsq_nb.codegen.ir import AnyProgram
from nlsq_nb.core.layout import BLOCK
from nlsq_nb.core.sums import Accumulator, NormalSums
from nlsq_nb.models.symbolic import Model
from nlsq_nb.protocols import Backend
from nlsq_nb.testing.accuracy import TOLERANCE, scaled_error, sums_error
from nlsq_nb.testing.table import EXPRESSIONS, Data, Entry

__all__ = ["ROWS", "BackendTests"]

Floats = NDArray[np.float64]
ROWS = (1, 7, 3 * BLOCK + 17)
"""Numbers of rows: fewer than one vector register, and blocks with a rest."""


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
        Whether a kernel takes seconds to make. Then values and derivatives are compared for all
        entries; sums of order 2 for the core ones and every fourth of the others; lower orders and
        products for the core ones, with weights or without in turn. The rest of the core ones is
        marked slow. Of the rest of the others, what has the turn is slow, what has not is long as well.
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
        name, cases = metafunc.function.__name__, []
        order_2 = name == "test_sums"
        for index, entry in enumerate(EXPRESSIONS):
            for weighted in (False, True):
                its_turn = weighted == (index + (name == "test_matvec")) % 2
                fast = (order_2 and (entry.core or index % 8 == 4 * weighted)) or (entry.core and its_turn)
                slow = [pytest.mark.slow] if entry.core or its_turn else [pytest.mark.slow, pytest.mark.long]
                marks = [] if fast or not self.compiles else slow
                label = f"{entry}-{'weighted' if weighted else 'plain'}"
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
