"""What the value of an option may be: rules that hand back the value in its plain form or raise.

A rule is called with the public name of the option, which begins every message, and the value.
"""

from __future__ import annotations

import math
import numbers
import os
import reprlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_nb.errors import ConfigError, UnsupportedOption

__all__ = [
    "Choice",
    "Fixed",
    "Flag",
    "Number",
    "Or",
    "Path",
    "Rule",
    "Unasked",
    "Whole",
    "Words",
    "group_weights",
    "index_pairs",
    "refuse",
    "success_share",
]

Rule = Callable[[str, Any], Any]


def refuse(name: str, value: Any, wanted: str) -> ConfigError:
    """The error for a value.

    Parameters
    ----------
    name : str
        Public name of the option.
    value : object
        What was given.
    wanted : str
        The rest of the sentence: what is wrong and what to do.

    Returns
    -------
    ConfigError
        To be raised; its text begins "name=value; ".
    """
    return ConfigError(f"{name}={reprlib.repr(value)}; {wanted}")


class Unasked(float):
    """A default number that takes effect only once somebody asks for it.

    It equals its float. Since the fact travels with the value, `dataclasses.replace`, `copy` and
    `pickle` keep it, and assigning any plain number ends it.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Flag:
    """True or False."""

    def __call__(self, name: str, value: Any) -> bool:
        """The flag as a bool."""
        if not isinstance(value, (bool, np.bool_)):
            raise refuse(name, value, "True or False is needed")
        return bool(value)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few values; `absent` gives the reason for those that this version lacks."""

    choices: tuple[Any, ...]
    absent: Mapping[Any, str] = field(default_factory=dict)

    def __call__(self, name: str, value: Any) -> Any:
        """The choice that equals the value."""
        value = value.item() if isinstance(value, np.generic) else value
        for choice in self.choices:
            if isinstance(value, type(choice)) and value == choice:
                if choice in self.absent:
                    raise UnsupportedOption(f"{name}={value!r}; {self.absent[choice]}")
                return choice
        raise refuse(name, value, f"choose one of {', '.join(map(str, self.choices))}")


@dataclass(frozen=True, slots=True)
class Whole:
    """An integer in a closed range."""

    least: int
    most: int | None = None

    @property
    def wanted(self) -> str:
        """The rule in words."""
        return f"an integer ≥ {self.least}" + ("" if self.most is None else f" and ≤ {self.most}")

    def __call__(self, name: str, value: Any) -> int:
        """The integer as an int."""
        whole = isinstance(value, (int, numbers.Integral)) and not isinstance(value, bool)
        if not whole or value < self.least or (self.most is not None and value > self.most):
            raise refuse(name, value, f"{self.wanted} is needed")
        if value > sys.maxsize:  # native code counts in 64 bits
            raise refuse(name, value, f"{sys.maxsize} is the most")
        return int(value)


@dataclass(frozen=True, slots=True)
class Number:
    """A finite real number in a range whose ends are open (above, below) or closed (least, most)."""

    above: float = -math.inf
    least: float = -math.inf
    most: float = math.inf
    below: float = math.inf

    @property
    def wanted(self) -> str:
        """The rule in words."""
        ends = ((">", self.above), ("≥", self.least), ("≤", self.most), ("<", self.below))
        limits = [f"{sign} {end:g}" for sign, end in ends if math.isfinite(end)]
        return " ".join(("a finite number", " and ".join(limits))).rstrip()

    def __call__(self, name: str, value: Any) -> float:
        """The number as a float."""
        real = isinstance(value, (float, int, numbers.Real)) and not isinstance(value, bool)
        try:
            number = float(value) if real else math.nan
        except OverflowError:  # an integer beyond the range of floats
            number = math.nan
        # numbers below -inf or above inf there are none, so open ends leave infinities out
        if not (self.above < number < self.below and self.least <= number <= self.most):
            raise refuse(name, value, f"{self.wanted} is needed")
        return number


@dataclass(frozen=True, slots=True)
class Path:
    """A path of the file system."""

    @property
    def wanted(self) -> str:
        """The rule in words."""
        return "a path (str or os.PathLike)"

    def __call__(self, name: str, value: Any) -> str:
        """The path as text."""
        if not isinstance(value, (str, os.PathLike)) or not (text := os.fspath(value)):
            raise refuse(name, value, f"{self.wanted} is needed")
        if not isinstance(text, str):
            raise refuse(name, value, f"{self.wanted}, not of bytes, is needed")
        return text


