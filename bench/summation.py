"""The sse of billions of generated rows against its exact value: error relative to it, in units of 1e-16."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from common import Floor, Report, arguments, environment, seconds

from nlsq_nb import Model
from nlsq_nb.backends import get_backend
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.engines.local import LocalEngine

MODEL = Model("a*x")
THETA = np.array([1.5])
ROWS = 1 << 20  # of a chunk, which is made once and read again and again
BITS = 40  # of a residual: y, a·x and y − a·x are exact
BOUND = 10.0  # 1e-15
PATTERNS = ("random", "heavy tails", "constant 0.1", "growing")


def residuals(pattern: str) -> np.ndarray[Any, Any]:
    """The residuals of a chunk, multiples of 2^-BITS below 1 (but for the constant)."""
    rng = np.random.default_rng(0)
    if pattern == "constant 0.1":  # every square and every sum of a block is rounded in the same way
        return np.full(ROWS, 0.1)
    if pattern == "growing":
        wanted = np.linspace(1e-9, 1.0, ROWS)
    elif pattern == "heavy tails":
        wanted = np.minimum(np.abs(1e-4 * rng.standard_cauchy(ROWS)), 0.999)
    else:
        wanted = rng.uniform(-1.0, 1.0, ROWS)
    return np.round(wanted * 2.0**BITS) * 2.0**-BITS


def exact(values: np.ndarray[Any, Any]) -> Fraction:
    """Σ r², as a fraction."""
    if values.min() == values.max():
        return len(values) * Fraction(float(values[0])) ** 2
    whole = np.abs(values * 2.0**BITS).astype(np.int64)
    high, low = whole >> 20, whole & ((1 << 20) - 1)
    parts = (int((high * high).sum()) << 40) + (int((high * low).sum()) << 21) + int((low * low).sum())
    return Fraction(parts, 1 << 2 * BITS)


class Repeated:
    """One chunk, again and again, the last one cut."""

    dtype = np.dtype(np.float64)
    revision = 0

    def __init__(self, values: np.ndarray[Any, Any], n_rows: int) -> None:
        constant = values.min() == values.max()
        self.x = np.zeros(ROWS) if constant else np.arange(ROWS) % 1024 * 2.0**-10
        self.y = THETA[0] * self.x + values
        self.n_rows = n_rows
        self.n_chunks = -(-n_rows // ROWS)

    def chunks(self) -> Iterator[Chunk]:
        for start in range(0, self.n_rows, ROWS):
            rows = slice(0, min(ROWS, self.n_rows - start))
            yield Chunk(start, (self.x[rows],), (self.y[rows],))


def measure(pattern: str, n_rows: int, order: int) -> dict[str, Any]:
    values = residuals(pattern)
    source, backend = Repeated(values, n_rows), get_backend("cpu")
    engine = LocalEngine(backend, backend.compile(MODEL.program, np.float64), source)
    found: list[float] = []
    time = seconds(lambda: found.append(engine.run(THETA, order).sse))
    whole, rest = divmod(n_rows, ROWS)
    right = whole * exact(values) + (exact(values[:rest]) if rest else 0)
    error = float(abs(Fraction(found[0]) - right) / right) / 1e-16
    return {"residuals": pattern, "order": order, "rows": n_rows, "error": error, "seconds": time}


def main() -> None:
    options = arguments(__doc__, 1, rows=2_000_000_000).parse_args()
    n_rows = 5 * ROWS + 12_345 if options.short else options.rows
    report = Report("summation.py", environment(options, f"n = {n_rows:,}", "float64"))
    cases = [(pattern, 0) for pattern in PATTERNS] + [("random", 2)]
    rows = report.rows["summation"] = [measure(pattern, n_rows, order) for pattern, order in cases]
    heads = ("residuals", "order", "relative error of the sse, 1e-16", "seconds")
    cells = ([r["residuals"], r["order"], f"{r['error']:.2f}", f"{r['seconds']:.1f}"] for r in rows)
    report.table("summation", heads, cells)
    worst = max(r["error"] for r in rows)
    report.floors.append(Floor("sse of generated rows, 1e-16 relative", "<=", BOUND, worst))
    report.finish(options)


if __name__ == "__main__":
    main()
