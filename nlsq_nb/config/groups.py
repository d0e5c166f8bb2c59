"""The grouped form of the options that the library reads; defaults live in `flat`."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.config.rules import (
    Choice,
    Fixed,
    Flag,
    Number,
    Or,
    Path,
    Rule,
    Whole,
    Words,
    group_weights,
    index_pairs,
    refuse,
    success_share,
)
from nlsq_nb.core.normalize import STRATEGIES

__all__ = [
    "DEFAULT_RATE",
    "DEFAULT_RATE_CAREFUL",
    "DEFAULT_RATE_REFINEMENT",
    "OWNERS",
    "SCHEDULE_DECAY_STEPS",
    "SCHEDULE_END_VALUE",
    "SCHEDULE_WARMUP_STEPS",
    "CheckOptions",
    "CheckpointOptions",
    "ConjugateOptions",
    "DataOptions",
    "DefenseOptions",
    "FaultOptions",
    "GaussNewtonOptions",
    "Groups",
    "MultistartOptions",
    "PenaltyOptions",
    "ReportOptions",
    "ScheduleOptions",
    "SetupOptions",
    "WarmupOptions",
    "WeightOptions",
]

# Rates are relative: their quotient by these multiplies the first step of the tier.
DEFAULT_RATE, DEFAULT_RATE_CAREFUL, DEFAULT_RATE_REFINEMENT = 1e-3, 1e-5, 1e-6
# No other value of these could have an effect.
SCHEDULE_WARMUP_STEPS, SCHEDULE_DECAY_STEPS, SCHEDULE_END_VALUE = 50, 450, 1e-4

_POSITIVE = Number(above=0.0)
_AT_LEAST_ONE = Whole(1)
_NO_SCHEDULE = "L-BFGS has a line search, not a learning-rate schedule"


def _flat(name: str, rule: Rule) -> Any:
    """A group field, the flat field that it is called by users, and what its value may be."""
    return field(metadata={"flat": name, "rule": rule})


@dataclass(frozen=True, slots=True)
class _Options:
    """A group: every field is put in its plain form by its rule, then they must agree."""

    def __post_init__(self) -> None:
        """Validate."""
        for name, flat, rule in _MAPPED[type(self)]:
            value = getattr(self, name)
            plain = rule(flat, value)
            if plain is not value:
                object.__setattr__(self, name, plain)
        self._agree()

    def _agree(self) -> None:
        """Refuse values that are valid each but not together."""


@dataclass(frozen=True, slots=True)
class SetupOptions(_Options):
    """Phase 0: scales and structure."""

    normalize: bool = _flat("normalize", Flag())
    strategy: str = _flat("normalization_strategy", Choice(STRATEGIES))
    separable: bool | str = _flat("separable", Choice(("auto", True, False)))
    seed: int = _flat("random_seed", Whole(0))


@dataclass(frozen=True, slots=True)
class WarmupOptions(_Options):
    """Phase 1: L-BFGS."""

    iterations: int = _flat("warmup_iterations", Whole(0))
    max_iterations: int = _flat("max_warmup_iterations", Whole(0))
    plateau: float = _flat("loss_plateau_threshold", _POSITIVE)
    gradient: float = _flat("gradient_norm_threshold", _POSITIVE)
    criteria: tuple[str, ...] = _flat(
        "active_switching_criteria", Words(("plateau", "gradient", "max_iter"))
    )
    memory: int = _flat("lbfgs_history_size", _AT_LEAST_ONE)
    line_search: str = _flat("lbfgs_line_search", Choice(("wolfe", "strong_wolfe", "backtracking")))
    gradient_clip: float | None = _flat("gradient_clip_value", Or(None, _POSITIVE))
    sample_size: int | str = _flat("warmup_sample_size", Or("auto", _AT_LEAST_ONE))

    def _agree(self) -> None:
        _at_most(
            "warmup_iterations", self.iterations, "max_warmup_iterations", self.max_iterations
        )


@dataclass(frozen=True, slots=True)
class DefenseOptions(_Options):
    """The four layers of the warm-up; the numbers of a layer that is off may be out of range."""

    detects_warm_start: bool = _flat("enable_warm_start_detection", Flag())
    warm_start_threshold: float = _flat("warm_start_threshold", Number())
    adapts_step: bool = _flat("enable_adaptive_warmup_lr", Flag())
    guards_cost: bool = _flat("enable_cost_guard", Flag())
    cost_tolerance: float = _flat("cost_increase_tolerance", Number())
    clips_steps: bool = _flat("enable_step_clipping", Flag())
    max_step: float = _flat("max_warmup_step_size", Number())
    initial_step: float = _flat("lbfgs_initial_step_size", _POSITIVE)
    exploration_step: float = _flat("lbfgs_exploration_step_size", _POSITIVE)
    careful_step: float = _flat("lbfgs_careful_step_size", _POSITIVE)
    refinement_step: float = _flat("lbfgs_refinement_step_size", _POSITIVE)
    rate: float = _flat("warmup_learning_rate", _POSITIVE)
    rate_careful: float = _flat("warmup_lr_careful", _POSITIVE)
    rate_refinement: float = _flat("warmup_lr_refinement", _POSITIVE)

    def _agree(self) -> None:
        if self.detects_warm_start:
            Number(above=0.0, below=1.0)("warm_start_threshold", self.warm_start_threshold)
        if self.guards_cost:
            Number(least=0.0, most=1.0)("cost_increase_tolerance", self.cost_tolerance)
        if self.clips_steps:
            _POSITIVE("max_warmup_step_size", self.max_step)
        if self.adapts_step:
            _at_most("warmup_lr_refinement", self.rate_refinement, "warmup_lr_careful", self.rate_careful)
            _at_most("warmup_lr_careful", self.rate_careful, "warmup_learning_rate", self.rate)


@dataclass(frozen=True, slots=True)
class GaussNewtonOptions(_Options):
    """Phase 2."""

    max_iterations: int = _flat("gauss_newton_max_iterations", _AT_LEAST_ONE)
    tol: float = _flat("gauss_newton_tol", _POSITIVE)
    initial_radius: float = _flat("trust_region_initial", _POSITIVE)
    ridge: float = _flat("regularization_factor", Number(least=0.0))


@dataclass(frozen=True, slots=True)
class ConjugateOptions(_Options):
    """Phase 2 for many parameters: conjugate gradients without a matrix."""

    max_iterations: int = _flat("cg_max_iterations", _AT_LEAST_ONE)
    rtol: float = _flat("cg_relative_tolerance", _POSITIVE)
    atol: float = _flat("cg_absolute_tolerance", _POSITIVE)
    threshold: int = _flat("cg_param_threshold", _AT_LEAST_ONE)


@dataclass(frozen=True, slots=True)
class PenaltyOptions(_Options):
    """What is added to the sse: the variance of groups of parameters."""

    group_variance: bool = _flat("enable_group_variance_regularization", Flag())
    strength: float = _flat("group_variance_lambda", _POSITIVE)
    groups: tuple[tuple[int, int], ...] | None = _flat("group_variance_indices", index_pairs)

    def _agree(self) -> None:
        if self.group_variance and self.groups is None:
            raise refuse(
                "enable_group_variance_regularization",
                self.group_variance,
                "give the groups as group_variance_indices=[(start, end), ...]",
            )
        if self.groups is not None and not self.group_variance:
            raise refuse(
                "group_variance_indices",
                list(self.groups),
                "it has no effect without enable_group_variance_regularization=True",
            )


@dataclass(frozen=True, slots=True)
class WeightOptions(_Options):
    """Weights of groups of points; those of a fit may still be set later."""

    weighted: bool = _flat("enable_residual_weighting", Flag())
    values: NDArray[np.float64] | None = _flat(  # noqa: RUF009 - it is dataclasses.field
        "residual_weights", group_weights
    )

    def _agree(self) -> None:
        if self.values is not None and not self.weighted:
            raise refuse(
                "residual_weights",
                self.values.tolist(),
                "they have no effect without enable_residual_weighting=True",
            )


@dataclass(frozen=True, slots=True)
class DataOptions(_Options):
    """How rows are read and stored."""

    chunk_rows: int = _flat("chunk_size", _AT_LEAST_ONE)
    release_every: int = _flat("gc_chunk_interval", _AT_LEAST_ONE)
    loop: str = _flat("loop_strategy", Choice(("auto", "scan", "loop")))
    precision: str = _flat("precision", Choice(("float64", "float32", "auto")))
    validate: bool = _flat("validate_numerics", Flag())
    multi_device: bool = _flat("enable_multi_device", Flag())
    n_threads: int | None = _flat("n_threads", Or(None, _AT_LEAST_ONE))


@dataclass(frozen=True, slots=True)
class CheckpointOptions(_Options):
    """Where a fit is kept while it runs."""

    enabled: bool = _flat("enable_checkpoints", Flag())
    every: int = _flat("checkpoint_frequency", _AT_LEAST_ONE)
    folder: str | None = _flat("checkpoint_dir", Or(None, Path()))
    resume: str | None = _flat("resume_from_checkpoint", Or(None, Path()))


@dataclass(frozen=True, slots=True)
class FaultOptions(_Options):
    """What happens to rows that cannot be read; `min_success` is 1 unless it was asked for."""

    tolerant: bool = _flat("enable_fault_tolerance", Flag())
    retries: int = _flat("max_retries_per_batch", Whole(0))
    min_success: float = _flat("min_success_rate", success_share)


@dataclass(frozen=True, slots=True)
class ReportOptions(_Options):
    """What a running fit tells."""

    callback_every: int = _flat("callback_frequency", _AT_LEAST_ONE)
    verbose: int = _flat("verbose", Whole(0, 2))
    log_every: int = _flat("log_frequency", _AT_LEAST_ONE)


@dataclass(frozen=True, slots=True)
class MultistartOptions(_Options):
    """The tournament of starting points before phase 1."""

    enabled: bool = _flat("enable_multistart", Flag())
    n_starts: int = _flat("n_starts", Whole(0))
    sampler: str = _flat("multistart_sampler", Choice(("lhs", "sobol", "halton")))
    rounds: int = _flat("elimination_rounds", Whole(0))
    fraction: float = _flat("elimination_fraction", Number(above=0.0, below=1.0))
    batches: int = _flat("batches_per_round", _AT_LEAST_ONE)
    center: bool = _flat("center_on_p0", Flag())
    scale: float = _flat("scale_factor", _POSITIVE)

    def _agree(self) -> None:
        if self.enabled and self.n_starts == 0:
            wanted = "an integer ≥ 1 is needed with enable_multistart=True; for p0 alone leave that False"
            raise refuse("n_starts", self.n_starts, wanted)


@dataclass(frozen=True, slots=True)
class ScheduleOptions(_Options):
    """A learning-rate schedule, which there is none of: understood and refused."""

    used: bool = _flat(
        "use_learning_rate_schedule", Choice((False, True), {True: _NO_SCHEDULE + "; leave it False"})
    )
    warmup_steps: int = _flat(
        "lr_schedule_warmup_steps", Fixed(SCHEDULE_WARMUP_STEPS, Whole(0), _NO_SCHEDULE)
    )
    decay_steps: int = _flat(
        "lr_schedule_decay_steps", Fixed(SCHEDULE_DECAY_STEPS, _AT_LEAST_ONE, _NO_SCHEDULE)
    )
    end_value: float = _flat(
        "lr_schedule_end_value", Fixed(SCHEDULE_END_VALUE, _POSITIVE, _NO_SCHEDULE)
    )


@dataclass(frozen=True, slots=True)
class CheckOptions(_Options):
    """How the answer is judged."""

    covariance_method: str = _flat(
        "covariance_method",
        Choice(("auto", "normal", "qr")),
    )
    second_opinion: bool | str = _flat(
        "second_opinion",
        Choice(("auto", False, True)),
    )


@dataclass(frozen=True, slots=True)
class Groups:
    """All options of a fit, validated."""

    setup: SetupOptions
    multistart: MultistartOptions
    warmup: WarmupOptions
    defense: DefenseOptions
    schedule: ScheduleOptions
    gauss_newton: GaussNewtonOptions
    cg: ConjugateOptions
    penalty: PenaltyOptions
    weights: WeightOptions
    data: DataOptions
    faults: FaultOptions
    checkpoint: CheckpointOptions
    checks: CheckOptions
    report: ReportOptions

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Groups:
        """Group and validate the values of all fields of a `HybridStreamingConfig`."""
        made: dict[str, Any] = {
            group: kind(**{name: values[flat] for name, flat, _ in _MAPPED[kind]})
            for group, kind in _KINDS.items()
        }
        return cls(**made)

    def updated(self, values: Mapping[str, Any]) -> Groups:
        """The same options but for these flat fields; only their groups are validated anew."""
        if not values:
            return self
        changed: dict[str, dict[str, Any]] = {}
        for flat, value in values.items():
            group, name = OWNERS[flat]
            changed.setdefault(group, {})[name] = value
        made: dict[str, Any] = {
            group: replace(getattr(self, group), **those) for group, those in changed.items()
        }
        return replace(self, **made)


def _at_most(name: str, value: float, other: str, limit: float) -> None:
    if value > limit:
        raise refuse(name, value, f"at most {other}={limit!r} is allowed; change one of them")


_KINDS: dict[str, type[_Options]] = typing.get_type_hints(Groups)
# (field, flat name, rule) of each group
_MAPPED: dict[type[_Options], tuple[tuple[str, str, Rule], ...]] = {
    kind: tuple((f.name, f.metadata["flat"], f.metadata["rule"]) for f in fields(kind))
    for kind in _KINDS.values()
}
OWNERS: Mapping[str, tuple[str, str]] = {
    flat: (group, name) for group, kind in _KINDS.items() for name, flat, _ in _MAPPED[kind]
}
"""(group, field) by flat name, in the order of the groups."""
