"""`HybridStreamingConfig`: every option under its public, flat name, with its default."""

from __future__ import annotations

import difflib
import functools
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from numpy.typing import ArrayLike

from nlsq_nb.config import groups as grouped
from nlsq_nb.config.explain import describe, same
from nlsq_nb.config.groups import OWNERS, Groups
from nlsq_nb.config.named import Named
from nlsq_nb.config.rules import Unasked

__all__ = ["HybridStreamingConfig", "changed", "grouped_by_need", "refuse_unknown", "values_of"]

# what SciPy's solvers call them
_SCIPY = {
    "maxfev": "gauss_newton_max_iterations",
    "max_nfev": "gauss_newton_max_iterations",
    "ftol": "gauss_newton_tol",
    "xtol": "gauss_newton_tol",
    "gtol": "gauss_newton_tol",
}


@dataclass(slots=True)
class HybridStreamingConfig(Named):
    """Options of a fit.

    Lengths of steps are in normalised parameters z, where θ = S z + o.

    Parameters
    ----------
    normalize : bool
        Whether parameters are scaled before phases that depend on their scale.
    normalization_strategy : {"auto", "bounds", "p0", "none"}
        Where the scales come from; auto: finite bounds, else p0.
    warmup_iterations : int
        Iterations of the warm-up (phase 1) before which a plateau must last for three iterations;
        from there on one is enough. At most `max_warmup_iterations`.
    max_warmup_iterations : int
        Largest number of iterations of the warm-up.
    loss_plateau_threshold : float
        Relative change of the loss in an iteration that counts as a plateau.
    gradient_norm_threshold : float
        Norm of the gradient of the loss by z, in units of the variance of y, that counts as flat.
    active_switching_criteria : list of {"plateau", "gradient", "max_iter"}
        What may end the warm-up.
    lbfgs_history_size : int
        Pairs of steps and gradients that L-BFGS remembers.
    lbfgs_initial_step_size : float
        Length of the first trial step when `enable_adaptive_warmup_lr` is off.
    lbfgs_exploration_step_size : float
        Length of the first trial step from a poor start (relative loss ≥ 1).
    lbfgs_careful_step_size : float
        Length of the first trial step from a middling start (relative loss < 1).
    lbfgs_refinement_step_size : float
        Length of the first trial step from a good start (relative loss < 0.1).
    lbfgs_line_search : {"wolfe", "strong_wolfe", "backtracking"}
        What a trial step must fulfil: sufficient decrease and a weak or a strong condition on the
        slope, or sufficient decrease alone.
    warmup_learning_rate : float
        Relative length of the first trial step from a poor start, and when
        `enable_adaptive_warmup_lr` is off: value / default multiplies the step size.
    warmup_lr_careful : float
        The same from a middling start; at most `warmup_learning_rate` while the layer is on.
    warmup_lr_refinement : float
        The same from a good start; at most `warmup_lr_careful` while the layer is on.
    gradient_clip_value : float, optional
        Largest norm of the gradient that a direction of the warm-up is made from, in normalised
        parameters and units of the variance of y; None: no limit.
    enable_warm_start_detection : bool
        Layer 1: whether the warm-up is skipped from a very good start.
    warm_start_threshold : float
        Relative loss (MSE over the variance of y) below which a start is very good; in (0, 1).
    enable_adaptive_warmup_lr : bool
        Layer 2: whether the first trial step follows the quality of the start.
    enable_cost_guard : bool
        Layer 3: whether the warm-up is abandoned when the loss rises.
    cost_increase_tolerance : float
        Relative rise above the lowest loss that is tolerated; in [0, 1].
    enable_step_clipping : bool
        Layer 4: whether the steps of the warm-up are limited.
    max_warmup_step_size : float
        Longest step of the warm-up.
    gauss_newton_max_iterations : int
        Largest number of Gauss–Newton trials.
    gauss_newton_tol : float
        Relative offset (sine of the angle between residuals and tangent plane) at which the fit
        has converged.
    trust_region_initial : float
        Longest first step of Gauss–Newton.
    regularization_factor : float
        Relative ridge where JᵀWJ is numerically singular.
    cg_max_iterations : int
        Largest number of conjugate-gradient iterations for a step.
    cg_relative_tolerance : float
        Residual of the linear system, relative to the gradient, at which a step is good enough.
    cg_absolute_tolerance : float
        The same as an absolute number.
    cg_param_threshold : int
        Parameters from which JᵀWJ is no longer formed and steps come from conjugate gradients.
    enable_group_variance_regularization : bool
        Whether λ·n·Σ Var(θ[start:end]) is added to the sum of squares; needs
        `group_variance_indices`.
    group_variance_lambda : float
        λ.
    group_variance_indices : list of (int, int), optional
        The ranges (start, end) of parameters, 0 ≤ start < end.
    enable_residual_weighting : bool
        Whether points are weighted by groups.
    residual_weights : array_like, shape (n_groups,), optional
        Positive weights; that of a point is `residual_weights[int(first column of x)]`. None: they
        are set on the optimizer. Needs `enable_residual_weighting`.
    chunk_size : int
        Rows handed to the backend at a time, rounded up to whole blocks; arrays in memory, where
        nothing has to be read, are handed over in chunks of 4,194,304 rows at least.
    gc_chunk_interval : int
        Chunks between two releases of the read buffers.
    loop_strategy : {"auto", "scan", "loop"}
        On a GPU: one launch over the resident data (scan) or one per chunk (loop).
    precision : {"float64", "float32", "auto"}
        Storage of the data; auto keeps the dtype of the data. Sums are float64 always.
    enable_checkpoints : bool
        Whether the fit is saved while it runs; without `checkpoint_dir` nothing is written.
    checkpoint_frequency : int
        Iterations between checkpoints.
    checkpoint_dir : str or os.PathLike, optional
        Folder of the checkpoints.
    resume_from_checkpoint : str or os.PathLike, optional
        Checkpoint from which the fit goes on.
    validate_numerics : bool
        Whether the data are checked for non-finite values before the fit.
    enable_fault_tolerance : bool
        Whether reading a chunk is tried again after an I/O error.
    max_retries_per_batch : int
        How often.
    min_success_rate : float
        Smallest share of chunks that must be readable for the fit to go on without the others.
        Takes effect only where it is given: by default a chunk that stays unreadable is an error.
    enable_multi_device : bool
        Divide data of the host among all GPUs; needs the CUDA backend.
    callback_frequency : int
        Iterations between calls of the callback.
    verbose : {0, 1, 2}
        0 silent, 1 a line per iteration, 2 with the parameters.
    log_frequency : int
        Iterations between log lines.
    enable_multistart : bool
        Whether several starts compete before phase 1; p0 always takes part.
    n_starts : int
        How many beside p0; at least 1 when the tournament is on.
    multistart_sampler : {"lhs", "sobol", "halton"}
        How starts are drawn: Latin hypercube, Sobol or Halton sequence.
    elimination_rounds : int
        Rounds of the tournament.
    elimination_fraction : float
        Share of the starts that leaves in a round; in (0, 1).
    batches_per_round : int
        Pieces of the data that each start is measured on in a round.
    center_on_p0 : bool
        Whether finite bounds are searched around p0 only.
    scale_factor : float
        Size of the region around p0; 1 reaches as far as the bounds are apart.
    use_learning_rate_schedule, lr_schedule_warmup_steps, lr_schedule_decay_steps, lr_schedule_end_value : object
        Refused unless left alone: L-BFGS has a line search, not a schedule.
    separable : bool or "auto"
        Whether parameters that enter linearly are eliminated (variable projection).
    warmup_sample_size : int or "auto"
        Rows that the warm-up looks at; auto: all up to 8,192, else a quarter, about 16,384 at most.
    covariance_method : {"auto", "normal", "qr"}
        Source of errors and last digits: JᵀWJ; QR of J, at least one pass more; that where JᵀWJ is ill-conditioned.
    second_opinion : bool or "auto"
        Whether other starts are tried after the fit; auto: where residuals or the stop raise a doubt.
    n_threads : int, optional
        Threads; the cores available by default. Any number gives the same bits.
    random_seed : int
        Seed of samples and of multistart.

    Raises
    ------
    TypeError
        For a name that is not an option; names the closest one.
    ConfigError
        For an invalid value or combination; the text begins with the option's name.
    UnsupportedOption
        For what is understood but not honoured; the text begins with the option's name.

    Examples
    --------
    >>> from nlsq_nb import HybridStreamingConfig
    >>> config = HybridStreamingConfig.aggressive(verbose=0)
    >>> config.max_warmup_iterations
    100
    """

    normalize: bool = True
    normalization_strategy: str = "auto"
    warmup_iterations: int = 200
    max_warmup_iterations: int = 500
    loss_plateau_threshold: float = 1e-4
    gradient_norm_threshold: float = 1e-3
    active_switching_criteria: Sequence[str] = field(
        default_factory=lambda: ["plateau", "gradient", "max_iter"]
    )
    lbfgs_history_size: int = 10
    lbfgs_initial_step_size: float = 0.1
    lbfgs_exploration_step_size: float = 0.1
    lbfgs_careful_step_size: float = 0.5
    lbfgs_refinement_step_size: float = 1.0
    lbfgs_line_search: str = "wolfe"
    warmup_learning_rate: float = grouped.DEFAULT_RATE
    warmup_lr_careful: float = grouped.DEFAULT_RATE_CAREFUL
    warmup_lr_refinement: float = grouped.DEFAULT_RATE_REFINEMENT
    gradient_clip_value: float | None = None
    enable_warm_start_detection: bool = True
    warm_start_threshold: float = 0.01
    enable_adaptive_warmup_lr: bool = True
    enable_cost_guard: bool = True
    cost_increase_tolerance: float = 0.05
    enable_step_clipping: bool = True
    max_warmup_step_size: float = 0.1
    gauss_newton_max_iterations: int = 100
    gauss_newton_tol: float = 1e-8
    trust_region_initial: float = 1.0
    regularization_factor: float = 1e-10
    cg_max_iterations: int = 100
    cg_relative_tolerance: float = 1e-4
    cg_absolute_tolerance: float = 1e-10
    cg_param_threshold: int = 2000
    enable_group_variance_regularization: bool = False
    group_variance_lambda: float = 0.01
    group_variance_indices: Sequence[tuple[int, int]] | None = None
    enable_residual_weighting: bool = False
    residual_weights: ArrayLike | None = None
    chunk_size: int = 10_000
    gc_chunk_interval: int = 10
    loop_strategy: str = "auto"
    precision: str = "float64"
    enable_checkpoints: bool = True
    checkpoint_frequency: int = 100
    checkpoint_dir: str | os.PathLike[str] | None = None
    resume_from_checkpoint: str | os.PathLike[str] | None = None
    validate_numerics: bool = True
    enable_fault_tolerance: bool = True
    max_retries_per_batch: int = 2
    min_success_rate: float = Unasked(0.5)
    enable_multi_device: bool = False
    callback_frequency: int = 10
    verbose: int = 1
    log_frequency: int = 1
    enable_multistart: bool = False
    n_starts: int = 10
    multistart_sampler: str = "lhs"
    elimination_rounds: int = 3
    elimination_fraction: float = 0.5
    batches_per_round: int = 50
    center_on_p0: bool = True
    scale_factor: float = 1.0
    use_learning_rate_schedule: bool = False
    lr_schedule_warmup_steps: int = grouped.SCHEDULE_WARMUP_STEPS
    lr_schedule_decay_steps: int = grouped.SCHEDULE_DECAY_STEPS
    lr_schedule_end_value: float = grouped.SCHEDULE_END_VALUE
    separable: bool | str = "auto"
    warmup_sample_size: int | str = "auto"
    covariance_method: str = "auto"
    second_opinion: bool | str = "auto"
    n_threads: int | None = None
    random_seed: int = 0

    def __post_init__(self) -> None:
        """Validate by grouping."""
        self.groups()

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(same(value, getattr(other, name)) for name, value in values_of(self).items())

    def groups(self) -> Groups:
        """The frozen groups that the library reads.

        Returns
        -------
        Groups
            Validated anew, since fields may have been assigned to.
        """
        return grouped_by_need(values_of(self))

    def explain(self) -> str:
        """Every option by group, with what differs from the defaults marked.

        Returns
        -------
        str
            A line per option, for `print`.
        """
        return describe(values_of(self), _DEFAULTS)


