"""The exceptions and warnings of the library.

Every message says what went wrong, where (field, row, parameter or column) and what to do.
A fit that does not converge is a result, not an exception.
"""

from __future__ import annotations

__all__ = [
    "BackendUnavailable",
    "CheckpointError",
    "ConfigError",
    "ConvergenceWarning",
    "CovarianceWarning",
    "DataError",
    "MissingDependency",
    "ModelError",
    "NlsqError",
    "NumericsError",
    "SourceError",
    "StopFit",
    "TracingError",
    "UnsupportedOption",
]


class NlsqError(Exception):
    """Base of every error that the library raises on purpose."""


class ModelError(NlsqError, ValueError):
    """A model that cannot be read, differentiated or turned into a kernel."""


class TracingError(ModelError):
    """A Python function that cannot be traced into algebra; names the operation and the line."""


class ConfigError(NlsqError, ValueError):
    """An invalid option or an invalid combination of options; names the field."""


class UnsupportedOption(NlsqError):
    """An option that exists elsewhere but is not honoured here."""


class SourceError(NlsqError):
    """A data source that cannot be opened or read."""


class DataError(NlsqError, ValueError):
    """Data that cannot be fitted: wrong shape, wrong dtype, non-finite rows, too few rows."""


class BackendUnavailable(NlsqError, ImportError):
    """A backend was asked for that this machine cannot run; says what is missing."""


class MissingDependency(NlsqError, ImportError):
    """An optional package is needed and not installed; names the extra that brings it."""


class CheckpointError(NlsqError):
    """A checkpoint that cannot be written, read, or does not belong to this fit; says why."""


class NumericsError(NlsqError, ArithmeticError):
    """The model gives non-finite values where finite ones are required (at the start)."""


class StopFit(Exception):
    """Raised by a callback to end the fit with the best point found so far."""


class ConvergenceWarning(UserWarning):
    """The fit ended before a convergence test passed; the message says why."""


class CovarianceWarning(UserWarning):
    """The covariance could not be estimated for some parameters; the message names them."""
