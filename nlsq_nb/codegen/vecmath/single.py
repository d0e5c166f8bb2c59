"""float32 functions: evaluated in float64 by shorter polynomials, then rounded once.

float64 has room for every intermediate result, so no value needs two parts or two scalings, and
nearly all results are the nearest float32. They vectorise like the float64 functions. The CPU
kernels do not use them: columns stored as float32 are evaluated and summed in float64.
"""

from __future__ import annotations

from nlsq_nb.codegen.vecmath.coefficients import (
    ATAN_32,
    COS_32,
    COSH_32,
    ERF_32,
    ERF_TAIL_32,
    ERFC_32,
    EXP_32,
    LOG_32,
    LOG_64,
    SIN_32,
    SINH_32,
)
from nlsq_nb.codegen.vecmath.exponential import LOG2E
from nlsq_nb.codegen.vecmath.pieces import Definition, horner, power_ends

__all__ = ["DEFINITIONS"]

_LN2 = "0.6931471805599453"
_ENDS = """y = choose({0} > {1}, y, choose({0} == {1}, -math.inf, math.nan))
    return np.float32(choose({0} == math.inf, math.inf, y))"""
_SIGNED = "return np.float32(real(bits(y) & ~SIGN | bits(v) & SIGN))"


def _log(name: str, coefficients: tuple[float, ...]) -> Definition:
    return Definition(f'''def {name}(v):
    """log of a positive float64."""
    e = (bits(v) + 0x00095F619980C433) & EXPONENT
    f = real(bits(v) - e + 0x3FF0000000000000) - 1.0
    k = real((e >> 52) | 0x4330000000000000) - 4503599627371519.0
    s = f / (2.0 + f)
    z = s * s
    {horner("p", "z", coefficients)}
    return k * {_LN2} + (2.0 * s + (s * z) * p)
''')


