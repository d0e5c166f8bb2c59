"""The command `nlsq-nb`: fit a model to the columns of a file and print the table.

Exit codes: 0 converged, 1 not converged (the table is printed all the same), 2 bad input (one line
on stderr), 130 interrupted.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from nlsq_nb import __version__
from nlsq_nb.errors import ConvergenceWarning, CovarianceWarning, DataError, NlsqError

# What computes is imported inside functions: --help and a mistyped option answer at once, and an
# interrupt during the imports is caught too.
if TYPE_CHECKING:
    from nlsq_nb.result import FitResult
    from nlsq_nb.sources.tables import Table

__all__ = ["main"]

_CONSTANTS = {"e", "pi"}  # a column of this name is a variable only when --x says so
_BAD_INPUT, _INTERRUPTED = 2, 130

_COLUMNS_HELP = """\
columns:
  In text files a column is given by its header name or by its number from 1.
  Without a header the columns are called x, y, sigma, c4, c5, ... by position;
  c1, c2, ... mean the same as the numbers. NPZ columns are given by key, HDF5
  columns by the path of the data set, or the end of the path if it is unique.

  Without --x, the independent variables are the columns whose names occur in
  MODEL (names given in --p0 or --bounds are parameters); if there are none, the
  first column, which MODEL calls x. Without --y, the observations are the column
  called y, else the next unused one. There is no weighting without --sigma. The
  output says which columns were used.

  A column given by --x is called in MODEL by its name if that occurs there, else
  x, or x0, x1, ... for several.

A MODEL that starts with a minus sign goes after "--" at the end of the command:
  nlsq-nb fit data.csv --p0 b=2 -- "-a*exp(-b*x)"

exit code: 0 converged, 1 not converged, 2 bad input, 130 interrupted.
"""


class _UsageError(Exception):
    """Bad arguments; argparse would print its usage and exit."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message} (see {self.prog} --help)")


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which columns of the table are fitted; x by the name of the variable in the model."""

    x: dict[str, str]
    y: str
    sigma: str | None

    def describe(self) -> str:
        cells = [f"{variable} = {name!r}" for variable, name in self.x.items()]
        weights = "unweighted" if self.sigma is None else f"sigma from {self.sigma!r}"
        return f"variables {', '.join(cells)}; observations {self.y!r}; {weights}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name; by default those of the process.

    Returns
    -------
    int
        The exit code: 0 converged, 1 not converged, 2 bad input, 130 interrupted.
    """
    try:
        return _run(argv)
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED)
    except (_UsageError, NlsqError, ValueError, ArithmeticError, RecursionError) as error:
        return _fail(str(error) or type(error).__name__)
    except MemoryError:
        return _fail("not enough memory")
    except OSError as error:
        return _fail(error.strerror or str(error))


