"""The shapes of the CPU kernels: fixed and absent columns, segments of one call, and the machine code of the loops."""

import platform
import re

import numpy as np
import pytest

from nlsq_nb import Model
from nlsq_nb.backends import get_backend
from nlsq_nb.backends.emit import wide_vectors
from nlsq_nb.backends.team import Team
from nlsq_nb.codegen.module import load
from nlsq_nb.codegen.skeletons import render
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.layout import BLOCK, SEGMENT, sums_size
from nlsq_nb.core.sums import Accumulator
from nlsq_nb.testing import ROWS, TOLERANCE, sums_error

WAVES = " + ".join(f"a{k}*sin({k + 1}*x)" for k in range(6))
POLYNOMIAL = " + ".join(f"a{k}*x**{k}" for k in range(7))
SHAPES = {
    "fused, offset": "a*x**2/(1 + b*x) + c",
    "fused, two fixed columns": "a*x**2/(1 + b*x) + c*d",
    "fused, nothing moves": "a",
    "fused, absent and fixed in one output": ["a*x + b", "b*x + c", "2*a"],
    "tiled, odd, offset": WAVES + " + c",
    "tiled, even, offset": WAVES + " + b*x**2 + c",
    "tiled, two fixed columns": WAVES + " - c*d",
    "tiled, absent and fixed in one output": [WAVES + " + b", "a0*x + b*x**2 + c", "3*c"],
}


def theta_of(model):
    return np.cos(np.arange(1.0, model.n_params + 1.0)) + 1.5


def chunk_of(model, n, *, weighted, dtype=np.float64):
    rng = np.random.default_rng(3)
    groups = [rng.uniform(0.2, 3.0, (count, n)).astype(dtype) for count in (1, model.n_outputs, model.n_outputs)]
    x, y, w = (tuple(group) for group in groups)
    return Chunk(0, x, y, w if weighted else None)


def total(backend, kernel, chunk, theta, order):
    into = Accumulator(len(theta), order)
    backend.reduce(kernel, chunk, theta, order, into)
    return into.result()


def with_or_without_weights(cases):
    """Each is compiled twice, which takes seconds: one of the two, in turn, is a slow test."""
    return [
        pytest.param(*values, weighted, id=f"{label}-{name}", marks=() if weighted == k % 2 else pytest.mark.slow)
        for k, (label, values) in enumerate(cases.items())
        for weighted, name in ((False, "plain"), (True, "weighted"))
    ]


@pytest.mark.parametrize(
    ("text", "weighted"), with_or_without_weights({label: (text,) for label, text in SHAPES.items()})
)
def test_every_column_is_counted(text, weighted):
    model = Model(text)
    theta = theta_of(model)
    cpu, reference = get_backend("cpu", 1), get_backend("reference")
    kernel, oracle = (backend.compile(model.program, np.float64) for backend in (cpu, reference))
    for n in ROWS:
        chunk = chunk_of(model, n, weighted=weighted)
        expected = total(reference, oracle, chunk, theta, 2)
        for order in (2,) if "sin" in str(text) else (2, 1):  # lower orders have one shape
            found = total(cpu, kernel, chunk, theta, order)
            assert sums_error(found, expected) <= TOLERANCE, f"order {order}, {n} rows"


@pytest.mark.parametrize("text", [SHAPES["fused, offset"], SHAPES["tiled, odd, offset"]], ids=["fused", "tiled"])
def test_one_call_folds_segment_by_segment(text):
    model = Model(text)
    theta, n = theta_of(model), 2 * SEGMENT + BLOCK + 5
    chunk = chunk_of(model, n, weighted=False)
    sums = get_backend("cpu", 1).compile(model.program, np.float64).entry("sums2", chunk)
    apart = np.zeros((6, sums_size(model.n_params, 2)))
    for k, lo in enumerate(range(0, n, SEGMENT)):
        sums(lo, min(lo + SEGMENT, n), theta, apart[2 * k : 2 * k + 2])
    together = np.zeros_like(apart)
    sums(0, n, theta, together)
    assert together.tobytes() == apart.tobytes()
    with pytest.raises(ValueError, match="room for 2 segments"):
        sums(0, n, theta, together[:4])


