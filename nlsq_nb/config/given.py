"""The options of one call: a configuration, and the keywords that override it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from nlsq_nb.config.flat import HybridStreamingConfig, grouped_by_need, refuse_unknown, values_of
from nlsq_nb.config.groups import Groups

__all__ = ["config_from"]


@lru_cache(maxsize=64)
def _grouped(items: tuple[tuple[str, type, Any], ...]) -> Groups:
    """The same for the keywords of a call: fits in a loop repeat them. 1 and True are different values."""
    return grouped_by_need({name: value for name, _, value in items})


def config_from(base: HybridStreamingConfig | None, overrides: Mapping[str, Any]) -> Groups:
    """Options from a configuration and keyword overrides.

    Parameters
    ----------
    base : HybridStreamingConfig or None
        The configuration, None for the defaults.
    overrides : mapping
        Field name -> value.

    Returns
    -------
    Groups
        Validated.

    Raises
    ------
    TypeError
        For a name that is not a field; names the closest one.
    ConfigError, UnsupportedOption
        For an invalid value or one that is not honoured.
    """
    refuse_unknown(overrides)
    if base is None:
        key = tuple((name, type(value), value) for name, value in overrides.items())
        try:
            hash(key)
        except TypeError:
            return grouped_by_need(overrides)
        return _grouped(key)
    if not isinstance(base, HybridStreamingConfig):
        raise TypeError(f"config must be a HybridStreamingConfig, not {type(base).__name__}")
    return grouped_by_need({**values_of(base), **overrides})
