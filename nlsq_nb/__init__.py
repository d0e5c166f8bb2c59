"""Nonlinear least squares from algebra: models become native kernels with exact derivatives.

Write a model once, as text, as a SymPy expression or as a NumPy-style function, and fit it:

>>> from nlsq_nb import curve_fit
>>> result = curve_fit("a*x + b", [0, 1, 2, 3], [1.0, 3.1, 4.9, 7.0])
>>> result.popt.round(3).tolist()
[1.98, 1.03]
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

__version__ = "0.1.0"

# a library says nothing unless the application listens, warnings included
logging.getLogger(__name__).addHandler(logging.NullHandler())

_PUBLIC = {
    "AdaptiveHybridStreamingOptimizer": "optimizer",
    "DefenseLayerTelemetry": "observe.telemetry",
    "FitResult": "result",
    "ManyFits": "many",
    "GlobalOptimizationConfig": "config.global_search",
    "HDF5Source": "sources.hdf5",
    "HybridStreamingConfig": "config.flat",
    "Model": "models.symbolic",
    "NormalizedModelWrapper": "models.wrapper",
    "ParameterNormalizer": "core.normalize",
    "TournamentSelector": "phases.tournament",
    "curve_fit": "api",
    "fit_many": "many",
    "get_defense_telemetry": "observe.telemetry",
    "halton_sample": "core.sampling",
    "latin_hypercube_sample": "core.sampling",
    "reset_defense_telemetry": "observe.telemetry",
    "sobol_sample": "core.sampling",
    "BackendUnavailable": "errors",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "ConvergenceWarning": "errors",
    "CovarianceWarning": "errors",
    "DataError": "errors",
    "MissingDependency": "errors",
    "ModelError": "errors",
    "NlsqError": "errors",
    "NumericsError": "errors",
    "SourceError": "errors",
    "StopFit": "errors",
    "TracingError": "errors",
    "UnsupportedOption": "errors",
}
__all__ = sorted(_PUBLIC)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'nlsq_nb' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"nlsq_nb.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names."""
    return [*__all__, "__version__"]
