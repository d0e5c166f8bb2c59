"""log and its family, and pow.

A number is split into 2**k·m, m in [√½, √2), by its bits; log m = 2 artanh(s), s = f/(2 + f),
f = m - 1, as in J.-M. Muller, Elementary Functions, 3rd ed. 2016, ch. 11 and in FreeBSD's e_log.c.
"""

from __future__ import annotations

from nlsq_nb.codegen.vecmath.coefficients import EXP_64, LOG_64, POW_64
from nlsq_nb.codegen.vecmath.exponential import LN2_HI, LN2_LO, LOG2E
from nlsq_nb.codegen.vecmath.pieces import STRICT, Definition, horner, power_ends

__all__ = ["DEFINITIONS"]

# real(e >> 52 | …) is 2**52 + the biased exponent: AVX2 cannot convert 64-bit integers
_SPLIT = """e = (bits(v) + 0x00095F619980C433) & EXPONENT
    f = real(bits(v) - e + 0x3FF0000000000000) - 1.0
    k = real((e >> 52) | 0x4330000000000000) - 4503599627371519.0"""
_ENDS = """y = choose({0} > {1}, y, choose({0} == {1}, -math.inf, math.nan))
    y = choose({0} == math.inf, math.inf, y)"""
_SCALED = f"""small = u < TINY
    v = choose(small, u * 18014398509481984.0, u)
    {_SPLIT}
    k = k - choose(small, 54.0, 0.0)"""

DEFINITIONS = {
    "log_sum": Definition(f'''def log_sum(f, k):
    """log(1 + f) + k ln 2; the parts are added by size."""
    s = f / (2.0 + f)
    z = s * s
    {horner("p", "z", LOG_64)}
    h = 0.5 * f * f
    return k * {LN2_HI} - ((h - (s * (h + z * p) + k * {LN2_LO})) - f)
'''),
    "log": Definition(
        f'''def log(u):
    """Natural logarithm within 0.9 ULP."""
    {_SCALED}
    y = log_sum(f, k)
    {_ENDS.format("u", "0.0")}
    return y
''',
        ("log_sum",),
    ),
    "log2": Definition(
        f'''def log2(u):
    """Logarithm to base 2 within 1.8 ULP; exact at powers of 2."""
    {_SCALED}
    y = k + log_sum(f, 0.0) * {LOG2E}
    {_ENDS.format("u", "0.0")}
    return y
''',
        ("log_sum",),
    ),
    "log10": Definition(
        f'''def log10(u):
    """Logarithm to base 10 within 2 ULP."""
    {_SCALED}
    y = k * 0.3010299955494702 + (k * 1.1451100898021838e-10 + log_sum(f, 0.0) * 0.4342944819032518)
    {_ENDS.format("u", "0.0")}
    return y
''',
        ("log_sum",),
    ),
    "log1p": Definition(
        f'''def log1p(u):
    """log(1 + u) within 1.5 ULP; what the sum rounds off goes into f."""
    v = 1.0 + u
    b = v - 1.0
    c = (1.0 - (v - b)) + (u - b)
    {_SPLIT}
    y = log_sum(f + (0.5 * c) * real(EXPONENT - e), k)
    {_ENDS.format("u", "-1.0")}
    return choose(u == 0.0, u, y)
''',
        ("log_sum",),
    ),
    "asinh": Definition(
        '''def asinh(u):
    """Inverse of sinh within 2 ULP."""
    a = abs(u)
    far = a > 1.152921504606847e18
    v = choose(far, a, a + a * a / (1.0 + math.sqrt(a * a + 1.0)))
    y = log1p(v) + choose(far, 0.6931471805599453, 0.0)
    return real(bits(y) & ~SIGN | bits(u) & SIGN)
''',
        ("log1p",),
    ),
    "acosh": Definition(
        '''def acosh(u):
    """Inverse of cosh within 2.3 ULP."""
    far = u > 1.152921504606847e18
    v = u - 1.0
    v = choose(far, u, v + math.sqrt(2.0 * v + v * v))
    y = log1p(v) + choose(far, 0.6931471805599453, 0.0)
    return choose(u >= 1.0, y, math.nan)
''',
        ("log1p",),
    ),
    "atanh": Definition(
        '''def atanh(u):
    """Inverse of tanh within 2 ULP."""
    a = abs(u)
    y = 0.5 * log1p(2.0 * a / (1.0 - a))
    return real(bits(y) & ~SIGN | bits(u) & SIGN)
''',
        ("log1p",),
    ),
    # The logarithm in two parts to about 2**-65: 2s and s**3/3·2 are double-double, the rest is
    # small enough for one number. Products and sums of parts: T. J. Dekker, Numer. Math. 18, 1971.
    "log_parts": Definition(
        f'''def log_parts(u):
    """log of a positive number as an unevaluated sum of two."""
    {_SCALED}
    d = 2.0 + f
    inverse = 1.0 / d
    s = f * inverse
    sl = inverse * (fma(-s, d, f) - s * (f - (d - 2.0)))
    z = s * s
    zl = fma(s, s, -z) + 2.0 * s * sl
    {horner("p", "z", POW_64, fused=True)}
    c = z * 0.3333333333333333
    cl = fma(z, 0.3333333333333333, -c) + (z * 1.850371707708594e-17 + zl * 0.3333333333333333)
    cl = fma(z * z, p, cl)
    t = s * c
    tl = fma(s, c, -t) + fma(s, cl, sl * c)
    h = s + t
    low = 2.0 * (((s - h) + t) + (tl + sl))
    h = 2.0 * h
    a = k * {LN2_HI}
    total = a + h
    b = total - a
    low = ((a - (total - b)) + (h - b)) + fma(k, {LN2_LO}, low)
    high = total + low
    return high, (total - high) + low
''',
        decorator=STRICT,
    ),
    "pow": Definition(
        f'''def pow(u, w):
    """u**w within 1.8 ULP, with the special values of IEEE 754 pow."""
    a = abs(u)
    high, low = log_parts(a)
    product = w * high
    rest = fma(w, high, -product) + w * low
    v = choose(product < -750.0, -750.0, product)
    v = choose(v > 750.0, 750.0, v)
    rest = choose(v == product, rest, 0.0)
    t = fma(v, {LOG2E}, 6755399441057790.0)
    k = t - 6755399441057790.0
    r = fma(-k, {LN2_HI}, v)
    r = fma(-k, {LN2_LO}, r) + rest
    {horner("p", "r", EXP_64, fused=True)}
    n = bits(t)
    y = (1.0 + fma(r * r, p, r)) * real((n << 51) & EXPONENT) * real(((n + 1) << 51) & EXPONENT)
    {power_ends('u', 'w')}
    return y
''',
        ("log_parts",),
        STRICT,
    ),
}
