"""The functions of generated CPU files: bounds of their docstrings, special values, and vector code without calls."""

import itertools
import math
import platform
import re

import mpmath
import numpy as np
import pytest

from nlsq_nb import Model
from nlsq_nb.codegen import vecmath
from nlsq_nb.codegen.functions import NUMPY_NAMES
from nlsq_nb.codegen.module import load

NAMES = sorted((vecmath.FUNCTIONS | vecmath.SINGLE) - {"sinc", "dsinc"})
BINARY = {"pow", "atan2"}
HEAD = "import math\n\nimport numpy as np\nfrom numba import njit\n"
MPMATH = {
    "log2": lambda u: mpmath.log(u) / mpmath.log(2),
    "log10": lambda u: mpmath.log(u) / mpmath.log(10),
    "pow": mpmath.power,
}
ALIASES = {"pow": "power", **{ours: theirs for theirs, ours in NUMPY_NAMES.items()}}
NUMPY = {
    name: getattr(np, ALIASES.get(name, name))
    for name in sorted(vecmath.FUNCTIONS - {"sinc", "dsinc", "erf", "erfc"})
}
COUNT = 1_000_000  # points of the slow tests
SPECIAL = [
    *(0.0, 5e-324, 1e-310, 2.2250738585072014e-308, 1e-20, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 21.0, 709.8, 746.0, 1e5),
    *(2.0**53, 1e154, 1.7976931348623157e308, math.inf),
]


def split(name):
    """Operation and dtype."""
    return name.removesuffix("_f32"), np.float32 if name.endswith("_f32") else np.float64


def bound(name):
    """What the docstring promises, in units in the last place."""
    return float(re.search(r"within ([\d.]+) ULP", vecmath.definition(name)).group(1))


def evaluator(name):
    """The function over arrays, compiled as a kernel would."""
    arrays, items = ("a, b", "a[i], b[i]") if split(name)[0] in BINARY else ("a", "a[i]")
    loop = f"@njit\ndef each({arrays}, out):\n    for i in range(len(out)):\n        out[i] = {name}({items})\n"
    each = load("\n\n".join([HEAD, *map(vecmath.definition, vecmath.required([name])), loop])).each

    def call(*columns):
        out = np.empty_like(columns[0])
        each(*columns, out)
        return out

    return call


def spread(rng, n, low, high):
    """Numbers of both signs with exponents from low to high."""
    return rng.choice([-1.0, 1.0], n) * 2.0 ** rng.uniform(low, high, n)


def points(op, n):
    """Arguments where the function is neither constant nor undefined."""
    rng = np.random.default_rng(sum(map(ord, op)))
    everywhere, small = spread(rng, n, -1074, 1023.9), spread(rng, n, -60, 0)
    turns = np.rint(rng.uniform(0, 1e9, n)) * (math.pi / 2)
    if op in BINARY:
        near = 1.0 + spread(rng, n, -40, -2)
        return {
            "pow": [
                (rng.uniform(0, 3, n), rng.uniform(-30, 30, n)),
                (abs(everywhere), spread(rng, n, -10, 10)),
                (near, spread(rng, n, 0, 45)),
                (rng.uniform(0.7, 1.42, n), rng.uniform(-2000, 2000, n)),
            ],
            "atan2": [(rng.uniform(-2, 2, n), rng.uniform(-2, 2, n)), (everywhere, spread(rng, n, -1074, 1023))],
        }[op]
    trigonometric = [rng.uniform(-7, 7, n), rng.uniform(-1e4, 1e4, n), spread(rng, n, -1070, 49.8), turns]
    logarithm = [rng.uniform(0.4, 2.5, n), abs(everywhere), 1.0 + small]
    hyperbolic = [rng.uniform(-2, 2, n), rng.uniform(-711, 711, n), spread(rng, n, -1070, 9)]
    inverse, arc = [rng.uniform(-3, 3, n), everywhere], [rng.uniform(-1, 1, n), spread(rng, n, -1070, 0)]
    columns = {
        "exp": [rng.uniform(-1, 1, n), rng.uniform(-746, 710, n), spread(rng, n, -60, 9)],
        "expm1": [rng.uniform(-1, 1, n), rng.uniform(-40, 710, n), spread(rng, n, -1070, 9)],
        **dict.fromkeys(("sin", "cos", "tan"), trigonometric),
        **dict.fromkeys(("log", "log2", "log10"), logarithm),
        "log1p": [rng.uniform(-0.9, 3, n), abs(everywhere), small],
        **dict.fromkeys(("sinh", "cosh"), hyperbolic),
        "tanh": [rng.uniform(-2, 2, n), spread(rng, n, -1070, 5)],
        **dict.fromkeys(("atan", "asinh"), inverse),
        **dict.fromkeys(("asin", "acos", "atanh"), arc),
        "acosh": [1.0 + abs(small), abs(spread(rng, n, 0, 1023))],
        "erf": [rng.uniform(-6, 6, n), rng.uniform(-1.1, 1.1, n), spread(rng, n, -1070, 2)],
        "erfc": [rng.uniform(-6, 6, n), rng.uniform(0, 27.2, n), small],
    }[op]
    return [(column,) for column in columns]


