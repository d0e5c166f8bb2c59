"""The fit's own verdict as a text table, values rounded to their errors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

__all__ = ["parameter_rows", "report", "round_pair", "statistics", "verdict"]


def round_pair(value: float, error: float) -> tuple[str, str]:
    """Value and error with the digits that the error leaves meaningful.

    Two digits of the error, and the value to the same place (PDG, "Rounding", §5.3 of the
    Introduction).

    Parameters
    ----------
    value, error : float
        Same unit; the error may be 0, inf or nan.

    Returns
    -------
    tuple of str
        Texts of equal decimal places.
    """
    if not math.isfinite(error) or error <= 0.0 or not math.isfinite(value):
        return f"{value:.8g}", f"{error:g}"
    last = math.floor(math.log10(error)) - 1  # decimal place of the error's second digit
    size = max(math.floor(math.log10(abs(value))) if value else last, last)
    if size < 7 and last >= -8:
        places = max(0, -last)
        return f"{value:.{places}f}", f"{error:.{places}f}"
    return f"{value:.{min(size - last, 16)}e}", f"{error:.1e}"


def verdict(result: Any) -> str:
    """Whether a result can be believed, and why the fit ended.

    Parameters
    ----------
    result : FitResult
        A finished fit.

    Returns
    -------
    str
        One line.
    """
    return f"{'converged' if result.success else 'NOT converged'}: {result.message}"


def parameter_rows(result: Any) -> list[tuple[str, str, str, str]]:
    """The parameters of a result, values rounded to their errors.

    Parameters
    ----------
    result : FitResult
        A finished fit.

    Returns
    -------
    list of tuple of str
        Name, value, error and remark of each.
    """
    rows = []
    for name, info in result.params.items():
        value, error = round_pair(info["value"], info["stderr"])
        rows.append((name, value, "fixed" if info["fixed"] else error, _note(info)))
    return rows


def report(result: Any) -> str:
    """The table of a result.

    Parameters
    ----------
    result : FitResult
        A finished fit.

    Returns
    -------
    str
        Several lines: verdict, parameters, statistics, notes.
    """
    rows = [("name", "value", "error", ""), *parameter_rows(result)]
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    lines = [f"Fit of {result.model_text}", verdict(result), ""]
    for number, (name, value, error, note) in enumerate(rows):
        sign = "±" if number else " "
        cells = f"{name:<{widths[0]}}  {value:>{widths[1]}} {sign} {error:>{widths[2]}}"
        lines.append(f"{cells}  {note}".rstrip())
    lines += ["", *_table(statistics(result))]
    lines += [f"warning: {note}" for note in result.notes]
    return "\n".join(lines)


def _note(info: dict[str, Any]) -> str:
    notes = []
    if info["fixed"]:
        notes.append("fixed by equal bounds")
    elif info["at_bound"]:
        notes.append(f"on its {info['at_bound']} bound")
    if info["stderr"] == math.inf:
        notes.append("not determined by the data")
    return ", ".join(notes)


def statistics(result: Any) -> Iterable[tuple[str, str]]:
    """How well the model fits, and what it took.

    Parameters
    ----------
    result : FitResult
        A finished fit.

    Yields
    ------
    tuple of str
        Name and value.
    """
    yield "points", f"{result.n_points}"
    yield "degrees of freedom", f"{result.dof}"
    yield "SSE", f"{result.sse:.10g}"
    if result.loss != "linear":
        yield "loss", f"{result.loss}, f_scale {result.f_scale:g}, cost {result.cost:.10g}"
    yield "reduced chi²", f"{result.reduced_chi2:.10g}"
    yield "R²", f"{result.r_squared:.8g}"
    yield "iterations", f"{result.nit}"
    yield "passes over the data", f"{result.nfev}"


def _table(rows: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{name:<21} {value}" for name, value in rows]
