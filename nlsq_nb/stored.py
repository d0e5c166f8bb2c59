"""Results as plain data, for JSON and back: numbers, names and the model's graph, no code."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from nlsq_nb.config.flat import changed
from nlsq_nb.config.given import config_from
from nlsq_nb.config.groups import Groups
from nlsq_nb.errors import DataError, ModelError, NlsqError
from nlsq_nb.models.symbolic import Model
from nlsq_nb.phases.state import StopReason
from nlsq_nb.protocols import Refit

__all__ = ["Behind", "from_data", "to_data"]

_FORMAT = 1
_FOR_READERS = ("reduced_chi2", "r_squared", "aic", "bic", "params")  # they follow from the rest
_FIELDS: dict[str, type[Any]] = {
    "message": str, "sse": float, "cost": float, "loss": str, "f_scale": float, "n_points": int, "dof": int,
    "nit": int, "nfev": int, "njev": int, "optimality": float, "spread": float, "backend": str,
    "absolute_sigma": bool, "weight": float,
}  # fmt: skip
_ARRAYS = {"popt": float, "pcov": float, "grad": float, "active_mask": int}
_DIAGNOSTICS = ("phase_timings", "phase_iterations", "total_time", "data_passes", "sample_passes", "condition")


@dataclass(frozen=True, slots=True)
class Behind:
    """What a result can tell beyond its numbers, made when it is asked for.

    Attributes
    ----------
    diagnose : callable
        Makes `streaming_diagnostics`.
    residuals : callable or None
        Makes what computes them; None where the data are not known.
    refit : callable or None
        Makes what fits again with a parameter held.
    """

    diagnose: Callable[[], dict[str, Any]] = dict
    residuals: Callable[[], Any] | None = None
    refit: Callable[[], Refit] | None = None


def to_data(result: Any, options: Groups) -> dict[str, Any]:
    """A result as JSON-ready data.

    Parameters
    ----------
    result : FitResult
        What to store.
    options : Groups
        Of its fit.

    Returns
    -------
    dict
        Read back by `from_data`; infinities and nan are strings.
    """
    data: dict[str, Any] = {"format": _FORMAT, "success": result.success, "status": result.status.name}
    data |= {name: result[name] for name in (*_FIELDS, *_FOR_READERS, *_ARRAYS)}
    data |= {"names": result.names, "bounds": result.bounds, "linear": result.linear, "notes": result.notes}
    data["model"] = result.model_text
    data["definition"] = _definition(result)
    data["config"] = {name: _path(value) for name, value in changed(options).items()}
    known = result.streaming_diagnostics
    data["streaming_diagnostics"] = {name: known[name] for name in _DIAGNOSTICS if name in known}
    plain: dict[str, Any] = _plain(data)
    return plain


def from_data(text: str) -> dict[str, Any]:
    """The arguments of a `FitResult` from JSON.

    Parameters
    ----------
    text : str
        `to_data`'s data in JSON.

    Returns
    -------
    dict
        Keyword arguments, but for what needs the data.

    Raises
    ------
    DataError
        When the text does not describe a result.
    """
    try:
        data = json.loads(text)
        if data["format"] != _FORMAT:
            raise DataError(f"result format {data['format']!r} is not known here")
        found = _read(data)
    except (KeyError, IndexError, TypeError, ValueError, RecursionError, NlsqError) as error:
        if type(error) is DataError:
            raise
        raise DataError(f"the text does not describe a result: {error!r}") from None
    return found


def _read(data: dict[str, Any]) -> dict[str, Any]:
    status, names = StopReason[data["status"]], tuple(map(str, data["names"]))
    found: dict[str, Any] = {name: _field(name, kind, data[name]) for name, kind in _FIELDS.items()}
    found |= {name: np.array(_number(data[name]), dtype=kind) for name, kind in _ARRAYS.items()}
    low, high = (np.array(_number(side), dtype=np.float64) for side in data["bounds"])
    p = len(names)
    shapes = (found["popt"].shape, found["grad"].shape, found["active_mask"].shape, low.shape, high.shape)
    if set(shapes) != {(p,)} or found["pcov"].shape != (p, p):
        raise DataError(f"the arrays of the stored result are not those of {p} parameters")
    definition = data["definition"]
    model = None if definition is None else Model.from_json(json.dumps(definition))
    if model is not None and model.params != names:
        raise DataError("the stored model has other parameters than the stored result")
    return found | {
        "names": names,
        "success": status.success,
        "status": status,
        "bounds": (low, high),
        "linear": tuple(data["linear"]),
        "notes": tuple(data["notes"]),
        "model_text": str(data["model"]),
        "_behind": Behind(partial(dict, _number(data["streaming_diagnostics"]))),
        "_model": model,
        "_options": config_from(None, {**data["config"]}),
    }


def _field(name: str, kind: type[Any], stored: Any) -> Any:
    """A number, a text or a flag of a result, if it is one."""
    value = _number(stored) if kind is float else stored
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise TypeError(f"{name}={stored!r} is not of type {kind.__name__}")
    return kind(value)


def _definition(result: Any) -> Any:
    """The model as data; None for one of Python functions."""
    try:
        return json.loads(result.model.to_json())
    except (ModelError, DataError):
        return None


def _path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _plain(value: Any) -> Any:
    """Without arrays, tuples and what JSON has no numbers for."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _number(value: Any) -> Any:
    """What `_plain` was given, arrays as lists."""
    if isinstance(value, dict):
        return {key: _number(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_number(item) for item in value]
    return float(value) if value in ("inf", "-inf", "nan") else value
