"""Small fits in native code: an iterative phase in one call, without Python between the passes.

The modules `algebra`, `newton`, `warmup` and `driver` are plain Python, which tests run as such; here
LLVM compiles what `translate` makes of them. Work on the arrays of a call goes without the GIL.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm

from nlsq_nb.backends.small import algebra, driver, newton, warmup
from nlsq_nb.backends.small.native import Ints
from nlsq_nb.backends.small.translate import translate

__all__ = ["Rows", "compiled_phase"]

@dataclass(frozen=True, slots=True)
class Rows:
    """All rows of a small fit where native code finds them; see `protocols.Resident`.

    Attributes
    ----------
    kernel : int
        Address of (lo, hi, columns, theta, state), which folds sums of order 2 into `state`.
    columns : ndarray of int64
        Addresses of the columns of x, y and w.
    n_rows : int
        Rows.
    owner : object
        Keeps kernel and columns alive.
    """

    kernel: int
    columns: Ints
    n_rows: int
    owner: Any


_PARTS = (algebra, newton, warmup, driver)


@functools.cache
def _library() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(str(translate(_PARTS)))
    features = llvm.get_host_cpu_features().flatten()
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=1, jit=True)
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    options.inlining_threshold = 0
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine


@functools.cache
def compiled_phase(name: str) -> Callable[..., Any]:
    """A function of `driver` in native code.

    Parameters
    ----------
    name : {"lbfgs", "gauss_newton"}
        The phase.

    Returns
    -------
    callable
        Takes the same arguments, arrays by address.
    """
    signature = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 8)
    return signature(_library().get_function_address(name))
