"""The problems of the benchmarks: models as text and as functions, seeded data, poor starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

SLICE = 1 << 20  # rows that are made or summed at a time, so that big data need no big temporaries
Functions = tuple[Callable[..., Any], Callable[..., None]]


@dataclass(frozen=True)
class Problem:
    """A model as text and as plain functions, and how its data and its poor starts are made.

    `functions(m)` gives `value(x, theta)` and `columns(x, theta, out)` from the exp and sin of a
    namespace m (numpy, jax.numpy, math); `columns` sets out[j] to the derivative by parameter j.
    Every model is a sum of its linear parameters times their columns, which `linear` lists.
    """

    name: str
    text: str
    truth: tuple[float, ...]
    starts: tuple[tuple[float, ...], ...]
    linear: tuple[int, ...]
    functions: Callable[[Any], Functions]
    span: tuple[float, float] = (0.0, 10.0)
    noise: float = 0.1

    @property
    def p(self) -> int:
        return len(self.truth)

    @property
    def model(self) -> Any:
        from nlsq_nb import Model  # here, because a peer's process does without it

        return Model(self.text)

    def data(self, n: int, *, shuffled: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Seeded x and y; x in order, or such that the first rows of it are data of their own."""
        rng, (value, _) = np.random.default_rng(n), self.functions(np)
        (low, high), x, y = self.span, np.empty(n), np.empty(n)
        for lo in range(0, n, SLICE):
            part = x[lo : lo + SLICE]
            if shuffled:
                part[:] = rng.uniform(low, high, len(part))
            else:
                part[:] = low + (high - low) / max(n - 1, 1) * np.arange(lo, lo + len(part))
            y[lo : lo + SLICE] = value(part, self.truth) + rng.normal(0.0, self.noise, len(part))
        return x, y

    def sse(self, x: np.ndarray, y: np.ndarray, theta: Any) -> float:
        """Sum of squared residuals, by NumPy."""
        value, _ = self.functions(np)
        parts = range(0, len(x), SLICE)
        return math.fsum(float(np.sum((y[i : i + SLICE] - value(x[i : i + SLICE], theta)) ** 2)) for i in parts)


def decay(m: Any) -> Functions:
    exp = m.exp

    def value(x, theta):
        return theta[0] * exp(-theta[1] * x) + theta[2]

    def columns(x, theta, out):
        e = exp(-theta[1] * x)
        out[0] = e
        out[1] = -theta[0] * x * e
        out[2] = 1.0

    return value, columns


def damped_sine(m: Any) -> Functions:
    exp, sin, cos = m.exp, m.sin, m.cos

    def value(x, theta):
        return theta[0] * exp(-theta[1] * x) * sin(theta[2] * x + theta[3])

    def columns(x, theta, out):
        e = exp(-theta[1] * x)
        angle = theta[2] * x + theta[3]
        wave = e * sin(angle)
        slope = theta[0] * e * cos(angle)
        out[0] = wave
        out[1] = -theta[0] * x * wave
        out[2] = x * slope
        out[3] = slope

    return value, columns


def gaussians(count: int, *, offset: bool) -> Callable[[Any], Functions]:
    """`count` peaks of height, place and width, and perhaps an offset."""

    def functions(m: Any) -> Functions:
        exp = m.exp

        def value(x, theta):
            total = theta[0] * exp(-0.5 * ((x - theta[1]) / theta[2]) ** 2)
            for k in range(1, count):
                total = total + theta[3 * k] * exp(-0.5 * ((x - theta[3 * k + 1]) / theta[3 * k + 2]) ** 2)
            return total + theta[3 * count] if offset else total

        def columns(x, theta, out):
            for k in range(count):
                d = (x - theta[3 * k + 1]) / theta[3 * k + 2]
                e = exp(-0.5 * d * d)
                slope = theta[3 * k] / theta[3 * k + 2] * d * e
                out[3 * k] = e
                out[3 * k + 1] = slope
                out[3 * k + 2] = d * slope
            if offset:
                out[3 * count] = 1.0

        return value, columns

    return functions


def gaussian_text(count: int, *, offset: bool) -> str:
    peaks = [f"a{k}*exp(-(x - m{k})**2/(2*s{k}**2))" for k in range(count)]
    return " + ".join([*peaks, "c"] if offset else peaks)


DECAY = Problem(
    "exponential",
    "a*exp(-b*x) + c",
    (5.0, 0.5, 1.0),
    ((1.0, 0.1, 5.0), (10.0, 0.1, 5.0), (1.0, 5.0, 0.0), (100.0, 2.0, -10.0), (0.01, 0.02, 0.0)),
    (0, 2),
    decay,
)
TWO_GAUSSIANS = Problem(
    "two Gaussians",
    gaussian_text(2, offset=False),
    (4.0, 3.0, 0.6, 3.0, 6.5, 0.8),
    (
        (1.0, 2.5, 1.0, 1.0, 7.0, 1.0),
        (1.0, 3.5, 0.3, 1.0, 6.0, 0.4),
        (10.0, 2.0, 1.0, 10.0, 8.0, 1.0),
        (1.0, 4.0, 1.0, 1.0, 6.0, 1.0),
        (4.0, 2.5, 1.5, 3.0, 7.5, 1.5),
    ),
    (0, 3),
    gaussians(2, offset=False),
)
DAMPED_SINE = Problem(
    "damped sine",
    "a*exp(-b*x)*sin(w*x + t)",
    (2.0, 0.3, 4.0, 0.7),
    (
        (1.0, 0.1, 3.8, 0.0),
        (1.0, 1.0, 4.2, 1.0),
        (5.0, 0.05, 3.9, 1.5),
        (0.5, 0.5, 4.4, 0.0),
        (2.0, 0.3, 3.6, 1.2),
    ),
    (0,),
    damped_sine,
)
FOUR_GAUSSIANS = Problem(
    "four Gaussians + offset",
    gaussian_text(4, offset=True),
    (4.0, 2.0, 0.4, 3.0, 4.0, 0.5, 5.0, 6.0, 0.35, 2.0, 8.0, 0.6, 1.0),
    (
        (1.0, 1.8, 0.6, 1.0, 4.2, 0.6, 1.0, 5.8, 0.6, 1.0, 8.2, 0.6, 0.0),
        (1.0, 2.3, 0.3, 1.0, 4.3, 0.3, 1.0, 6.3, 0.3, 1.0, 8.3, 0.3, 0.0),
        (9.0, 1.7, 0.5, 9.0, 3.7, 0.5, 9.0, 5.7, 0.5, 9.0, 7.7, 0.5, 5.0),
        (1.0, 2.2, 0.8, 1.0, 3.7, 0.8, 1.0, 6.2, 0.6, 1.0, 7.8, 1.0, 3.0),
    ),
    (0, 3, 6, 9, 12),
    gaussians(4, offset=True),
)
PROBLEMS = (DECAY, TWO_GAUSSIANS, DAMPED_SINE, FOUR_GAUSSIANS)
