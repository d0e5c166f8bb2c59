"""exp and its family: Cody–Waite reduction by ln 2, one polynomial, scaling by exponent bits.

W. J. Cody, W. Waite, Software Manual for the Elementary Functions, 1980, ch. 6. The quotient k is
rounded by adding 1.5·2⁵²; the low bits of that sum are k plus a bias, ready to become an exponent.
"""

from __future__ import annotations

from nlsq_nb.codegen.vecmath.coefficients import COSH_64, EXP_64, SINH_64
from nlsq_nb.codegen.vecmath.pieces import Definition, horner

__all__ = ["DEFINITIONS", "LN2_HI", "LN2_LO", "LOG2E"]

LOG2E = "1.4426950408889634"
LN2_HI = "0.6931471803691238"  # 32 bits: k·LN2_HI is exact
LN2_LO = "1.9082149292705877e-10"
_EXP = horner("p", "r", EXP_64)
_MAGIC = 6755399441055744.0  # 1.5·2⁵²


def _reduce(bias: int) -> str:
    """Lines: v = k·ln 2 + r, and t whose low bits are k + bias."""
    magic = repr(_MAGIC + bias)
    return f"""t = v * {LOG2E} + {magic}
    k = t - {magic}
    r = v - k * {LN2_HI}
    r = r - k * {LN2_LO}"""


DEFINITIONS = {
    "exp": Definition(f'''def exp(u):
    """e**u within 1.1 ULP; two factors 2**(k/2), so that underflow is gradual."""
    v = choose(u < -746.0, -746.0, u)
    v = choose(v > 710.0, 710.0, v)
    {_reduce(2046)}
    {_EXP}
    n = bits(t)
    first = real((n << 51) & EXPONENT)
    second = real(((n + 1) << 51) & EXPONENT)
    return ((1.0 + (r + (r * r) * p)) * first) * second
'''),
    "expm1": Definition(f'''def expm1(u):
    """e**u - 1 within 2.2 ULP."""
    v = choose(u < -40.0, -40.0, u)
    v = choose(v > 710.0, 710.0, v)
    {_reduce(2046)}
    {_EXP}
    n = bits(t)
    first = real((n << 51) & EXPONENT)
    half = ((n + 1) << 51) & EXPONENT
    inverse = real(0x7FE0000000000000 - half)
    q = r + (r * r) * p
    return choose(u == 0.0, u, (first * q + (first - inverse)) * real(half))
'''),
    "tanh": Definition(f'''def tanh(u):
    """tanh within 2.8 ULP, as -e/(e + 2) of e = expm1(-2|u|)."""
    v = -2.0 * abs(u)
    v = choose(v < -40.0, -40.0, v)
    {_reduce(1023)}
    {_EXP}
    scale = real(bits(t) << 52)
    e = scale * (r + (r * r) * p) + (scale - 1.0)
    return real(bits(-e / (e + 2.0)) & ~SIGN | bits(u) & SIGN)
'''),
    "hyperbolic": Definition(f'''def hyperbolic(u):
    """sinh |u| and cosh u from sinh r and c = cosh r - 1, |u| = k ln 2 + r; both scaled by the third."""
    v = abs(u)
    v = choose(v > 711.0, 711.0, v)
    {_reduce(1022)}
    z = r * r
    {horner("p", "z", SINH_64)}
    {horner("q", "z", COSH_64)}
    s = r + (r * z) * p
    c = 0.5 * z + (z * z) * q
    large = v > 340.0
    up = real(bits(t - choose(large, 512.0, 0.0)) << 52)
    down = choose(large, 0.0, real((2044 - bits(t)) << 52))
    plus = up + down
    minus = up - down
    scale = choose(large, 1.3407807929942597e154, 1.0)
    return minus + (minus * c + plus * s), plus + (plus * c + minus * s), scale
'''),
    "sinh": Definition(
        '''def sinh(u):
    """sinh within 2.3 ULP."""
    s, c, scale = hyperbolic(u)
    return real(bits(s * scale) & ~SIGN | bits(u) & SIGN)
''',
        ("hyperbolic",),
    ),
    "cosh": Definition(
        '''def cosh(u):
    """cosh within 1.6 ULP."""
    s, c, scale = hyperbolic(u)
    return c * scale
''',
        ("hyperbolic",),
    ),
}
