"""Events of several starts: before phase 1, and where a second opinion is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.events.base import Event

__all__ = [
    "RoundPlayed",
    "SecondOpinionAsked",
    "SecondOpinionFollowed",
    "SecondOpinionGiven",
    "StartChosen",
    "StartFitted",
    "StartsDrawn",
]


@dataclass(frozen=True, slots=True)
class StartsDrawn(Event):
    """Several starts are about to compete.

    Attributes
    ----------
    points : ndarray, shape (n, p)
        The candidates, physical units; row 0 is p0.
    rounds : int
        Largest number of rounds.
    """

    points: NDArray[np.float64]
    rounds: int


@dataclass(frozen=True, slots=True)
class RoundPlayed(Event):
    """A round of the tournament is over.

    Attributes
    ----------
    number, limit : int
        Counts rounds from 1, and the largest number of them.
    best : int
        Candidate that leads, as a row of the points drawn.
    losses : ndarray, shape (n,)
        Mean loss of each candidate so far; inf where it is not finite.
    survivors : tuple of int
        Candidates that are left, in rising order.
    """

    number: int
    limit: int
    best: int
    losses: NDArray[np.float64]
    survivors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StartFitted(Event):
    """A short fit from one of the best starts has ended.

    Attributes
    ----------
    number, limit : int
        Counts short fits from 1, and how many there are.
    candidate : int
        The start.
    sse : float
        Where it ended; an estimate for all data when they are sampled, inf where there is none.
    iterations : int
        Trials of the short fit.
    reason : str
        Why it ended.
    theta : tuple of float
        Where it ended, physical units.
    """

    number: int
    limit: int
    candidate: int
    sse: float
    iterations: int
    reason: str
    theta: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class StartChosen(Event):
    """The fit begins where the short fit from a start ended.

    Attributes
    ----------
    candidate : int
        The start; 0 is p0.
    given_sse : float
        Σ w r² of all data at p0; inf where the model is not finite.
    """

    candidate: int
    given_sse: float


@dataclass(frozen=True, slots=True)
class SecondOpinionAsked(Event):
    """Something speaks against the answer, so that other starts are tried.

    Attributes
    ----------
    doubts : tuple of str
        What it is; empty where the question was to be asked in any case.
    starts : int
        Starts.
    n_rows : int
        Rows on which they are compared.
    """

    doubts: tuple[str, ...]
    starts: int
    n_rows: int


@dataclass(frozen=True, slots=True)
class SecondOpinionGiven(Event):
    """The other starts have been tried.

    Attributes
    ----------
    sse : float
        The lowest one they led to; an estimate for all data where these are sampled, inf for none.
    lower : bool
        Whether it is clearly lower than the answer's, so that the fit goes on there.
    passes : int
        Over the rows on which they were compared.
    seconds : float
        That it took.
    """

    sse: float
    lower: bool
    passes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SecondOpinionFollowed(Event):
    """The fit went on elsewhere, and all data decided.

    Attributes
    ----------
    before, sse : float
        Σ w r² of the first answer, and of the one that is kept.
    theta : tuple of float
        The latter, physical units.
    """

    before: float
    sse: float
    theta: tuple[float, ...]