def worst(values, exact, dtype):
    """Largest error in units in the last place of the exact values; both must overflow together."""
    rounded = exact.astype(dtype)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(values[~finite], rounded[~finite])
    unit = np.spacing(np.abs(rounded[finite])).astype(np.longdouble)
    return float(np.max(np.abs(values[finite].astype(np.longdouble) - exact[finite]) / unit))


@pytest.mark.parametrize("name", NAMES)
def test_within_bound_of_mpmath(name):
    op, dtype = split(name)
    function, exact = evaluator(name), MPMATH.get(op, getattr(mpmath, op, None))
    with mpmath.workdps(60), np.errstate(over="ignore"):
        for columns in points(op, 400):
            stored = [column.astype(dtype) for column in columns]
            stored = [np.where(np.isfinite(column), column, dtype(1)) for column in stored]
            # a subnormal number that became zero is no regular point, nor is a number rounded to ±1
            stored = [np.where(column == 0, dtype(1e-30), column) for column in stored]
            if op in {"atanh", "log1p"}:
                stored[0] = np.where(abs(stored[0]) == 1, dtype(0.5), stored[0])
            values = function(*stored)
            for value, *arguments in zip(values, *stored, strict=True):
                true = exact(*map(mpmath.mpf, map(float, arguments)))
                rounded = dtype(float(true))
                if np.isinf(rounded):
                    assert value == rounded, arguments
                    continue
                unit = mpmath.mpf(float(np.spacing(abs(rounded))))
                assert abs(mpmath.mpf(float(value)) - true) <= bound(name) * unit, arguments


def erf_table(op, low, high, step, terms=18):
    """Taylor coefficients of erf or erfc about points of a grid, from mpmath."""
    rows = []
    with mpmath.workdps(40):
        for i in range(round((high - low) / step) + 1):
            g = mpmath.mpf(low) + step * i
            slope = 2 / mpmath.sqrt(mpmath.pi) * mpmath.exp(-g * g)
            row = [mpmath.erf(g), slope] if op == "erf" else [mpmath.erfc(g), -slope]
            for k in range(terms - 1):  # f'' = −2x f'
                row.append(-2 * (g * (k + 1) * row[k + 1] + k * row[k]) / ((k + 1) * (k + 2)))
            rows.append([np.longdouble(mpmath.nstr(c, 25)) for c in row])
    return np.array(rows)


