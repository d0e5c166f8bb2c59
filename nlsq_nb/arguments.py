"""What users give as start, bounds and data source, read in one place for every entry point."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.columns import is_on_device, numeric
from nlsq_nb.core.losses import LEAST_SQUARES, LOSSES, Loss
from nlsq_nb.errors import ConfigError, DataError, SourceError, UnsupportedOption
from nlsq_nb.models.base import ModelBase
from nlsq_nb.models.symbolic import Model
from nlsq_nb.sources import as_source
from nlsq_nb.sources.dask_arrays import DaskArrays, is_dask
from nlsq_nb.sources.hdf5 import HDF5Source

__all__ = ["FitCall", "read_bounds", "read_call", "read_data", "read_loss", "read_start", "rows_of", "values_in"]

Floats = NDArray[np.float64]
_FARTHEST = 1e100  # bounds beyond it are written for inf: the middle between them is no start
_SHOWN = 6  # parameters that a message writes out
_LEAST_SCALE = 1e-150  # whose square is a number, and one over it


def rows_of(ydata: Any) -> int:
    """Rows of the observations; 1 for a scalar."""
    try:
        return int(np.shape(ydata)[-1]) if np.ndim(ydata) else 1
    except ValueError:  # ragged: the source says so
        return len(ydata)


def values_in(p0: Any) -> int | None:
    """How many values a start has; None without one."""
    if p0 is None:
        return None
    if isinstance(p0, (Mapping, list, tuple)):
        return len(p0)
    return numeric(p0, "p0").size if is_on_device(p0) else int(np.size(p0))  # what is wrong with others is said later


@dataclass(frozen=True, slots=True)
class FitCall:
    """The arguments of `AdaptiveHybridStreamingOptimizer.fit`, whatever style they came in.

    Attributes
    ----------
    func : Any
        The model.
    x, y : Any
        Data.
    source : Source or Unread or None
        Where rows come from, instead of x and y.
    p0, bounds, sigma : Any
        As given.
    absolute_sigma : bool
        Whether sigma is taken as it is.
    callback : callable or None
        As given.
    verbose : int or None
        None follows the configuration.
    loss, f_scale : Any
        As given.
    engine : Any
        Where passes run; see `cluster_of`.
    """

    func: Any = None
    x: Any = None
    y: Any = None
    source: Any = None
    p0: Any = None
    bounds: Any = None
    sigma: Any = None
    absolute_sigma: bool = False
    callback: Any = None
    verbose: int | None = None
    loss: Any = "linear"
    f_scale: Any = 1.0
    engine: Any = None


_FREE = (-np.inf, np.inf)
_REST = ("p0", "bounds", "sigma", "absolute_sigma", "callback", "verbose", "loss", "f_scale")
_SPELLINGS = {"model": "func", "x_data": "x", "y_data": "y", "data_source": "data"}


def read_call(args: tuple[Any, ...], named: dict[str, Any]) -> FitCall:
    """Read `fit(data, func, p0, …)`, `fit(model, x, y, p0, …)` or `fit(model=, x_data=, y_data=, …)`.

    Parameters
    ----------
    args : tuple
        Positional arguments.
    named : dict
        Keyword arguments.

    Returns
    -------
    FitCall
        One form of all.

    Raises
    ------
    TypeError
        For unknown, repeated or missing arguments.
    SourceError
        For a data source of an unknown kind.
    """
    by_model = bool(args) and _is_model(args[0]) and not (len(args) > 1 and _is_model(args[1]))
    order = (("func", "x", "y") if by_model else ("data", "func")) + _REST
    if len(args) > len(order):
        raise TypeError(f"fit takes at most {len(order)} positional arguments, {len(args)} were given")
    found = dict(zip(order, args, strict=False))
    known = {"data", *(f.name for f in fields(FitCall))} - {"source"}
    for name, value in named.items():
        key = _SPELLINGS.get(name, name)
        if key not in known:
            raise TypeError(f"fit got an unexpected keyword argument {name!r}")
        if key in found:
            raise TypeError(f"fit got two values for {name!r}")
        found[key] = value
    if "data" in found:
        if "x" in found or "y" in found:
            raise TypeError("fit takes either data_source or x_data and y_data, not both")
        found |= read_data(found.pop("data"), found.get("sigma"))
    elif found.get("x") is not None and found.get("y") is not None:
        found |= read_data((found["x"], found["y"]), found.get("sigma"))
    for key, name in (("func", "model"), ("x", "x_data"), ("y", "y_data")):
        if found.get(key) is None and not (key != "func" and found.get("source") is not None):
            raise TypeError(f"fit needs {name}: give fit((x, y), model, p0) or fit(model, x, y, p0)")
    return FitCall(**found)


def _is_model(value: Any) -> bool:
    return isinstance(value, (str, ModelBase)) or callable(value) or hasattr(value, "free_symbols")


def read_data(data: Any, sigma: Any) -> dict[str, Any]:
    """What one argument gives instead of x and y.

    Parameters
    ----------
    data : tuple, list, or anything that `as_source` takes
        (x, y) or (x, y, sigma), or where rows come from.
    sigma : array_like or None
        Given beside it.

    Returns
    -------
    dict
        x, y and sigma, or source.

    Raises
    ------
    SourceError
        For a data source of an unknown kind.
    TypeError
        When sigma is given twice.
    """
    if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
        if type(data).__module__.startswith("h5py"):
            raise SourceError(f"{data!r} is open: give the path of the file, or HDF5Source(path, x=…, y=…)")
        if isinstance(data, (np.ndarray, Mapping)) or hasattr(data, "columns"):
            raise SourceError("ydata is missing: give x and y, one (x, y), or another source of rows")
        source = as_source(data)
        if sigma is not None:
            raise TypeError("a source brings its own weights; sigma cannot be given beside it")
        return {"source": source}
    if len(data) == 3 and sigma is not None:
        raise TypeError("sigma is given twice: in the data source and as an argument")
    x, y, sigma = data[0], data[1], data[2] if len(data) == 3 else sigma
    if isinstance(x, HDF5Source) or (callable(x) and not hasattr(x, "__array__")):
        raise SourceError(f"xdata is a source of rows ({type(x).__name__}), which has y too: leave ydata out")
    if any(map(is_dask, (x, y, sigma))):
        return {"source": DaskArrays(x, y, sigma), "x": None, "y": None, "sigma": None}
    return {"x": x, "y": y, "sigma": sigma}


def read_loss(loss: Any, f_scale: Any) -> Loss:
    """The loss that a fit minimises.

    Parameters
    ----------
    loss : str
        One of `core.losses.LOSSES`.
    f_scale : float
        Positive; of no meaning for "linear".

    Returns
    -------
    Loss
        Least squares for "linear", whatever the scale is.

    Raises
    ------
    ConfigError
        For an unknown loss, or a scale that is not a positive number whose square is one.
    UnsupportedOption
        For a function as loss, which SciPy takes.
    """
    if callable(loss):
        raise UnsupportedOption(f"loss is a function; choose one of {', '.join(LOSSES)}")
    if loss not in LOSSES:
        raise ConfigError(f"loss={loss!r} is not one of {', '.join(LOSSES)}")
    try:
        scale = math.nan if isinstance(f_scale, (str, bytes, bool)) else float(f_scale)
    except (TypeError, ValueError):
        scale = math.nan
    if not _LEAST_SCALE <= scale <= 1.0 / _LEAST_SCALE:
        raise ConfigError(f"f_scale={reprlib.repr(f_scale)} is not a positive, finite number")
    return Loss(loss, scale) if loss != "linear" else LEAST_SQUARES


def read_bounds(bounds: Any, model: Model) -> tuple[Floats, Floats]:
    """Lower and upper bounds of every parameter.

    Parameters
    ----------
    bounds : (array_like, array_like), scipy.optimize.Bounds, mapping or None
        Scalars or one value per parameter; a mapping holds (lower, upper) by name.
    model : Model
        Names the parameters.

    Returns
    -------
    tuple of ndarray, each (p,)
        ±inf where there is none.

    Raises
    ------
    DataError
        For anything else, and for bounds that no number meets, naming the parameter.
    """
    p, names, given = model.n_params, model.params, bounds
    if bounds is None or bounds is _FREE or (type(bounds) is tuple and _is_free(bounds)):
        return _unbounded(p)
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        bounds = (bounds.lb, bounds.ub)
    if isinstance(bounds, Mapping):
        _require_known(bounds, names, "bounds")
        bounds = tuple(zip(*(_pair(bounds, name) for name in names), strict=True))
    if isinstance(bounds, AbstractSet):
        raise DataError("bounds are a set, which has no order; give (lower, upper)")
    _refuse_pairs(bounds, p)
    try:
        lower, upper = (_side(b, end) for b, end in zip(bounds, (-np.inf, np.inf), strict=True))
        low, high = (np.broadcast_to(b, (p,)).copy() for b in (lower, upper))
    except (TypeError, ValueError, OverflowError):
        form = f"bounds must be (lower, upper), scalars or {p} values each for {', '.join(names)}"
        raise DataError(form + _rewritten(given, names)) from None
    usable = (low <= high) & (low < np.inf) & (high > -np.inf)
    if not usable.all():
        k = int(np.argmin(usable))
        # two pairs have the shape of (lower, upper) for two parameters
        swapped = p == 2 and bool(low[0] <= low[1] and high[0] <= high[1])
        hint = _rewritten(given, names) if swapped else ""
        raise DataError(f"bounds of parameter {names[k]!r}{_fault(float(low[k]), float(high[k]))}{hint}")
    return low, high


def _fault(low: float, high: float) -> str:
    """What is wrong with the bounds of a parameter."""
    if math.isnan(low) or math.isnan(high):
        return " are nan; give numbers, or None for no bound"
    if low == math.inf or high == -math.inf:
        return f": no number is within [{low}, {high}]; lower -inf and upper inf (or None) mean no bound"
    return f": lower {low} is not below upper {high}"


def _rewritten(bounds: Any, names: Sequence[str]) -> str:
    """One pair for each parameter, as `scipy.optimize.minimize` takes them, in the forms that are taken here."""
    try:
        pairs = [[_written(value) for value in row] for row in bounds if not isinstance(row, str)]
    except (TypeError, ValueError, OverflowError):
        return ""
    if len(pairs) != len(names) or any(len(pair) != 2 for pair in pairs):
        return ""
    more = ", …" if len(names) > _SHOWN else ""
    shown = list(zip(names, pairs, strict=True))[:_SHOWN]
    lower, upper = (", ".join(pair[side] for _, pair in shown) + more for side in (0, 1))
    by_name = ", ".join(f"{name!r}: ({', '.join(pair)})" for name, pair in shown) + more
    return f"; pairs are given as bounds={{{by_name}}} or bounds=([{lower}], [{upper}])"


def _written(value: Any) -> str:
    """A bound as one writes it; None where there is none."""
    number = math.inf if value is None else float(value)
    return "None" if math.isinf(number) else repr(number).removesuffix(".0")


def _is_free(bounds: tuple[Any, ...]) -> bool:
    """Whether bounds are SciPy's default."""
    return len(bounds) == 2 and type(bounds[0]) is type(bounds[1]) is float and bounds == _FREE


