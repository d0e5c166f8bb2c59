"""The sse of many rows against its exact value: blocks are summed in stretches, and added with compensation."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nlsq_nb import Model
from nlsq_nb.backends import get_backend
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.engines.local import LocalEngine

BENCH = Path(__file__).resolve().parents[2] / "bench" / "summation.py"
ROWS = 1 << 18
FUSED = Model("a*x")
WIDE = Model(" + ".join(f"c{k}*x**{k + 1}" for k in range(6)))
TILED = Model(" + ".join(f"c{k}*x**{k + 1}" for k in range(8)))


def sse(model, residual, order, backend):
    """Of equal residuals, which round alike in every block."""
    chunk = (np.zeros(ROWS),), (np.full(ROWS, residual),)
    source = SimpleNamespace(
        n_rows=4 * ROWS, dtype=np.dtype(float), chunks=lambda: (Chunk(k * ROWS, *chunk) for k in range(4))
    )
    where = get_backend(backend)
    engine = LocalEngine(where, where.compile(model.program, np.float64), source)
    return Fraction(engine.run(np.ones(model.n_params), order).sse)


@pytest.mark.parametrize("order", [0, 2])
@pytest.mark.parametrize("model", [FUSED, WIDE, TILED], ids=["one", "six", "tiled"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("residual", [0.1, 0.3, 0.7, 1 / 3, 0.9, 1.1, 2**0.5])
def test_equal_residuals(residual, backend, model, order):
    right = 4 * ROWS * Fraction(residual) ** 2
    assert abs(sse(model, residual, order, backend) - right) <= right * Fraction(1, 10**15)


@pytest.mark.slow
@pytest.mark.long
def test_two_hundred_million_rows():
    command = [sys.executable, str(BENCH), "--rows", "200000000"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout
    assert "| ok |" in printed
    assert "SHORT" not in printed
