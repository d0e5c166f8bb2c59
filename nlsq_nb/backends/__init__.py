"""Where blocks of rows are reduced to sums: the CPU kernels, CUDA, and the NumPy reference."""

from __future__ import annotations

from nlsq_nb.errors import DataError, UnsupportedOption
from nlsq_nb.protocols import Backend

__all__ = ["get_backend"]


def get_backend(
    name: str = "auto",
    n_threads: int | None = None,
    *,
    on_device: bool = False,
    multi_device: bool = False,
) -> Backend:
    """Make a backend by name.

    Parameters
    ----------
    name : {"auto", "cpu", "cuda", "reference"}
        auto follows the data: cuda where they are on a device, else cpu.
    n_threads : int, optional
        Threads of the CPU backend; the cores available to the process by default.
    on_device : bool
        Whether the data are arrays on a CUDA device.
    multi_device : bool
        Whether the CUDA backend uses all devices.

    Returns
    -------
    Backend
        Ready to compile.

    Raises
    ------
    BackendUnavailable
        When it exists but cannot run here; says why.
    UnsupportedOption
        For an unknown name, and for several devices without the CUDA backend.
    DataError
        When the data are on a device and the backend is not.
    """
    if name == "auto":
        name = "cuda" if on_device else "cpu"
    if name == "cuda":
        from nlsq_nb.backends.cuda.backend import CudaBackend

        return CudaBackend(multi_device=multi_device)
    if name not in ("cpu", "reference"):
        raise UnsupportedOption(f"backend={name!r}; choose auto, cpu, cuda or reference")
    if on_device:
        raise DataError(
            f"the data are on a GPU, but backend={name!r} reads host memory; use backend='cuda', or "
            "copy them with .get()"
        )
    if multi_device:
        raise UnsupportedOption(
            f"enable_multi_device=True needs backend='cuda'; with backend={name!r} n_threads is what counts"
        )
    if name == "cpu":
        from nlsq_nb.backends.cpu import CpuBackend

        return CpuBackend(n_threads)
    from nlsq_nb.backends.reference import ReferenceBackend

    return ReferenceBackend()
