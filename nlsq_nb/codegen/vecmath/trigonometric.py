"""sin, cos, tan and the inverses.

The argument is reduced by π/2 in three parts (Cody and Waite 1980, ch. 8) with fused products, so
the first difference is exact and the rest is kept in two numbers. sin and cos of one argument are
computed from the same pieces, which the compiler merges.
"""

from __future__ import annotations

import math

from nlsq_nb.codegen.vecmath.coefficients import ASIN_64, ATAN_64, COS_64, SIN_64
from nlsq_nb.codegen.vecmath.pieces import STRICT, Definition, horner

__all__ = ["DEFINITIONS"]

_ASIN = f"""a = abs(u)
    large = a > 0.5
    z = choose(large, 0.5 - 0.5 * a, a * a)
    s = choose(large, math.sqrt(z), a)
    {horner("p", "z", ASIN_64)}
    s = s + (s * z) * p"""

_DSINC = [(-1.0) ** k * (2 * k + 2) / math.factorial(2 * k + 3) for k in range(7)]

DEFINITIONS = {
    "quarters": Definition(
        '''def quarters(u):
    """|u| = k·π/2 + r + low, and a number whose low bits are k; |u| is cut at 1e15."""
    a = abs(u)
    a = choose(a > 1e15, 1e15, a)
    t = fma(a, 0.6366197723675814, 6755399441055744.0)
    k = t - 6755399441055744.0
    x = fma(-k, 1.5707963267948966, a)
    h = k * 6.123233995736766e-17
    r = x - h
    b = r - x
    low = (x - (r - b)) - (h + b)
    return r, fma(k, 1.4973849048591698e-33, low - fma(k, 6.123233995736766e-17, -h)), bits(t)
''',
        decorator=STRICT,
    ),
    "sin_cos": Definition(
        f'''def sin_cos(u):
    """sin and cos of the reduced argument, and the quarter turns."""
    r, low, n = quarters(u)
    z = r * r
    {horner("p", "z", SIN_64)}
    {horner("q", "z", COS_64)}
    h = 0.5 * z
    c = 1.0 - h
    s = r + ((r * z) * p + (low - low * h))
    return s, c + (((1.0 - c) - h) + ((z * z) * q - r * low)), n
''',
        ("quarters",),
    ),
    "sin": Definition(
        '''def sin(u):
    """Sine within 0.9 ULP up to |u| = 1e15.

    Beyond, where neighbouring numbers are 1/8 apart and more, the value is that at ±1e15.
    """
    s, c, n = sin_cos(u)
    y = choose((n & 1) != 0, c, s)
    y = real(bits(y) ^ ((n & 2) << 62) ^ (bits(u) & SIGN))
    return choose(abs(u) < math.inf, y, math.nan)
''',
        ("sin_cos",),
    ),
    "cos": Definition(
        '''def cos(u):
    """Cosine within 0.9 ULP up to |u| = 1e15; beyond, the value is that at 1e15."""
    s, c, n = sin_cos(u)
    y = choose((n & 1) != 0, s, c)
    y = real(bits(y) ^ (((n + 1) & 2) << 62))
    return choose(abs(u) < math.inf, y, math.nan)
''',
        ("sin_cos",),
    ),
    "tan": Definition(
        '''def tan(u):
    """Tangent within 2.4 ULP up to |u| = 1e15; beyond, the value is that at ±1e15."""
    s, c, n = sin_cos(u)
    odd = (n & 1) != 0
    y = choose(odd, -c, s) / choose(odd, s, c)
    y = real(bits(y) ^ (bits(u) & SIGN))
    return choose(abs(u) < math.inf, y, math.nan)
''',
        ("sin_cos",),
    ),
    "sinc": Definition(
        '''def sinc(u):
    """sin(u)/u with its limit 1 at 0."""
    return choose(u == 0.0, 1.0, sin(u) / u)
''',
        ("sin",),
    ),
    "dsinc": Definition(
        f'''def dsinc(u):
    """Derivative of sin(u)/u; its Taylor series near 0, where the quotient cancels."""
    v = u * u
    {horner("p", "v", _DSINC)}
    return choose(abs(u) < 0.5, -u * p, (cos(u) - sin(u) / u) / u)
''',
        ("sin", "cos"),
    ),
    # base + atan(t): t = a/b below tan(π/8), (a - b)/(a + b) above, so |t| < tan(π/8)
    "angle": Definition(f'''def angle(a, b, swapped, turned):
    """The angle of (b, a), 0 ≤ a ≤ b, or its complement to π/2, or to π of either."""
    steep = a > 0.41421356237309503 * b
    t = choose(steep, a - b, a) / choose(steep, a + b, b)
    base = choose(steep, 1.0, 0.0)
    base = choose(swapped, 2.0 - base, base)
    base = choose(turned, 4.0 - base, base)
    t = choose(swapped, -t, t)
    t = choose(turned, -t, t)
    z = t * t
    {horner("p", "z", ATAN_64)}
    # the first part of π/4 has 48 bits, so that its multiples are exact
    return base * 0.7853981633974456 + (t + ((t * z) * p + base * 2.6951514290790595e-15))
'''),
    "atan": Definition(
        '''def atan(u):
    """Inverse tangent within 2.2 ULP."""
    a = abs(u)
    far = a > 1.0
    y = angle(choose(far, 1.0, a), choose(far, a, 1.0), far, False)
    return real(bits(y) & ~SIGN | bits(u) & SIGN)
''',
        ("angle",),
    ),
    "atan2": Definition(
        '''def atan2(v, u):
    """The angle of (u, v) in [-π, π] within 2.8 ULP, with the special values of IEEE 754."""
    a = abs(v)
    b = abs(u)
    swapped = a > b
    low = choose(swapped, b, a)
    high = choose(swapped, a, b)
    # sums and quotients must neither overflow nor lose bits
    scale = choose(high > 1e300, 1e-100, choose(high < 1e-200, 1e200, 1.0))
    low = choose(low == math.inf, 1.0, low * scale)
    high = choose((a == math.inf) & (b == math.inf) | (high == 0.0), 1.0, high * scale)
    y = angle(low, high, swapped, bits(u) < 0)
    y = choose((u != u) | (v != v), math.nan, y)
    return real(bits(y) & ~SIGN | bits(v) & SIGN)
''',
        ("angle",),
    ),
    "asin": Definition(f'''def asin(u):
    """Inverse sine within 2.4 ULP."""
    {_ASIN}
    y = choose(large, 1.5707963267948966 - (2.0 * s - 6.123233995736766e-17), s)
    return real(bits(y) & ~SIGN | bits(u) & SIGN)
'''),
    "acos": Definition(f'''def acos(u):
    """Inverse cosine within 1.3 ULP."""
    {_ASIN}
    below = choose(u < 0.0, 3.141592653589793 - (2.0 * s - 1.2246467991473532e-16), 2.0 * s)
    s = real(bits(s) ^ (bits(u) & SIGN))
    return choose(large, below, 1.5707963267948966 - (s - 6.123233995736766e-17))
'''),
}
