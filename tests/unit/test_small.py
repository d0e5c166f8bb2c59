"""The compiled small fit: native code gives the bits of the same text run as Python, whatever is translated."""

import ctypes
import math
import textwrap
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nlsq_nb import HybridStreamingConfig, Model, compiled, native_run
from nlsq_nb.backends import small
from nlsq_nb.backends.cpu import CpuBackend
from nlsq_nb.backends.small import PARTS, compiled_run, driver, fold_segments, layout, moments, native, pattern
from nlsq_nb.backends.small.build import build, compile_ir
from nlsq_nb.backends.small.translate import translate
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.compensated import add_in_sections, total_of
from nlsq_nb.core.elsewhere import common_part
from nlsq_nb.core.layout import BLOCK
from nlsq_nb.errors import BackendUnavailable
from nlsq_nb.in_native import NativePlan
from nlsq_nb.native_run import NativeRun
from nlsq_nb.phases.defense import Defense, StepSizes
from nlsq_nb.phases.gauss_newton import GaussNewton
from nlsq_nb.phases.setup import setup
from nlsq_nb.phases.state import StopReason
from nlsq_nb.phases.switching import Switching
from nlsq_nb.phases.warmup import Warmup
from nlsq_nb.scan import summarize
from nlsq_nb.sources.arrays import ArraySource
from nlsq_nb.sources.weights import weights_from_sigma

X = np.linspace(0, 10, 60)
NOISE = np.random.default_rng(0).normal(0, 0.05, X.size)
BUMP = 3.0 * np.exp(-(((X - 5) / 1.5) ** 2))
MODELS = {
    "exponential": ("a*exp(-b*x) + c", (1.0, 0.1, 5.0), 5.0 * np.exp(-0.5 * X) + 1.0),
    "gaussian": ("a*exp(-((x - m)/s)**2)", (2.0, 4.0, 2.0), BUMP),
    "rational": ("a*x/(1 + b*x)", (1.0, 0.05), 2.0 * X / (1 + 0.3 * X)),
    "line": ("a + b*x", (0.0, 0.0), 1.0 + 2.0 * X),
    "wave": ("a*sin(w*x + f)*exp(-k*x)", (1.0, 1.3, 0.1, 0.1), 2.0 * np.sin(1.5 * X + 0.3) * np.exp(-0.2 * X)),
    "far": ("a*exp(-((x - m)/s)**2) + c", (1.0, 1.0, 0.2, 0.0), BUMP),
    "nowhere": ("a*exp(-b*x)", (1.0, -400.0), 2.0 * np.exp(-X)),
    "two alike": ("a*exp(-b*x) + c*exp(-d*x)", (1.0, 0.5, 1.0, 0.5), 2.0 * np.exp(-X)),
}
SIZES = StepSizes(0.1, 0.1, 0.1, 0.1)
WARMUPS = {
    "plain": Warmup(
        Switching(200, 40, 1e-9, 1e-9, ("plateau", "gradient", "max_iter")),
        Defense(0.01, adapts_step=True, sizes=SIZES, cost_tolerance=0.05, max_step=0.1),
        variance=1.0,
        memory=5,
        line_search="wolfe",
        gradient_clip=None,
        ridge=1e-10,
    ),
    "bare": Warmup(
        Switching(5, 30, 1e-4, 1e-3, ("max_iter",)),
        Defense(None, adapts_step=False, sizes=SIZES, cost_tolerance=None, max_step=None),
        variance=1.0,
        memory=2,
        line_search="wolfe",
        gradient_clip=0.1,
        ridge=1e-10,
    ),
}
NEWTON = GaussNewton(30, 1e-8, 1.0, 1e-10)


BOXES = {  # in the way of the solution, of steps to it, or of the start
    "exponential": [((0, 0, 1.5), (9, 9, 9)), ((0, 0.1, 0), (9, 0.4, 9)), ((0, 0.6, -9), (3, 2, 9))],
    "gaussian": [((0, 0, 2), (9, 9, 9)), ((0, 0, 0), (2.5, 4.5, 9)), ((2, 4, 0), (2.7, 4.2, 1.2))],
    "rational": [((0, 0), (1.5, 9)), ((1, 0.05), (9, 0.2))],
    "line": [((0, 0), (0.5, 9)), ((0, -1), (9, 0))],
    "two alike": [((0, 0.1, 0, 0.6), (9, 0.5, 9, 5))],
    "wave": [((0, 1.2, -1, 0), (9, 1.4, 1, 1)), ((0, 0, 0.5, 0), (1.5, 9, 1, 0.15))],
}


