"""Each field of the configuration does something: a fit differs, or the documented error is raised."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import numpy as np
import pytest

from nlsq_nb import AdaptiveHybridStreamingOptimizer, HybridStreamingConfig, Model, UnsupportedOption
from nlsq_nb.backends.team import Team
from nlsq_nb.core.chunk import Chunk
from nlsq_nb.core.layout import BLOCK

DECAY = Model("a*exp(-b*x) + c")
RNG = np.random.RandomState(42)
X = np.linspace(0.0, 10.0, 500)
Y = 5.0 * np.exp(-0.5 * X) + 1.0 + RNG.normal(0.0, 0.1, 500)
GROUPS = np.column_stack([np.arange(500) % 3, X])
OPTIMAL, GOOD, CAREFUL, POOR = [5.1, 0.505, 0.99], [4.5, 0.45, 1.1], [6.0, 0.4, 1.3], [1.0, 0.1, 5.0]
LONG_X = np.linspace(0.0, 10.0, 3 * BLOCK + 5)
LONG_Y = 5.0 * np.exp(-0.5 * LONG_X) + 1.0 + 0.1 * np.sin(1e4 * LONG_X)
SINE_X = np.linspace(0.0, 10.0, 4 * BLOCK)
SINE_Y = 2.0 * np.sin(3.1 * SINE_X + 0.4) + 0.3 * np.sin(17.0 * SINE_X**2)
NO_NAN = np.where(np.arange(500) == 7, np.nan, Y)
Seen = dict[str, Any]


# -- scenarios: options in, observations out -------------------------------------------------------
def observed(options, data, model, p0, tmp_path, **call) -> Seen:
    """A fit with everything that can be seen of it."""
    told: list[tuple] = []
    seen: Seen = {"error": None}
    callback = lambda params, loss, iteration: told.append((iteration, *params))  # noqa: E731
    helpers, run = [0], Team.run
    with warnings.catch_warnings(record=True) as caught, pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("always")
        patch.setattr(Team, "run", lambda team, *given: helpers.append(given[-1]) or run(team, *given))
        try:
            optimizer = AdaptiveHybridStreamingOptimizer(HybridStreamingConfig(**{"verbose": 0} | options))
            result = optimizer.fit(data, model, p0, callback=callback, **call)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what is seen
            return seen | {"error": f"{type(error).__name__}: {error}"}
    d = result.streaming_diagnostics
    telemetry = d["telemetry"]
    return seen | {
        "popt": result.popt.tobytes(),
        "status": result.status.name,
        "warnings": [str(w.message) for w in caught],
        "path": told,
        "told": [iteration for iteration, *_ in told],
        "warmup": d["phase_iterations"]["lbfgs_warmup"],
        "newton": d["phase_iterations"]["gauss_newton"],
        "passes": d["data_passes"],
        "sample_passes": d["sample_passes"],
        "counts": telemetry.export_metrics(),
        "events": [(e["type"], e["data"]) for e in telemetry.get_recent_events(1000)],
        "scales": optimizer.normalizer.scales.tolist(),
        "files": sorted(f.name for f in tmp_path.rglob("*.h5")),
        "threads": 1 + max(helpers),
    }


def fit(options, tmp_path, capfd, *, p0=POOR, data=(X, Y), model=DECAY, **call) -> Seen:
    named = {name: tmp_path / value if name == "checkpoint_dir" else value for name, value in options.items()}
    capfd.readouterr()
    seen = observed({"callback_frequency": 1} | named, data, model, p0, tmp_path, **call)
    out, err = capfd.readouterr()
    assert out == ""
    lines = [line.split(", time=")[0] for line in err.splitlines()]
    return seen | {"log": lines}


def all_of_it(options, tmp_path, capfd, **more) -> Seen:
    """Every parameter in both phases."""
    return fit({"separable": False} | options, tmp_path, capfd, **more)


def resumed(options, tmp_path, capfd) -> Seen:
    """After a fit that left checkpoints; the value is the folder that they are in."""
    all_of_it({"checkpoint_dir": "before", "checkpoint_frequency": 5}, tmp_path, capfd)
    given = {name: tmp_path / value for name, value in options.items()}
    return all_of_it(given, tmp_path, capfd)


class Tape:
    """A source of chunks of one block, some of which fail some times when read."""

    dtype = np.dtype(np.float64)
    revision = 0
    n_rows = len(LONG_X)
    n_chunks = -(-n_rows // BLOCK)

    def __init__(self, faults):
        self.faults, self.released = dict(faults), 0

    def reader(self):
        return self

    def rows(self, k):
        return k * BLOCK, min(self.n_rows, (k + 1) * BLOCK)

    def read(self, k):
        if self.faults.get(k, 0) > 0:
            self.faults[k] -= 1
            raise OSError("torn")
        lo, hi = self.rows(k)
        return Chunk(lo, (LONG_X[lo:hi],), (LONG_Y[lo:hi],))

    def release(self):
        self.released += 1

    def chunks(self):
        lo, hi = self.rows(0)
        yield Chunk(lo, (LONG_X[lo:hi],), (LONG_Y[lo:hi],))


def tape(options, tmp_path, capfd, *, faults) -> Seen:
    source = Tape(faults)
    return fit(options, tmp_path, capfd, data=source) | {"released": source.released}


def candidates(options, tmp_path, capfd, *, bounds=None) -> Seen:
    """A model with many minima, which notes every point at which it is evaluated."""
    asked: list[tuple] = []

    def sine(x, a, w, t):
        asked.append((len(x), a, w, t))
        return a * np.sin(w * x + t)

    def jacobian(x, a, w, t):
        return np.stack([np.sin(w * x + t), a * x * np.cos(w * x + t), a * np.cos(w * x + t)], axis=1)

    model = Model.from_callable(sine, jac=jacobian)
    options = {"max_warmup_iterations": 0, "warmup_iterations": 0, "gauss_newton_max_iterations": 5} | options
    seen = fit(options, tmp_path, capfd, data=(SINE_X, SINE_Y), model=model, p0=[1.0, 1.0, 0.5], bounds=bounds)
    return seen | {"asked": asked}


def threaded(options, tmp_path, capfd) -> Seen:
    """Rows for several threads."""
    x = np.tile(X, 400)
    return fit(options, tmp_path, capfd, data=(x, np.tile(Y, 400)), p0=OPTIMAL)


def table(options, tmp_path, capfd) -> Seen:
    """x with a column of group numbers."""
    return fit(options, tmp_path, capfd, data=(GROUPS, Y))


# -- the table ----------------------------------------------------------------------------------------
Scenario = Callable[..., Seen]


@dataclass(frozen=True)
class Case:
    """What is changed, in which scenario, and what must differ then."""

    changed: Any
    differs: tuple[str, ...]
    scenario: Scenario = all_of_it
    base: Mapping[str, Any] = field(default_factory=dict)
    same: tuple[str, ...] = ()


def with_start(p0, scenario=all_of_it, **rest) -> Scenario:
    return partial(scenario, p0=p0, **rest)


boxed = partial(all_of_it, bounds=([0.0, 0.0, 0.0], [20.0, 5.0, 10.0]))
redundant = partial(fit, model=Model("a*exp(-b*x) + c + d"), p0=[*POOR, 0.5])
UNGUARDED = {"warmup_sample_size": 10, "enable_warm_start_detection": False}
WIDE = {"enable_step_clipping": False}
CG = {"cg_param_threshold": 2}
COLD = {"warmup_iterations": 0, "max_warmup_iterations": 0}
PENALTY = {"enable_group_variance_regularization": True, "group_variance_indices": [(0, 2)]}
MANY = {"enable_multistart": True}
MANY_IN_A_BOX = partial(candidates, bounds=([0.1, 0.1, -3.0], [5.0, 6.0, 3.0]))
LOOP = {"loop_strategy": "loop", "verbose": 1, "chunk_size": BLOCK}
long = partial(fit, data=(LONG_X, LONG_Y))
REFUSED = ("refused",)
ON, OFF = True, False

CASES: dict[str, Case] = {
    "normalize": Case(OFF, ("path", "scales")),
    "normalization_strategy": Case("p0", ("path", "scales"), boxed),
    "warmup_iterations": Case(200, ("warmup",), base={"warmup_iterations": 0, "loss_plateau_threshold": 0.5}),
    "max_warmup_iterations": Case(3, ("warmup", "passes"), base={"warmup_iterations": 0}),
    "loss_plateau_threshold": Case(0.5, ("warmup",)),
    "gradient_norm_threshold": Case(0.5, ("warmup",)),
    "active_switching_criteria": Case(["max_iter"], ("warmup",), base={"max_warmup_iterations": 200}),
    "lbfgs_history_size": Case(1, ("path",)),
    "lbfgs_initial_step_size": Case(0.01, ("path",), base={"enable_adaptive_warmup_lr": False}),
    "lbfgs_exploration_step_size": Case(0.01, ("path",)),
    "lbfgs_careful_step_size": Case(0.01, ("path",), with_start(CAREFUL)),
    "lbfgs_refinement_step_size": Case(0.01, ("path",), with_start(GOOD)),
    "lbfgs_line_search": Case("backtracking", ("path",), base=WIDE),
    "warmup_learning_rate": Case(1e-4, ("path",)),
    "warmup_lr_careful": Case(1e-6, ("path",), with_start(CAREFUL)),
    "warmup_lr_refinement": Case(1e-9, ("path",), with_start(GOOD)),
    "gradient_clip_value": Case(1e-4, ("path",), base=WIDE),
    "enable_warm_start_detection": Case(OFF, ("events", "warmup"), with_start(OPTIMAL)),
    "warm_start_threshold": Case(0.5, ("events", "warmup"), with_start(GOOD)),
    "enable_adaptive_warmup_lr": Case(OFF, ("events",)),
    "enable_cost_guard": Case(OFF, ("events", "path"), with_start([4.9, 0.49, 1.0]), base=UNGUARDED),
    "cost_increase_tolerance": Case(1.0, ("events",), with_start([4.9, 0.49, 1.0]), base=UNGUARDED),
    "enable_step_clipping": Case(OFF, ("events", "path")),
    "max_warmup_step_size": Case(0.01, ("events", "path")),
    "gauss_newton_max_iterations": Case(1, ("status", "newton", "warnings"), same=("warmup",)),
    "gauss_newton_tol": Case(0.5, ("newton",), same=("warmup",)),
    "trust_region_initial": Case(1e-4, ("path",), same=("warmup",)),
    "regularization_factor": Case(0.1, ("popt",), redundant),
    "cg_max_iterations": Case(1, ("path", "passes"), base=CG),
    "cg_relative_tolerance": Case(0.9, ("path", "passes"), base=CG),
    "cg_absolute_tolerance": Case(0.3, ("path", "passes"), base=CG | COLD),
    "cg_param_threshold": Case(2, ("path", "passes")),
    "enable_group_variance_regularization": Case(PENALTY, ("popt", "path")),
    "group_variance_lambda": Case(1.0, ("popt", "path"), base=PENALTY),
    "group_variance_indices": Case([(1, 3)], ("popt", "path"), base=PENALTY),
    "enable_residual_weighting": Case(ON, ("error",), table),
    "residual_weights": Case([4.0, 1.0, 0.25], ("popt", "path"), table, {"enable_residual_weighting": True}),
    "chunk_size": Case(2 * BLOCK, ("log",), long, LOOP, same=("popt", "path")),
    "gc_chunk_interval": Case(1, ("released",), partial(tape, faults={}), same=("popt",)),
    "loop_strategy": Case("scan", ("log",), long, LOOP, same=("popt", "path")),
    "precision": Case("float32", ("popt", "path")),
    "enable_checkpoints": Case(OFF, ("files",), base={"checkpoint_dir": "cp"}, same=("popt",)),
    "checkpoint_frequency": Case(1, ("files",), base={"checkpoint_dir": "cp"}, same=("popt",)),
    "checkpoint_dir": Case("cp", ("files",), same=("popt",)),
    "resume_from_checkpoint": Case("before", ("told",), resumed, same=("popt", "passes")),
    "validate_numerics": Case(OFF, ("error",), partial(fit, data=(X, NO_NAN))),
    "enable_fault_tolerance": Case(OFF, ("error",), partial(tape, faults={1: 1})),
    "max_retries_per_batch": Case(0, ("error",), partial(tape, faults={1: 1})),
    "min_success_rate": Case(0.5, ("error",), partial(tape, faults={1: 10**9})),
    "enable_multi_device": Case(ON, ("error",)),
    "callback_frequency": Case(7, ("told",), base={"callback_frequency": 1}, same=("popt",)),
    "verbose": Case(2, ("log",), same=("popt", "path")),
    "log_frequency": Case(3, ("log",), base={"verbose": 1}, same=("popt", "path")),
    "enable_multistart": Case(ON, ("popt", "asked", "passes"), candidates),
    "n_starts": Case(3, ("asked",), candidates, MANY),
    "multistart_sampler": Case("sobol", ("asked",), candidates, MANY),
    "elimination_rounds": Case(1, ("asked",), candidates, MANY),
    "elimination_fraction": Case(0.2, ("asked",), candidates, MANY),
    "batches_per_round": Case(2, ("asked",), candidates, MANY),
    "center_on_p0": Case(OFF, ("asked",), MANY_IN_A_BOX, MANY),
    "scale_factor": Case(0.3, ("asked",), candidates, MANY),
    "use_learning_rate_schedule": Case(ON, REFUSED),
    "lr_schedule_warmup_steps": Case(10, REFUSED),
    "lr_schedule_decay_steps": Case(10, REFUSED),
    "lr_schedule_end_value": Case(1e-3, REFUSED),
    "separable": Case(OFF, ("path", "warmup"), fit),
    "warmup_sample_size": Case(200, ("sample_passes", "passes", "path")),
    "covariance_method": Case("qr", ("passes",), same=("path",)),
    "second_opinion": Case(ON, ("passes",), same=("popt", "path")),
    "n_threads": Case(1, ("threads",), threaded, {"n_threads": 3}, same=("popt", "path")),
    "random_seed": Case(5, ("path",), base={"warmup_sample_size": 200}),
}
OTHERS: list[tuple[str, Case]] = [
    ("normalization_strategy", Case("none", ("path", "scales"))),
    ("normalization_strategy", Case("bounds", (), boxed, same=("popt", "path"))),  # what auto does there
    ("lbfgs_line_search", Case("strong_wolfe", ("path",), base=WIDE)),
    ("active_switching_criteria", Case(["plateau"], ("warmup",))),
    ("active_switching_criteria", Case(["gradient"], ("warmup",), base={"loss_plateau_threshold": 0.5})),
    ("multistart_sampler", Case("halton", ("asked",), candidates, MANY)),
    ("random_seed", Case(5, ("asked",), candidates, MANY)),
    ("regularization_factor", Case(0.1, ("popt",), partial(redundant, p0=[*POOR, 3.0]), {"separable": False})),
    ("gauss_newton_tol", Case(0.5, ("newton",), base=CG)),
    ("trust_region_initial", Case(1e-4, ("path",), base=CG)),
    ("gauss_newton_max_iterations", Case(1, ("status",), base=CG)),
    ("group_variance_lambda", Case(1.0, ("popt",), base=PENALTY | CG)),
    ("residual_weights", Case([4.0, 1.0, 0.25], ("popt",), table, {"enable_residual_weighting": True} | CG)),
    ("precision", Case("float32", ("popt",), base=CG)),
    ("gc_chunk_interval", Case(2, ("released",), partial(tape, faults={1: 1}), {"gc_chunk_interval": 1})),
    ("max_retries_per_batch", Case(5, ("error",), partial(tape, faults={1: 4}))),
]


def run(name, case, tmp_path, capfd) -> tuple[Seen, Seen]:
    changed = case.changed if isinstance(case.changed, dict) else {name: case.changed}
    results = []
    for k, options in enumerate((dict(case.base), dict(case.base) | changed)):
        folder = tmp_path / str(k)
        folder.mkdir()
        results.append(case.scenario(options, folder, capfd))
    return results[0], results[1]


@pytest.mark.parametrize(
    ("name", "case"), [*CASES.items(), *OTHERS], ids=[*CASES, *(f"{name}={c.changed}" for name, c in OTHERS)]
)
def test_a_change_makes_a_difference(name, case, tmp_path, capfd):
    if case.differs == REFUSED:
        with pytest.raises(UnsupportedOption, match=f"^{name}="):
            HybridStreamingConfig(**{name: case.changed})
        return
    before, after = run(name, case, tmp_path, capfd)
    assert "error" in case.differs or before["error"] is after["error"] is None
    unchanged = [what for what in case.differs if before.get(what) == after.get(what)]
    assert not unchanged, {what: after.get(what) for what in unchanged}
    for what in case.same:
        assert before[what] == after[what], what


def test_the_table_covers_every_field():
    assert list(CASES) == [f.name for f in fields(HybridStreamingConfig)]


@pytest.mark.slow
def test_scenarios_repeat(tmp_path, capfd):
    """What differs in the table does not differ by itself."""
    scenarios = {str(case.scenario): case for case in CASES.values() if case.differs != REFUSED}
    for k, case in enumerate(scenarios.values()):
        seen = []
        for turn in (0, 1):
            folder = tmp_path / f"{k}-{turn}"
            folder.mkdir()
            seen.append(case.scenario(dict(case.base), folder, capfd))
        assert seen[0] == seen[1]


def test_what_a_fault_costs(tmp_path, capfd):
    """The errors of the fault fields are those of reading."""
    for name, value, text in (
        ("enable_fault_tolerance", False, "SourceError: chunk 1, rows 4096 to 8191"),
        ("max_retries_per_batch", 0, "SourceError: chunk 1, rows 4096 to 8191"),
    ):
        seen = tape({name: value}, tmp_path, capfd, faults={1: 1})
        assert text in seen["error"]
    assert tape({}, tmp_path, capfd, faults={1: 2})["error"] is None
    assert "min_success_rate" in tape({}, tmp_path, capfd, faults={1: 10**9})["error"]
    assert tape({"min_success_rate": 0.5}, tmp_path, capfd, faults={1: 10**9})["error"] is None
    assert "min_success_rate=0.9" in tape({"min_success_rate": 0.9}, tmp_path, capfd, faults={1: 10**9})["error"]
