"""The constructors of `HybridStreamingConfig` that are named after what they are for."""

from __future__ import annotations

from typing import Any, Self

from nlsq_nb.config import presets

__all__ = ["Named"]


class Named:
    """A base for a class whose keywords are options."""

    __slots__ = ()

    @classmethod
    def aggressive(cls, **overrides: Any) -> Self:
        """Fast: looser thresholds, longer first steps, larger chunks.

        Parameters
        ----------
        **overrides : Any
            Options that are to differ from the preset.

        Returns
        -------
        HybridStreamingConfig
            The preset with the overrides.
        """
        return cls(**{**presets.AGGRESSIVE, **overrides})

    @classmethod
    def conservative(cls, **overrides: Any) -> Self:
        """Careful: a short warm-up, tight tolerances, more and shorter Gauss–Newton steps.

        Parameters
        ----------
        **overrides : Any
            Options that are to differ from the preset.

        Returns
        -------
        HybridStreamingConfig
            The preset with the overrides.
        """
        return cls(**{**presets.CONSERVATIVE, **overrides})

    @classmethod
    def memory_optimized(cls, **overrides: Any) -> Self:
        """Small chunks, data stored as float32, conjugate gradients from 1000 parameters.

        Parameters
        ----------
        **overrides : Any
            Options that are to differ from the preset.

        Returns
        -------
        HybridStreamingConfig
            The preset with the overrides.
        """
        return cls(**{**presets.MEMORY_OPTIMIZED, **overrides})

    @classmethod
    def defense_strict(cls, **overrides: Any) -> Self:
        """The four layers tightened, for a p0 known to be near the optimum.

        Parameters
        ----------
        **overrides : Any
            Options that are to differ from the preset.

        Returns
        -------
        HybridStreamingConfig
            The preset with the overrides.
        """
        return cls(**{**presets.DEFENSE_STRICT, **overrides})

    @classmethod
    def defense_relaxed(cls, **overrides: Any) -> Self:
        """The four layers loosened, for a rough p0.

        Parameters
        ----------
        **overrides : Any
            Options that are to differ from the preset.

        Returns
        -------
        HybridStreamingConfig
            The preset with the overrides.
        """
        return cls(**{**presets.DEFENSE_RELAXED, **overrides})

    @classmethod
    def defense_disabled(cls, **overrides: Any) -> Self:
        """All four layers off.

        Parameters
        ----------
        **overrides : Any
            Options that are to differ from the preset.

        Returns
        -------
        HybridStreamingConfig
            The preset with the overrides.
        """
        return cls(**{**presets.DEFENSE_DISABLED, **overrides})

    @classmethod
    def scientific_default(cls, **overrides: Any) -> Self:
        """Tight tolerances behind moderate layers, for published numbers.

        Parameters
        ----------
        **overrides : Any
            Options that are to differ from the preset.

        Returns
        -------
        HybridStreamingConfig
            The preset with the overrides.
        """
        return cls(**{**presets.SCIENTIFIC_DEFAULT, **overrides})

    @classmethod
    def with_multistart(cls, n_starts: int = 10, **overrides: Any) -> Self:
        """Several starts compete before the warm-up.

        Parameters
        ----------
        n_starts : int
            How many.
        **overrides : Any
            Options that are to differ from the preset.

        Returns
        -------
        HybridStreamingConfig
            The preset with the overrides.
        """
        return cls(**{"enable_multistart": True, "n_starts": n_starts, **overrides})