def test_rounds_do_not_change_bits(monkeypatch):
    """The sums of all segments of a chunk are held at once only if they are small."""
    model = Model("a*x**2/(1 + b*x) + c")
    chunk, theta = chunk_of(model, 7 * SEGMENT + 3, weighted=False), theta_of(model)
    backend = get_backend("cpu", 2)
    kernel = backend.compile(model.program, np.float64)
    whole = total(backend, kernel, chunk, theta, 2)
    monkeypatch.setattr("nlsq_nb.backends.cpu._STATES", 1)
    assert total(backend, kernel, chunk, theta, 2).high.tobytes() == whole.high.tobytes()


def test_short_passes_start_no_thread(monkeypatch):
    model = Model("a*x**2/(1 + b*x) + c")
    backend, run, helpers = get_backend("cpu", 2), Team.run, []
    monkeypatch.setattr(Team, "run", lambda team, *given: helpers.append(given[-1]) or run(team, *given))
    kernel = backend.compile(model.program, np.float64)
    for n, started in ((BLOCK, False), (SEGMENT + 1, False), (64 * SEGMENT, True)):
        total(backend, kernel, chunk_of(model, n, weighted=False), theta_of(model), 2)
        assert helpers == [1] * started, f"{n} rows"
    backend.release()


def test_rounding_mode_is_restored():
    """Kernels may round subnormal results to zero; nothing else may."""
    model = Model("a*exp(-b*x**2) + c")
    chunk, theta = chunk_of(model, BLOCK, weighted=False), np.array([1.0, 90.0, 0.5])
    backend = get_backend("cpu", 1)
    kernel = backend.compile(model.program, np.float64)
    tiny = np.full(3, 1e-300)
    for run in (lambda: total(backend, kernel, chunk, theta, 2), lambda: backend.matvec(kernel, chunk, theta, theta)):
        run()
        assert (tiny * 1e-10).all()


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="reads x86 machine code")
@pytest.mark.parametrize(
    ("text", "dtype", "weighted"),
    with_or_without_weights(
        {
            "fused-float64": ("a*x**2/(1 + b*x) + c", np.float64),
            "fused-float32": ("a*x**2/(1 + b*x) + c", np.float32),
            "tiled-float32": (POLYNOMIAL, np.float32),
            "tiled-float64": (POLYNOMIAL, np.float64),
        }
    ),
)
def test_loops_are_vector_code(text, dtype, weighted):
    """Loops over points multiply and add whole registers, and convert float32 by registers, too."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    if not features.get("fma"):
        pytest.skip("a processor without FMA")
    wide = "z" if features.get("avx512f") else "y"
    model = Model(text)
    chunk = chunk_of(model, 10, weighted=weighted, dtype=dtype)
    theta = theta_of(model)
    for order in (2,) if text == POLYNOMIAL else (2, 1, 0):
        code = machine_code(model, f"sums{order}", chunk, theta)
        hot = [loop for loop in loops(code) if re.search(rf"vfn?m(add|sub)\w*pd.*{wide}mm", loop)]
        assert hot, f"no loop of order {order} has packed arithmetic"
        assert not any("call" in loop for loop in hot)
        if dtype == np.float32:
            assert any(re.search(rf"vcvtps2pd.*{wide}mm", loop) for loop in hot)


def machine_code(model, name, chunk, theta):
    # apart from the files of the cache: what was loaded from there shows no code
    function = getattr(load(render(model.program, "cpu", chunk.w is not None), {}), name)
    with wide_vectors():
        function(0, 0, *chunk.x, *chunk.y, *(chunk.w or ()), theta, np.zeros((2, sums_size(len(theta), int(name[-1])))))
    return function.inspect_asm(function.signatures[-1])


def loops(code):
    """Stretches of code that a jump at their end leads back to, without a label between: innermost loops."""
    parts = re.split(r"^(\.?\w+):", code, flags=re.MULTILINE)
    for label, body in zip(parts[1::2], parts[2::2], strict=True):
        jump = re.search(rf"\tj\w+\s+{re.escape(label)}$", body, flags=re.MULTILINE)
        if jump:
            yield body[: jump.end()]
