"""`NormalizedModelWrapper`: a model as a function of normalised parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.core.normalize import ParameterNormalizer

__all__ = ["NormalizedModelWrapper"]


class NormalizedModelWrapper:
    """f(x, S z + o).

    The fit itself normalises the sums instead: g_z = S g and H_z = S H S, so nothing is wrapped there.

    Parameters
    ----------
    model : callable
        `model(x, *theta)`; a `Model`, or any function.
    normalizer : ParameterNormalizer
        The affine map.

    Attributes
    ----------
    model : callable
        As given.
    normalizer : ParameterNormalizer
        As given.
    """

    def __init__(self, model: Any, normalizer: ParameterNormalizer) -> None:
        self.model = model
        self.normalizer = normalizer

    def __call__(self, x: Any, *z: float) -> Any:
        """Values of the model at normalised parameters."""
        return self.model(x, *self.normalizer.denormalize(z))

    def jacobian(self, x: Any, *z: float) -> NDArray[np.float64]:
        """Derivatives by the normalised parameters.

        Parameters
        ----------
        x : array_like
            Independent variables, as for the model.
        *z : float
            Normalised parameters.

        Returns
        -------
        ndarray, shape (n, p)
            J S, for a model that has a `jacobian`.
        """
        inner = self.model.jacobian(x, *self.normalizer.denormalize(z))
        return np.asarray(inner * self.normalizer.scales)
