"""The compiled small fit: from the text of its modules to an object.

Of LLVM's passes only the one that brings variables into registers is run: it takes a third of the
time of all, and the code is as fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import llvmlite.binding as llvm  # type: ignore[import-untyped]
from llvmlite import ir

from nlsq_nb.backends.objects import CODE_MODEL, Code
from nlsq_nb.backends.small.translate import translate

__all__ = ["build", "compile_ir"]


def build(texts: Mapping[str, str], symbols: Mapping[str, str]) -> Code:
    """Compile the small fit.

    Parameters
    ----------
    texts : mapping of str
        By the names of the modules in this package, `driver` last.
    symbols : mapping of str
        Names that functions get.

    Returns
    -------
    Code
        With the functions, which give an int32.
    """
    module = translate([(text, vars(import_module(f"{__package__}.{name}"))) for name, text in texts.items()])
    for name, symbol in symbols.items():
        inner = module.get_global(name)
        inner.linkage = "internal"
        kind = ir.FunctionType(ir.IntType(32), inner.function_type.args)
        function = ir.Function(module, kind, symbol)
        b = ir.IRBuilder(function.append_basic_block())
        b.ret(b.trunc(b.call(inner, function.args), kind.return_type))
    return Code(compile_ir(module))


def compile_ir(module: ir.Module) -> bytes:
    """Compile for the processor at hand, with the bits that IEEE 754 prescribes.

    Parameters
    ----------
    module : llvmlite.ir.Module
        From `translate`.

    Returns
    -------
    bytes
        An object for any place in memory.
    """
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=1,
        reloc="pic",
        codemodel=CODE_MODEL,
    )
    code = llvm.parse_assembly(str(module))
    code.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=1))
    passes = llvm.create_new_function_pass_manager()
    if hasattr(passes, "add_sroa_pass"):
        passes.add_sroa_pass()
        for function in code.functions:
            if not function.is_declaration:
                passes.run(function, builder)
    else:  # llvmlite < 0.45
        builder.getModulePassManager().run(code, builder)
    return bytes(machine.emit_object(code))
