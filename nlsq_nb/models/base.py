"""What every model offers, whatever it was made from: names, values, derivatives, sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nlsq_nb.codegen.evaluate import evaluate
from nlsq_nb.codegen.ir import AnyProgram, OpaqueProgram
from nlsq_nb.codegen.skeletons import render
from nlsq_nb.core.columns import split_columns
from nlsq_nb.errors import ModelError

__all__ = ["ModelBase"]


class ModelBase:
    """A program with the user's names on its variables and parameters.

    Attributes
    ----------
    x : tuple of str, length k
        Independent variables.
    params : tuple of str, length p
        Parameters, in the order of p0 and popt.
    name : str or None
        What reports call the model.
    """

    x: tuple[str, ...]
    params: tuple[str, ...]
    name: str | None

    def _name(self, x: tuple[str, ...], params: tuple[str, ...], name: str | None) -> None:
        self.x, self.params, self.name = x, params, name

    @property
    def program(self) -> AnyProgram:
        """What backends compile."""
        raise AssertionError("every model says what its program is")

    @property
    def n_params(self) -> int:
        """Number of parameters p."""
        return len(self.params)

    @property
    def n_outputs(self) -> int:
        """Number of outputs m."""
        return self.program.n_outputs

    def __call__(self, x: ArrayLike | Mapping[str, ArrayLike], *theta: float) -> NDArray[Any]:
        """Model values.

        Parameters
        ----------
        x : array_like or mapping
            Independent variables: (n,), (k, n), or columns by name.
        *theta : float
            The p parameters.

        Returns
        -------
        ndarray, shape (n,) or (m, n)
            float64.
        """
        out = self._evaluate("values", x, theta)
        return out if self.n_outputs > 1 else out[0]

    def jacobian(self, x: ArrayLike | Mapping[str, ArrayLike], *theta: float) -> NDArray[Any]:
        """Exact derivatives with respect to the parameters.

        Parameters
        ----------
        x : array_like or mapping
            Independent variables: (n,), (k, n), or columns by name.
        *theta : float
            The p parameters.

        Returns
        -------
        ndarray, shape (n, p) or (m, n, p)
            float64.
        """
        out = np.swapaxes(self._evaluate("derivatives", x, theta), 1, 2)
        return out if self.n_outputs > 1 else out[0]

    def _evaluate(
        self, what: Literal["values", "derivatives"], x: Any, theta: Sequence[Any]
    ) -> NDArray[np.float64]:
        if len(theta) != self.n_params:
            raise ModelError(f"{self.n_params} parameters {self.params} needed, {len(theta)} given")
        for name, value in zip(self.params, theta, strict=True):
            if np.ndim(value) or value is None or isinstance(value, (str, bytes, complex)):
                raise ModelError(f"parameter {name!r} is {value!r}; one real number is needed")
        values = np.asarray(theta, dtype=np.float64)
        columns = tuple(c.astype(np.float64, copy=False) for c in split_columns(x, self.x, "x"))
        return evaluate(self.program, what, columns, values)

    def source(self, target: str = "cpu", *, weighted: bool = False) -> str:
        """The generated module for a target; no GPU is needed to see the CUDA text.

        Parameters
        ----------
        target : {"cpu", "cuda", "reference"}
            Numba CPU, Numba CUDA or NumPy.
        weighted : bool
            The form that reads a weight per residual.

        Returns
        -------
        str
            Python source.

        Raises
        ------
        ModelError
            For an unknown target, or a model of NumPy functions, which is not compiled.
        """
        if isinstance(self.program, OpaqueProgram):
            raise ModelError("a model of NumPy functions is called as it is; no code is generated")
        return render(self.program, target, weighted)
