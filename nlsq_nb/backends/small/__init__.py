"""Small fits in native code: an iterative phase in one call, without Python between the passes.

The modules in `PARTS` are plain Python, which tests run as such; LLVM compiles what `translate` makes of
them, once on a machine. Neither they nor LLVM are imported before the first small fit, and they not
even then where the object is on disk.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from nlsq_nb.core.layout import BLOCK, SEGMENT
from nlsq_nb.errors import BackendUnavailable

if TYPE_CHECKING:
    from nlsq_nb.backends.objects import Entry

__all__ = ["PARTS", "compiled_run"]

PARTS = (
    "algebra", "points", "boxed", "stationary", "newton", "lbfgs", "warmup", "moments", "survey", "pattern", "driver"
)  # fmt: skip
"""The modules that are compiled; what they share is `layout` and `native`."""

_SYMBOL = "nlsq_nb_small_fit"
_MAKERS = ("layout", "expressions", "translate", "build")
_log = logging.getLogger("nlsq_nb.backends")


@cache
def compiled_run() -> Entry | None:
    """`driver.run` in native code: `call` takes the phase and the addresses of its arrays, without the GIL.

    Returns
    -------
    Entry or None
        None where nothing can be compiled or linked.
    """
    from nlsq_nb.backends.objects import Code, load_code

    def make() -> Code:
        from nlsq_nb.backends.small.build import build

        return build({name: texts[name] for name in PARTS}, _SYMBOL)

    folder = Path(__file__).parent
    try:
        texts = {name: folder.joinpath(f"{name}.py").read_text("utf-8") for name in (*_MAKERS, *PARTS)}
        key = "\0".join([f"{BLOCK} {SEGMENT}", *texts.values()])
        return load_code(key, "small_fit", {_SYMBOL: ("int64", "void**", "float64*")}, make)[_SYMBOL]
    except (OSError, BackendUnavailable) as error:
        _log.warning("small fits are not compiled: %s", error)
        return None
