"""Whole fits from a poor start, against other programs: median times in alternating rounds."""

from __future__ import annotations

import math
from typing import Any

from common import Floor, Report, arguments, brief, cores, environment, plot, version
from peers import OURS, PEERS, REFERENCE, Peer, Timed, advantage, compete
from problems import DECAY, PROBLEMS

SAME = 1e-6  # relative difference of the sse that counts as the same optimum
FLOORS = {500: 1.5, 10_000: 4.0, 1_000_000: 15.0, 10_000_000: 30.0}  # × scipy lm with the analytic Jacobian
SIZES = [100, 500, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000]


def cell(peer: Peer, timed: Timed | None, ours: Timed, best: float) -> str:
    """Time of ours, times ours of the others; * marks another optimum."""
    if timed is None:
        return "–"
    if timed.failure:
        return "failed"
    elsewhere = "" if same(timed.sse, best) else " *"
    if peer.name == OURS or ours.failure:
        return f"{brief(timed.median)}{elsewhere}"
    return f"{advantage(timed, ours):.3g}×{elsewhere}"


def same(sse: float, best: float) -> bool:
    return sse <= best * (1.0 + SAME)


def rows_of(n: int, found: dict[str, Timed], best: float) -> list[dict[str, Any]]:
    return [
        {
            "n": n,
            "peer": name,
            "seconds": timed.median if timed.times else None,
            "ratio": advantage(timed, found[OURS]) if timed.times else None,
            "sse": timed.sse if timed.times else None,
            "same_optimum": same(timed.sse, best),
            "passes": timed.passes,
            "failure": timed.failure,
        }
        for name, timed in found.items()
    ]


def remarks(n: int, found: dict[str, Timed], best: float) -> list[str]:
    said = []
    for name, timed in found.items():
        if timed.failure:
            said.append(f"n = {n:,}: {name} failed with {timed.failure}")
        elif not same(timed.sse, best):
            said.append(f"n = {n:,}: {name} ended at an sse {timed.sse / best - 1.0:.1e} above the best")
    return said


def main() -> None:
    parser = arguments(__doc__, 7)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--problem", choices=[p.name for p in PROBLEMS], default=DECAY.name)
    parser.add_argument("--only", nargs="+", choices=[peer.name for peer in PEERS], help="peers to run")
    options = parser.parse_args()
    if options.short:
        options.sizes, options.repeat = [500], 2
    problem = next(p for p in PROBLEMS if p.name == options.problem)
    chosen = [p for p in PEERS if options.only is None or p.name in (*options.only, OURS)]
    present = [peer for peer in chosen if not peer.missing]
    theirs = [f"{name} {version(name)}" for peer in present for name in peer.needs]
    start = ", ".join(f"{v:g}" for v in problem.starts[0])
    facts = (f"{problem.name}, p = {problem.p}, p0 = ({start})", "float64", f"{cores()} threads")
    report = Report("fits.py", environment(options, *facts, *dict.fromkeys(theirs)))
    absent = [f"{peer.name} ({', '.join(peer.missing)})" for peer in chosen if peer.missing]
    if absent:
        report.remarks.append(f"left out, not installed: {'; '.join(absent)}")
    cells, rows = [], report.rows.setdefault("fits", [])
    for n in options.sizes:
        field = [peer for peer in present if n <= peer.limit]
        found = compete(field, problem, n, problem.starts[0], options.repeat, least=0.02 if options.short else 0.1)
        best = min(timed.sse for timed in found.values() if not math.isnan(timed.sse))
        cells.append([f"{n:,}", found[OURS].passes] + [cell(p, found.get(p.name), found[OURS], best) for p in present])
        rows += rows_of(n, found, best)
        report.remarks += remarks(n, found, best)
        if problem is DECAY and REFERENCE in found and n in FLOORS:
            ratio = advantage(found[REFERENCE], found[OURS]) if same(found[OURS].sse, best) else 0.0
            report.floors.append(Floor(f"whole fit, n = {n:,}, against scipy lm", ">=", FLOORS[n], ratio, "×"))
        print(f"n = {n:,} done", flush=True)
    report.table("fits", ("n", "passes", *(peer.name for peer in present)), cells)
    drawn = {p.name: [(r["n"], r["seconds"]) for r in rows if r["peer"] == p.name and r["seconds"]] for p in present}
    series = {name: ([float(a) for a, _ in line], [b for _, b in line]) for name, line in drawn.items() if line}
    plot(options.plot, "fits", ("points", "seconds for a whole fit"), series)
    report.finish(options)


if __name__ == "__main__":
    main()
