"""Ill-conditioned problems by covariance_method: digits of parameters and errors, against 50-digit solutions."""

from __future__ import annotations

import importlib.util
import math
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from common import Floor, Report, arguments, environment

from nlsq_nb import Model, curve_fit

SOURCE = Path(__file__).resolve().parents[1] / "tests" / "fits" / "conditioning.py"
METHODS = ("normal", "qr", "auto")
EPS = 2.0**-52


def solved() -> ModuleType:
    """The problems that the tests use."""
    spec = importlib.util.spec_from_file_location("conditioning_problems", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["conditioning_problems"] = module
    spec.loader.exec_module(module)
    return module


def measure(module: Any, problem: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"problem": problem.name, "condition": problem.condition}
    row["spread"] = float(max(problem.deviations / abs(problem.values)))
    for method in METHODS:
        result = curve_fit(Model(problem.model), problem.x, problem.y, problem.start, covariance_method=method)
        row[method] = module.digits(result.popt, problem.values)
        row[f"{method} errors"] = module.digits(result.perr, problem.deviations)
        row[f"{method} success"] = bool(result.success)
    return row


def cell(row: dict[str, Any], method: str) -> str:
    mark = "" if row[f"{method} success"] else "*"
    return f"{row[method]:.1f}{mark}, {row[f'{method} errors']:.1f}"


def main() -> None:
    options = arguments(__doc__, 1).parse_args()
    warnings.simplefilter("ignore")
    module = solved()
    problems = module.problems()[:: 8 if options.short else 1]
    report = Report("conditioning.py", environment(options, f"n = {module.ROWS}, noise {module.NOISE:g} of y"))
    report.remarks.append(
        "correct digits of the worst parameter, of the worst standard deviation; * where the fit says that it did not "
        "converge. The last column is what an error of eps times the condition leaves"
    )
    rows = report.rows["conditioning"] = [measure(module, problem) for problem in problems]
    heads = ("problem", "condition of J", "largest error/value", *METHODS, "eps × condition")
    report.table(
        "conditioning",
        heads,
        (
            (
                row["problem"].replace("|", ""),
                f"{row['condition']:.0e}",
                f"{row['spread']:.0e}",
                *(cell(row, method) for method in METHODS),
                f"{-math.log10(EPS * row['condition']):.1f}",
            )
            for row in rows
        ),
    )
    least = min(row[key] + math.log10(EPS * row["condition"]) for row in rows for key in ("qr", "qr errors")
                if row["condition"] > 1e5)
    report.floors.append(Floor("digits with qr beyond eps × condition", ">=", -1.3, least))
    report.finish(options)


if __name__ == "__main__":
    main()
