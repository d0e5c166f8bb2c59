"""`GlobalOptimizationConfig`: the options of the multi-start search on their own."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from nlsq_nb.config.groups import MultistartOptions
from nlsq_nb.errors import ConfigError

__all__ = ["GlobalOptimizationConfig"]

_PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"n_starts": 0},
    "robust": {"n_starts": 5, "elimination_rounds": 2},
    "global": {"n_starts": 20, "batches_per_round": 100},
    "thorough": {"n_starts": 50, "elimination_rounds": 4, "batches_per_round": 150},
    "streaming": {"n_starts": 10, "elimination_rounds": 3, "batches_per_round": 50},
}
# the rules of HybridStreamingConfig, which calls the sampler multistart_sampler
_RULES = {
    f.metadata["flat"].removeprefix("multistart_"): f.metadata["rule"]
    for f in fields(MultistartOptions)
    if f.name != "enabled"
}


@dataclass(frozen=True, slots=True)
class GlobalOptimizationConfig:
    """How starting points are spread and compared.

    Parameters
    ----------
    n_starts : int
        Points beside p0; 0 starts from p0 alone. A fit refuses more than 16,777,216 coordinates in all.
    sampler : {"lhs", "sobol", "halton"}
        Latin hypercube, Sobol' or Halton points, all seeded.
    center_on_p0 : bool
        Whether finite bounds are searched around p0 only.
    scale_factor : float
        Size of the region around p0; 1 reaches as far as the bounds are apart, or a good decade to
        either side of p0 where there are none.
    elimination_rounds : int
        Rounds after each of which the worst points leave; 0 compares all points once.
    elimination_fraction : float
        Share of the points that leaves, in (0, 1).
    batches_per_round : int
        Pieces of the data that each point is measured on in a round.

    Raises
    ------
    ConfigError
        For an invalid value; the text begins with the field's name.

    Examples
    --------
    >>> from nlsq_nb import GlobalOptimizationConfig
    >>> config = GlobalOptimizationConfig.from_preset("robust", sampler="sobol")
    >>> config.n_starts, config.elimination_rounds, config.sampler
    (5, 2, 'sobol')
    """

    n_starts: int = 10
    sampler: str = "lhs"
    center_on_p0: bool = True
    scale_factor: float = 1.0
    elimination_rounds: int = 3
    elimination_fraction: float = 0.5
    batches_per_round: int = 50

    def __post_init__(self) -> None:
        """Validate."""
        for name, rule in _RULES.items():
            object.__setattr__(self, name, rule(name, getattr(self, name)))

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> GlobalOptimizationConfig:
        """A named configuration.

        Parameters
        ----------
        name : {"fast", "robust", "global", "thorough", "streaming"}
            fast: p0 alone; robust: 5 points, 2 rounds; global: 20 points, 100 batches a round;
            thorough: 50 points, 4 rounds of 150 batches; streaming: the defaults.
        **overrides : Any
            Fields that differ from the preset.

        Returns
        -------
        GlobalOptimizationConfig
            Validated.

        Raises
        ------
        ConfigError
            For an unknown name; lists the names.
        TypeError
            For an override that is not a field; names the closest one.
        """
        if name not in _PRESETS:
            hint = _closest(str(name).lower(), _PRESETS)
            raise ConfigError(f"preset {name!r} is not one of {', '.join(_PRESETS)}{hint}")
        return cls.from_dict(_PRESETS[name] | overrides)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GlobalOptimizationConfig:
        """A configuration from field names and values.

        Parameters
        ----------
        values : dict
            Field name -> value; fields left out keep their defaults.

        Returns
        -------
        GlobalOptimizationConfig
            Validated.

        Raises
        ------
        TypeError
            For a name that is not a field; names the closest one.
        """
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise TypeError(
                    f"unexpected field {name!r} of {cls.__name__}{_closest(name, known)}"
                )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON and `from_dict`.

        Returns
        -------
        dict
            Field name -> value.
        """
        return asdict(self)

    def with_overrides(self, **overrides: Any) -> GlobalOptimizationConfig:
        """A changed copy.

        Parameters
        ----------
        **overrides : Any
            Fields that differ.

        Returns
        -------
        GlobalOptimizationConfig
            Validated.

        Raises
        ------
        TypeError
            For a name that is not a field; names the closest one.
        """
        return self.from_dict(self.to_dict() | overrides)

    def as_options(self) -> dict[str, Any]:
        """The same options under the names of `HybridStreamingConfig`.

        Returns
        -------
        dict
            Keywords for `HybridStreamingConfig` and `curve_fit`.
        """
        options = self.to_dict()
        options["multistart_sampler"] = options.pop("sampler")
        return {"enable_multistart": self.n_starts > 0} | options


def _closest(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that is most like this one, if any is."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
