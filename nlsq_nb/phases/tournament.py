"""Multi-start: starting points compete on pieces of the data, and the worst leave round by round.

Successive halving (Karnin, Koren & Somekh 2013, ICML 28, 1238): most of the work goes into telling
good points apart, since bad ones show themselves on little data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nlsq_nb.config.global_search import GlobalOptimizationConfig
from nlsq_nb.config.groups import MultistartOptions
from nlsq_nb.core.sampling import candidates
from nlsq_nb.errors import ConfigError, NumericsError

__all__ = ["Tournament", "TournamentSelector", "tournament"]

Floats = NDArray[np.float64]
Loss = Callable[[Floats], float]


@dataclass(frozen=True, slots=True)
class Tournament:
    """How a tournament went.

    Attributes
    ----------
    candidates : ndarray, shape (n, p)
        The points that took part.
    losses : ndarray, shape (n,)
        Mean loss of each over the batches it was measured on; inf where one was not finite, nan for
        a point that never had to be measured.
    survivors : tuple of tuple of int
        Rows that were left at the start and after each round, in rising order.
    n_evaluations : int
        Calls of the loss.
    """

    candidates: Floats
    losses: Floats
    survivors: tuple[tuple[int, ...], ...]
    n_evaluations: int

    @property
    def ranking(self) -> tuple[int, ...]:
        """Rows that survived, the best first; equal ones in their order."""
        left = np.asarray(self.survivors[-1])
        return tuple(left[np.argsort(self.losses[left], kind="stable")].tolist())

    @property
    def best_index(self) -> int:
        """Row of the winner."""
        return self.ranking[0]

    @property
    def best(self) -> Floats:
        """The winner, shape (p,)."""
        best: Floats = self.candidates[self.best_index]
        return best.copy()


class TournamentSelector:
    """Finds the best of several starting points without measuring all of them on all of the data.

    In each round every point that is left is measured on the batches of the round, which are data
    that no earlier round has seen; losses add up over the rounds. Then the worst share leaves, and
    with it every point whose loss is not finite. Equal losses are ranked by row, so that the first
    row, usually p0, wins them. There is nothing random in it.

    Parameters
    ----------
    candidates : array_like, shape (n, p) or (p,)
        The points.
    config : GlobalOptimizationConfig, optional
        Where the next three come from unless they are given.
    rounds : int, optional
        Rounds after which points leave; 0 measures all points once.
    fraction : float, optional
        Share of the points that leaves, in (0, 1), rounded down to whole points.
    batches_per_round : int, optional
        Batches that each point is measured on in a round.

    Attributes
    ----------
    candidates : ndarray, shape (n, p)
        The points.
    config : GlobalOptimizationConfig
        The options in force.

    Raises
    ------
    ConfigError
        For no candidates, or an invalid option.

    Examples
    --------
    >>> import numpy as np
    >>> from nlsq_nb import TournamentSelector
    >>> x = np.linspace(0, 1, 300)
    >>> y = 3 * x + 1
    >>> def loss(theta, batch):
    ...     return np.mean((y - theta[0] * x - theta[1])[batch::30] ** 2)
    >>> selector = TournamentSelector([[0, 0], [1, 1], [3, 1.1], [9, 9]], batches_per_round=10)
    >>> selector.run(loss).best_index
    2
    """

    def __init__(
        self,
        candidates: ArrayLike,
        config: GlobalOptimizationConfig | None = None,
        *,
        rounds: int | None = None,
        fraction: float | None = None,
        batches_per_round: int | None = None,
    ) -> None:
        self.candidates = np.atleast_2d(np.array(candidates, dtype=np.float64))
        if self.candidates.ndim != 2 or self.candidates.size == 0:
            raise ConfigError(
                f"candidates of shape {np.shape(candidates)}; one row for each point is needed"
            )
        given = {
            "elimination_rounds": rounds,
            "elimination_fraction": fraction,
            "batches_per_round": batches_per_round,
        }
        self.config = (config or GlobalOptimizationConfig()).with_overrides(
            **{name: value for name, value in given.items() if value is not None}
        )

    def run(
        self,
        evaluate: Callable[[Floats, int], float],
        n_batches: int | None = None,
        top: int = 1,
        told: Callable[[Tournament], None] | None = None,
    ) -> Tournament:
        """Play all rounds.

        Parameters
        ----------
        evaluate : callable
            ``evaluate(theta, batch)``: the mean loss at theta (p,) over a batch of the data; the
            batches are numbered from 0. Not finite, or a `NumericsError`, where there is none; any
            other exception is passed on.
        n_batches : int, optional
            Batches there are; rounds × batches_per_round by default. With more, those evenly
            spaced are used; with fewer, the rounds have fewer each or end early. Each round takes
            its batches from all over the data.
        top : int
            Points to be left at the end.
        told : callable, optional
            Receives how things stand before the first round and after each.

        Returns
        -------
        Tournament
            Its `best` is the winner.

        Raises
        ------
        ConfigError
            For n_batches or top below 1.
        """
        o = self.config
        rounds = max(o.elimination_rounds, 1)
        most = rounds * o.batches_per_round
        there = most if n_batches is None else n_batches
        _require_positive("n_batches", there)
        plan = _schedule(there, min(there, most), rounds)
        rounds_of_losses = ([_at(evaluate, k) for k in batches] for batches in plan)
        return self._play(rounds_of_losses, top, told)

    def select(
        self, evaluate: Callable[[Floats, int], float], n_batches: int | None = None, top: int = 1
    ) -> Floats:
        """The best points.

        Parameters
        ----------
        evaluate : callable
            As in `run`.
        n_batches : int, optional
            As in `run`.
        top : int
            Number of points.

        Returns
        -------
        ndarray, shape (top, p)
            The best first; all points when there are no more than `top`.
        """
        return self._first(self.run(evaluate, n_batches, top), top)

    def run_tournament(
        self,
        data_batch_iterator: Iterable[tuple[Any, Any]],
        model: Callable[..., Any],
        top_m: int = 1,
    ) -> list[Floats]:
        """The best points for data that arrive in batches.

        Parameters
        ----------
        data_batch_iterator : iterable of (x, y)
            Read once, rounds × batches_per_round batches at most; each should be drawn from all
            over the data. When they run out, the points are ranked by what was seen.
        model : callable
            ``model(x, *theta)`` gives values of the shape of y.
        top_m : int
            Number of points.

        Returns
        -------
        list of ndarray, shape (p,)
            The best first, by the mean of the squared residuals.
        """
        o = self.config
        stream = (partial(_mean_square, model, x, y) for x, y in data_batch_iterator)
        rounds = (islice(stream, o.batches_per_round) for _ in range(max(o.elimination_rounds, 1)))
        return list(self._first(self._play(rounds, top_m), top_m))

    @staticmethod
    def _first(played: Tournament, top: int) -> Floats:
        return played.candidates[list(played.ranking[:top])]

    def _play(
        self,
        rounds: Iterable[Iterable[Loss]],
        top: int,
        told: Callable[[Tournament], None] | None = None,
    ) -> Tournament:
        """Rounds of losses, which are taken one by one: only one batch has to be at hand."""
        _require_positive("top", top)
        n = len(self.candidates)
        points = self.candidates.copy()
        total, seen = [0.0] * n, np.zeros(n)  # floats of Python: an overflow is inf, unannounced
        left = list(range(n))
        history = [tuple(left)]
        calls = 0

        def standing() -> Tournament:
            mean = np.divide(total, seen, out=np.full(n, np.nan), where=seen > 0)
            return Tournament(points, mean, tuple(history), calls)

        if told is not None:
            told(standing())
        for losses in rounds:
            if len(left) <= top:
                break
            before = calls
            for loss in losses:
                for k in left:
                    if math.isfinite(total[k]):
                        total[k] += _measure(loss, self.candidates[k])
                        seen[k] += 1
                        calls += 1
            if calls == before:  # no data left
                break
            left = self._survivors(left, total, top)
            history.append(tuple(left))
            if told is not None:
                told(standing())
        return standing()

    def _survivors(self, left: list[int], total: list[float], top: int) -> list[int]:
        """Those who stay after a round; all of them have seen the same batches."""
        o = self.config
        share = o.elimination_fraction if o.elimination_rounds else 0.0
        out = math.floor(share * len(left) + 1e-9)  # 0.29 × 100 is 28.999999999999996
        failed = sum(math.isinf(total[k]) for k in left)
        stay = max(len(left) - max(out, failed), top)
        ranked = sorted(left, key=lambda k: (total[k], k))
        return sorted(ranked[:stay])


def tournament(
    p0: ArrayLike,
    bounds: tuple[ArrayLike, ArrayLike],
    evaluate: Callable[[Floats, int], float],
    o: MultistartOptions,
    n_batches: int | None = None,
    seed: int = 0,
    told: Callable[[Tournament], None] | None = None,
) -> Tournament:
    """A tournament between p0 and points around it.

    Parameters
    ----------
    p0 : array_like, shape (p,)
        The user's start, which is row 0 of the candidates.
    bounds : tuple of array_like
        Lower and upper, ±inf where there are none.
    evaluate : callable
        As in `TournamentSelector.run`. Where linear parameters are eliminated, the loss is the one
        with these at their best.
    o : MultistartOptions
        Number and spread of the points, and the rounds.
    n_batches : int, optional
        Batches there are; as many as are wanted by default.
    seed : int
        Of the sampler.
    told : callable, optional
        As in `TournamentSelector.run`.

    Returns
    -------
    Tournament
        Its `best` may be p0.

    Raises
    ------
    ConfigError
        For a p0 that is not finite or outside its bounds, or more points than can be held.
    """
    points = candidates(p0, *bounds, o.n_starts, o.sampler, o.center, o.scale, seed)
    selector = TournamentSelector(
        points, rounds=o.rounds, fraction=o.fraction, batches_per_round=o.batches
    )
    return selector.run(evaluate, n_batches, told=told)


def _schedule(n_batches: int, n_used: int, rounds: int) -> Iterator[Sequence[int]]:
    """Batches of each round: disjoint, and each round's spread over all of the data."""
    used = [k * n_batches // n_used for k in range(n_used)]
    return (used[r::rounds] for r in range(rounds))


def _at(evaluate: Callable[[Floats, int], float], batch: int) -> Loss:
    return lambda theta: evaluate(theta, batch)


def _measure(loss: Loss, theta: Floats) -> float:
    """The loss, inf where it is not finite; theta is the caller's to keep."""
    try:
        value = float(loss(theta.copy()))
    except NumericsError:  # no other: a division by zero in the user's function is for the user
        return math.inf
    return value if math.isfinite(value) else math.inf


def _mean_square(model: Callable[..., Any], x: Any, y: Any, theta: Floats) -> float:
    with np.errstate(all="ignore"):  # a bad point may overflow: its loss says so
        return float(np.mean(np.abs(np.asarray(y) - np.asarray(model(x, *theta))) ** 2))


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name}={value!r}; an integer ≥ 1 is needed")
