"""The CUDA backend: the only place that names numba.cuda or cupy.

`toolkit` finds the compiler and says why there is none; `columns` wraps arrays that live on a device,
`devices` holds streams and buffers, `kernels` compiles, `passes` runs a pass, `backend` is the `Backend`.
"""

from __future__ import annotations
