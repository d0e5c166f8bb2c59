"""A Python function → machine code behind a plain C signature, made by Numba.

In Numba's LLVM IR a compiled function is a C function already: it returns a status and takes where to
put its result and its exception before its arguments. A wrapper in front of it drops these two, and
what the wrapper does not reach is removed, so that the object needs neither Python nor Numba.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]
from numba import cfunc, config, njit, types
from numba.core.codegen import JITCPUCodegen
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from nlsq_nb.backends.objects import CODE_MODEL, SYMBOL, Code, host_features
from nlsq_nb.errors import BackendUnavailable

__all__ = ["emit", "wide_vectors"]

_log = logging.getLogger("nlsq_nb.backends")
_TYPES = {
    "int64": types.int64,
    "float64*": types.CPointer(types.float64),
    "void**": types.CPointer(types.voidptr),
}
_OK, _NONE = 0, -2  # statuses of Numba's calling convention that are no errors


def emit(function: Callable[..., Any], signature: tuple[str, ...]) -> Code:
    """Compile a function of C types.

    Parameters
    ----------
    function : callable
        A plain function or a dispatcher; returns None.
    signature : tuple of str
        Its arguments: "int64", "float64*" or "void**".

    Returns
    -------
    Code
        An object, or an address where none can be made of what Numba compiled.

    Raises
    ------
    BackendUnavailable
        When NUMBA_DISABLE_JIT is set.
    numba.core.errors.NumbaError
        When Numba cannot compile it.
    """
    if config.DISABLE_JIT:
        raise BackendUnavailable(
            "NUMBA_DISABLE_JIT is set, so kernels cannot be compiled; unset it or use backend='reference'"
        )
    plain = getattr(function, "py_func", function)
    kinds = types.void(*(_TYPES[name] for name in signature))
    options = {"nogil": True, "error_model": "numpy"}
    with wide_vectors():
        compiled = njit(kinds, no_cpython_wrapper=True, no_cfunc_wrapper=True, **options)(plain)
    try:
        return _object(compiled)
    except Exception as error:  # noqa: BLE001 - Numba's IR is no interface: another version may differ
        _log.info("no object can be made of %s: %s", plain.__name__, error)
        callback = cfunc(kinds, error_model="numpy")(plain)
        return Code(address=callback.address, owner=callback)


class _WideCodegen(JITCPUCodegen):  # type: ignore[misc]
    """Numba's own, for vectors as wide as the processor has them."""

    def _customize_tm_features(self) -> str:
        return host_features() if config.CPU_FEATURES is None else super()._customize_tm_features()


@cache
def _wide_codegen() -> _WideCodegen:
    return _WideCodegen("nlsq_nb.kernels")


@contextmanager
def wide_vectors() -> Iterator[None]:
    """Numba vectorises as it compiles, for one processor in all of the process: exchange it for the while."""
    context = cpu_target.target_context
    with global_compiler_lock:
        usual = context._internal_codegen  # noqa: SLF001 - there is no public way to choose another
        context._internal_codegen = _wide_codegen()  # noqa: SLF001
        try:
            yield
        finally:
            context._internal_codegen = usual  # noqa: SLF001


def _object(compiled: Any) -> Code:
    """The object of a dispatcher's only overload."""
    (overload,) = compiled.signatures
    inner = compiled.overloads[overload].fndesc.llvm_func_name
    text = compiled.inspect_llvm(overload)
    kinds = [str(argument.type) for argument in llvm.parse_assembly(text).get_function(inner).arguments]
    module = llvm.parse_assembly(text + _wrapper(inner, kinds))
    module.verify()
    machine = _target_machine()
    for value in (*module.functions, *module.global_variables):
        if not value.is_declaration and value.name != SYMBOL:
            value.linkage = "internal"
    _remove_unreached(module, machine)
    outside = [v for v in (*module.functions, *module.global_variables) if v.is_declaration]
    needs = tuple(sorted(v.name for v in outside if not v.name.startswith("llvm.")))
    return Code(machine.emit_object(module), needs)


def _wrapper(inner: str, kinds: list[str]) -> str:
    """LLVM text of `SYMBOL`: calls the function, whose arguments are of these types; 0, or 1 if it raised."""
    result, raised, *rest = kinds
    arguments = ", ".join(f"{kind} %a{i}" for i, kind in enumerate(rest))
    return f"""
define i32 @{SYMBOL}({arguments}) {{
  %result = alloca {_target(result)}
  %raised = alloca {_target(raised)}
  store {_target(result)} null, {result} %result
  store {_target(raised)} null, {raised} %raised
  %status = call i32 @"{inner}"({result} %result, {raised} %raised, {arguments})
  %other = icmp ne i32 %status, {_OK}
  %some = icmp ne i32 %status, {_NONE}
  %both = and i1 %other, %some
  %failed = zext i1 %both to i32
  ret i32 %failed
}}
"""


def _target(pointer: str) -> str:
    """What a pointer points to; LLVM before 17 may still tell."""
    return pointer.removesuffix("*")


def _target_machine() -> Any:
    """The processor as Numba sees it, but for code that may lie anywhere in memory."""
    features = config.CPU_FEATURES
    if features is None:
        features = host_features()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=config.CPU_NAME or llvm.get_host_cpu_name(),
        features=features,
        opt=3,
        reloc="pic",
        codemodel=CODE_MODEL,
    )


def _remove_unreached(module: Any, machine: Any) -> None:
    """Drop functions and variables that nothing refers to."""
    if hasattr(llvm, "create_module_pass_manager"):  # llvmlite < 0.45
        manager = llvm.create_module_pass_manager()
        manager.add_ipsccp_pass()
        manager.add_global_dce_pass()
        manager.run(module)
        return
    manager = llvm.create_new_module_pass_manager()
    manager.add_ipsccp_pass()
    manager.add_global_dead_code_eliminate_pass()
    manager.add_strip_dead_prototype_pass()
    manager.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))
