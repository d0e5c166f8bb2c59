"""What each defence layer of the warm-up is worth: fits with all layers, and with one of them off."""

import argparse
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nlsq_nb import HybridStreamingConfig, Model, curve_fit

PAGE = Path(__file__).resolve().parents[1] / "docs" / "explanation" / "defense-layers.md"
FLAGS = {
    1: "enable_warm_start_detection",
    2: "enable_adaptive_warmup_lr",
    3: "enable_cost_guard",
    4: "enable_step_clipping",
}
SAME, CLOSE = 1e-6, 1e-4  # relative differences of the sse: one optimum, a fit that is right

DECAY = "a*exp(-b*x) + c"
DECAYS = "a*exp(-b*x) + c*exp(-d*x)"
PEAK = "a*exp(-(x - m)**2/(2*s**2)) + c"
PEAKS = "a*exp(-(x - m)**2/(2*s**2)) + b*exp(-(x - n)**2/(2*t**2)) + c"
LINE = "a/(1 + ((x - m)/g)**2) + c"
STRETCHED = "a*exp(-(x/t)**b) + c"
TWO = {"a": 4, "m": 3, "s": 0.6, "b": 3, "n": 6.5, "t": 0.8, "c": 1}


@dataclass(frozen=True)
class Problem:
    """A model, and how its data are made; a parameter in `places` is a position on the x axis."""

    name: str
    text: str
    truth: dict[str, float]
    x: tuple[float, float]
    noise: float
    places: str = ""
    n: int = 150
    unmodelled: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def model(self):
        return Model(self.text)

    def data(self, seed=0):
        x = np.linspace(*self.x, self.n)
        y = self.model(x, *(self.truth[name] for name in self.model.params))
        if self.unmodelled is not None:
            y = y + self.unmodelled(x)
        return x, y + np.random.default_rng(seed).normal(0.0, self.noise, self.n)

    def start(self, rng, spread, reach):
        """Each parameter off by a log-normal factor, a place by a share of the x axis."""
        width = self.x[1] - self.x[0]
        return [
            self.truth[name] + width * rng.uniform(-reach, reach)
            if name in self.places
            else self.truth[name] * math.exp(rng.normal(0.0, spread))
            for name in self.model.params
        ]


@dataclass(frozen=True)
class Outcome:
    """What is compared."""

    passes: int
    sample_passes: int
    sse: float
    success: bool
    fired: dict[int, int]
    mode: str


@dataclass(frozen=True)
class Case:
    """A fit that one layer makes better; `claim` is "passes", "point" or "failure"."""

    layer: int
    problem: Problem
    story: str
    start: dict[str, float]
    claim: str
    preset: str = ""
    options: dict[str, object] = field(default_factory=dict)

    @property
    def configuration(self):
        parts = [f"`{self.preset}()`"] if self.preset else []
        parts += [f"`{name}={value!r}`" for name, value in self.options.items()]
        return ", ".join(parts) or "defaults"

    def run(self, *off, seed=0):
        x, y = self.problem.data(seed)
        start = [self.start[name] for name in self.problem.model.params]
        return fit(self.problem.model, x, y, start, self.preset, off, **self.options)

    def holds(self, on, off):
        """Whether the layer fires, the fit is right with it, and worse without it as claimed."""
        if not (on.success and on.fired[self.layer] and not off.fired[self.layer]):
            return False
        if self.claim == "passes":
            return off.passes >= 1.2 * on.passes and math.isclose(on.sse, off.sse, rel_tol=SAME)
        return off.sse > 1.5 * on.sse and (self.claim == "point" or not off.success)


