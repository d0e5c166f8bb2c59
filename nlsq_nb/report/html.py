"""A result as HTML, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from nlsq_nb.report.text import parameter_rows, statistics, verdict

__all__ = ["html"]


def html(result: Any) -> str:
    """The report of a result as HTML.

    Parameters
    ----------
    result : FitResult
        A finished fit.

    Returns
    -------
    str
        One element; every text in it is escaped.
    """
    rows = parameter_rows(result)
    wide = 4 if any(note for *_, note in rows) else 3
    head = ("name", "value", "error", "")[:wide]
    weight = "normal" if result.success else "bold"
    parts = [
        f"<p>Fit of <code>{escape(result.model_text)}</code></p>",
        f'<p style="font-weight:{weight}">{escape(verdict(result))}</p>',
        _table([_row(head, "th"), *(_row(row[:wide], "td") for row in rows)]),
        _table(_row(pair, "td") for pair in statistics(result)),
    ]
    if result.notes:
        parts.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in result.notes) + "</ul>")
    return "<div>" + "".join(parts) + "</div>"


def _table(rows: Iterable[str]) -> str:
    return "<table>" + "".join(rows) + "</table>"


def _row(cells: Iterable[str], kind: str) -> str:
    return "<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in cells) + "</tr>"