def extended_erf(op, x):
    """erf or erfc in extended precision by the nearest expansion."""
    low, step = -7.0, 1 / 64
    table = erf_table(op, low, 28.0, step)
    nearest = np.rint((x.astype(float) - low) / step).astype(int)
    offset = x.astype(np.longdouble) - (low + nearest * step)
    total = table[nearest, -1]
    for k in range(table.shape[1] - 2, -1, -1):
        total = total * offset + table[nearest, k]
    if op == "erfc":
        return total
    z = x.astype(np.longdouble) ** 2
    with mpmath.workdps(40):
        scale = np.longdouble(mpmath.nstr(2 / mpmath.sqrt(mpmath.pi), 25))
    near = scale * x * (1 - z / 3 + z**2 / 10 - z**3 / 42 + z**4 / 216 - z**5 / 1320)
    return np.where(z < 1e-4, near, total)  # relative accuracy at 0, where the expansion has none


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="no wider floating-point type")
def test_within_bound_of_extended_precision(name):
    op, dtype = split(name)
    function = evaluator(name)
    with np.errstate(all="ignore"):
        for columns in points(op, COUNT):
            stored = [column.astype(dtype) for column in columns]
            wide = [column.astype(np.longdouble) for column in stored]
            exact = extended_erf(op, stored[0]) if op in {"erf", "erfc"} else NUMPY[op](*wide)
            assert worst(function(*stored), exact, dtype) <= bound(name)


@pytest.mark.parametrize("name", NAMES)
def test_special_values(name):
    """Zeros with their signs, infinities, NaN, subnormal and huge arguments, as in the C library."""
    op, dtype = split(name)
    with np.errstate(all="ignore"):
        values = np.array([*SPECIAL, *(-u for u in SPECIAL), math.nan]).astype(dtype)
        if op in {"sin", "cos", "tan"}:  # beyond, see test_large_arguments
            values = values[~(np.abs(values) > 1e15) | ~np.isfinite(values)]
        columns = [values]
        if op in BINARY:
            pairs = list(itertools.product(values, repeat=2))
            columns = [np.array(column, dtype=dtype) for column in zip(*pairs, strict=True)]
        if op in {"erf", "erfc"}:
            expected = np.array([getattr(math, op)(float(u)) for u in values])
        else:
            expected = NUMPY[op](*[column.astype(np.longdouble) for column in columns])
        got, want = evaluator(name)(*columns), expected.astype(dtype)
    ends = ~np.isfinite(want) | (want == 0)
    np.testing.assert_array_equal(got[ends], want[ends])
    signed = ends & ~np.isnan(want)
    np.testing.assert_array_equal(np.signbit(got[signed]), np.signbit(want[signed]))
    got, want = got[~ends].astype(np.longdouble), want[~ends]
    with np.errstate(over="ignore"):
        unit = np.spacing(np.abs(want))
    np.testing.assert_array_less(np.abs(got - want), 8 * unit)


@pytest.mark.parametrize("suffix", ["", "_f32"])
def test_large_arguments(suffix):
    dtype = split(suffix)[1]
    far = np.array([1e15, 2e15, 1e22, 1e38], dtype=dtype)
    sine, cosine = (evaluator(op + suffix)(far) for op in ("sin", "cos"))
    assert len(set(sine)) <= 2  # 1e15 is no float32
    np.testing.assert_allclose(sine**2 + cosine**2, 1.0, rtol=1e-6)
    np.testing.assert_array_equal(evaluator("sin" + suffix)(-far), -sine)


# -- machine code --------------------------------------------------------------------------------

