"""A start from the data, where the model is one that finds it and the caller gave none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nlsq_nb.config.groups import Groups
from nlsq_nb.core.sampling import scattered_rows
from nlsq_nb.models.library import NamedModel
from nlsq_nb.outset import retrying
from nlsq_nb.problem import Problem
from nlsq_nb.sources.retrying import close
from nlsq_nb.sources.sample import ScatteredSource

__all__ = ["with_guess"]

_ROWS = 256  # that are looked at


def with_guess(problem: Problem, p0: Any, options: Groups) -> Problem:
    """The problem with a start for every parameter that the caller gave none for.

    Parameters
    ----------
    problem : Problem
        What is fitted.
    p0 : Any
        As the caller gave it.
    options : Groups
        Validated options.

    Returns
    -------
    Problem
        The same, unless its model is a `NamedModel` and p0 is None or a mapping without some of its parameters.

    Raises
    ------
    SourceError
        Where rows cannot be read.
    """
    model = problem.model
    known = {} if p0 is None else p0
    if not isinstance(model, NamedModel) or not isinstance(known, Mapping) or len(known) == model.n_params:
        return problem
    try:
        source = retrying(problem.source, options)
        few = ScatteredSource(source, scattered_rows(source.n_rows, min(source.n_rows, _ROWS), options.setup.seed))
        parts = [chunk.host() for chunk in few.chunks()]
    except BaseException:
        close(problem.source)
        raise
    x, y = (np.concatenate([getattr(part, name)[0] for part in parts]) for name in ("x", "y"))
    w = None if parts[0].w is None else np.concatenate([part.w[0] for part in parts if part.w is not None])
    return replace(problem, p0=model.start(x, y, problem.p0, known, problem.bounds, w))
