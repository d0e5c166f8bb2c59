"""Texts become the formulas that NumPy computes, parameters keep their order, faults have their column."""

import numpy as np
import pytest
from scipy import special

from nlsq_nb import Model, ModelError

X = np.linspace(-2.7, 3.1, 13)
A, B, C = 0.83, 1.7, -0.45


def heaviside(u, at0=0.5):
    return np.heaviside(u, at0)


# text: the same by hand, of x and of the parameters in the order in which they appear
VALUES = {
    "a*x + b": lambda x, a, b: a * x + b,
    "a - b - x": lambda x, a, b: a - b - x,
    "a - (b - x)": lambda x, a, b: a - (b - x),
    "a/b/x": lambda x, a, b: a / b / x,
    "a/(b/x)": lambda x, a, b: a / (b / x),
    "a*x/b*x": lambda x, a, b: a * x / b * x,
    "-a*x**2": lambda x, a: -(a * x**2),
    "(-a*x)**2": lambda x, a: (a * x) ** 2,
    "-x**2 + a": lambda x, a: -(x**2) + a,
    "a**2**0.5*x": lambda x, a: a ** (2**0.5) * x,
    "2**-a*x": lambda x, a: 2.0**-a * x,
    "+a*x": lambda x, a: a * x,
    "--a*x": lambda x, a: a * x,
    "-+-a*x": lambda x, a: a * x,
    "a*x**3 - x**-2": lambda x, a: a * x**3 - 1 / x**2,
    "a*x**0 + x": lambda x, a: a + x,
    "abs(x)**a": lambda x, a: np.abs(x) ** a,
    "abs(x)**0.5*a": lambda x, a: np.sqrt(np.abs(x)) * a,
    "1.5e-3*a*x + .25 + 2.": lambda x, a: 1.5e-3 * a * x + 2.25,
    "1_000*a*x + 0x10": lambda x, a: 1000 * a * x + 16,
    "pi*a*x + e": lambda x, a: np.pi * a * x + np.e,
    "exp(a*x)*log(b)": lambda x, a, b: np.exp(a * x) * np.log(b),
    "ln(a*exp(x))": lambda x, a: np.log(a) + x,
    "log(b + x*x, 10)*a": lambda x, b, a: np.log10(b + x * x) * a,
    "log10(b + x*x)*a": lambda x, b, a: np.log10(b + x * x) * a,
    "log2(b + x*x)*a": lambda x, b, a: np.log2(b + x * x) * a,
    "log1p(x*x*b)*a": lambda x, b, a: np.log1p(x * x * b) * a,
    "expm1(a*x)": lambda x, a: np.expm1(a * x),
    "sqrt(a + x*x)": lambda x, a: np.sqrt(a + x * x),
    "sin(a*x) + cos(b*x)": lambda x, a, b: np.sin(a * x) + np.cos(b * x),
    "tan(a*x/9)": lambda x, a: np.tan(a * x / 9),
    "asin(a*x/9) + arcsin(a*x/8)": lambda x, a: np.arcsin(a * x / 9) + np.arcsin(a * x / 8),
    "acos(a*x/9) - arccos(a*x/8)": lambda x, a: np.arccos(a * x / 9) - np.arccos(a * x / 8),
    "atan(a*x) + arctan(x)": lambda x, a: np.arctan(a * x) + np.arctan(x),
    "atan2(x, a) + arctan2(a, x)": lambda x, a: np.arctan2(x, a) + np.arctan2(a, x),
    "sinh(a*x)": lambda x, a: np.sinh(a * x),
    "cosh(a*x)": lambda x, a: np.cosh(a * x),
    "tanh(a*x)": lambda x, a: np.tanh(a * x),
    "asinh(a*x)": lambda x, a: np.arcsinh(a * x),
    "acosh(1 + a*x*x)": lambda x, a: np.arccosh(1 + a * x * x),
    "atanh(a*x/9)": lambda x, a: np.arctanh(a * x / 9),
    "abs(a*x) + Abs(x)": lambda x, a: np.abs(a * x) + np.abs(x),
    "a*sign(x)": lambda x, a: a * np.sign(x),
    "a*floor(x) + ceil(x) + ceiling(x)": lambda x, a: a * np.floor(x) + 2 * np.ceil(x),
    "erf(a*x)": lambda x, a: special.erf(a * x),
    "erfc(a*x)": lambda x, a: special.erfc(a * x),
    "gamma(a + x*x)": lambda x, a: special.gamma(a + x * x),
    "lgamma(a + x*x) + gammaln(b) + loggamma(b)": lambda x, a, b: special.gammaln(a + x * x) + 2 * special.gammaln(b),
    "digamma(a + x*x)": lambda x, a: special.digamma(a + x * x),
    "sinc(a*x)": lambda x, a: np.sinc(a * x / np.pi),
    "minimum(a*x, b)": lambda x, a, b: np.minimum(a * x, b),
    "maximum(a*x, b)": lambda x, a, b: np.maximum(a * x, b),
    "Min(a*x, b, x)": lambda x, a, b: np.minimum(np.minimum(a * x, b), x),
    "Max(a*x, b, x)": lambda x, a, b: np.maximum(np.maximum(a * x, b), x),
    "power(a, x)": lambda x, a: a**x,
    "pow(a, x)": lambda x, a: a**x,
    "a*Heaviside(x) + Heaviside(x, 1)": lambda x, a: a * heaviside(x) + heaviside(x, 1),
    "where(x < 0, a, b*x)": lambda x, a, b: np.where(x < 0, a, b * x),
    "where(0 < x <= b, a, x)": lambda x, b, a: np.where((x > 0) & (x <= b), a, x),
    "where(x > 1 or x < -1, a, x)": lambda x, a: np.where(np.abs(x) > 1, a, x),
    "where(x > -1 and not x > 1, a, x)": lambda x, a: np.where((x > -1) & (x <= 1), a, x),
    "where((x > -1) & (x < 1) | (x > 2), a, x)": lambda x, a: np.where(((x > -1) & (x < 1)) | (x > 2), a, x),
    "where(~(x >= 0), a, x)": lambda x, a: np.where(x < 0, a, x),
    "where(x != 0, a*x, 1)": lambda x, a: np.where(x != 0, a * x, 1),
    "Piecewise((a, x < -1), (b, x < 1), (x, True))": lambda x, a, b: np.where(x < -1, a, np.where(x < 1, b, x)),
    "a*x +\n  b": lambda x, a, b: a * x + b,
    "\t a * x ": lambda x, a: a * x,
    "α*x + β_1": lambda x, a, b: a * x + b,
}


