"""Small fits in native code: an iterative phase in one call, without Python between the passes.

The modules in `PARTS` are plain Python, which tests run as such; LLVM compiles what `translate` makes of
them, once on a machine. Neither they nor LLVM are imported before the first small fit, and they not
even then where the object is on disk.
"""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.small.layout import FOLDING
from nlsq_nb.core.chunk import address_of
from nlsq_nb.core.compensated import PER_SECTION, add_in_sections
from nlsq_nb.core.layout import BLOCK, SEGMENT
from nlsq_nb.errors import BackendUnavailable

if TYPE_CHECKING:
    from nlsq_nb.backends.objects import Entry

__all__ = ["PARTS", "compiled", "compiled_run", "fold_segments"]

PARTS = (
    "algebra", "folding", "points", "boxed", "stationary", "newton", "lbfgs", "warmup", "moments", "survey", "pattern",
    "sharing", "driver",
)  # fmt: skip
"""The modules that are compiled; what they share is `layout` and `native`."""

_SYMBOLS = {"run": "nlsq_nb_small_fit", "run_whole": "nlsq_nb_whole_pass", "help_on": "nlsq_nb_help"}
_EXPORTS = {
    _SYMBOLS["run"]: ("int64", "void**", "float64*"),
    _SYMBOLS["run_whole"]: ("int64", "int64", "void**", "float64*", "float64*"),
    _SYMBOLS["help_on"]: ("int64",),
}
_MAKERS = ("layout", "expressions", "translate", "build")
_Task = ctypes.c_int64 * 5
_log = logging.getLogger("nlsq_nb.backends")


def compiled_run() -> Entry | None:
    """`driver.run` in native code: `call` takes the phase and the addresses of its arrays, without the GIL.

    Returns
    -------
    Entry or None
        None where nothing can be compiled or linked.
    """
    return compiled("run")


@cache
def compiled(name: str) -> Entry | None:
    """A function of `driver` in native code.

    Parameters
    ----------
    name : {"run", "run_whole", "help_on"}
        Which one.

    Returns
    -------
    Entry or None
        None where nothing can be compiled or linked.
    """
    found = _compiled()
    return None if found is None else found[_SYMBOLS[name]]


@cache
def _compiled() -> dict[str, Entry] | None:
    from nlsq_nb.backends.objects import Code, load_code

    def make() -> Code:
        from nlsq_nb.backends.small.build import build

        return build({name: texts[name] for name in PARTS}, _SYMBOLS)

    folder = Path(__file__).parent
    try:
        texts = {name: folder.joinpath(f"{name}.py").read_text("utf-8") for name in (*_MAKERS, *PARTS)}
        key = "\0".join([f"{BLOCK} {SEGMENT} {PER_SECTION}", *texts.values()])
        return load_code(key, "small_fit", _EXPORTS, make)
    except (OSError, BackendUnavailable) as error:
        _log.warning("small fits are not compiled: %s", error)
        return None


def fold_segments(running: NDArray[np.float64], first: int, states: NDArray[np.float64]) -> None:
    """`core.compensated.add_in_sections` in native code, a hundredth of a second sooner for the sums of 10⁸ rows.

    Parameters
    ----------
    running : ndarray, shape (4, size)
        High and low sums of the section that is open, and of the sections before. Changed in place.
    first : int
        How many segments came before.
    states : ndarray, shape (2k, size)
        High and low sums of k segments in turn; float64.
    """
    entry = compiled_run()
    if entry is None:
        add_in_sections(running, first, states)
        return
    states = np.ascontiguousarray(states)
    sections, inside = divmod(first, PER_SECTION)
    task = _Task(len(states) // 2, states.shape[1], address_of(states), inside, sections)
    entry.call(FOLDING, ctypes.addressof(task), address_of(running))