DEFINITIONS = {
    "exp_short": Definition(f'''def exp_short(u):
    """e**u - 1 = scale·q + (scale - 1): q and scale, |u| cut at 200."""
    v = choose(u < -200.0, -200.0, u)
    v = choose(v > 200.0, 200.0, v)
    t = v * {LOG2E} + 6755399441056767.0
    r = v - (t - 6755399441056767.0) * {_LN2}
    {horner("p", "r", EXP_32)}
    return r + (r * r) * p, real(bits(t) << 52)
'''),
    "log_short": _log("log_short", LOG_32),
    "log_long": _log("log_long", LOG_64),
    "quarters_short": Definition(f'''def quarters_short(u):
    """sin and cos of |u| less k quarter turns, and a number whose low bits are k."""
    a = abs(u)
    a = choose(a > 1e15, 1e15, a)
    t = fma(a, 0.6366197723675814, 6755399441055744.0)
    k = t - 6755399441055744.0
    r = fma(-k, 6.123233995736766e-17, fma(-k, 1.5707963267948966, a))
    z = r * r
    {horner("p", "z", SIN_32)}
    {horner("q", "z", COS_32)}
    return r + (r * z) * p, (1.0 - 0.5 * z) + (z * z) * q, bits(t)
'''),
    "exp_f32": Definition(
        '''def exp_f32(u):
    """e**u within 0.6 ULP."""
    q, scale = exp_short(np.float64(u))
    return np.float32(scale + scale * q)
''',
        ("exp_short",),
    ),
    "expm1_f32": Definition(
        '''def expm1_f32(u):
    """e**u - 1 within 0.9 ULP."""
    v = np.float64(u)
    q, scale = exp_short(v)
    return np.float32(choose(v == 0.0, v, scale * q + (scale - 1.0)))
''',
        ("exp_short",),
    ),
    "tanh_f32": Definition(
        f'''def tanh_f32(u):
    """tanh within 0.8 ULP."""
    v = np.float64(u)
    q, scale = exp_short(-2.0 * abs(v))
    e = scale * q + (scale - 1.0)
    y = -e / (e + 2.0)
    {_SIGNED}
''',
        ("exp_short",),
    ),
    "hyperbolic_f32": Definition(f'''def hyperbolic_f32(u):
    """sinh |u| and cosh u, |u| cut at 200."""
    v = abs(u)
    v = choose(v > 200.0, 200.0, v)
    t = v * {LOG2E} + 6755399441056766.0
    r = v - (t - 6755399441056766.0) * {_LN2}
    z = r * r
    {horner("p", "z", SINH_32)}
    {horner("q", "z", COSH_32)}
    s = r + (r * z) * p
    c = 1.0 + (0.5 * z + (z * z) * q)
    up = real(bits(t) << 52)
    down = real((2044 - bits(t)) << 52)
    return (up - down) * c + (up + down) * s, (up - down) * s + (up + down) * c
'''),
    "sinh_f32": Definition(
        f'''def sinh_f32(u):
    """sinh within 0.75 ULP."""
    v = np.float64(u)
    y, c = hyperbolic_f32(v)
    {_SIGNED}
''',
        ("hyperbolic_f32",),
    ),
    "cosh_f32": Definition(
        '''def cosh_f32(u):
    """cosh within 0.6 ULP."""
    s, c = hyperbolic_f32(np.float64(u))
    return np.float32(c)
''',
        ("hyperbolic_f32",),
    ),
    "log_f32": Definition(
        f'''def log_f32(u):
    """Natural logarithm within 0.55 ULP."""
    v = np.float64(u)
    y = log_short(v)
    {_ENDS.format("v", "0.0")}
''',
        ("log_short",),
    ),
    "log1p_f32": Definition(
        f'''def log1p_f32(u):
    """log(1 + u) within 0.55 ULP; a sum of 2**-26 and less loses nothing that a float32 shows."""
    v = np.float64(u)
    y = choose(abs(v) < 1.5e-8, v, log_short(1.0 + v))
    {_ENDS.format("v", "-1.0")}
''',
        ("log_short",),
    ),
    "sin_f32": Definition(
        '''def sin_f32(u):
    """Sine within 0.65 ULP up to |u| = 1e15; beyond, the value is that at ±1e15."""
    v = np.float64(u)
    s, c, n = quarters_short(v)
    y = choose((n & 1) != 0, c, s)
    y = real(bits(y) ^ ((n & 2) << 62) ^ (bits(v) & SIGN))
    return np.float32(choose(abs(v) < math.inf, y, math.nan))
''',
        ("quarters_short",),
    ),
    "cos_f32": Definition(
        '''def cos_f32(u):
    """Cosine within 0.65 ULP up to |u| = 1e15; beyond, the value is that at 1e15."""
    v = np.float64(u)
    s, c, n = quarters_short(v)
    y = choose((n & 1) != 0, s, c)
    y = real(bits(y) ^ (((n + 1) & 2) << 62))
    return np.float32(choose(abs(v) < math.inf, y, math.nan))
''',
        ("quarters_short",),
    ),
    "tan_f32": Definition(
        '''def tan_f32(u):
    """Tangent within 0.7 ULP up to |u| = 1e15; beyond, the value is that at ±1e15."""
    v = np.float64(u)
    s, c, n = quarters_short(v)
    odd = (n & 1) != 0
    y = choose(odd, -c, s) / choose(odd, s, c)
    y = real(bits(y) ^ (bits(v) & SIGN))
    return np.float32(choose(abs(v) < math.inf, y, math.nan))
''',
        ("quarters_short",),
    ),
    "angle_f32": Definition(f'''def angle_f32(a, b, swapped, turned):
    """The angle of (b, a), 0 ≤ a ≤ b, or its complement to π/2, or to π of either."""
    steep = a > 0.414213562373095 * b
    t = choose(steep, a - b, a) / choose(steep, a + b, b)
    base = choose(steep, 1.0, 0.0)
    base = choose(swapped, 2.0 - base, base)
    base = choose(turned, 4.0 - base, base)
    t = choose(swapped, -t, t)
    t = choose(turned, -t, t)
    z = t * t
    {horner("p", "z", ATAN_32)}
    return base * 0.7853981633974483 + (t + (t * z) * p)
'''),
    "atan_f32": Definition(
        f'''def atan_f32(u):
    """Inverse tangent within 0.55 ULP."""
    v = np.float64(u)
    a = abs(v)
    far = a > 1.0
    y = angle_f32(choose(far, 1.0, a), choose(far, a, 1.0), far, False)
    {_SIGNED}
''',
        ("angle_f32",),
    ),
    "atan2_f32": Definition(
        f'''def atan2_f32(w, u):
    """The angle of (u, w) in [-π, π] within 0.55 ULP, with the special values of IEEE 754."""
    v = np.float64(w)
    x = np.float64(u)
    a = abs(v)
    b = abs(x)
    swapped = a > b
    low = choose(swapped, b, a)
    low = choose(low == math.inf, 1.0, low)
    high = choose(swapped, a, b)
    high = choose((a == math.inf) & (b == math.inf) | (high == 0.0), 1.0, high)
    y = angle_f32(low, high, swapped, bits(x) < 0)
    y = choose((x != x) | (v != v), math.nan, y)
    {_SIGNED}
''',
        ("angle_f32",),
    ),
    "pow_f32": Definition(
        f'''def pow_f32(u, w):
    """u**w within 0.6 ULP, with the special values of IEEE 754 pow."""
    x = np.float64(u)
    e = np.float64(w)
    a = abs(x)
    q, scale = exp_short(e * log_long(a))
    y = scale + scale * q
    {power_ends('x', 'e')}
    return np.float32(y)
''',
        ("exp_short", "log_long"),
    ),
    "erf_f32": Definition(
        f'''def erf_f32(u):
    """Error function within 1.2 ULP."""
    v = np.float64(u)
    a = abs(v)
    z = a * a
    {horner("p", "z", ERF_32)}
    b = choose(a > 6.0, 6.0, a)
    {horner("q", "b", ERF_TAIL_32)}
    e, scale = exp_short(-q)
    y = choose(a < 1.0, a + a * p, 1.0 - (scale + scale * e))
    {_SIGNED}
''',
        ("exp_short",),
    ),
    "erfc_f32": Definition(
        f'''def erfc_f32(u):
    """Complementary error function within 0.8 ULP; underflow is gradual."""
    v = np.float64(u)
    a = abs(v)
    a = choose(a > 12.0, 12.0, a)
    q = (a - 4.0) / (a + 4.0)
    {horner("p", "q", ERFC_32)}
    e, scale = exp_short(-a * a)
    y = (scale + scale * e) * (p / (1.0 + 2.0 * a))
    return np.float32(choose(v < 0.0, 2.0 - y, y))
''',
        ("exp_short",),
    ),
}