def task_of(name, *, separable=True, bounded=False, box=None):
    """(first state, resident rows) of a problem."""
    text, p0, y = MODELS[name]
    model, y = Model(text), y + NOISE
    far = np.full(len(p0), 1e3 if bounded else np.inf)
    linear = model.linear_params if separable else ()
    low, high = (-far, far) if box is None else np.array(box, dtype=float)
    state = setup(np.clip(p0, low, high), (low, high), model.params, linear, float(y @ y), "p0")
    backend = CpuBackend(1)
    return state, backend.resident(backend.compile(model.program, np.float64), Chunk(0, (X,), (y,), None))


def run(phase, state, rows):
    limit = getattr(phase, "max_iterations", 0)
    if isinstance(phase, GaussNewton):
        settings = (phase.tol, phase.initial_radius, state.signal, *compiled._UNUSED)
        made, number = NativeRun(state, rows, settings, (limit, limit)), layout.GAUSS_NEWTON
    else:
        settings = compiled.warmup_settings(phase, state.signal, state.first_sse, float(rows.n_rows))
        made, number = NativeRun(state, rows, settings, compiled.warmup_asked(phase), phase.memory), layout.LBFGS
    made.go(number)
    return made


@contextmanager
def in_python(rows, shape):
    """The text as Python in the place of the native code, around the very same kernel."""
    kernel = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * 5)(rows.kernel)

    def call_kernel(lo, hi, *arrays):
        return kernel(lo, hi, *(a.ctypes.data for a in arrays))

    def call(phase, task, w):
        ints = (ctypes.c_int64 * len(shape.task)).from_address(task)
        numbers = (ctypes.c_double * shape.size).from_address(w)
        with np.errstate(all="ignore"):
            return driver.run(phase, np.frombuffer(ints, np.int64), np.frombuffer(numbers))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(native.KERNELS, rows.kernel, call_kernel)
        patch.setattr(native_run, "compiled_run", lambda: SimpleNamespace(call=call))
        yield


def same_bits(phase, state, rows):
    """What native code finds, once it is what Python finds."""
    found = run(phase, state, rows)
    with in_python(rows, found.shape):
        expected = run(phase, state, rows)
    assert found.stop == expected.stop
    assert found.w.tobytes() == expected.w.tobytes()
    return found


@pytest.mark.parametrize("phase", [*WARMUPS.values(), NEWTON], ids=[*WARMUPS, "newton"])
@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_native_code_gives_the_bits_of_python(name, separable, phase):
    state, rows = task_of(name, separable=separable)
    found = same_bits(phase, state, rows)
    if name not in ("nowhere", "two alike", "far"):
        assert found.stop > 0
    if name == "nowhere":
        assert found.stop == 0


@pytest.mark.parametrize("phase", [WARMUPS["plain"], NEWTON], ids=["warmup", "newton"])
def test_bounds_that_are_far_away_change_nothing(phase):
    free, within = (run(phase, *task_of("exponential", bounded=bounded)) for bounded in (False, True))
    same_bits(phase, *task_of("exponential", bounded=True))
    assert free.stop == within.stop > 0
    assert free.found == within.found


@pytest.mark.parametrize("phase", [*WARMUPS.values(), NEWTON], ids=[*WARMUPS, "newton"])
@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize(("name", "box"), [(name, box) for name, some in BOXES.items() for box in some])
def test_bounds_in_the_way_give_the_bits_of_python(name, box, separable, phase):
    assert same_bits(phase, *task_of(name, separable=separable, box=box)).stop > 0


def test_sums_that_are_given_are_not_measured_again():
    state, rows = task_of("exponential")
    first = run(WARMUPS["plain"], state, rows)
    theta, sums = first.measured()
    known, anew = (
        run(NEWTON, replace(state, theta=theta, sums=given), rows) for given in (sums, None)
    )
    passes, signal = layout.PASSES, layout.SIGNAL
    assert known.found[passes] == anew.found[passes] - 1
    assert known.found[passes + 1 :] == anew.found[passes + 1 :]
    assert known.found[signal] == state.signal


