"""Every benchmark one after the other, and the verdict: which of the figures asked for are reached."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import PAGE, Floor, Report, environment

HERE = Path(__file__).resolve().parent
# layers.py is left out: it counts, takes minutes, and writes another page
SCRIPTS = (
    "startup.py", "kernels.py", "passes.py", "fits.py", "small.py", "memory.py", "vecmath.py", "separable.py",
    "conditioning.py",
)


def run(script: str, options: argparse.Namespace, folder: Path) -> dict[str, Any] | None:
    """The JSON of one script, None where it failed."""
    target = folder / f"{script}.json"
    command = [sys.executable, str(HERE / script), "--json", str(target)]
    command += ["--short"] * options.short
    command += ["--write", "--page", options.page] if options.write else []
    command += ["--plot", options.plot] if options.plot else []
    print(f"== {script}", flush=True)
    start = time.perf_counter()
    done = subprocess.run(command, check=False)
    print(f"== {script}: {time.perf_counter() - start:.0f} s\n", flush=True)
    if done.returncode or not target.exists():
        return None
    found: dict[str, Any] = json.loads(target.read_text("utf-8"))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="short form of everything; the figures mean little")
    parser.add_argument("--write", action="store_true", help="put all tables and the verdict into the page")
    parser.add_argument("--page", default=str(PAGE), help="the page of --write")
    parser.add_argument("--plot", help="folder for PNG figures (needs matplotlib)")
    parser.add_argument("--json", help="file for the verdict")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS)
    options = parser.parse_args()
    report = Report("all.py", environment(options))
    with tempfile.TemporaryDirectory() as folder:
        found = {script: run(script, options, Path(folder)) for script in options.only}
    for script, figures in found.items():
        if figures is None:
            report.remarks.append(f"{script} FAILED")
        else:
            report.floors += [Floor(**floor) for floor in figures.get("floors", [])]
    short = [floor.what for floor in report.floors if not floor.holds]
    report.remarks.append(f"{len(report.floors) - len(short)} of {len(report.floors)} floors are reached")
    heads = ("must show", "floor", "measured", "verdict")
    report.table("verdict", heads, (floor.cells() for floor in report.floors))
    report.floors, report.rows["verdict"] = [], [vars(floor) for floor in report.floors]
    report.finish(options)
    return 1 if None in found.values() else 0


if __name__ == "__main__":
    sys.exit(main())
