"""Events as a telemetry keeps them: most are shortened steps, and few are ever read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = ["Clips", "expanded"]


class Clips(NamedTuple):
    """Shortened steps of one warm-up.

    Attributes
    ----------
    timestamp : float
        Seconds since 1970.
    norms : tuple of float
        Lengths of the steps in normalised parameters.
    max_norm : float
        The longest one allowed.
    """

    timestamp: float
    norms: tuple[float, ...]
    max_norm: float


def expanded(kept: Iterable[dict[str, Any] | Clips], most: int) -> list[dict[str, Any]]:
    """The last events, one for each shortened step.

    Parameters
    ----------
    kept : iterable of dict or Clips
        What is kept, oldest first.
    most : int
        How many are wanted at most.

    Returns
    -------
    list of dict
        type, timestamp and data of each.
    """
    known: list[dict[str, Any]] = []
    for event in kept:
        if isinstance(event, Clips):
            kind = {"type": "layer4_clip", "timestamp": event.timestamp}
            lengths = ({"original_norm": norm, "max_norm": event.max_norm} for norm in event.norms)
            known += [kind | {"data": data} for data in lengths]
        else:
            known.append(event)
    return known[-most:]
