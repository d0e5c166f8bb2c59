"""Where blocks of rows are reduced to sums: the CPU kernels and the NumPy reference."""

from __future__ import annotations

from nlsq_nb.errors import BackendUnavailable, UnsupportedOption
from nlsq_nb.protocols import Backend

__all__ = ["get_backend"]


def get_backend(name: str = "auto", n_threads: int | None = None) -> Backend:
    """Make a backend by name.

    Parameters
    ----------
    name : {"auto", "cpu", "reference"}
        auto is cpu for host arrays.
    n_threads : int, optional
        Threads of the CPU backend; the cores available to the process by default.

    Returns
    -------
    Backend
        Ready to compile.

    Raises
    ------
    BackendUnavailable
        When it exists but cannot run here.
    UnsupportedOption
        For an unknown name.
    """
    if name in ("auto", "cpu"):
        from nlsq_nb.backends.cpu import CpuBackend

        return CpuBackend(n_threads)
    if name == "reference":
        from nlsq_nb.backends.reference import ReferenceBackend

        return ReferenceBackend()
    if name == "cuda":
        raise BackendUnavailable(
            "the cuda backend is not part of this version; Model.source('cuda') shows its kernels"
        )
    raise UnsupportedOption(f"backend={name!r}; choose auto, cpu or reference")
