"""The kernels of a program behind one C signature.

Every entry point takes (lo, hi, columns, theta, state): rows lo ≤ i < hi, a table of addresses, the
parameters, the sums. The table has the columns of x, of y and, with weights, of w; then, under a robust loss,
the numbers of `Loss.numbers`; then the vector v of `matvec`, or the Jacobian that `rows` fills beside the
values in `state`. Of sums, `state` has two rows
for every segment begun from lo on, at least two. All arrays are contiguous; the columns are of the
storage dtype, the rest float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.backends.objects import Entry, make_entry
from nlsq_nb.codegen.ir import PointProgram, Program
from nlsq_nb.codegen.robust import PARAMETERS
from nlsq_nb.codegen.skeletons import render
from nlsq_nb.core.chunk import Chunk, address_of
from nlsq_nb.core.layout import SEGMENT, sums_size
from nlsq_nb.core.losses import LEAST_SQUARES, Loss
from nlsq_nb.errors import BackendUnavailable, ModelError, NumericsError

__all__ = ["SIGNATURE", "Bound", "bind", "kernel_entry"]

SIGNATURE = ("int64", "int64", "void**", "float64*", "float64*")
"""(lo, hi, columns, theta, state) → 0, or 1 when the kernel raised."""


@lru_cache(maxsize=512)
def kernel_entry(
    program: Program | PointProgram, name: str, dtype: str, *, weighted: bool, loss: str = "linear"
) -> Entry:
    """An entry point of the generated module, shared by all fits of the process.

    Parameters
    ----------
    program : Program or PointProgram
        What it computes.
    name : {"sums0", "sums1", "sums2", "matvec", "rows"}
        Which one.
    dtype : {"float64", "float32"}
        Of the columns.
    weighted : bool
        Whether the residuals have weights.
    loss : str
        One of `core.losses.LOSSES`; its scale comes with every call.

    Returns
    -------
    Entry
        Of `SIGNATURE`.

    Raises
    ------
    ModelError
        When hand-written functions cannot be compiled.
    BackendUnavailable
        When nothing can be compiled here.
    """
    text = render(program, "cpu", weighted, loss)
    text += _adapter(program, name, dtype, weighted, loss != "linear" and name != "rows")
    if not isinstance(program, PointProgram):
        return make_entry(text, f"{name}_entry", SIGNATURE)
    from numba import njit
    from numba.core.errors import NumbaError

    compiled = njit(error_model="numpy")  # so that the kernels can inline them
    injected = {"point": compiled(program.point), "jac_point": compiled(program.jac_point)}
    try:
        return make_entry(text, f"{name}_entry", SIGNATURE, injected)
    except NumbaError as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"point or jac_point cannot be compiled: {first}") from error


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """An entry point bound to the columns of a chunk; it runs without the GIL.

    Attributes
    ----------
    name : str
        See `kernel_entry`.
    entry : Entry
        The function.
    table : ndarray
        Addresses of what is behind `kept`.
    n_rows, n_params : int
        Of the chunk, and p.
    width : int
        Length of a row of `state`; 0 where it is the number of rows.
    kept : tuple of ndarray
        Columns, and what else the function reads.
    """

    name: str
    entry: Entry
    table: NDArray[np.uintp]
    n_rows: int
    n_params: int
    width: int
    kept: tuple[NDArray[Any], ...]

    def __call__(self, lo: int, hi: int, theta: NDArray[np.float64], state: NDArray[np.float64]) -> None:
        """Compute rows lo ≤ i < hi.

        Parameters
        ----------
        lo, hi : int
            Of the chunk.
        theta : ndarray, shape (p,)
            Contiguous float64, as `state`.
        state : ndarray
            See above for its shape.

        Raises
        ------
        ValueError
            For rows or arrays that do not fit.
        NumericsError
            When the kernel raised: no memory for its work space.
        """
        at, sums = self.places(theta, state, self.width or hi - lo)
        segments = max(1, -(-(hi - lo) // SEGMENT))
        if not 0 <= lo <= hi <= self.n_rows or (self.width and len(state) < 2 * segments):
            raise ValueError(f"rows {lo} to {hi} of {self.n_rows} with room for {len(state) // 2} segments")
        if self.entry.call(lo, hi, address_of(self.table), at, sums):
            self.fail()

    def places(self, theta: NDArray[np.float64], state: NDArray[np.float64], width: int) -> tuple[int, int]:
        """Addresses of the parameters and of sums of some width."""
        return _address(theta, _FLOAT, self.n_params), _address(state, _FLOAT, width)

    def fail(self) -> None:
        """Say why the kernel raised."""
        why = f"no memory for the work space of {self.n_params} parameters, or an error in hand-written code"
        raise NumericsError(f"{self.name}: {why}")


def bind(
    program: Program | PointProgram,
    name: str,
    chunk: Chunk,
    dtype: Any,
    *rest: Any,
    loss: Loss = LEAST_SQUARES,
) -> Bound:
    """An entry point bound to the columns of a chunk.

    Parameters
    ----------
    program : Program or PointProgram
        What it computes.
    name : str
        See `kernel_entry`.
    chunk : Chunk
        Contiguous columns of `dtype`.
    dtype : dtype_like
        float64 or float32.
    *rest : ndarray
        Arrays after the columns: v of `matvec`, the Jacobian of `rows`.
    loss : Loss
        What weighs the residuals.

    Returns
    -------
    Bound
        (lo, hi, theta, state) → None.

    Raises
    ------
    ValueError
        For an array that is not contiguous, or of another dtype or size.
    """
    stored = np.dtype(dtype)
    columns = (*chunk.x, *chunk.y, *(chunk.w or ()))
    entry = kernel_entry(program, name, stored.name, weighted=chunk.w is not None, loss=loss.kind)
    rows, p = chunk.n_rows, program.n_params
    places = [_address(c, stored, rows) for c in columns]
    if loss.is_robust and name != "rows":
        numbers = loss.numbers()
        places.append(_address(numbers, _FLOAT, len(numbers)))
        columns = (*columns, numbers)
    places += [_address(r, _FLOAT, rows if name == "rows" else p) for r in rest]
    return Bound(name, entry, np.array(places, np.uintp), rows, p, _width(program, name), (*columns, *rest))


_FLOAT = np.dtype(np.float64)


def _address(array: NDArray[Any], dtype: np.dtype[Any], width: int) -> int:
    """Where an array begins; native code cannot check what it is given."""
    if array.dtype != dtype or array.shape[-1] != width or not array.flags.c_contiguous:
        found = f"{array.dtype} of shape {array.shape}"
        raise ValueError(f"a kernel needs a contiguous array of {width} {dtype}, not {found}")
    return address_of(array)


def _width(program: Program | PointProgram, name: str) -> int:
    """Length of a row of `state`; 0 where it is the number of rows."""
    if name == "rows":
        return 0
    return program.n_params if name == "matvec" else sums_size(program.n_params, int(name[-1]))


def _adapter(
    program: Program | PointProgram, name: str, dtype: str, weighted: bool, robust: bool
) -> str:
    """Text that turns addresses into the arrays of the kernel."""
    if dtype not in ("float64", "float32"):
        raise BackendUnavailable(f"kernels read float64 or float32, not {dtype}")
    p, m, n_vars = program.n_params, program.n_outputs, program.n_vars
    count = n_vars + m * (2 if weighted else 1)
    arrays = [f"carray(columns[{k}], (hi,), np.{dtype})" for k in range(count)]
    arrays.append(f"carray(theta, ({p},))")
    if name == "rows":
        del arrays[n_vars:count]
        arrays.append(f"carray(state, ({m}, hi - lo))")
        arrays.append(f"carray(columns[{count}], ({m}, {p}, hi - lo), np.float64)")
    else:
        if robust:
            arrays.append(f"carray(columns[{count}], ({len(PARAMETERS)},), np.float64)")
        if name == "matvec":
            arrays.append(f"carray(columns[{count + robust}], ({p},), np.float64)")
        segments = f"max(1, (hi - lo + {SEGMENT - 1}) // {SEGMENT})"
        arrays.append(f"carray(state, (2 * {segments}, {_width(program, name)}))")
    inner = ",\n        ".join(["lo", "hi", *arrays])
    return f'''

from numba import carray


def {name}_entry(lo, hi, columns, theta, state):
    """{name} behind a C signature."""
    {name}(
        {inner},
    )
'''
