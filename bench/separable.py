"""The certified runs with and without variable projection: right to six digits, passes needed."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from common import Report, arguments, environment

from nlsq_nb import Model, curve_fit

SOURCE = Path(__file__).resolve().parents[1] / "tests" / "fits" / "nist.py"


def certified() -> ModuleType:
    """The reader of the certified data sets that the tests use."""
    spec = importlib.util.spec_from_file_location("nist", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nist"] = module
    spec.loader.exec_module(module)
    return module


def measure(nist: Any, names: list[str], separable: Any) -> dict[str, Any]:
    runs = solved = passes = 0
    for name in names:
        p = nist.problem(name)
        model = Model(p.model, x=p.variables, params=p.params)
        for start in p.starts:
            result = curve_fit(model, p.x, p.y, start, separable=separable)
            runs += 1
            solved += max(nist.digits(result.popt[order], p.values) for order in p.labellings()) >= 6
            passes += result.nfev
    return {"separable": str(separable), "runs": runs, "solved": solved, "passes": passes}


def main() -> None:
    options = arguments(__doc__, 1).parse_args()
    warnings.simplefilter("ignore")
    nist = certified()
    names = list(nist.MODELS)[: 2 if options.short else None]
    report = Report("separable.py", environment(options, "certified runs", "default settings otherwise"))
    rows = report.rows["separable"] = [measure(nist, names, separable) for separable in ("auto", False)]
    heads = ("separable", "runs", "right to 6 digits", "passes")
    report.table("separable", heads, (row.values() for row in rows))
    report.finish(options)


if __name__ == "__main__":
    main()
