"""The executor of PTX notices what a device would not forgive, or not always."""

import numpy as np
import pytest

from ..emulator.machine import Kernel, array_arguments, pack_arguments
from ..emulator.ptx import PtxError, UnsupportedPtx

HEAD = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 out)
{
    .reg .pred %p<3>; .reg .b32 %r<6>; .reg .b64 %rd<6>; .reg .f64 %fd<4>;
    .shared .align 8 .b8 sh[1024];
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 8;
    mov.u64 %rd3, sh;
    add.s64 %rd4, %rd3, %rd2;
    add.s64 %rd5, %rd1, %rd2;
    cvt.rn.f64.u32 %fd1, %r1;
"""
STORE, LOAD_NEXT = "st.shared.f64 [%rd4], %fd1;", "ld.shared.f64 %fd2, [%rd4+8];"
OUT, END = "st.global.f64 [%rd5], %fd1;", "ret; }"


def run(*body, threads=64, order="forward", room=64):
    kernel, out = Kernel(HEAD + "\n".join([*body, END])), np.zeros(room)
    _, buffers = array_arguments([out])
    counts = kernel.launch((1,), (threads,), pack_arguments(kernel, [out.ctypes.data]), buffers, order=order)
    return out, counts


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_a_sound_kernel_runs(order):
    out, counts = run(STORE, "bar.sync 0;", "ld.shared.f64 %fd1, [%rd4];", OUT, order=order)
    assert out.tolist() == list(range(64))
    assert counts["stores"] == counts["shared_stores"] == counts["shared_loads"] == 64
    assert counts["bytes_stored"] == 512


@pytest.mark.parametrize(
    ("body", "threads", "text"),
    [
        ([OUT], 65, "outside every buffer"),
        (["st.shared.f64 [%rd4+1024], %fd1;"], 1, "outside the block's shared memory"),
        (["st.global.f64 [%rd5+4], %fd1;"], 1, "misaligned"),
        ([STORE, LOAD_NEXT], 64, "race|uninitialised"),
        ([STORE, "bar.sync 0;", LOAD_NEXT, "st.shared.f64 [%rd4], %fd2;"], 63, "race|uninitialised"),
        (["st.shared.f64 [%rd3], %fd1;"], 2, "race: write"),
        (["ld.shared.f64 %fd2, [%rd4];"], 1, "uninitialised"),
        (["setp.lt.u32 %p1, %r1, 7;", "@%p1 bra $L;", "bar.sync 0;", "$L:"], 64, "divergent barrier"),
        (["setp.lt.u32 %p1, %r1, 7;", "@%p1 bra $L;", "bar.sync 0;", "ret;", "$L:", "bar.sync 0;"], 64, "divergent"),
        (["trap;"], 1, "trap"),
    ],
)
def test_faults_are_found(body, threads, text):
    with pytest.raises(PtxError, match=text):
        run(*body, threads=threads)


@pytest.mark.parametrize("body", ["atom.global.add.f64 %fd2, [%rd5], %fd1;", "frobnicate.f64 %fd1, %fd1;"])
def test_what_is_not_known_is_refused(body):
    with pytest.raises(UnsupportedPtx):
        run(body)
