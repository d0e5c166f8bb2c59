"""What a checkpoint of a fit belongs to, how one is written, and how a fit goes on from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from nlsq_nb.config.groups import Groups
from nlsq_nb.core.normalize import ParameterNormalizer
from nlsq_nb.core.sums import NormalSums
from nlsq_nb.errors import ModelError
from nlsq_nb.observe.checkpoint import CheckpointWriter
from nlsq_nb.observe.checkpoint_file import read
from nlsq_nb.observe.checkpoint_tree import from_tree
from nlsq_nb.phases.state import FitState, StopReason, WarmupPoint, WarmupState, WarmupStop
from nlsq_nb.problem import Problem

__all__ = ["Resumed", "resume", "writer_for"]

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
    history : list of dict
        Entries of `phase_history` of the phases that were done.
    """

    phase: int
    state: FitState
    passes: int
    history: list[dict[str, Any]]


def writer_for(
    problem: Problem, options: Groups, extra: Callable[[], dict[str, Any]]
) -> CheckpointWriter | None:
    """The writer of a fit's checkpoints.

    Parameters
    ----------
    problem : Problem
        What is fitted.
    options : Groups
        Validated options.
    extra : callable
        Gives what is kept beside the state.

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
    return CheckpointWriter(o.folder, o.every, _fingerprint(problem, options), _CLASSES, extra)


def resume(problem: Problem, options: Groups) -> Resumed | None:
    """The state to go on from.

    Parameters
    ----------
    problem : Problem
        What is fitted.
    options : Groups
        Validated options.

    Returns
    -------
    Resumed or None
        None when no checkpoint was named.

    Raises
    ------
    CheckpointError
        When it is damaged, or of other data, another model or another configuration.
    """
    o = options.checkpoint
    if o.resume is None:
        return None
    loaded = read(o.resume, _fingerprint(problem, options))
    extra = loaded.extra
    state = from_tree(loaded.tree, _CLASSES)
    return Resumed(loaded.phase, state, int(extra["passes"]), list(extra["history"]))


def _fingerprint(problem: Problem, options: Groups) -> dict[str, str]:
    """Digests of data, model and configuration; reads all rows once."""
    data = hashlib.sha256()
    for chunk in problem.source.chunks():
        for column in (*chunk.x, *chunk.y, *(chunk.w or ())):
            data.update(str(column.dtype).encode())
            data.update(column.data)
    # any number of threads gives the same bits
    settings = repr([
        replace(options.data, n_threads=None) if group.name == "data" else getattr(options, group.name)
        for group in fields(options)
        if group.name not in _INDIFFERENT
    ])
    start = repr((problem.p0.tolist(), [side.tolist() for side in problem.bounds]))
    return {
        "data": data.hexdigest(),
        "model": _digest(_described(problem)),
        "options, start or bounds": _digest(settings + start),
    }


def _described(problem: Problem) -> str:
    """The model as text; a function in Python is known by its names only."""
    try:
        return problem.model.to_json()
    except ModelError:
        return repr((problem.model.text, problem.model.x, problem.model.params))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