@lru_cache(maxsize=32)
def _unbounded(p: int) -> tuple[Floats, Floats]:
    """Bounds that no parameter meets, the same read-only arrays for all fits."""
    sides = np.full(p, -np.inf), np.full(p, np.inf)
    for side in sides:
        side.setflags(write=False)
    return sides


def _side(values: Any, end: float) -> Floats:
    """Bounds of one side; None is no bound."""
    listed = values if isinstance(values, (list, tuple)) else [values] if values is None else None
    if listed is not None:
        values = [end if value is None else value for value in listed]
    side = np.asarray(numeric(values, "bounds"), dtype=np.float64)
    return side[0] if listed is not None and len(listed) == 1 else side


def _refuse_pairs(bounds: Any, p: int) -> None:
    """A list of (lower, upper) for two parameters would be read as lower and upper bounds."""
    if p == 2 and isinstance(bounds, list) and len(bounds) == 2:
        low, high = bounds
        if isinstance(low, tuple) and isinstance(high, tuple) and low == high and len(set(low)) == 2:
            raise DataError(
                f"bounds={bounds}, read as (lower, upper), fix every parameter; for one pair per parameter "
                "give a mapping {name: (lower, upper)}"
            )


def _pair(bounds: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    pair = bounds.get(name, (None, None))
    if isinstance(pair, str) or np.size(pair) != 2:
        raise DataError(f"bounds[{name!r}] is {pair!r}; (lower, upper) is needed")
    lower, upper = pair
    return (-np.inf if lower is None else lower), (np.inf if upper is None else upper)


def read_start(p0: Any, model: Model, lower: Floats, upper: Floats) -> Floats:
    """The start of every parameter.

    Parameters
    ----------
    p0 : array_like, mapping or None
        (p,) or by name; what is missing starts at 1, or in the middle of bounds below 1e100.
    model : Model
        Names the parameters.
    lower, upper : ndarray, shape (p,)
        Bounds.

    Returns
    -------
    ndarray, shape (p,)
        A new array; its length is checked against the model by the fit.

    Raises
    ------
    DataError
        For values that are not numbers, and unknown names.
    """
    if isinstance(p0, Mapping):
        _require_known(p0, model.params, "p0")
    if p0 is None or isinstance(p0, Mapping):
        start = _feasible(lower, upper)
        for name, value in (p0 or {}).items():
            try:
                start[model.params.index(name)] = value
            except (TypeError, ValueError, OverflowError):
                raise DataError(f"p0[{name!r}] is {value!r}; a number is needed") from None
        return start
    if isinstance(p0, np.ma.MaskedArray) and np.ma.is_masked(p0):
        raise DataError("p0 has masked entries; give a number for every parameter")
    try:
        values = np.atleast_1d(np.asarray(p0, dtype=np.float64))
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"p0 is not a sequence of numbers: {str(p0)[:80]}") from None
    if values.ndim != 1:
        raise DataError(f"p0 has shape {values.shape}; ({model.n_params},) is needed")
    return values.copy()


def _feasible(lower: Floats, upper: Floats) -> Floats:
    """1, the middle of finite bounds, or one inside of a single bound, as SciPy starts; no bound is as far as 1e100."""
    start: Floats = np.clip(np.ones_like(lower), lower, upper)
    low, high = lower > -_FARTHEST, upper < _FARTHEST
    start[low & high] = 0.5 * lower[low & high] + 0.5 * upper[low & high]  # whose sum may overflow
    start[low & ~high] = lower[low & ~high] + 1.0
    start[~low & high] = upper[~low & high] - 1.0
    return start


def _require_known(mapping: Mapping[str, Any], names: Sequence[str], field: str) -> None:
    for name in mapping:
        if name not in names:
            raise DataError(f"{field}: {name!r} is not a parameter; they are {', '.join(names)}")
