"""The NIST StRD nonlinear regression problems: their files read as data, their models written as text.

Source: https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml (public domain).
"""

import re
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parents[1] / "data" / "nist"

_LANCZOS = "b1*exp(-b2*x) + b3*exp(-b4*x) + b5*exp(-b6*x)"
_GAUSS = "b1*exp(-b2*x) + b3*exp(-(x - b4)**2/b5**2) + b6*exp(-(x - b7)**2/b8**2)"

MODELS = {
    "Chwirut1": "exp(-b1*x)/(b2 + b3*x)",
    "Chwirut2": "exp(-b1*x)/(b2 + b3*x)",
    "DanWood": "b1*x**b2",
    "ENSO": (
        "b1 + b2*cos(2*pi*x/12) + b3*sin(2*pi*x/12) + b5*cos(2*pi*x/b4) + b6*sin(2*pi*x/b4)"
        " + b8*cos(2*pi*x/b7) + b9*sin(2*pi*x/b7)"
    ),
    "Gauss1": _GAUSS,
    "Gauss2": _GAUSS,
    "Gauss3": _GAUSS,
    "Hahn1": "(b1 + b2*x + b3*x**2 + b4*x**3)/(1 + b5*x + b6*x**2 + b7*x**3)",
    "Kirby2": "(b1 + b2*x + b3*x**2)/(1 + b4*x + b5*x**2)",
    "Lanczos1": _LANCZOS,
    "Lanczos2": _LANCZOS,
    "Lanczos3": _LANCZOS,
    "MGH17": "b1 + b2*exp(-x*b4) + b3*exp(-x*b5)",
    "Misra1a": "b1*(1 - exp(-b2*x))",
    "Misra1b": "b1*(1 - (1 + b2*x/2)**(-2))",
    "Misra1c": "b1*(1 - (1 + 2*b2*x)**(-.5))",
    "Misra1d": "b1*b2*x*((1 + b2*x)**(-1))",
    "Nelson": "b1 - b2*x1*exp(-b3*x2)",  # of log(y)
    "Roszman1": "b1 - b2*x - atan(b3/(x - b4))/pi",
}

# Terms of the same form: exchanging these groups of parameters (numbers as in b1, b2, ...) leaves the model as it is.
EXCHANGEABLE = {
    "ENSO": ((4, 5, 6), (7, 8, 9)),
    "Gauss1": ((3, 4, 5), (6, 7, 8)),
    "Gauss2": ((3, 4, 5), (6, 7, 8)),
    "Gauss3": ((3, 4, 5), (6, 7, 8)),
    "Lanczos1": ((1, 2), (3, 4), (5, 6)),
    "Lanczos2": ((1, 2), (3, 4), (5, 6)),
    "Lanczos3": ((1, 2), (3, 4), (5, 6)),
    "MGH17": ((2, 4), (3, 5)),
}


@dataclass(frozen=True)
class Problem:
    """One data set: what is fitted, from where, and what must come out."""

    name: str
    model: str
    variables: tuple[str, ...]
    params: tuple[str, ...]
    x: np.ndarray
    y: np.ndarray
    starts: tuple[np.ndarray, np.ndarray]
    values: np.ndarray
    deviations: np.ndarray
    rss: float
    dof: int

    def labellings(self) -> list[np.ndarray]:
        """Every order of the parameters that is the same model, the certified one first."""
        groups = EXCHANGEABLE.get(self.name, ())
        found = []
        for order in permutations(groups):
            index = np.arange(len(self.params))
            for target, source in zip(groups, order, strict=True):
                index[np.subtract(target, 1)] = np.subtract(source, 1)
            found.append(index)
        return found


@cache
def problem(name: str) -> Problem:
    """Read a NIST file by the name of its data set."""
    lines = (FOLDER / f"{name}.dat").read_text(encoding="ascii").splitlines()
    rows = [re.match(r"\s*b\d+ =(.*)", line) for line in lines]
    table = np.array([[float(word) for word in row[1].split()] for row in rows if row])
    first = max(k for k, line in enumerate(lines) if line.startswith("Data:"))
    responses, *variables = lines[first].split()[1:]
    assert responses == "y"
    data = np.array([[float(word) for word in line.split()] for line in lines[first + 1 :] if line.strip()])
    assert len(data) == int(_after(lines, "Number of Observations:"))
    y = np.log(data[:, 0]) if name == "Nelson" else data[:, 0]
    return Problem(
        name=name,
        model=MODELS[name],
        variables=tuple(variables),
        params=tuple(f"b{k}" for k in range(1, len(table) + 1)),
        x=data[:, 1] if len(variables) == 1 else data[:, 1:].T,
        y=y,
        starts=(table[:, 0], table[:, 1]),
        values=table[:, 2],
        deviations=table[:, 3],
        rss=_after(lines, "Residual Sum of Squares:"),
        dof=int(_after(lines, "Degrees of Freedom:")),
    )


def _after(lines: list[str], label: str) -> float:
    return next(float(line.removeprefix(label)) for line in lines if line.startswith(label))


def digits(found: float | np.ndarray, certified: float | np.ndarray) -> float:
    """Correct digits of the worst entry (log relative error); 11, as certified, at most, and 0 for nonsense."""
    error = np.max(np.abs(np.subtract(found, certified) / certified))
    return float(np.clip(-np.log10(max(error, 1e-11)), 0.0, 11.0)) if np.isfinite(error) else 0.0