@pytest.mark.parametrize("name", ["exponential", "gaussian", "wave"])
def test_a_phase_that_is_taken_up_ends_with_the_same_bits(name):
    state, rows = task_of(name)
    whole, part = run(NEWTON, state, rows), run(replace(NEWTON, max_iterations=3), state, rows)
    assert part.found[layout.STEPS] == 3 < whole.found[layout.STEPS]
    rest = compiled._newton_run(NEWTON, between := compiled.reached(part, state), rows, tell=False)
    rest.take_up(between)
    assert rest.stop == whole.stop > 0
    assert rest.theta().tobytes() == whole.theta().tobytes()
    assert rest.found[layout.STEPS] == whole.found[layout.STEPS]
    with in_python(rows, rest.shape):
        same = compiled._newton_run(NEWTON, between, rows, tell=False)
        same.take_up(between)
    assert same.w.tobytes() == rest.w.tobytes()


@pytest.mark.parametrize("separable", [True, False])
def test_a_curve_through_its_points_leaves_rounding(separable):
    """Of terms that cancel to a fifth: the residuals are more than eps of y, and no trial makes them less."""
    x = np.array([1.1245363491086342, 3.18411756913099, 8.69390137891152])
    y = np.array([1.041045040439027, 2.59263721332562, -5.774743116864511])
    model, far = Model("a + b*x + c*x**2"), np.full(3, np.inf)
    linear = model.linear_params if separable else ()
    state = setup(np.array([0.6, 1.8, -0.2962]), (-far, far), model.params, linear, float(y @ y), "p0")
    backend = CpuBackend(1)
    rows = backend.resident(backend.compile(model.program, np.float64), Chunk(0, (x,), (y,), None))
    found = same_bits(GaussNewton(100, 1e-8, 1.0, 1e-10), state, rows)
    assert found.newton_stop in (StopReason.ROUNDING, StopReason.EXACT_FIT)


def test_a_kernel_that_cannot_makes_the_phase_give_up():
    state, rows = task_of("line")
    unable = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * 5)(lambda *_: 1)
    address = ctypes.cast(unable, ctypes.c_void_p).value
    assert run(NEWTON, state, replace(rows, kernel=address)).stop == 0


def test_without_native_code_phases_give_up(monkeypatch, caplog):
    def fail(*_):
        raise BackendUnavailable("nothing can be compiled")

    state, rows = task_of("line")
    with monkeypatch.context() as patch:
        patch.setattr("nlsq_nb.backends.objects.load_code", fail)
        patch.setattr(native_run, "compiled_run", small._compiled.__wrapped__)
        assert run(NEWTON, state, rows).stop == 0
    assert "nothing can be compiled" in caplog.text


