"""Log lines of a running fit, through logging only."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from nlsq_nb.events import Event, FirstPassStarted, PhaseDone, PhaseStarted, StepDone

__all__ = ["ProgressLog", "shown"]

_LOGGER = logging.getLogger("nlsq_nb.fit")
_TITLES = {
    0: "Phase 0: Normalization Setup",
    1: "Phase 1: L-BFGS Warmup",
    2: "Phase 2: Streaming Gauss-Newton",
    3: "Phase 3: Denormalization and Covariance",
}


class ProgressLog:
    """Writes events as INFO lines.

    Parameters
    ----------
    every : int
        Iterations between lines.
    with_parameters : bool
        Whether a line is followed by the parameters.
    """

    def __init__(self, every: int, with_parameters: bool) -> None:
        self._every = every
        self._with_parameters = with_parameters
        self._start = time.perf_counter()

    def __call__(self, event: Event) -> None:
        """Receive an event."""
        if isinstance(event, PhaseStarted):
            _LOGGER.info(_TITLES[event.number])
        elif isinstance(event, FirstPassStarted):
            _LOGGER.info(
                "  Computing initial JTJ (%d chunks, %d points)...", event.n_chunks, event.n_rows
            )
        elif isinstance(event, StepDone) and event.iteration % self._every == 0:
            _LOGGER.info(
                "  GN iter %d/%d: cost=%.6e, grad_norm=%.6e, reduction=%.6e, Δ=%.4f, time=%.1fs",
                event.iteration,
                event.limit,
                event.sse,
                event.grad_norm,
                event.reduction,
                event.radius,
                time.perf_counter() - self._start,
            )
            if self._with_parameters:
                _LOGGER.info("    params: %s", " ".join(f"{v:.10g}" for v in event.theta))
        elif isinstance(event, PhaseDone):
            _LOGGER.info("  %s (%d iterations)", event.reason, event.iterations)


@contextmanager
def shown(verbose: int) -> Iterator[None]:
    """Show the library's INFO lines on stderr while a fit runs.

    Parameters
    ----------
    verbose : int
        Nothing is attached at 0, nor when the application has set up logging itself.
    """
    logger = logging.getLogger("nlsq_nb")
    if verbose == 0 or (logger.isEnabledFor(logging.INFO) and logger.hasHandlers()):
        yield
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    own = threading.get_ident()
    handler.addFilter(lambda record: record.thread == own)  # not the lines of a silent fit beside
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