@pytest.mark.parametrize("text", VALUES, ids=ascii)
def test_values(text):
    model = Model(text)
    theta = (A, B, C)[: model.n_params]
    expected = VALUES[text](X, *theta)
    np.testing.assert_allclose(model(X, *theta), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("text", VALUES, ids=ascii)
def test_what_sympy_prints_is_read_again(text):
    model = Model(text)
    again = Model(str(model.expr), params=model.params)
    theta = (A, B, C)[: model.n_params]
    np.testing.assert_allclose(again(X, *theta), model(X, *theta), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("text", "options", "params"),
    [
        ("c + b*x + a*x**2", {}, ("c", "b", "a")),
        ("exp(-tau*x)*amp + amp*off", {}, ("tau", "amp", "off")),
        ("where(x < knot, low, high)", {}, ("knot", "low", "high")),
        ("t*x", {"x": "t"}, ("x",)),
        ("a*u + b*v", {"x": ("u", "v")}, ("a", "b")),
        ("a*x + b", {"params": ("b", "a")}, ("b", "a")),
        ("a*x + b", {"params": ("b", "spare", "a")}, ("b", "spare", "a")),
        ("E*x + I + S + N", {}, ("E", "I", "S", "N")),
        (["a*x + b", "c*x + a"], {}, ("a", "b", "c")),
    ],
)
def test_order_of_the_parameters(text, options, params):
    assert Model(text, **options).params == params


def test_constant_names_can_be_taken_by_parameters():
    model = Model("e*x + pi", params=("e", "pi"))
    np.testing.assert_array_equal(model([2.0], 10.0, 1.0), [21.0])


def test_long_sums_are_not_deep():
    terms = [f"a{k}*x" for k in range(900)]
    assert Model(" + ".join(terms)).n_params == 900


@pytest.mark.parametrize(
    ("text", "column", "what"),
    [
        ("a*x + b.real", 7, "Attribute is not allowed"),
        ("a*x + f(x)", 7, "unknown function 'f'"),
        ("a*x + 'b'", 7, "str constants are not allowed"),
        ("a*x + 1j", 7, "complex constants are not allowed"),
        ("a*x + [b]", 7, "List is not allowed"),
        ("a*x % 2", 1, "operator Mod is not allowed"),
        ("b + a // x", 5, "operator FloorDiv is not allowed"),
        ("a*x^2", 4, r"write powers as \*\* instead of \^"),
        ("a*x + (b < 1)", 8, "a comparison is allowed only as the condition"),
        ("a*where(x, 1, 2)", 9, "a condition such as x < 3"),
        ("a*where(x < 1, 2)", 3, "where takes a condition and two values"),
        ("a*where(x in b, 1, 2)", 9, "the comparison In is not allowed"),
        ("a*exp(x, 2)", 3, r"exp does not take 2 argument\(s\)"),
        ("a*exp()", 3, r"exp does not take 0 argument\(s\)"),
        ("a*exp(x=1)", 3, "exp takes plain arguments only"),
        ("a*exp + x", 3, "exp is a function; call it"),
        ("a*x + 1e999", 7, "inf"),
        ("a*x + 2/0", 7, "finite|zero|overflow"),
        ("a*x + log(0)", 7, r"log\(0.0\)"),
        ("a*x + lambda", 7, "'lambda' is a Python keyword"),
        ("lambda*x", None, "'lambda' is a Python keyword"),
        ("a*x + + ", None, "cannot be read"),
        ("a*x + (b", None, "cannot be read"),
        ("  a*x + b.real", 9, "Attribute is not allowed"),
        ("a*x +\n b.real", None, "Attribute is not allowed"),
        ("a*Piecewise((1, x < 0), (2, x > 0))", 3, "the last condition True"),
    ],
)
def test_column_of_the_fault(text, column, what):
    with pytest.raises(ModelError, match=what) as caught:
        Model(text)
    assert str(caught.value).startswith("column " if column is None else f"column {column}: ")


def test_unknown_name_among_given_ones():
    with pytest.raises(ModelError, match=r"^column 7: the name 'c' is not one of x, a, b"):
        Model("a*x + c", params=("a", "b"))


def test_variable_that_does_not_occur():
    with pytest.raises(ModelError, match=r"the independent variable x does not occur .*a, t, b"):
        Model("a*t + b")