_generated = HybridStreamingConfig.__init__
_DEFAULTS: dict[str, Any] = {
    f.name: f.default if f.default_factory is MISSING else f.default_factory()
    for f in fields(HybridStreamingConfig)
}
_read = operator.attrgetter(*_DEFAULTS)
_DEFAULT_GROUPS = Groups.from_flat(_DEFAULTS)


@functools.wraps(_generated)
def _init(self: HybridStreamingConfig, *args: Any, **named: Any) -> None:
    refuse_unknown(named)
    _generated(self, *args, **named)


HybridStreamingConfig.__init__ = _init  # type: ignore[method-assign]


def refuse_unknown(names: Iterable[str]) -> None:
    """Refuse a name that is not a field, naming the closest one."""
    for name in names:
        if name not in _DEFAULTS:
            close = [_SCIPY[name]] if name in _SCIPY else difflib.get_close_matches(name, _DEFAULTS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"unexpected keyword argument {name!r}{hint}")


def values_of(config: HybridStreamingConfig) -> dict[str, Any]:
    """Every field of a configuration."""
    return dict(zip(_DEFAULTS, _read(config), strict=True))


def grouped_by_need(values: Mapping[str, Any]) -> Groups:
    """Every fit groups its options, so what is the default itself is not validated again."""
    given = {}
    for name, value in values.items():
        default = _DEFAULTS[name]
        # each configuration has a list of its own
        if value is not default and not (type(value) is list and value == default):
            given[name] = value
    return _DEFAULT_GROUPS.updated(given)


def changed(options: Groups) -> dict[str, Any]:
    """The options that differ from the defaults, as keywords of `HybridStreamingConfig`.

    Parameters
    ----------
    options : Groups
        Validated.

    Returns
    -------
    dict
        Flat name -> value; grouped again they give equal options.
    """
    found = {}
    for name, (group, part) in OWNERS.items():
        value = getattr(getattr(options, group), part)
        if not same(value, getattr(getattr(_DEFAULT_GROUPS, group), part)):
            found[name] = value
    return found