def fit(model, x, y, start, preset="", off=(), **options):
    """One fit, with the layers in `off` switched off."""
    config = getattr(HybridStreamingConfig, preset)() if preset else None
    flags = dict.fromkeys((FLAGS[layer] for layer in off), False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # the answer of the layers alone: a second opinion would mend what they let pass
        given = {"second_opinion": False, **options, **flags}
        result = curve_fit(model, x, y, start, config=config, verbose=0, **given)
    found = result.streaming_diagnostics
    t = found["telemetry"]
    tiers = {tier: count for tier, count in t.layer2_lr_mode_counts.items() if count}
    mode = next(iter(tiers), "skipped")
    fired = {
        1: t.layer1_warm_start_triggers,
        2: sum(count for tier, count in tiers.items() if tier != "fixed"),
        3: t.layer3_cost_guard_triggers,
        4: t.layer4_clip_triggers,
    }
    passes, sampled = found["data_passes"], found["sample_passes"]
    return Outcome(passes, sampled, result.sse, result.success, fired, mode)


def line_on_hump(at, rows=300_000):
    """A line 20 rows wide, on a hump as wide as a tenth of the data that the model has no term for."""
    truth = {"a": 150.0, "m": at, "s": 20.0, "c": 2.0}

    def hump(x):
        return 3.0 * np.exp(-0.5 * ((x / rows - 0.5) / 0.1) ** 2)

    return Problem("line on a hump", PEAK, truth, (0.0, rows - 1.0), 1.0, "m", rows, hump)


def near_line(at):
    """The place is known to within a width, height and background are not."""
    return {"a": 1.0, "m": at + 20.0, "s": 26.0, "c": 1.0}


PROBLEMS = (
    Problem("decay", DECAY, {"a": 5, "b": 0.5, "c": 1}, (0, 10), 0.1),
    Problem("two decays", DECAYS, {"a": 3, "b": 2, "c": 2, "d": 0.3}, (0, 8), 0.02),
    Problem("stretched decay", STRETCHED, {"a": 5, "t": 2, "b": 0.7, "c": 0.5}, (0.01, 12), 0.05),
    Problem("growth", "a*exp(b*x) + c", {"a": 0.2, "b": 0.5, "c": 1}, (0, 10), 0.5),
    Problem("Gaussian", PEAK, {"a": 4, "m": 3, "s": 0.6, "c": 1}, (0, 10), 0.1, "m"),
    Problem("two Gaussians", PEAKS, TWO, (0, 10), 0.1, "mn"),
    Problem("Lorentzian", LINE, {"a": 6, "m": 4, "g": 0.4, "c": 0.5}, (0, 10), 0.1, "m"),
    Problem("sine", "a*sin(w*x + t) + c", {"a": 2, "w": 3, "t": 0.7, "c": 1}, (0, 10), 0.2),
    Problem("damped sine", "a*exp(-b*x)*sin(w*x + t)", {"a": 2, "b": 0.3, "w": 4, "t": 0.7}, (0, 10), 0.1),
    Problem("logistic", "a/(1 + exp(-k*(x - m)))", {"a": 5, "k": 1.5, "m": 6}, (0, 12), 0.1, "m"),
    Problem("Gompertz", "a*exp(-b*exp(-k*x))", {"a": 5, "b": 4, "k": 0.6}, (0, 12), 0.1),
    Problem("Arrhenius", "a*exp(-b/x)", {"a": 50, "b": 6}, (1, 4), 0.2),
    Problem("power", "a*x**b + c", {"a": 1.5, "b": 1.7, "c": 2}, (0.2, 5), 0.2),
    Problem("Hill", "a*x**h/(k**h + x**h)", {"a": 5, "h": 2.5, "k": 3}, (0.1, 12), 0.1),
    Problem("Michaelis", "v*x/(k + x)", {"v": 8, "k": 1.4}, (0.1, 10), 0.1),
    Problem("rational", "(a + b*x)/(1 + c*x + d*x**2)", {"a": 1, "b": 3, "c": 0.6, "d": 0.2}, (0, 6), 0.03),
)
BY_NAME = {problem.name: problem for problem in PROBLEMS}

CASES = (
    Case(
        1,
        BY_NAME["two Gaussians"],
        "two Gaussians, places 1 % off",
        {"a": 4, "m": 2.97, "s": 0.6, "b": 3, "n": 6.53, "t": 0.78, "c": 1},
        "passes",
    ),
    Case(
        1,
        BY_NAME["decay"],
        "decay, 4 % off",
        {"a": 5.00926178, "b": 0.51909417, "c": 0.98601432},
        "passes",
        options={"separable": False},
    ),
    Case(
        2,
        BY_NAME["two decays"],
        "two decays, the fast one taken for half as fast",
        {"a": 3.5, "b": 1, "c": 2, "d": 0.5},
        "passes",
        options={"max_warmup_step_size": 1.0},
    ),
    Case(
        2,
        BY_NAME["two decays"],
        "the same",
        {"a": 3.5, "b": 1, "c": 2, "d": 0.5},
        "passes",
        preset="conservative",
    ),
    Case(
        3,
        line_on_hump(130_000),
        "a line 20 rows wide in 300,000, known to within a width, on a broad hump; the sample misses the line",
        near_line(130_000),
        "point",
    ),
    Case(
        3,
        line_on_hump(165_000),
        "the same on the other side of the hump",
        near_line(165_000),
        "point",
    ),
    Case(
        4,
        BY_NAME["stretched decay"],
        "stretched decay from a short Gaussian one; without clipping the exponent turns negative",
        {"a": 1, "t": 0.5, "b": 2, "c": 0},
        "point",
    ),
    Case(
        4,
        BY_NAME["Lorentzian"],
        "Lorentzian from 2.5 half widths away; without clipping the line is lost",
        {"a": 10, "m": 5, "g": 1, "c": 0.4},
        "point",
        options={"separable": False},
    ),
    Case(
        4,
        BY_NAME["two Gaussians"],
        "two Gaussians, started too close; without clipping one is lost",
        {"a": 4, "m": 4, "s": 0.5, "b": 4, "n": 6, "t": 2, "c": 1.5},
        "point",
        options={"separable": False},
    ),
)


def cases_table():
    """Every case, as a table of Markdown."""
    lines = [
        "| layer | problem | configuration | fires | with: passes | sse | without: passes | sse | converged |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        on, off = case.run(), case.run(case.layer)
        assert case.holds(on, off), f"{case.story}: {on}, {off}"
        fires = on.mode if case.layer == 2 else f"{on.fired[case.layer]}×"
        lines.append(
            f"| {case.layer} | {case.story} | {case.configuration} | {fires} "
            f"| {passes(on)} | {on.sse:.4g} | {passes(off)} | {off.sse:.4g} | {'yes' if off.success else 'no'} |"
        )
    return "\n".join(lines)


def passes(outcome):
    return f"{outcome.passes} + {outcome.sample_passes}" if outcome.sample_passes else f"{outcome.passes}"


@dataclass
class Tally:
    """Pairs of fits from many starts, with a layer and without it."""

    starts: int = 0
    right: list[bool] = field(default_factory=list)
    right_without: list[bool] = field(default_factory=list)
    passes: list[tuple[int, int]] = field(default_factory=list)

    def add(self, best, on, off):
        hits = [outcome.sse <= best * (1.0 + CLOSE) for outcome in (on, off)]
        self.starts += 1
        self.right.append(hits[0])
        self.right_without.append(hits[1])
        if all(hits):
            self.passes.append((on.passes, off.passes))

    def extend(self, other):
        self.starts += other.starts
        self.right += other.right
        self.right_without += other.right_without
        self.passes += other.passes

    @property
    def hits(self):
        """Right with, right without; only with, only without."""
        pairs = list(zip(self.right, self.right_without, strict=True))
        only = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
        return f"{sum(self.right)}, {sum(self.right_without)} (+{only[0]} −{only[1]})"

    @property
    def means(self):
        """Mean passes with and without, where both are right."""
        on, off = np.mean(self.passes, axis=0) if self.passes else (math.nan, math.nan)
        return f"{on:.1f}, {off:.1f}"

    @property
    def change(self):
        """How often the layer saves passes and how often it costs some."""
        return f"{sum(a < b for a, b in self.passes)}, {sum(a > b for a, b in self.passes)}"


def tally(layer, problem, starts, spread, reach, preset="", **options):
    """Fits from random starts that the layer acts upon."""
    counts, (x, y) = Tally(), problem.data()
    truth = [problem.truth[name] for name in problem.model.params]
    best = fit(problem.model, x, y, truth).sse
    for k in range(starts):
        start = problem.start(np.random.default_rng([layer, k]), spread, reach)
        on = fit(problem.model, x, y, start, preset, **options)
        if on.fired[layer] and not (layer == 2 and on.mode == "exploration"):
            counts.add(best, on, fit(problem.model, x, y, start, preset, (layer,), **options))
    return counts


def clipping_table(starts):
    """Layer 4 from poor starts, model by model."""
    lines = [
        "| model | clipped | right | passes | `separable=False`: clipped | right | passes |",
        "|---|---|---|---|---|---|---|",
    ]
    totals = Tally(), Tally()
    for problem in PROBLEMS:
        spread = 0.4 if "sine" in problem.name else 0.7
        counts = [tally(4, problem, starts, spread, 0.15, separable=s) for s in ("auto", False)]
        for total, count in zip(totals, counts, strict=True):
            total.extend(count)
        cells = (f"{c.starts} | {c.hits} | {c.means}" for c in counts)
        lines.append(f"| {problem.name} | {' | '.join(cells)} |")
    cells = (f"{c.starts} | {c.hits} | {c.means}" for c in totals)
    return "\n".join([*lines, f"| all | {' | '.join(cells)} |"])


def lines_on_hump(count):
    """Layer 3: the line at random places."""
    total = Tally()
    for at in np.random.default_rng(3).uniform(0.1, 0.9, count) * 300_000:
        case = Case(3, line_on_hump(at), "", near_line(at), "point")
        on = case.run()
        if on.fired[3]:
            off = case.run(3)
            total.add(min(on.sse, off.sse), on, off)
    return total


def others_table(starts):
    """Layers 1 to 3 over many starts, all models together."""
    lines = [
        "| layer | starts | configuration | fires | right | passes | saves, costs passes |",
        "|---|---|---|---|---|---|---|",
    ]
    near_by, middling = (0.03, 0.005), (0.3, 0.05)
    runs = (
        (1, "within 3 %", near_by, "", {}),
        (1, "within 3 %", near_by, "", {"separable": False}),
        (2, "within 30 %", middling, "", {}),
        (2, "within 30 %", middling, "conservative", {}),
        (2, "within 30 %", middling, "", {"max_warmup_step_size": 1.0}),
    )
    for layer, words, off, preset, options in runs:
        total = Tally()
        for problem in PROBLEMS:
            total.extend(tally(layer, problem, starts // 4, *off, preset=preset, **options))
        named = Case(layer, problem, "", {}, "", preset, options).configuration
        lines.append(_row(layer, words, named, total, len(PROBLEMS) * (starts // 4)))
    count = max(starts // 5, 1)
    lines.append(_row(3, "the line above at random places", "defaults", lines_on_hump(count), count))
    return "\n".join(lines)


def _row(layer, words, configuration, total, tried):
    fires = f"{total.starts} of {tried}"
    return f"| {layer} | {words} | {configuration} | {fires} | {total.hits} | {total.means} | {total.change} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=200, help="random starts per model of the statistics")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    options = parser.parse_args()
    tables = {
        "cases": cases_table(),
        "clipping": clipping_table(options.starts),
        "others": others_table(options.starts),
    }
    page = PAGE.read_text("utf-8")
    for name, table in tables.items():
        print(f"{name}\n{table}\n", flush=True)
        begin, end = f"<!-- {name}: written by bench/layers.py -->\n", f"<!-- end of {name} -->"
        before, rest = page.split(begin)
        page = before + begin + table + "\n" + end + rest.split(end)[1]
    if options.write:
        PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