def _run(argv: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(argv)
    except SystemExit:  # --help and --version
        _flush()
        return 0
    result, columns = _fit(options)
    if options.json:
        _write(result.to_json())
    else:
        _write(f"Data {_clean(options.data)}: {columns.describe()}\n{result.report()}")
    return 0 if result.success else 1


def _fit(options: argparse.Namespace) -> tuple[FitResult, _Columns]:
    start = _start(_pairs(options.p0, "--p0"))
    bounds = _bounds(_pairs(options.bounds, "--bounds"))

    from nlsq_nb.api import curve_fit
    from nlsq_nb.models.symbolic import Model
    from nlsq_nb.sources.tables import read_table

    table = read_table(options.data)
    columns = _choose(table, options, start.keys() | bounds.keys())
    values = _values(table, columns)
    model = Model(options.model, x=tuple(columns.x))
    with warnings.catch_warnings():
        # the report's verdict and notes say the same
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", CovarianceWarning)
        result: FitResult = curve_fit(
            model,
            {variable: values[name] for variable, name in columns.x.items()},
            values[columns.y],
            start or None,
            None if columns.sigma is None else values[columns.sigma],
            options.absolute_sigma,
            bounds=bounds,
            method=options.method,
            verbose=int(options.verbose),
        )
    return result, columns


# -- arguments -------------------------------------------------------------------------------
def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="nlsq-nb", description="Nonlinear least squares from algebra.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"nlsq-nb {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    fit = commands.add_parser(
        "fit",
        help="fit a model to the columns of a file",
        description="Fit MODEL to columns of DATA and print the parameters with their errors.",
        epilog=_COLUMNS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    fit.add_argument("data", metavar="DATA", help="text (CSV or blanks, # comments), NPZ or HDF5")
    fit.add_argument("model", metavar="MODEL", help='an expression such as "a*exp(-b*x) + c"')
    several: dict[str, Any] = {"action": "append", "default": []}
    fit.add_argument("--p0", metavar="a=1,b=2", help="start; 1 for what is left out", **several)
    fit.add_argument("--x", metavar="COL[,COL2]", help="independent variables", **several)
    fit.add_argument("--y", metavar="COL", help="observations")
    fit.add_argument("--sigma", metavar="COL", help="standard deviations of the observations")
    fit.add_argument(
        "--absolute-sigma",
        action="store_true",
        help="take sigma (1 if not given) in the units of y, do not scale errors by chi^2",
    )
    fit.add_argument(
        "--bounds", metavar="b=0:,c=-1:5,d=:3", help="lower:upper; equal ones fix", **several
    )
    fit.add_argument("--method", metavar="NAME", help="auto, hybrid_streaming, lm or trf")
    fit.add_argument("--json", action="store_true", help="print the result as one JSON object")
    fit.add_argument("--verbose", action="store_true", help="log the progress on stderr")
    return parser


def _pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """The name=value pairs of an option that may be given several times."""
    pairs: dict[str, str] = {}
    for item in (item for text in texts for item in text.split(",")):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not (name and equals and value):
            raise _UsageError(f"{option}: {item!r} is not of the form name=value")
        if name in pairs:
            raise _UsageError(f"{option}: {name!r} is given twice")
        pairs[name] = value
    return pairs


def _start(pairs: dict[str, str]) -> dict[str, float]:
    start = {name: _number(text, f"--p0: {name}") for name, text in pairs.items()}
    for name, value in start.items():
        if not math.isfinite(value):
            raise _UsageError(f"--p0: {name}={value} is not finite")
    return start


def _bounds(pairs: dict[str, str]) -> dict[str, tuple[float, float]]:
    bounds = {}
    for name, text in pairs.items():
        if text.count(":") != 1:
            raise _UsageError(f"--bounds: {name}={text!r} is not lower:upper, with either left out")
        low, high = (part.strip() for part in text.split(":"))
        bounds[name] = (
            _number(low or "-inf", f"--bounds: {name}"),
            _number(high or "inf", f"--bounds: {name}"),
        )
    return bounds


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _UsageError(f"{what}: {text!r} is not a number") from None


# -- columns ---------------------------------------------------------------------------------
def _choose(table: Table, options: argparse.Namespace, params: Iterable[str]) -> _Columns:
    """Variables, observations and sigma, by the rules that --help states."""
    words = _words(options.model) - set(params)
    y = None if options.y is None else table.resolve(options.y)
    sigma = None if options.sigma is None else table.resolve(options.sigma)
    references = [part.strip() for text in options.x for part in text.split(",")]
    x = _given(table, references, words) if references else _found(table, words, {y, sigma})
    if y is None:
        y = _observations(table, list(x.values()), sigma)
    used = [*x.values(), y, *([] if sigma is None else [sigma])]
    for name in used:
        if used.count(name) > 1:
            raise DataError(f"column {name!r} is used twice; say which with --x, --y and --sigma")
    if not words & x.keys() and (references or len(words) > 1):
        raise DataError(
            f"neither x nor the name of a column occurs as a variable in the model; the file has "
            f"{table.listing()}"
        )
    return _Columns(x, y, sigma)


def _words(model: str) -> set[str]:
    """The names in a model, functions that are called aside."""
    return set(re.findall(r"\b[^\W\d]\w*\b(?!\s*\()", model))


def _given(table: Table, references: Sequence[str], words: set[str]) -> dict[str, str]:
    x: dict[str, str] = {}
    for k, reference in enumerate(references):
        name = table.resolve(reference)
        general = "x" if len(references) == 1 else f"x{k}"
        known_as = [label for label in (reference, table.label(name)) if label in words]
        # c1 on a file without a header is a place, no name, as long as the model has the general x
        by_place = not table.named and general in words
        variable = known_as[0] if known_as and not by_place else general
        if len(references) > 1 and variable not in words:
            raise DataError(
                f"--x: the model contains neither {table.label(name)!r} nor {general!r} for column {name!r}"
            )
        if variable in x:
            raise DataError(f"--x: {x[variable]!r} and {name!r} are both called {variable!r}")
        x[variable] = name
    return x


def _found(table: Table, words: set[str], taken: set[str | None]) -> dict[str, str]:
    free = [name for name in table.candidates if name not in taken]
    if table.named:
        x: dict[str, str] = {}
        # a column that cannot be read is chosen too when its name says so: its error tells why
        for name in (*free, *(name for name in table.refused if name not in (*free, *taken))):
            label = table.label(name)
            if label not in words - _CONSTANTS:
                continue
            if label not in x:
                x[label] = name
            elif name in free:
                raise DataError(f"both {x[label]!r} and {name!r} may be {label!r}; say which with --x")
        if x:
            return x
    first = next((name for name in free if not table.named or table.label(name) != "y"), None)
    if first is None:
        raise DataError(f"{table.path} has no column left for x; it has {_reasons(table)}")
    return {"x": first}


def _observations(table: Table, x: Sequence[str], sigma: str | None) -> str:
    free = [name for name in table.candidates if name not in (*x, sigma)]
    called_y = [name for name in (free or table.names) if table.label(name) == "y" and name not in x]
    if len(called_y) > 1:
        raise DataError(f"{' and '.join(called_y[:5])} are all called y; say which with --y")
    if called_y:
        return called_y[0]
    others = [name for name in free if table.label(name) != "sigma"] or free
    if not others:
        raise DataError(f"{table.path} has no column left for y; it has {_reasons(table)}")
    last = max(table.names.index(name) for name in x)
    return next((name for name in others if table.names.index(name) > last), others[0])


def _reasons(table: Table) -> str:
    """The columns, and why the first that cannot be used cannot."""
    refused = [f"; {name!r} cannot be used: {why}" for name, why in table.refused.items()]
    return "".join([table.listing(), *refused[:1]])


def _values(table: Table, columns: _Columns) -> dict[str, Any]:
    import numpy as np

    names = [*columns.x.values(), columns.y, *([] if columns.sigma is None else [columns.sigma])]
    values = {name: table.column(name) for name in names}
    for name, column in values.items():
        if len(column) != len(values[columns.y]):
            raise DataError(
                f"column {name!r} has {len(column)} rows, {columns.y!r} has {len(values[columns.y])}"
            )
        bad = np.flatnonzero(~np.isfinite(column))
        if len(bad):
            raise DataError(f"column {name!r} is {column[bad[0]]} in {table.where(int(bad[0]))}")
    if columns.sigma is not None and (values[columns.sigma] <= 0.0).any():
        row = int(np.argmax(values[columns.sigma] <= 0.0))
        raise DataError(
            f"sigma {columns.sigma!r} is {values[columns.sigma][row]} in {table.where(row)}; "
            "it must be positive"
        )
    return values


# -- output ----------------------------------------------------------------------------------
def _write(text: str) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:  # a terminal without ± and ²
        plain = text.replace("±", "+/-").replace("²", "^2")
        text = plain.encode(encoding, "backslashreplace").decode(encoding)
    if sys.stdout is None:
        raise OSError("cannot write the result: standard output is closed")
    try:
        sys.stdout.write(text + "\n")
    except OSError as error:
        raise _unwritten(error) from None
    _flush()


def _flush() -> None:
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        raise _unwritten(error) from None


def _unwritten(error: OSError) -> OSError:
    try:  # the interpreter flushes once more when it exits, and would complain in its own words
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):  # no real file behind stdout
        pass
    return OSError(error.errno, f"cannot write the result: {error.strerror}")


def _clean(text: str) -> str:
    """One line without control characters, whatever a file name or a column holds."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _fail(message: str, code: int = _BAD_INPUT) -> int:
    try:
        sys.stderr.write(f"nlsq-nb: error: {_clean(message)}\n")
    except (OSError, ValueError, AttributeError):  # stderr is closed: the exit code has to do
        return code
    return code
