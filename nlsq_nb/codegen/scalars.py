"""Scalar functions that the standard library lacks, as text for generated files."""

from __future__ import annotations

from nlsq_nb.codegen import vecmath

__all__ = ["SCALARS", "scalar_text"]

_TEXT = {
    "sinc": '''def sinc(u):
    """sin(u)/u with its limit 1 at 0."""
    return math.sin(u) / u if u != 0.0 else 1.0
''',
    "dsinc": '''def dsinc(u):
    """Derivative of sin(u)/u; its series near 0, where the quotient cancels."""
    v = u * u
    if abs(u) < 0.5:
        tail = 1.0 - v / 54.0 * (1.0 - v / 88.0 * (1.0 - v / 130.0))
        return -u / 3.0 * (1.0 - v / 10.0 * (1.0 - v / 28.0 * tail))
    return (math.cos(u) - math.sin(u) / u) / u
''',
    # Abramowitz & Stegun 6.3.5 (recurrence), 6.3.7 (reflection), 6.3.18 (asymptotic series)
    "digamma": '''def digamma(u):
    """Logarithmic derivative of the gamma function."""
    if not (u - u == 0.0):
        return u if u > 0.0 else math.nan
    shift = 0.0
    if u <= 0.0:
        if u == np.floor(u):
            return math.nan
        fraction = u - np.floor(u)
        shift = -math.pi / math.tan(math.pi * fraction)
        u = 1.0 - u
    while u < 10.0:
        shift -= 1.0 / u
        u += 1.0
    v = 1.0 / (u * u)
    series = v * (1.0 / 12.0 - v * (1.0 / 120.0 - v * (1.0 / 252.0 - v * (
        1.0 / 240.0 - v * (1.0 / 132.0 - v * (691.0 / 32760.0 - v / 12.0))))))
    return shift + math.log(u) - 0.5 / u - series
''',
    # Abramowitz & Stegun 6.4.6 (recurrence), 6.4.7 (reflection), 6.4.12 (asymptotic series)
    "trigamma": '''def trigamma(u):
    """Derivative of digamma."""
    if not (u - u == 0.0):
        return 0.0 if u > 0.0 else math.nan
    sign = 1.0
    total = 0.0
    if u <= 0.0:
        if u == np.floor(u):
            return math.inf
        root = math.pi / math.sin(math.pi * (u - np.floor(u)))
        total = root * root
        sign = -1.0
        u = 1.0 - u
    while u < 12.0:
        total += sign / (u * u)
        u += 1.0
    v = 1.0 / (u * u)
    series = 1.0 / 6.0 - v * (1.0 / 30.0 - v * (1.0 / 42.0 - v * (1.0 / 30.0 - v * (
        5.0 / 66.0 - v * (691.0 / 2730.0 - v * 7.0 / 6.0)))))
    return total + sign * (1.0 / u + 0.5 * v + v / u * series)
''',
}


SCALARS = tuple(_TEXT)
"""Names of the functions here; `vecmath` has some of them in another form."""


def scalar_text(name: str, decorator: str) -> str:
    """The definition of a function under a compiler's decorator.

    Parameters
    ----------
    name : str
        One of `SCALARS`, or "vecmath." and a key of `vecmath.definition`.
    decorator : str
        Text after the `@`; functions of `vecmath` have their own.

    Returns
    -------
    str
        A function definition.
    """
    if name.startswith("vecmath."):
        return vecmath.definition(name.removeprefix("vecmath."))
    return f"@{decorator}\n{_TEXT[name]}"
