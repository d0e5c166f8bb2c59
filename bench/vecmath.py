"""The elementary functions of generated CPU files: time per value against libm, and error."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
from common import Report, arguments, environment, in_turns, ratio

from nlsq_nb.codegen import vecmath
from nlsq_nb.codegen.module import load

LENGTH = 4096  # values at a time: in the first-level cache, as the blocks of a kernel nearly are
BINARY = {"pow", "atan2"}
ABOVE_ONE = {"acosh"}
INSIDE = {"acos", "asin", "atanh"}
EXACT = {"log2": lambda u: mpmath.log(u, 2), "log10": lambda u: mpmath.log(u, 10), "pow": mpmath.power}


def loop(name: str, call: str) -> str:
    arrays, items = ("a, b", "a[i], b[i]") if name in BINARY else ("a", "a[i]")
    head = f'@njit(nogil=True, error_model="numpy")\ndef {name}_{call[:4]}({arrays}, out):\n'
    return head + f"    for i in range(len(out)):\n        out[i] = {call}.{name}({items})\n".replace("here.", "")


def compiled(name: str) -> Any:
    """A module with the function over arrays, here and by libm, and in float32."""
    single = f"{name}_f32"
    parts = ["import math\n\nimport numpy as np\nfrom numba import njit\n"]
    names = [name, *([single] if single in vecmath.SINGLE else [])]
    parts += [vecmath.definition(key) for key in vecmath.required(names)]
    parts += [loop(name, "here"), loop(name, "math")]
    if single in vecmath.SINGLE:
        parts.append(loop(name, "here").replace(f"{name}(a[i]", f"{single}(a[i]").replace("_here", "_single"))
    return load("\n\n".join(parts))


def columns(name: str) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    low, high = (-1.0, 1.0) if name in INSIDE else (1.0, 9.0) if name in ABOVE_ONE else (0.1, 4.0)
    return [rng.uniform(low, high, LENGTH) for _ in range(1 + (name in BINARY))]


def error(name: str, values: np.ndarray, at: list[np.ndarray]) -> float:
    """Largest error of some values in units in the last place."""
    exact = EXACT.get(name, getattr(mpmath, name, None))
    with mpmath.workdps(40):
        true = [exact(*map(mpmath.mpf, map(float, point))) for point in zip(*at, strict=True)]
        return max(
            float(abs(mpmath.mpf(float(v)) - t) / mpmath.mpf(float(np.spacing(abs(v.dtype.type(float(t)))))))
            for v, t in zip(values, true, strict=True)
        )


def row(name: str, repeat: int, checked: int) -> dict[str, Any]:
    """Nanoseconds per value, how much faster than libm, and errors on the points of the timing."""
    module, at = compiled(name), columns(name)
    single = [column.astype(np.float32) for column in at]
    here, libm, short = np.empty(LENGTH), np.empty(LENGTH), np.empty(LENGTH, np.float32)
    works = {
        "here": lambda: getattr(module, f"{name}_here")(*at, here),
        "libm": lambda: getattr(module, f"{name}_math")(*at, libm),
    }
    if f"{name}_f32" in vecmath.SINGLE:
        works["float32"] = lambda: getattr(module, f"{name}_single")(*single, short)
    times = in_turns(works, repeat, least=0.002)
    sample = [column[:checked] for column in at]
    found = {
        "function": name,
        **{key: min(seconds) / LENGTH * 1e9 for key, seconds in times.items()},
        "ratio": ratio(times, "libm", "here"),
        "error": error(name, here[:checked], sample),
        "libm error": error(name, libm[:checked], sample),
    }
    if "float32" in works:
        found["float32 error"] = error(name, short[:checked], [column[:checked] for column in single])
    return found


def cells(found: dict[str, Any]) -> list[str]:
    def number(key: str) -> str:
        return f"{found[key]:.2f}" if math.isfinite(found.get(key, math.nan)) else "–"

    faster = f"{found['ratio']:.1f}"
    rest = map(number, ("float32", "error", "libm error", "float32 error"))
    return [found["function"], number("here"), number("libm"), faster, *rest]


def main() -> None:
    parser = arguments(__doc__, 9)
    parser.add_argument("--only", nargs="*", help="functions; all by default")
    options = parser.parse_args()
    report = Report("vecmath.py", environment(options, f"{LENGTH} values at a time, one thread, ns per value"))
    names = options.only or (["exp", "sin"] if options.short else sorted(vecmath.FUNCTIONS - {"sinc", "dsinc"}))
    repeat, checked = (3, 50) if options.short else (options.repeat, LENGTH)
    found = [row(name, repeat, checked) for name in names]
    report.rows["vecmath"] = found
    heads = ("function", "ns", "libm ns", "× libm", "float32 ns", "ULP", "libm ULP", "float32 ULP")
    report.table("vecmath", heads, map(cells, found))
    report.finish(options)


if __name__ == "__main__":
    main()