@given(
    rows=st.integers(1, 9000), inputs=st.integers(1, 3), outputs=st.integers(1, 2), weighted=st.booleans(),
    seed=st.integers(0, 99), broken=st.sampled_from([None, math.nan, math.inf]),
)  # fmt: skip
@settings(max_examples=40)
def test_moments_are_those_of_exact_sums_and_tell_of_x_that_is_not_finite(
    rows, inputs, outputs, weighted, seed, broken
):
    rng = np.random.default_rng(seed)
    x, y, w = (rng.normal(1.0, 2.0, (k, rows)) for k in (inputs, outputs, outputs))
    w, c, blocks = w**2, float(y[0, 0]), -(-rows // BLOCK)
    if broken is not None:
        x[seed % inputs, seed % rows] = broken
    columns = [*x, *y, *(w if weighted else ())]
    asked = np.array([rows, inputs, outputs, weighted, *(a.ctypes.data for a in columns)])
    found, same = (np.array([c, *[9.0] * (1 + 3 * outputs * blocks)]) for _ in range(2))
    compiled_run().call(layout.MOMENTS, asked.ctypes.data, found.ctypes.data)
    if rows < 600:
        with pytest.MonkeyPatch.context() as patch, np.errstate(invalid="ignore"):
            for a in columns:
                patch.setitem(native.COLUMNS, a.ctypes.data, a)
            assert driver.run(layout.MOMENTS, asked, same) == 1
        assert found.tobytes() == same.tobytes()
    each = found[moments.FOUND :].reshape(outputs, blocks, 3)
    for k, (values, weights) in enumerate(zip(y, w if weighted else np.ones_like(y), strict=True)):
        for b in range(blocks):
            part = slice(b * BLOCK, (b + 1) * BLOCK)
            d, v = values[part] - c, weights[part]
            for number, terms in zip(each[k, b], (v * d * d, v * d, v), strict=True):
                assert abs(number - math.fsum(terms)) <= 1e-14 * math.fsum(abs(terms))
    assert (found[moments.ODD] == 0.0) == (broken is None)


@given(
    rows=st.integers(1, 9000), seed=st.integers(0, 99), weighted=st.booleans(),
    broken=st.sampled_from([None, "x", "y", "small", "zero"]),
)  # fmt: skip
@settings(max_examples=40)
def test_a_survey_finds_what_a_summary_does(rows, seed, weighted, broken):
    rng = np.random.default_rng(seed)
    x, y, sigma = rng.normal(size=rows), rng.normal(1e3, 2.0, rows), rng.uniform(0.1, 9.0, rows)
    if broken in ("x", "y"):
        (x if broken == "x" else y)[seed % rows] = rng.choice([math.nan, math.inf])
    y *= {"small": 1e-160, "zero": 0.0}.get(broken, 1.0)
    columns = (x, y, weights_from_sigma(sigma))[: 2 + weighted]
    shape = layout.layout(b"\0\1", len(columns), 5, 0)
    task, w = shape.task.copy(), np.zeros(shape.size)
    task[layout.ROWS], task[layout.WEIGHTED] = rows, weighted
    task[-len(columns) :] = [c.ctypes.data for c in columns]
    same = w.copy()
    done = compiled_run().call(layout.SURVEY, task.ctypes.data, w.ctypes.data)
    assert done == (broken is None)
    if rows < 600:
        with pytest.MonkeyPatch.context() as patch, np.errstate(invalid="ignore"):
            for a in columns:
                patch.setitem(native.COLUMNS, a.ctypes.data, a)
            assert driver.run(layout.SURVEY, task, same) == done
        assert not done or w.tobytes() == same.tobytes()
    if done:
        source = ArraySource(x, y, sigma if weighted else None)
        expected = summarize(source, ("x",), True, CpuBackend(1))  # noqa: FBT003
        named = (layout.GIVEN_SIGNAL, layout.SPREAD, layout.WEIGHT)
        assert [w[k] for k in named] == [expected.signal, expected.spread, expected.weight]
        assert w[layout.VARIANCE] == expected.spread / expected.weight
        assert w[layout.UNIT] == NativePlan.unit_of(expected)


@given(
    count=st.integers(1, 60),
    size=st.integers(1, 12),
    before=st.integers(0, 40),
    seed=st.integers(0, 999),
    odd=st.booleans(),
)
@settings(max_examples=60)
def test_segments_are_added_as_numpy_adds_them(count, size, before, seed, odd):
    rng = np.random.default_rng(seed)
    running, states = (
        rng.normal(size=(n, size)) * 10.0 ** rng.integers(-9, 9, (n, size)) for n in (4, 2 * count)
    )
    if odd:
        states[rng.integers(2 * count), rng.integers(size)] = rng.choice([math.inf, -math.inf, math.nan, -0.0])
    given_states, expected = states.copy(), running.copy()
    add_in_sections(expected, before, states)
    for is_native in (True, False):
        found = running.copy()
        with pytest.MonkeyPatch.context() as patch:
            if not is_native:
                patch.setattr(small, "compiled_run", lambda: None)
            fold_segments(found, before, states)
        sums, others = (total_of(a, before + count) for a in (found, expected))
        np.testing.assert_array_equal(sums, others)
        np.testing.assert_array_equal(np.signbit(sums[~np.isnan(sums)]), np.signbit(others[~np.isnan(others)]))
        np.testing.assert_array_equal(states, given_states)


@given(rows=st.integers(1, 400), seed=st.integers(0, 99), weighted=st.booleans(), tied=st.booleans())
@settings(max_examples=40)
def test_a_pattern_is_what_neighbouring_residuals_have_in_common(rows, seed, weighted, tied):
    rng = np.random.default_rng(seed)
    x, y, f, w = np.sort(rng.normal(size=rows)), *rng.normal(size=(2, rows)), rng.uniform(0.1, 9.0, rows)
    f += np.linspace(0.0, 1.0, rows) if seed % 2 else 0.0
    y = f if seed == 0 else y
    if tied and rows > 1:
        x[seed % (rows - 1) + 1] = x[seed % (rows - 1)]
    columns = (x, y, f, w)
    asked = np.array([rows, weighted, *(a.ctypes.data for a in columns)])
    found, same = np.full((2, 2), 9.0)
    assert compiled_run().call(layout.PATTERN, asked.ctypes.data, found.ctypes.data) == 1
    with pytest.MonkeyPatch.context() as patch:
        for a in columns:
            patch.setitem(native.COLUMNS, a.ctypes.data, a)
        assert driver.run(layout.PATTERN, asked, same) == 1
    assert found.tobytes() == same.tobytes()
    assert found[pattern.IN_ORDER] == (not tied or rows < 2)
    expected = common_part((y - f) * (np.sqrt(w) if weighted else 1.0))
    assert found[pattern.IN_COMMON] == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_the_object_needs_nothing_and_calls_nothing():
    """No exp, no pow, no memcpy: the bits are those of the arithmetic that the text prescribes."""
    folder = Path(driver.__file__).parent
    code = build({name: folder.joinpath(f"{name}.py").read_text("utf-8") for name in PARTS}, small._SYMBOLS)
    assert code.needs == ()
    library = llvm.JITLibraryBuilder().add_object_img(code.image)  # nothing of the process
    for symbol in small._SYMBOLS.values():
        library.export_symbol(symbol)
    owner = library.link(llvm.create_lljit_compiler(), "alone")
    assert all(owner[symbol] for symbol in small._SYMBOLS.values())


def test_the_config_has_no_step_limit_that_the_log_cannot_hold():
    """Beyond it a fit goes step by step; the defaults must not."""
    assert HybridStreamingConfig().max_warmup_iterations <= compiled._LONGEST


# --- the translation itself ---

SOURCE = """
import math
from nlsq_nb.backends.small.native import Floats, Ints, native
LIMIT, STEP = 2, -3

@native
def collatz(n: int) -> int:
    steps = 0
    half = n
    while n > 1 and steps < 1000:
        half = 0
        for k in range(0, n, 2):
            half = k
        if half == n - 2:
            n = half + 2
            half = 0
            while half + half < n:
                half += 1
            n = half
            steps += 1
            continue
        n = 3 * n + 1
        steps += 1
    return steps

@native
def mixed(a: float, b: float, n: int) -> float:
    x = y = a
    low, high = min(a, b), max(a, b, 0.5)
    for k in range(n - 1, -1, STEP):
        x += k * b if k != 3 else -abs(a)
        if not low <= x < high or (math.isinf(x) and k > 1):
            break
    inside = math.isfinite(x) and n > 0
    y -= inside
    if n == 7:
        return -n
    else:
        return x * x - y / (1 + n) + math.sqrt(abs(y)) * LIMIT

@native
def choose(w: Floats, at: int) -> bool:
    kept = not w[at] > w[at + 1]
    if kept != (w[at] <= w[at + 1]):
        return w[at] != w[at]
    return bool(int(w[at + 1]))

@native
def run(w: Floats, n: Ints, out: Floats) -> None:
    out[0], out[1] = mixed(w[0], w[1], n[0]), collatz(n[1])
    out[2] += 1.0 if out[1] > 10.0 else int(w[0])
    out[3] = out[4] = choose(w, 0)
    out[4] = out[4] * math.pi / float(n[0] + 1)
"""


@pytest.fixture(scope="module")
def both():
    scope = {}
    exec(SOURCE, scope)
    module = translate([(SOURCE, scope)])
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=2)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), machine)
    engine.finalize_object()
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(engine.get_function_address("run"))
    yield scope["run"], function
    del engine


