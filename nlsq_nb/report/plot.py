"""A picture of a fit: data, model, band and residuals; matplotlib is imported when it is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from nlsq_nb.errors import MissingDependency

__all__ = ["draw"]

_ROWS = 5_000  # drawn at most: more are a blot, and large files
_CURVE = 500  # points of the curve


def draw(result: Any, residuals: Any, band: float | None, figure: Any) -> Any:
    """Draw data over model, and the residuals below.

    Parameters
    ----------
    result : FitResult
        A finished fit.
    residuals : Residuals
        Gives the rows.
    band : float or None
        Level of the confidence band.
    figure : matplotlib.figure.Figure or None
        Where to draw; None for a new one.

    Returns
    -------
    matplotlib.figure.Figure
        With two axes.

    Raises
    ------
    MissingDependency
        Without matplotlib.
    """
    try:
        from matplotlib import pyplot as plt
    except ImportError:
        raise MissingDependency("plot() needs matplotlib: pip install 'nlsq_nb[plot]'") from None
    if figure is None:
        figure = plt.figure(layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    x, y, r = residuals.drawn(_ROWS)
    for number, (seen, left) in enumerate(zip(y, r, strict=True)):
        place = x[0] if len(x) == 1 else seen - left
        color = f"C{number}"
        above.plot(place, seen, ".", color=color, markersize=4, alpha=0.5)
        below.plot(place, left, ".", color=color, markersize=4, alpha=0.5)
        if len(x) > 1:
            ends = [place.min(), place.max()]
            above.plot(ends, ends, "-", color="black", linewidth=1)
    below.axhline(0.0, color="black", linewidth=1)
    if len(x) == 1:
        _curve(result, above, np.linspace(x[0].min(), x[0].max(), _CURVE), band)
    above.set_title(result.model_text if result.success else f"NOT converged: {result.model_text}", wrap=True)
    above.set_ylabel("y" if len(x) == 1 else "observed")
    below.set_ylabel("y − f")
    below.set_xlabel(result.model.x[0] if len(x) == 1 else "fitted")
    return figure


def _curve(result: Any, axes: Any, x: Any, band: float | None) -> None:
    """The model over its variable, with a band where it is finite."""
    values, *ends = (result.predict(x),) if band is None else result.predict(x, band)
    outputs = [np.atleast_2d(part) for part in (values, *ends)]
    for number, curve in enumerate(outputs[0]):
        color = "black" if len(outputs[0]) == 1 else f"C{number}"
        axes.plot(x, curve, "-", color=color, linewidth=1)
        if ends:
            axes.fill_between(x, outputs[1][number], outputs[2][number], color=color, alpha=0.2, linewidth=0)
