"""Models by name, which find a start in the data: `from nlsq_nb.models.library import gaussian`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nlsq_nb.core.columns import split_columns, split_outputs
from nlsq_nb.errors import DataError
from nlsq_nb.models.guess import RULES, Floats, guess
from nlsq_nb.models.symbolic import Model

_TABLE: dict[str, tuple[str, dict[str, str]]] = {
    "exponential_decay": ("a*exp(-b*x) + c", {"b": "rate"}),
    "exponential_growth": ("a*exp(b*x) + c", {"b": "rate"}),
    "double_exponential": ("a*exp(-b*x) + c*exp(-d*x) + offset", {"b": "rate", "d": "rate"}),
    "stretched_exponential": ("a*exp(-(x/tau)**beta) + c", {"tau": "size", "beta": "growth"}),
    "gaussian": ("amp*exp(-(x - mu)**2/(2*sigma**2))", {"mu": "place", "sigma": "width"}),
    "lorentzian": ("amp/(1 + ((x - x0)/hwhm)**2)", {"x0": "place", "hwhm": "width"}),
    "pseudo_voigt": (
        "amp*(eta/(1 + ((x - x0)/hwhm)**2) + (1 - eta)*exp(-log(2)*((x - x0)/hwhm)**2))",
        {"eta": "share", "x0": "place", "hwhm": "width"},
    ),
    "sigmoid": ("L/(1 + exp(-k*(x - x0))) + b", {"k": "rate", "x0": "place"}),
    "gompertz": ("a*exp(-b*exp(-c*x))", {"b": "number", "c": "rate"}),
    "power_law": ("a*x**b", {"b": "power"}),
    "michaelis_menten": ("vmax*x/(km + x)", {"km": "size"}),
    "hill": ("vmax*x**n/(k**n + x**n)", {"n": "growth", "k": "size"}),
    "sine": ("a*sin(w*x + phi) + c", {"w": "frequency", "phi": "phase"}),
    "damped_sine": ("a*exp(-b*x)*sin(w*x + phi) + c", {"b": "rate", "w": "frequency", "phi": "phase"}),
}

__all__ = ["NamedModel", *_TABLE]  # noqa: PLE0604 - the models are made when they are asked for


class NamedModel(Model):
    """A model that knows what its nonlinear parameters stand for, so that a fit needs no p0.

    Parameters
    ----------
    name : str
        What reports call it.
    text : str
        The model, of the variable x.
    **rules : str
        What each nonlinear parameter is: a name in `guess.RULES`.

    Attributes
    ----------
    rules : dict of str
        As given.

    Raises
    ------
    ModelError
        When the text cannot be read.
    DataError
        For a rule that is not known, or a nonlinear parameter without one.

    Examples
    --------
    >>> import numpy as np
    >>> from nlsq_nb import curve_fit
    >>> from nlsq_nb.models.library import gaussian
    >>> x = np.linspace(2000, 3000, 200)
    >>> curve_fit(gaussian, x, 7*np.exp(-(x - 2345)**2/(2*20**2))).popt.round(6).tolist()
    [7.0, 2345.0, 20.0]
    """

    def __init__(self, name: str, text: str, **rules: str) -> None:
        super().__init__(text, name=name)
        nonlinear = set(self.params) - set(self.linear_params)
        if nonlinear != set(rules) or not set(rules.values()) <= set(RULES):
            raise DataError(
                f"{name}: the nonlinear parameters {sorted(nonlinear)} need a rule each, of {', '.join(RULES)}; "
                f"given are {rules}"
            )
        self.rules, self._text = rules, text

    def guess(
        self, x: ArrayLike, y: ArrayLike, *, p0: Mapping[str, float] | None = None, bounds: Any = None
    ) -> dict[str, float]:
        """A start for these data.

        Parameters
        ----------
        x, y : array_like, shape (n,)
            Some rows; a few hundred are enough, all of them are used.
        p0 : mapping, optional
            Values that are known, by name.
        bounds : tuple of array_like, each (p,), optional
            Lower and upper.

        Returns
        -------
        dict of float
            A value for every parameter; 1 for each where none of the candidates can be evaluated.

        Raises
        ------
        DataError
            For x and y of different lengths.
        """
        columns, values = split_columns(x, self.x), split_outputs(y, 1)
        if len(columns[0]) != len(values):
            raise DataError(f"xdata has {len(columns[0])} rows but ydata has {len(values)}")
        far = np.full(self.n_params, np.inf)
        low, high = (-far, far) if bounds is None else (np.broadcast_to(b, far.shape) for b in bounds)
        start = self.start(columns[0], values, np.ones_like(far), dict(p0 or {}), (low, high))
        return dict(zip(self.params, start.tolist(), strict=True))

    def start(
        self, x: Any, y: Any, fallback: Floats, known: Mapping[str, float], bounds: tuple[Floats, Floats], w: Any = None
    ) -> Floats:
        """The same for a fit, which has read its arguments.

        Parameters
        ----------
        x, y : ndarray, shape (n,)
            Some rows.
        fallback : ndarray, shape (p,)
            Where none of the candidates can be evaluated.
        known : mapping
            Values by name.
        bounds : tuple of ndarray, each (p,)
            Lower and upper.
        w : ndarray, shape (n,), optional
            Weights.

        Returns
        -------
        ndarray, shape (p,)
            Within the bounds.
        """
        found = guess(self, self.rules, (np.asarray(x, np.float64), np.asarray(y, np.float64), w), known, bounds)
        return fallback if found is None else found

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the call that makes it."""
        return _made, (self.name, self._text, self.rules)


def _made(name: str, text: str, rules: Mapping[str, str]) -> NamedModel:
    return NamedModel(name, text, **rules)


@cache
def __getattr__(name: str) -> NamedModel:
    """A model of the table, made once."""
    if name not in _TABLE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its models are {', '.join(_TABLE)}")
    text, rules = _TABLE[name]
    return NamedModel(name, text, **rules)


def __dir__() -> list[str]:
    """The models, and their class."""
    return list(__all__)
