"""What the benchmarks share: timing in turns, floors, tables, and the page they go to."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().with_name("README.md")
SIGNS = {">=": "≥", "<=": "≤"}


Times = dict[str, list[float]]


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(works: Mapping[str, Callable[[], object]], repeat: int, *, least: float = 0.02) -> Times:
    """Seconds of each work in `repeat` rounds; a turn repeats a short work and keeps its median.

    Each work runs twice before: the first call may compile, the second says how often it fits
    into `least` seconds.
    """
    counts = {}
    for name, work in works.items():
        work()
        counts[name] = max(1, min(100, math.ceil(least / max(seconds(work), 1e-7))))
    rounds = [
        {name: statistics.median(seconds(work) for _ in range(counts[name])) for name, work in works.items()}
        for _ in range(repeat)
    ]
    return {name: [times[name] for times in rounds] for name in works}


def ratio(times: Times, slow: str, fast: str) -> float:
    """How many times faster `fast` is: the median over the rounds of what each round says."""
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# -- reports ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class Floor:
    """A figure that is asked for, and what was measured."""

    what: str
    sign: str
    bound: float
    measured: float
    unit: str = ""

    @property
    def holds(self) -> bool:
        return self.measured >= self.bound if self.sign == ">=" else self.measured <= self.bound

    def cells(self) -> tuple[str, str, str, str]:
        asked = f"{SIGNS[self.sign]} {self.bound:g}{self.unit}"
        return self.what, asked, f"{self.measured:.3g}{self.unit}", "ok" if self.holds else "SHORT"


@dataclass
class Report:
    """What one script found: tables of Markdown, the numbers in them, floors, remarks."""

    script: str
    environment: str
    tables: dict[str, str] = field(default_factory=dict)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    floors: list[Floor] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def table(self, name: str, heads: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
        self.tables[name] = markdown(heads, rows)

    def finish(self, options: argparse.Namespace) -> None:
        """Print, and write what the options ask for."""
        print(self.environment)
        for remark in self.remarks:
            print(remark)
        for name, table in self.tables.items():
            print(f"\n{name}\n{table}")
        if self.floors:
            print(f"\n{verdicts(self.floors)}")
        print(flush=True)
        if options.json:
            Path(options.json).write_text(json.dumps(asdict(self), indent=1), "utf-8")
        if options.write:
            for name, table in self.tables.items():
                words = "  \n".join([self.environment, *self.remarks])
                put(Path(options.page), name, self.script, f"{words}\n\n{table}")


def markdown(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(heads), *([str(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdicts(floors: Iterable[Floor]) -> str:
    return markdown(("must show", "floor", "measured", "verdict"), (floor.cells() for floor in floors))


def put(page: Path, name: str, script: str, text: str) -> None:
    """Replace what is between the markers of a table."""
    begin, end = f"<!-- {name}: written by bench/{script} -->\n", f"<!-- end of {name} -->"
    whole = page.read_text("utf-8")
    if begin not in whole or end not in whole:
        raise SystemExit(f"{page}: the markers of the table {name!r} are missing: {begin.strip()} and {end}")
    before, rest = whole.split(begin)
    page.write_text(before + begin + text + "\n" + end + rest.split(end, 1)[1], "utf-8")


def environment(options: argparse.Namespace, *facts: str) -> str:
    """One line: what was measured, with what, and how busy the machine was before."""
    names = ("nlsq_nb", "numpy", "scipy", "numba")
    found = [f"{name} {version(name)}" for name in names if version(name)]
    load = f"load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    machine = f"{cores()} cores, {platform.machine()}"
    parts = [*facts, f"Python {platform.python_version()}", *found, machine, load, "short form" * options.short]
    return ", ".join(part for part in parts if part)


def version(package: str) -> str:
    """Installed version, "" without one."""
    if importlib.util.find_spec(package) is None:
        return ""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed, imported from its folder)"


def arguments(doc: str | None, repeat: int, **sizes: int) -> argparse.ArgumentParser:
    """The options that all scripts have."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--short", action="store_true", help="seconds instead of minutes; the figures mean little")
    parser.add_argument("--write", action="store_true", help="put the tables between their markers in the page")
    parser.add_argument("--page", default=str(PAGE), help="the page of --write")
    parser.add_argument("--json", help="file for the numbers")
    parser.add_argument("--plot", help="folder for PNG figures (needs matplotlib)")
    parser.add_argument("--repeat", type=int, default=repeat, help="rounds; medians are reported")
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser


def plot(
    folder: str | None,
    name: str,
    labels: tuple[str, str],
    series: Mapping[str, tuple[list[float], list[float]]],
    *,
    logarithmic: bool = True,
) -> None:
    """Lines with markers as PNG."""
    if folder is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        print(f"no {name}.png: matplotlib is not installed")
        return
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for label, (x, y) in series.items():
        axes.plot(x, y, marker="o", markersize=3, linewidth=1, label=label)
    if logarithmic:
        axes.set(xscale="log", yscale="log")
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    Path(folder).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(folder) / f"{name}.png", dpi=150)
    plt.close(figure)


def brief(value: float) -> str:
    """Seconds in the unit in which they are a short number."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if value * factor >= 1 or unit == "µs":
            return f"{value * factor:.3g} {unit}"
    raise AssertionError
