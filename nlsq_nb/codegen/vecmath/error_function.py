"""erf and erfc.

erfc(a) = exp(-a²)·P(q)/(1 + 2a), q = (a - 4)/(a + 4): M. M. Shepherd, J. G. Laframboise,
Math. Comp. 36, 1981. erf is an odd polynomial below 1 and 1 - exp(-Q(a)) above, Q = -log erfc.
"""

from __future__ import annotations

from nlsq_nb.codegen.vecmath.coefficients import ERF_64, ERF_TAIL_64, ERFC_64
from nlsq_nb.codegen.vecmath.pieces import Definition, horner

__all__ = ["DEFINITIONS"]

DEFINITIONS = {
    "erf": Definition(
        f'''def erf(u):
    """Error function within 1.4 ULP."""
    a = abs(u)
    z = a * a
    {horner("p", "z", ERF_64)}
    v = choose(a > 6.0, 6.0, a)
    {horner("q", "v", ERF_TAIL_64)}
    y = choose(a < 1.0, a + a * p, 1.0 - exp(-q))
    return real(bits(y) & ~SIGN | bits(u) & SIGN)
''',
        ("exp",),
    ),
    "erfc": Definition(
        f'''def erfc(u):
    """Complementary error function within 6.5 ULP; underflow is gradual."""
    a = abs(u)
    a = choose(a > 28.0, 28.0, a)
    q = (a - 4.0) / (a + 4.0)
    {horner("p", "q", ERFC_64)}
    h = a * a
    e = exp(-h)
    e = e - e * fma(a, a, -h)
    y = e * (p / (1.0 + 2.0 * a))
    return choose(u < 0.0, 2.0 - y, y)
''',
        ("exp",),
    ),
}
