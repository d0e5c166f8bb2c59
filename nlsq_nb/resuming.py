"""What a checkpoint of a fit belongs to, how one is written, and how a fit goes on from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import numpy as np

from nlsq_nb.config.groups import Groups
from nlsq_nb.core.normalize import ParameterNormalizer
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.errors import CheckpointError, ModelError
from nlsq_nb.events import Event
from nlsq_nb.observe.checkpoint import CheckpointWriter
from nlsq_nb.observe.checkpoint_file import read
from nlsq_nb.observe.checkpoint_tree import from_tree
from nlsq_nb.observe.history import PhaseHistory
from nlsq_nb.observe.recording import with_events
from nlsq_nb.observe.telemetry import DefenseLayerTelemetry
from nlsq_nb.phases.state import FitState, StopReason, WarmupPoint, WarmupState, WarmupStop
from nlsq_nb.problem import Problem
from nlsq_nb.protocols import Objective, Phase

__all__ = ["Belonging", "Resumed", "WatchedPhase", "belonging_of", "beside", "resume", "writer_for"]

Belonging = Callable[[], dict[str, str]]
"""Gives the digests of data, model and configuration that a checkpoint must agree with."""

_CLASSES = (
    FitState,
    WarmupState,
    WarmupPoint,
    WarmupStop,
    StopReason,
    NormalSums,
    ParameterNormalizer,
)
_INDIFFERENT = {"checkpoint", "report"}  # groups whose values do not reach a bit of the result


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where a fit goes on.

    Attributes
    ----------
    phase : int
        1 or 2.
    state : FitState
        After the last complete step.
    passes : int
        Passes over the data before.
    history : PhaseHistory
        With the phases after phase 0 that were done, and what became of several starts.
    telemetry : DefenseLayerTelemetry
        Of this fit until then.
    """

    phase: int
    state: FitState
    passes: int
    history: PhaseHistory
    telemetry: DefenseLayerTelemetry


class WatchedPhase:
    """A phase whose last events are known before anybody is told of them.

    A checkpoint is written before the events of its step are told, so that it is never behind a
    callback that kills the fit; what it counts must have them all the same.

    Parameters
    ----------
    phase : Phase
        Runs as it is.

    Attributes
    ----------
    events : list of Event
        Of the last `init` or `step`.
    """

    def __init__(self, phase: Phase[FitState]) -> None:
        self._phase = phase
        self.events: list[Event] = []

    def init(self, state: FitState, objective: Objective) -> tuple[FitState, list[Event]]:
        """The first state of the phase."""
        state, self.events = self._phase.init(state, objective)
        return state, self.events

    def stop(self, state: FitState) -> Any:
        """Why the phase is over, or None."""
        return self._phase.stop(state)

    def best(self, state: FitState) -> FitState:
        """The phase's state at its best point."""
        return self._phase.best(state)

    def step(self, state: FitState, objective: Objective) -> tuple[FitState, list[Event]]:
        """The phase's next state."""
        state, self.events = self._phase.step(state, objective)
        return state, self.events


def beside(
    passes: int, history: PhaseHistory, telemetry: DefenseLayerTelemetry, coming: list[Event]
) -> dict[str, Any]:
    """What a checkpoint holds beside the state.

    Parameters
    ----------
    passes : int
        Passes over the data so far.
    history : PhaseHistory
        The phases so far.
    telemetry : DefenseLayerTelemetry
        Of this fit.
    coming : list of Event
        Those of the state's own step, which `telemetry` has not been told of yet.

    Returns
    -------
    dict
        Plain values and arrays.
    """
    return {
        "passes": passes,
        "history": history.entries[1:],
        "multistart": history.multistart,
        "opinions": history.opinions,
        "telemetry": with_events(telemetry, coming).to_dict(),
    }


def belonging_of(problem: Problem, options: Groups) -> Belonging:
    """What the checkpoints of a fit belong to.

    Parameters
    ----------
    problem : Problem
        What is fitted.
    options : Groups
        Validated options.

    Returns
    -------
    Belonging
        Reads all rows when it is first asked.
    """
    return cache(lambda: _fingerprint(problem, options))


def writer_for(options: Groups, belonging: Belonging) -> CheckpointWriter | None:
    """The writer of a fit's checkpoints.

    Parameters
    ----------
    options : Groups
        Validated options.
    belonging : Belonging
        Of the fit.

    Returns
    -------
    CheckpointWriter or None
        None without a folder: no folder, no files.

    Raises
    ------
    CheckpointError
        When the folder cannot be written to.
    """
    o = options.checkpoint
    if not o.enabled or o.folder is None:
        return None
    return CheckpointWriter(o.folder, o.every, belonging(), _CLASSES)


def resume(options: Groups, belonging: Belonging) -> Resumed | None:
    """The state to go on from.

    Parameters
    ----------
    options : Groups
        Validated options.
    belonging : Belonging
        Of the fit.

    Returns
    -------
    Resumed or None
        None when no checkpoint was named.

    Raises
    ------
    CheckpointError
        When it is damaged, of another release, or of other data, another model or another
        configuration.
    """
    o = options.checkpoint
    if o.resume is None:
        return None
    loaded = read(o.resume, belonging())
    extra, history, telemetry = loaded.extra, PhaseHistory(), DefenseLayerTelemetry()
    try:
        history.entries += extra["history"]
        history.multistart = extra["multistart"]
        history.opinions += extra["opinions"]
        telemetry.restore(extra["telemetry"])
        passes = int(extra["passes"])
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{loaded.path} was written by another release ({error!r}); start afresh"
        ) from error
    return Resumed(loaded.phase, from_tree(loaded.tree, _CLASSES), passes, history, telemetry)


def _fingerprint(problem: Problem, options: Groups) -> dict[str, str]:
    """Digests of data, model and configuration; reads all rows."""
    columns: list[Any] = []  # a digest for each: they do not depend on how the rows are cut
    for rows in problem.source.chunks():
        chunk = rows.host()
        given = (*chunk.x, *chunk.y, *(chunk.w or ()))
        columns = columns or [hashlib.sha256(str(column.dtype).encode()) for column in given]
        for digest, column in zip(columns, given, strict=True):
            digest.update(column.data)
    data = hashlib.sha256(b"".join(digest.digest() for digest in columns))
    if problem.whitening is not None:
        data.update(np.ascontiguousarray(problem.whitening.lower.T).data)
    # any number of threads gives the same bits, and so do any chunks
    data_options = replace(options.data, n_threads=None, chunk_rows=1, loop="auto", release_every=1)
    settings = repr([
        data_options if group.name == "data" else getattr(options, group.name)
        for group in fields(options)
        if group.name not in _INDIFFERENT
    ])
    start = repr((problem.p0.tolist(), [side.tolist() for side in problem.bounds]))
    return {
        "data": data.hexdigest(),
        "model": _digest(_described(problem)),
        "options, start, bounds or loss": _digest(settings + start + repr(problem.loss)),
    }


def _described(problem: Problem) -> str:
    """The model as text; a function in Python is known by its names only."""
    try:
        return problem.model.to_json()
    except ModelError:
        return repr((problem.model.text, problem.model.x, problem.model.params))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
