"""Log lines of a running fit, through logging only."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from nlsq_nb.events import (
    CostGuardTripped,
    Event,
    FirstPassStarted,
    HistoryFilled,
    LineSearchFailed,
    PassProgress,
    PhaseDone,
    PhaseStarted,
    RoundPlayed,
    SecondOpinionAsked,
    SecondOpinionFollowed,
    SecondOpinionGiven,
    StartChosen,
    StartFitted,
    StartsDrawn,
    StepClipped,
    StepDone,
    StepModeChosen,
    WarmStartDetected,
    WarmupStepDone,
)
from nlsq_nb.observe.history import TITLES

__all__ = ["ProgressLog", "reading_log"]

_LOGGER = logging.getLogger("nlsq_nb.fit")
_WARMUP, _NEWTON = _ITERATIVE = 1, 2


def _pass_line(event: PassProgress) -> str:
    rate = event.rows_done / event.seconds if event.seconds > 0 else 0.0
    done = f"{event.rows_done:,} of {event.n_rows:,} rows"
    share = 100 * event.rows_done // event.n_rows if event.n_rows else 100
    left = f", {_duration((event.n_rows - event.rows_done) / rate)} left" if rate else ""
    return f"  pass: {done} ({share}%), {rate:.1e} rows/s{left}"


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


_LINES: dict[type[Event], Callable[[Any], str]] = {
    FirstPassStarted: lambda e: (
        f"  Computing initial JTJ ({e.n_chunks} chunks, {e.n_rows} points)..."
    ),
    PassProgress: _pass_line,
    WarmStartDetected: lambda e: (
        "Phase 1: Skipping L-BFGS warmup - warm start detected "
        f"(relative_loss={e.relative_loss:.4e})"
    ),
    StepModeChosen: lambda e: (
        f"  First step: {e.mode} (relative_loss={e.relative_loss:.4e})"
    ),
    WarmupStepDone: lambda e: (
        f"  L-BFGS iter {e.iteration}/{e.limit}: cost={e.sse:.6e}, "
        f"grad_norm={e.grad_norm:.6e}, step={e.step_norm:.6e}"
    ),
    StepClipped: lambda e: (
        f"  Step clipped: length {e.original_norm:.4e} shortened to {e.max_norm:.4e}"
    ),
    CostGuardTripped: lambda e: (
        f"  Cost guard tripped at iteration {e.iteration}: cost is {e.cost_ratio:.4g} times the "
        f"best (limit {1.0 + e.tolerance:.4g}); back to the best point"
    ),
    HistoryFilled: lambda e: f"  L-BFGS history full at iteration {e.iteration}",
    LineSearchFailed: lambda e: f"  Line search failed at iteration {e.iteration}: {e.reason}",
    StepDone: lambda e: (
        f"  GN iter {e.iteration}/{e.limit}: cost={e.sse:.6e}, grad_norm={e.grad_norm:.6e}, "
        f"reduction={e.reduction:.6e}, Δ={e.radius:.4f}"
    ),
    PhaseDone: lambda e: f"  {e.reason} ({e.iterations} iterations)",
    StartsDrawn: lambda e: f"Multi-start: {_counted(len(e.points), 'candidate')}, the first is p0",
    RoundPlayed: lambda e: (
        f"  Round {e.number}/{e.limit}: {_counted(len(e.survivors), 'candidate')} left, best is "
        f"{e.best} with a mean loss of {e.losses[e.best]:.6e}"
    ),
    StartFitted: lambda e: (
        f"  Short fit {e.number}/{e.limit} from candidate {e.candidate}: cost={e.sse:.6e}, "
        f"{_counted(e.iterations, 'iteration')}"
    ),
    StartChosen: lambda e: (
        f"  The fit begins from candidate {e.candidate} (cost at p0: {e.given_sse:.6e})"
    ),
    SecondOpinionAsked: lambda e: (
        f"  Second opinion ({'; '.join(e.doubts) or 'as asked'}): {_counted(e.starts, 'other start')}, "
        f"{e.n_rows} rows"
    ),
    SecondOpinionGiven: lambda e: (
        f"  Second opinion: {'the fit goes on at' if e.lower else 'nothing lower, the best is'} "
        f"cost={e.sse:.6e}"
    ),
    SecondOpinionFollowed: lambda e: (
        f"  Second opinion: cost={e.before:.6e} became {e.sse:.6e}"
    ),
}


class ProgressLog:
    """Writes events as INFO lines, to the application's log if it has one, else to stderr.

    Parameters
    ----------
    every : int
        Iterations between lines.
    verbose : {0, 1, 2}
        0 writes nothing; 2 also tells the parameters of each iteration and what is routine.

    Notes
    -----
    A fit owns where its lines go and changes no setting of logging, so that fits in other
    threads, silent or not, are not touched.
    """

    def __init__(self, every: int, verbose: int) -> None:
        self._every = every
        self._detailed = verbose > 1
        self._start = time.perf_counter()
        self._logger = _open_log() if verbose else None
        self._title: str | None = None  # set: the warm-up has begun and may yet be skipped
        self._skipped = False

    def __call__(self, event: Event) -> None:
        """Receive an event."""
        if self._logger is None or not self._logger.isEnabledFor(logging.INFO):
            return
        for line in self._lines(event):
            self._logger.info(line)

    def _lines(self, event: Event) -> list[str]:
        """What there is to say, titles included."""
        if isinstance(event, PhaseStarted):
            title = TITLES[event.number]
            self._title = title if event.number == _WARMUP else None
            return [] if self._title else [title]
        if isinstance(event, WarmStartDetected):
            self._title, self._skipped = None, True
        if not self._wanted(event):
            return []
        lines = [_LINES[type(event)](event)]
        if isinstance(event, (StepDone, WarmupStepDone)):
            lines[0] += f", time={time.perf_counter() - self._start:.1f}s"
        if isinstance(event, (StepDone, WarmupStepDone, StartFitted)) and self._detailed:
            lines.append("    params: " + " ".join(f"{v:.10g}" for v in event.theta))
        if self._title and not isinstance(event, PassProgress):
            lines.insert(0, self._title)
            self._title = None
        return lines

    def _wanted(self, event: Event) -> bool:
        if isinstance(event, (StepDone, WarmupStepDone)):
            return event.iteration % self._every == 0
        if isinstance(event, (StepClipped, HistoryFilled)):
            return self._detailed
        if isinstance(event, FirstPassStarted):
            return self._title is None
        if isinstance(event, PassProgress):
            return event.rows_done < event.n_rows
        if isinstance(event, PhaseDone):
            return event.number in _ITERATIVE and not (event.number == _WARMUP and self._skipped)
        return type(event) in _LINES


def reading_log(verbose: int) -> Callable[[int, float], None] | None:
    """What tells of rows that are read before a fit can begin: they are counted, or kept in a file.

    Parameters
    ----------
    verbose : {0, 1, 2}
        See `ProgressLog`.

    Returns
    -------
    callable or None
        `tell(rows, seconds)`; None where nothing is to be told.
    """
    if not verbose:
        return None
    log = _open_log()
    return lambda rows, seconds: log.info("  reading: %s rows, %.1e rows/s", f"{rows:,}", rows / seconds)


def _open_log() -> logging.Logger:
    """The library's logger if the application listens to its INFO lines, else one to stderr."""
    if _LOGGER.isEnabledFor(logging.INFO) and _is_heard(_LOGGER):
        return _LOGGER
    console = logging.Logger(_LOGGER.name, logging.INFO)  # noqa: LOG001 - unknown to the others
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    console.addHandler(handler)
    return console


def _is_heard(logger: logging.Logger | None) -> bool:
    """Whether the application has a handler for its records; the library's own takes none."""
    while logger is not None:
        if any(not isinstance(handler, logging.NullHandler) for handler in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False
