"""Writes a running fit's states to checkpoints: a checkpoint is a dumped frozen state."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from nlsq_nb.errors import CheckpointError
from nlsq_nb.observe.checkpoint_file import sweep, write
from nlsq_nb.observe.checkpoint_image import Fingerprint
from nlsq_nb.observe.checkpoint_tree import to_tree

__all__ = ["CheckpointWriter"]

_LOGGER = logging.getLogger("nlsq_nb.checkpoint")


class CheckpointWriter:
    """Keeps the last states of a fit in a folder.

    A checkpoint that cannot be written, the disk being full for instance, is a warning in the log
    and a sentence in `failure`: the fit goes on, and the next checkpoint may succeed.

    Parameters
    ----------
    folder : path-like
        Made if it does not exist; belongs to one running fit at a time.
    every : int
        Iterations of a phase between checkpoints.
    fingerprint : mapping of str to str or int
        What identifies data, model and configuration.
    classes : collection of type
        Classes that a state is made of, its own included.

    Attributes
    ----------
    failure : str or None
        Why the last checkpoint could not be written; None when it was, or none was due.

    Raises
    ------
    CheckpointError
        When the folder cannot be made or written to.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        every: int,
        fingerprint: Fingerprint,
        classes: Collection[type],
    ) -> None:
        self._folder = Path(folder)
        self._every = every
        self._fingerprint = fingerprint
        self._classes = classes
        self._unwritten: tuple[int, Any, Mapping[str, Any]] | None = None
        self.failure: str | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            sweep(self._folder)
        except OSError as error:
            raise CheckpointError(f"checkpoint_dir={str(folder)!r} cannot be used: {error}") from error
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise CheckpointError(f"checkpoint_dir={str(folder)!r} is not writable; choose another")

    def __call__(self, phase: int, state: Any, extra: Mapping[str, Any]) -> None:
        """Take the state that a phase begins with, or after a step, and write it when it is due.

        Parameters
        ----------
        phase : int
            Number of the phase.
        state : object
            Frozen; its first one, of iteration 0, is always due.
        extra : mapping of str to object
            What else a fit that goes on from this state needs.
        """
        self._unwritten = (phase, state, extra)
        if state.iteration % self._every == 0:
            self.flush()

    def flush(self) -> None:
        """Write the last state taken, unless it is written: at the end of a phase, after Ctrl-C."""
        if self._unwritten is None:
            return
        phase, state, extra = self._unwritten
        try:
            write(
                self._folder,
                phase,
                state.iteration,
                to_tree(state, self._classes),
                self._fingerprint,
                extra,
                _readable(phase, state),
            )
        except (CheckpointError, MemoryError) as error:
            self.failure = str(error) or "there was no memory for a checkpoint"
            _LOGGER.warning("%s", self.failure)
        else:
            self.failure, self._unwritten = None, None


def _readable(phase: int, state: Any) -> dict[str, Any]:
    """What a person wants to see of a state."""
    shown: dict[str, Any] = {
        "current_phase": phase,
        "normalized_params": state.normalizer.normalize(state.theta),
    }
    if state.sums is not None:
        shown["sse"] = state.sums.sse
    for field in fields(state):
        value = getattr(state, field.name)
        if isinstance(value, Enum):
            shown[field.name] = value.name
        elif isinstance(value, (bool, int, float, np.ndarray, np.generic)):
            shown[field.name] = value
    return shown
