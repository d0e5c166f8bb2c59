"""The grouped form of the options that the library reads; defaults live in `flat`."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, field, fields
from typing import Any

from nlsq_nb.core.normalize import STRATEGIES
from nlsq_nb.errors import ConfigError

__all__ = ["DataOptions", "GaussNewtonOptions", "Groups", "ReportOptions", "SetupOptions"]


def _flat(name: str) -> Any:
    """A group field and the flat field that it is called by users."""
    return field(metadata={"flat": name})


@dataclass(frozen=True, slots=True)
class SetupOptions:
    """Phase 0: scales and structure."""

    normalize: bool = _flat("normalize")
    strategy: str = _flat("normalization_strategy")
    separable: bool | str = _flat("separable")

    def __post_init__(self) -> None:
        """Validate."""
        _boolean("normalize", self.normalize)
        _one_of("normalization_strategy", self.strategy, STRATEGIES)
        if self.separable != "auto":
            _boolean("separable", self.separable, "True, False or 'auto'")


@dataclass(frozen=True, slots=True)
class GaussNewtonOptions:
    """Phase 2."""

    max_iterations: int = _flat("gauss_newton_max_iterations")
    tol: float = _flat("gauss_newton_tol")
    initial_radius: float = _flat("trust_region_initial")
    ridge: float = _flat("regularization_factor")

    def __post_init__(self) -> None:
        """Validate."""
        _integer("gauss_newton_max_iterations", self.max_iterations, 1)
        _real("gauss_newton_tol", self.tol, above=0.0)
        _real("trust_region_initial", self.initial_radius, above=0.0)
        _real("regularization_factor", self.ridge, least=0.0)


@dataclass(frozen=True, slots=True)
class DataOptions:
    """How rows are read and stored."""

    chunk_rows: int = _flat("chunk_size")
    precision: str = _flat("precision")
    validate: bool = _flat("validate_numerics")
    n_threads: int | None = _flat("n_threads")

    def __post_init__(self) -> None:
        """Validate."""
        _integer("chunk_size", self.chunk_rows, 1)
        _one_of("precision", self.precision, ("float64", "float32", "auto"))
        _boolean("validate_numerics", self.validate)
        if self.n_threads is not None:
            _integer("n_threads", self.n_threads, 1)


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What a running fit tells."""

    callback_every: int = _flat("callback_frequency")
    verbose: int = _flat("verbose")
    log_every: int = _flat("log_frequency")

    def __post_init__(self) -> None:
        """Validate."""
        _integer("callback_frequency", self.callback_every, 1)
        _integer("log_frequency", self.log_every, 1)
        _integer("verbose", self.verbose, 0)
        if self.verbose > 2:
            raise ConfigError(f"verbose={self.verbose!r}; 0, 1 or 2")


@dataclass(frozen=True, slots=True)
class Groups:
    """All options of a fit, validated."""

    setup: SetupOptions
    gauss_newton: GaussNewtonOptions
    data: DataOptions
    report: ReportOptions

    @classmethod
    def from_flat(cls, flat: Any) -> Groups:
        """Group the fields of a `HybridStreamingConfig`."""
        kinds = (SetupOptions, GaussNewtonOptions, DataOptions, ReportOptions)
        return cls(*(  # type: ignore[arg-type]
            kind(**{f.name: getattr(flat, f.metadata["flat"]) for f in fields(kind)})
            for kind in kinds
        ))


def _boolean(name: str, value: Any, wanted: str = "True or False") -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r}; {wanted} is needed")


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}={value!r}; choose one of {', '.join(choices)}")


def _integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ConfigError(f"{name}={value!r}; an integer ≥ {least} is needed")


def _real(
    name: str, value: Any, above: float | None = None, least: float | None = None
) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(value):
        raise ConfigError(f"{name}={value!r}; a number is needed")
    if above is not None and not float(value) > above:
        raise ConfigError(f"{name}={value!r}; a number > {above:g} is needed")
    if least is not None and not float(value) >= least:
        raise ConfigError(f"{name}={value!r}; a number ≥ {least:g} is needed")