@given(
    a=st.floats(-1e6, 1e6) | st.just(0.5),
    b=st.floats(-1e6, 1e6) | st.just(0.5),
    n=st.integers(0, 300),
    odd=st.integers(1, 40),
)
def test_what_is_translated_does_what_python_does(both, a, b, n, odd):
    python, function = both
    w, counts = np.array([a, b]), np.array([n, odd])
    found, expected = np.zeros(5), np.zeros(5)
    with np.errstate(all="ignore"):
        python(w, counts, expected)
    function(w.ctypes.data, counts.ctypes.data, found.ctypes.data)
    assert found.tobytes() == expected.tobytes()


@given(values=st.lists(st.floats(width=64), min_size=2, max_size=2))
def test_comparisons_with_nan_and_infinities_are_those_of_python(both, values):
    python, function = both
    assume(abs(values[0]) < 1e15 or not math.isfinite(values[0]))
    python_w = np.array([*values])
    found, expected = np.zeros(5), np.zeros(5)
    counts = np.array([2, 1])
    try:
        with np.errstate(all="ignore"):
            python(python_w, counts, expected)
    except (OverflowError, ValueError):  # of int(): such integers are not translated
        return
    function(python_w.ctypes.data, counts.ctypes.data, found.ctypes.data)
    assert np.array_equal(found, expected, equal_nan=True)


