"""The compiled small fit: native code gives the bits of the same text run as Python, and the phases' results."""

import ctypes
import math
import types
from dataclasses import replace

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlsq_nb import Model, compiled
from nlsq_nb.backends.cpu import CpuBackend
from nlsq_nb.backends.small import driver
from nlsq_nb.backends.small.translate import translate
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.layout import sums_size
from nlsq_nb.phases.setup import setup

X = np.linspace(0, 10, 60)
NOISE = np.random.default_rng(0).normal(0, 0.05, X.size)
MODELS = {
    "exponential": ("a*exp(-b*x) + c", (1.0, 0.1, 5.0), 5.0 * np.exp(-0.5 * X) + 1.0),
    "gaussian": ("a*exp(-((x - m)/s)**2)", (2.0, 4.0, 2.0), 3.0 * np.exp(-(((X - 5) / 1.5) ** 2))),
    "rational": ("a*x/(1 + b*x)", (1.0, 0.05), 2.0 * X / (1 + 0.3 * X)),
    "line": ("a + b*x", (0.0, 0.0), 1.0 + 2.0 * X),
    "wave": ("a*sin(w*x + f)*exp(-k*x)", (1.0, 1.3, 0.1, 0.1), 2.0 * np.sin(1.5 * X + 0.3) * np.exp(-0.2 * X)),
    "wrong sign": ("a*exp(-b*x)", (1.0, -2.0), 2.0 * np.exp(-X)),
}
WARMUP = (1.0, 1.0, 0.05, 0.1, 0.1, 0.1, 0.1, math.inf, math.inf, 0.1, 1e-9, 1e-9)


def space_of(name, separable, kind):
    text, p0, y = MODELS[name]
    model, y = Model(text), y + NOISE
    unlimited = np.full(len(p0), np.inf)
    linear = model.linear_params if separable else ()
    state = setup(np.array(p0), (-unlimited, unlimited), model.params, linear, float(y @ y), "auto")
    if kind == "gauss_newton":
        return model, y, compiled._Space.of(state, (1e-8, 1.0, state.signal), (60, 700), 0)
    settings = (float(len(y)), float(y.var()), float(y.var()), *WARMUP[2:])
    return model, y, compiled._Space.of(state, settings, (1, 1, 1, 200, 40, 40, 5, 700), 5)


def python_kernel(module, y, p):
    size = sums_size(p, 2)

    def kernel(lo, hi, columns, theta, state):
        module.sums2(lo, hi, X, y, theta[:p].copy(), state[: 2 * size].reshape(2, size))

    return kernel


@pytest.mark.parametrize("kind", ["lbfgs", "gauss_newton"])
@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_native_code_gives_the_bits_of_python(name, separable, kind):
    model, y, native = space_of(name, separable, kind)
    _, _, plain = space_of(name, separable, kind)
    backend = CpuBackend(1)
    kernel = backend.compile(model.program, np.float64)
    rows = backend.resident(kernel, Chunk(0, (X,), (y,), None))
    native.run(kind, rows)
    arrays = (plain.w, plain.order, plain.counts, plain.log, plain.out)
    with np.errstate(all="ignore"):
        getattr(driver, kind)(python_kernel(kernel.module(weighted=False), y, model.n_params), X.size, None, *arrays)
    assert native.out[0] != 0 or name == "wrong sign"
    assert np.array_equal(native.out, plain.out)
    assert np.array_equal(native.w, plain.w, equal_nan=True)
    assert list(native.lines()) == list(plain.lines())


# --- the translation itself ---

SOURCE = '''
import math
from nlsq_nb.backends.small.native import Floats, Ints, native
LIMIT, NOTHING = range(2)

@native
def collatz(n: int) -> int:
    steps = 0
    while n > 1 and steps < 1000:
        if n - n // 2 * 2 == 0:
            n = n // 2
            steps += 1
            continue
        n = 3 * n + 1
        steps += 1
    return steps

@native
def mixed(a: float, b: float, n: int) -> float:
    x = y = a
    low, high = min(a, b), max(a, b, 0.5)
    for k in range(n - 1, -1, -1):
        x += k * b if k != 3 else -abs(a)
        if not low <= x < high or (math.isinf(x) and k > 1):
            break
    inside = math.isfinite(x) and n > 0
    y -= inside
    return x * x - y ** 2 / (1 + n) + math.sqrt(abs(y)) * LIMIT

@native
def run(w: Floats, n: Ints, out: Floats) -> None:
    out[0], out[1] = mixed(w[0], w[1], n[0]), collatz(n[0])
    out[2] += 1.0 if out[1] > 10.0 else int(w[0])
'''


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translated")
    path = folder / "sample_of_translation.py"
    path.write_text(SOURCE)
    module = types.ModuleType("sample_of_translation")
    module.__file__ = str(path)
    exec(compile(SOURCE, str(path), "exec"), module.__dict__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inspect.getsource", lambda _: SOURCE)
        text = str(translate([module]))
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    engine = llvm.create_mcjit_compiler(
        llvm.parse_assembly(text), llvm.Target.from_default_triple().create_target_machine(opt=2)
    )
    engine.finalize_object()
    native = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(engine.get_function_address("run"))
    yield module.run, native
    del engine


@given(
    a=st.floats(-1e6, 1e6),
    b=st.floats(-1e6, 1e6),
    n=st.integers(0, 300),
)
def test_what_is_translated_does_what_python_does(both, a, b, n):
    python, native = both
    w, counts = np.array([a, b]), np.array([n])
    found, expected = np.zeros(3), np.zeros(3)
    with np.errstate(all="ignore"):
        python(w, counts, expected)
    native(w.ctypes.data, counts.ctypes.data, found.ctypes.data)
    assert np.array_equal(found, expected, equal_nan=True)
