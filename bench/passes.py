"""Passes over the data that whole fits take from poor starts; hardly depends on the machine."""

from __future__ import annotations

import math
import warnings
from typing import Any

from common import Floor, Report, arguments, environment
from problems import PROBLEMS, Problem

from nlsq_nb import curve_fit

SAME = 1e-8  # relative difference of the sse from the optimum
MOST = 6  # passes over all data


def measure(problem: Problem, n: int) -> list[dict[str, Any]]:
    """One fit from each start; "right" says whether it ended at the optimum."""
    model, (x, y) = problem.model, problem.data(n)
    best = curve_fit(model, x, y, problem.truth).sse
    rows = []
    for start in problem.starts:
        result = curve_fit(model, x, y, start)
        found = result.streaming_diagnostics
        rows.append({
            "model": problem.name,
            "start": start,
            "data_passes": found["data_passes"],
            "sample_passes": found["sample_passes"],
            "right": bool(result.success and math.isclose(result.sse, best, rel_tol=SAME)),
        })
    return rows


def main() -> None:
    options = arguments(__doc__, 1, n=1_000_000).parse_args()
    if options.short:
        options.n = 110_000  # more than the warm-up takes without a sample
    warnings.simplefilter("ignore")
    report = Report("passes.py", environment(options, f"n = {options.n:,}", "float64", "default configuration"))
    cells, rows = [], report.rows.setdefault("passes", [])
    for problem in PROBLEMS:
        found = measure(problem, options.n)
        rows += found
        right = sum(row["right"] for row in found)
        counts = [row["data_passes"] for row in found]
        sampled = [row["sample_passes"] for row in found]
        cells.append([
            problem.name,
            problem.p,
            ", ".join(map(str, counts)),
            ", ".join(map(str, sampled)),
            f"{right} of {len(found)}",
        ])
        # a fit that ended elsewhere has not shown how many passes it takes
        worst = float(max(counts)) if right == len(found) else math.inf
        report.floors.append(Floor(f"passes over n = {options.n:,}, {problem.name}", "<=", MOST, worst))
    report.table("passes", ("model", "p", "data passes from each start", "sample passes", "at the optimum"), cells)
    report.finish(options)


if __name__ == "__main__":
    main()
