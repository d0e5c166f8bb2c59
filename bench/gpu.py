"""What CUDA kernels cost, from their PTX: no device is needed; on one, passes are timed as well.

    python bench/gpu.py [--write docs/explanation/gpu.md]

Registers and spills are those of the assembler in nvJitLink for sm_90. Counts are of the loop over the points.
The prediction is the roofline of an H100 SXM: 3.35 TB/s, and 33.5 TFLOP/s in fp64, that is 16.75e12 fp64
instructions a second. Needs numba-cuda; without a driver the stand-in of the tests takes its place.
"""

import argparse
import ctypes
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

BANDWIDTH = 3.35e12
INSTRUCTIONS = 16.75e12
ROWS = 100_000_000
MARK = "<!-- bench/gpu.py writes from here -->"


def _gaussians(count):
    return " + ".join(f"a{k}*exp(-((x - m{k})/s{k})**2)" for k in range(count))


MODELS = {
    "line": "a*x + b",
    "exponential": "a*exp(-b*x) + c",
    "damped sine": "a*exp(-b*x)*sin(w*x + f) + c",
    "two Gaussians": _gaussians(2),
    "three Gaussians": _gaussians(3),
}


def has_device() -> bool:
    """Whether there is a driver with a device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int()
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except OSError:
        return False


def static(program) -> dict:
    """Figures of the kernel of order 2, without a device."""
    from tests.emulator.offline import assemble, compile_kernel, loop_of

    text = compile_kernel(program, "sums2", (9, 0))
    loop = loop_of(text)
    double = [op for op in loop if op.endswith("f64") and op.split(".")[0] in {"add", "sub", "mul", "fma", "div"}]
    columns = program.n_vars + program.n_outputs
    points = sum(op == "ld.global.f64" for op in loop) // columns  # the loop may be unrolled
    size = 8 * columns
    memory, arithmetic = BANDWIDTH / size, INSTRUCTIONS * points / len(double)
    return assemble(text, (9, 0)) | {
        "instructions": len(loop) // points,
        "double": len(double) // points,
        "bytes": size,
        "predicted": min(memory, arithmetic) / 1e9,
        "share": min(1.0, arithmetic / memory),
    }


def measured(program) -> str:
    """Gpoint/s of a pass over resident rows."""
    from nlsq_nb.backends import get_backend
    from nlsq_nb.core.chunk import Chunk
    from nlsq_nb.core.sums import Accumulator

    backend, x = get_backend("cuda"), np.linspace(0.1, 5.0, ROWS)
    kernel, theta = backend.compile(program, np.float64), np.full(program.n_params, 0.7)
    chunk = backend.put(Chunk(0, (x,), (np.ones(ROWS),), lasting=True), np.float64)
    best = np.inf
    for _ in range(20):
        into, begin = Accumulator(program.n_params, 2), time.perf_counter()
        backend.reduce(kernel, chunk, theta, 2, into)
        into.result()
        best = min(best, time.perf_counter() - begin)
    return f"{ROWS / best / 1e9:.1f}"


def table(*, timed: bool) -> str:
    """All models, as Markdown."""
    from nlsq_nb import Model

    heads = ["model", "p", "registers", "spilled", "fp64 of PTX instructions", "bytes", "predicted Gpoint/s"]
    heads += ["of the bandwidth", "measured Gpoint/s"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, text in MODELS.items():
        program = Model(text).program
        s = static(program)
        cells = [name, program.n_params, s["registers"], f"{s['spilled']} B", f"{s['double']} of {s['instructions']}"]
        cells += [s["bytes"], f"{s['predicted']:.0f}", f"{100 * s['share']:.0f} %"]
        cells.append(measured(program) if timed else "not measured")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, or write it into a page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--write", type=Path)
    given = options.parse_args()
    timed = has_device()
    if not timed:
        from tests.emulator.driver import Driver
        from tests.emulator.entry_points import install

        install(Driver())
    text = table(timed=timed)
    print(text)
    if given.write is not None:
        head = given.write.read_text(encoding="utf-8").partition(MARK)[0]
        given.write.write_text(f"{head}{MARK}\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