def translated(body, head="def f(w: Floats, n: Ints, a: float, k: int) -> float:"):
    return translate([(f"@native\n{head}\n{textwrap.indent(body, '    ')}\n", {"STEP": 2, "TEXT": "x"})])


def test_a_function_that_is_translated_compiles():
    assert compile_ir(translated("return a"))


@pytest.mark.parametrize(
    "body",
    [
        "return a // 2.0",
        "return a % 2.0",
        "return a ** 2",
        "return a @ a",
        "return k & 1",
        "return ~k",
        "return +a",
        "return a if k is None else a",
        "return k in n",
        "return (a or 1.0)",
        "return k and 1",
        "return 'a'",
        "return None",
        "return",
        "return TEXT",
        "return unknown",
        "return math.sin(a)",
        "return math.floor",
        "return numpy.pi",
        "return abs(k)",
        "return sqrt(a)",
        "return min(a)",
        "return min(a, key=a)",
        "return f(w, n, a)",
        "return f(w, n, a, k=k)",
        "return f(n, w, a, k)",
        "return int(a, 2)",
        "return w[a]",
        "return a[k]",
        "return w[1:k]",
        "return w",
        "return [a]",
        "return (a, a)",
        "return lambda: a",
        "return f'{a}'",
        "return sum(a for _ in n)",
        "return (b := a)",
        "w = a\nreturn w",
        "v = w\nreturn a",
        "w.x = a\nreturn a",
        "k = a\nreturn a",
        "n[0] = a\nreturn a",
        "a, k = k\nreturn a",
        "a = k, k\nreturn a",
        "x = y, z = a, a\nreturn a",
        "b: float = a\nreturn b",
        "del a\nreturn a",
        "global a\nreturn a",
        "assert k\nreturn a",
        "raise ValueError",
        "pass\nreturn a",
        "import math\nreturn a",
        "def g(): pass\nreturn a",
        "with a: return a",
        "try:\n    return a\nfinally:\n    a = 1.0",
        "match k:\n    case 1: return a",
        "for j in n:\n    a += 1.0\nreturn a",
        "for j in range(a):\n    a += 1.0\nreturn a",
        "for j in range(0, 4, k):\n    a += 1.0\nreturn a",
        "for j in range(0, 4, 0):\n    a += 1.0\nreturn a",
        "for j in range():\n    a += 1.0\nreturn a",
        "for w[0] in n:\n    a += 1.0\nreturn a",
        "for j in range(k):\n    a += 1.0\nelse:\n    a = 0.0\nreturn a",
        "while k > 0:\n    k -= 1\nelse:\n    a = 0.0\nreturn a",
        "if k > 0:\n    return a",
        "while k > 0:\n    return a",
    ],
)
def test_what_is_not_known_is_refused_by_name(body):
    with pytest.raises(TypeError, match=r"^f, line \d+ of its module: "):
        translated(body)


@pytest.mark.parametrize(
    ("head", "why"),
    [
        ("def f(a) -> float:", "no annotation is not one of int, float"),
        ("def f(a: float):", "no annotation is not one of"),
        ("def f(a: complex) -> float:", "complex is not one of"),
        ("def f(a: float = 1.0) -> float:", "no defaults"),
        ("def f(*a: float) -> float:", "positional"),
        ("def f(*, a: float) -> float:", "positional"),
        ("def f(**a: float) -> float:", "positional"),
    ],
)
def test_signatures_that_are_not_known_are_refused(head, why):
    with pytest.raises(TypeError, match=why):
        translated("return a", head)


def test_only_marked_functions_are_translated():
    text = "def g(a):\n    return [a]\n\n@other\ndef h(a):\n    return {a}\n\n@native\ndef f() -> int:\n    return 1\n"
    assert [f.name for f in translate([(text, {})]).functions] == ["f"]
