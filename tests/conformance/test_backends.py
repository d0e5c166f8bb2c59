"""The CPU backend and the reference against the table of expressions."""

import re

import numpy as np

from nlsq_nb.backends import get_backend
from nlsq_nb.codegen.evaluate import evaluate
from nlsq_nb.codegen.functions import ARITY
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.testing import EXPRESSIONS, BackendTests


class TestCpu(BackendTests):
    def backend(self):
        return get_backend("cpu", 1)

    def rows(self, kernel, x, theta):
        program, n = kernel.program, len(x[0])
        values = np.full((program.n_outputs, n), 9e99)
        derivatives = np.full((program.n_outputs, program.n_params, n), 9e99)
        chunk = Chunk(0, tuple(x), (np.zeros(n),) * program.n_outputs)
        kernel.entry("rows", chunk, derivatives)(0, n, theta, values)
        return values, derivatives


class TestReference(BackendTests):
    compiles = False

    def backend(self):
        return get_backend("reference")

    def rows(self, kernel, x, theta):
        return tuple(evaluate(kernel.program, what, x, theta) for what in ("values", "derivatives"))


def test_table_is_complete():
    texts = " ".join(entry.text if isinstance(entry.text, str) else " ".join(entry.text) for entry in EXPRESSIONS)
    called = set(re.findall(r"(\w+)\(", texts))
    wanted = set(ARITY) - {"dsinc", "heaviside", "trigamma"} | {"where", "Piecewise", "Min", "Max", "Heaviside"}
    assert wanted - called == set()
    assert len(EXPRESSIONS) >= 60
    assert len({str(entry.text) for entry in EXPRESSIONS}) == len(EXPRESSIONS)
    assert {1, 6, 7, 25} <= {len(entry.theta) for entry in EXPRESSIONS}
    ops = {i.op for entry in EXPRESSIONS for i in (*entry.model().program.prologue, *entry.model().program.body)}
    assert {"dsinc", "heaviside", "and", "or", "not", "lt", "le", "gt", "ge", "eq", "ne"} <= ops