MODELS = {
    "exponential": "a*exp(-b*x) + c",
    "gaussian": "a*exp(-(x - m)**2/(2*s**2)) + c",
    "damped sine": "a*exp(-b*x)*cos(w*x + d)",
    "tangent": "a*tan(b*x) + c*atan(x/d)",
    "logarithm": "a*log(b + x) + c*log1p(x)",
    "power": "a*x**b + c",
    "error function": "a*erf((x - m)/s) + c*erfc(x)",
    "hyperbolic": "a*tanh(b*x) + c*sinh(d*x)/cosh(x)",
    "piecewise": "where(x < m, a*exp(-b*x), c*sin(d*x)) + maximum(x, a)",
    "sinc": "a*sinc(b*x) + c",
    # guarded at their edges
    "logistic": "a/(1 + exp(-k*(x - m)))",
    "four parameters": "d + (a - d)/(1 + (x/c)**b)",
    "edges": "a*exp(-b/x) + sqrt(c*x) + atan2(a*x, b*x) + x*log(x)*c",
}
ARM = platform.machine() in {"aarch64", "arm64"}
PACKED = re.compile(r"\bf(?:mla|mul)\S*\s+v\d+\.2d" if ARM else r"\bv(?:fn?m(?:add|sub)\d+|mul)pd\b.*%[yz]mm")
CALL = re.compile(r"\s(?:blr?\s|callq?\s)")


def loops(assembly):
    """Blocks that jump back to their own label: what a loop without branches becomes."""
    blocks = re.split(r"^(?=\.?L\w+:)", assembly, flags=re.MULTILINE)
    jump = r"\s(?:j\w+|b(?:\.\w+)?|cbn?z|tbn?z)\s(?:.*[ ,\t])?{}\s*$"
    return [
        block
        for block in blocks
        if (label := re.match(r"(\.?L\w+):", block))
        and re.search(jump.format(re.escape(label.group(1))), block, flags=re.MULTILINE)
    ]


def point_loops(text, order):
    """Loops without branches of a kernel, and those of them in vector code."""
    model = Model(text)
    module = load(model.source("cpu"), {})  # Numba shows no machine code that came from its cache
    x = np.linspace(0.5, 2.0, 64)
    theta = np.ones(len(model.params))
    kernel = getattr(module, f"sums{order}")
    kernel(0, 0, x, x, theta, np.zeros((2, 64)))
    (assembly,) = kernel.inspect_asm().values()
    inner = loops(assembly)
    return inner, [body for body in inner if len(PACKED.findall(body)) >= 8]


def has_fused_products():
    from llvmlite import binding

    return ARM or binding.get_host_cpu_features().get("fma", False)


@pytest.mark.skipif(not has_fused_products(), reason="a processor without vector units worth testing")
@pytest.mark.parametrize(
    ("name", "order"),
    # both are compiled anew: one of them, in turn, is a slow test
    [pytest.param(name, order, marks=() if order == 2 * (k % 2) else pytest.mark.slow)
     for k, name in enumerate(MODELS) for order in (0, 2)],
)  # fmt: skip
def test_hot_loop_is_vector_code_without_calls(name, order):
    inner, packed = point_loops(MODELS[name], order)
    assert packed
    assert not [body for body in inner if CALL.search(body)]
    assert not [body for body in packed if "gather" in body]


def test_a_call_is_seen():
    """The gamma function stays the C library's: what the test above asserts can fail."""
    inner, _ = point_loops("a*gamma(x) + b*x", 0)
    assert [body for body in inner if CALL.search(body)]


def test_source_carries_what_it_calls():
    source = Model("a*exp(-b*x) + c").source("cpu")
    assert "def exp(u)" in source
    assert "math.exp" not in source
    assert "def sin(u)" not in source
    assert "math.exp(" in Model("a*exp(-b*x) + c").source("cuda")
    assert "def choose" not in Model("a*x + b").source("cpu")


def test_small_integer_powers_are_products():
    assert "pow" not in Model("a*x**3 + b*x**7").source("cpu")


def test_sine_and_cosine_share_the_reduction():
    """Twice the rounding constant 1.5·2⁵² would mean two reductions of one argument."""
    _, packed = point_loops("a*sin(w*x) + b*cos(w*x)", 0)
    single = point_loops("a*sin(w*x) + b*w*x", 0)[1]
    count = [max(len(PACKED.findall(body)) for body in bodies) for bodies in (packed, single)]
    assert count[0] < 1.5 * count[1]
