"""What CUDA kernels cost, from their machine code: no device is needed; on one, passes are timed as well.

    python bench/gpu.py [--write docs/explanation/gpu.md]

Registers and spills are those of the assembler in nvJitLink. Counts are of the loop over the points, branches that are
seldom taken included. The predictions are rooflines of the SXM cards with 80 GB: memory, fp64, issue. Needs numba-cuda
or numba-cuda-mlir, and nvidia-cuda-nvdisasm; without a driver the stand-in of the tests takes its place.
"""

import argparse
import ctypes
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CARDS = {  # compute capability, bytes, fp64 instructions and instructions a second
    "H100": ((9, 0), 3.35e12, 16.75e12, 33.5e12),
    "A100": ((8, 0), 2.04e12, 4.85e12, 19.5e12),
}
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


def capability() -> tuple[int, int]:
    """The compute capability of the device that is there."""
    from nlsq_nb.backends.cuda.toolkit import toolkit

    return tuple(toolkit().cuda.get_current_device().compute_capability)


def static(program, card) -> dict:
    """Figures of the kernel of order 2 on a card, without it."""
    from tests.emulator.offline import assemble, compile_kernel, machine_loop_of

    cc, bandwidth, most_double, most = CARDS[card]
    found = assemble(compile_kernel(program, "sums2", cc), cc)
    loop = machine_loop_of(found.cubin)
    double = [op for op in loop if op.startswith(("DADD", "DMUL", "DFMA", "DSETP", "DMNMX"))]
    columns = program.n_vars + program.n_outputs
    points = sum(op.startswith("LDG.E.64") for op in loop) / columns  # the loop may be unrolled
    size = 8 * columns
    memory, arithmetic = bandwidth / size, points * min(most_double / len(double), most / len(loop))
    return {
        "registers": found.registers,
        "spilled": found.spilled,
        "instructions": round(len(loop) / points),
        "double": round(len(double) / points),
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


def table(device) -> str:
    """All models, as Markdown; passes are timed on a card of the device's compute capability."""
    from nlsq_nb import Model

    heads = ["model", "p", "card", "registers", "spilled", "fp64 of SASS instructions", "bytes"]
    heads += ["predicted Gpoint/s", "of the bandwidth", "measured Gpoint/s"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, text in MODELS.items():
        program = Model(text).program
        for card, (cc, *_) in CARDS.items():
            s = static(program, card)
            cells = [name, program.n_params, card, s["registers"], f"{s['spilled']} B"]
            cells += [f"{s['double']} of {s['instructions']}", s["bytes"]]
            cells += [f"{s['predicted']:.0f}", f"{100 * s['share']:.0f} %"]
            cells.append(measured(program) if cc == device else "not measured")
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
    text = table(capability() if timed else None)
    print(text)
    if given.write is not None:
        head = given.write.read_text(encoding="utf-8").partition(MARK)[0]
        given.write.write_text(f"{head}{MARK}\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