@dataclass(frozen=True, slots=True)
class Or:
    """A single word, such as None or "auto", or what another rule allows."""

    word: str | None
    rule: Whole | Number | Path

    def __call__(self, name: str, value: Any) -> Any:
        """The word, or what the rule makes of the value."""
        if value is None or isinstance(value, str):
            if value == self.word:
                return self.word
            if value is None or not isinstance(self.rule, Path):
                raise refuse(name, value, f"{self.word!r} or {self.rule.wanted} is needed")
        return self.rule(name, value)


@dataclass(frozen=True, slots=True)
class Fixed:
    """A valid value is understood, but any other than this one would have no effect: refused."""

    value: Any
    rule: Rule
    reason: str

    def __call__(self, name: str, value: Any) -> Any:
        """The only value."""
        if self.rule(name, value) != self.value:
            raise UnsupportedOption(f"{name}={value!r}; {self.reason}; leave it {self.value!r}")
        return self.value


@dataclass(frozen=True, slots=True)
class Words:
    """Any of a few words, in a list, tuple or set."""

    words: tuple[str, ...]

    def __call__(self, name: str, value: Any) -> tuple[str, ...]:
        """The words that are in the value, each once, in the order of the rule."""
        if not isinstance(value, (list, tuple, set, frozenset)):
            raise refuse(name, value, f"a list of {', '.join(self.words)} is needed")
        for word in value:
            if word not in self.words:
                raise refuse(name, value, f"{word!r} is none of {', '.join(self.words)}")
        return tuple(word for word in self.words if word in value)


def success_share(name: str, value: Any) -> float:
    """A share between 0 and 1; one that nobody asked for is the whole.

    Parameters
    ----------
    name : str
        Public name of the option.
    value : object
        What was given; `Unasked` for the default.

    Returns
    -------
    float
        In [0, 1].
    """
    return 1.0 if isinstance(value, Unasked) else Number(least=0.0, most=1.0)(name, value)


def group_weights(name: str, value: Any) -> NDArray[np.float64] | None:
    """Weights of groups of points.

    Parameters
    ----------
    name : str
        Public name of the option.
    value : array_like, shape (n_groups,), or None
        Positive finite numbers.

    Returns
    -------
    ndarray of float64, shape (n_groups,), read-only, or None
        A copy.
    """
    if value is None:
        return None
    try:
        given = np.asarray(value)
    except ValueError:
        raise refuse(name, value, "a 1-D array of numbers > 0 is needed") from None
    if given.ndim != 1 or given.size == 0 or given.dtype.kind not in "iuf":
        raise refuse(name, value, "a 1-D array of numbers > 0 is needed")
    # a copy of bytes cannot be made writeable again
    array = np.frombuffer(given.astype(np.float64).tobytes())
    bad = np.flatnonzero(~(np.isfinite(array) & (array > 0.0)))
    if bad.size:
        raise refuse(name, value, f"entry {bad[0]} is {array[bad[0]]:g}, a finite number > 0 is needed")
    return array


def index_pairs(name: str, value: Any) -> tuple[tuple[int, int], ...] | None:
    """Ranges of parameters.

    Parameters
    ----------
    name : str
        Public name of the option.
    value : sequence of (int, int), or None
        Start and end, 0 ≤ start < end.

    Returns
    -------
    tuple of (int, int), or None
        The ranges.
    """
    if value is None:
        return None
    wanted = "a list of (start, end) with 0 ≤ start < end is needed"
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple)) or not value:
        raise refuse(name, value, wanted)
    pairs = []
    for pair in value:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise refuse(name, value, f"{pair!r} is not a pair; {wanted}")
        start, end = pair
        for index in pair:
            if isinstance(index, bool) or not isinstance(index, numbers.Integral):
                raise refuse(name, value, f"{index!r} is not an integer; {wanted}")
        if not 0 <= start < end:
            raise refuse(name, value, f"({start}, {end}) is no range; {wanted}")
        pairs.append((int(start), int(end)))
    return tuple(pairs)
