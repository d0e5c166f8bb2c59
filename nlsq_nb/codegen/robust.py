"""The robust losses of `core.losses` as statements of generated kernels, branch-free."""

from __future__ import annotations

from nlsq_nb.codegen.printers import DIALECTS

__all__ = ["PARAMETERS", "loss_operations", "loss_statements"]

PARAMETERS = ("square", "inverse", "share", "floor", "scatter")
"""What `Loss.numbers` has, by the names that the statements use."""

# from z to rho, ρ'(z) in slope and ψ' = ρ' + 2zρ'' in bend; {operation:arguments} is spelt by the dialect
_STATEMENTS: dict[str, tuple[tuple[str, str, tuple[str, ...]], ...]] = {
    "huber": (
        ("root", "sqrt", ("z",)),
        ("slope", "where", ("root < 1.0", "1.0", "root")),
        ("slope", "", ("1.0 / slope",)),
        ("rho", "where", ("z <= 1.0", "z", "2.0 * root - 1.0")),
        ("bend", "where", ("z <= 1.0", "1.0", "0.0")),
    ),
    "soft_l1": (
        ("more", "", ("1.0 + z",)),
        ("root", "sqrt", ("more",)),
        ("slope", "", ("1.0 / root",)),
        ("rho", "", ("2.0 * z / (1.0 + root)",)),
        ("bend", "", ("slope / more",)),
    ),
    "cauchy": (
        ("slope", "", ("1.0 / (1.0 + z)",)),
        ("rho", "log1p", ("z",)),
        ("bend", "", ("(1.0 - z) * slope * slope",)),
    ),
    "arctan": (
        ("slope", "", ("1.0 / (1.0 + z * z)",)),
        ("rho", "atan", ("z",)),
        ("bend", "", ("(1.0 - 3.0 * z * z) * slope * slope",)),
    ),
    "tukey": (
        ("near", "where", ("z > 1.0", "1.0", "z")),
        ("left", "", ("1.0 - near",)),
        ("slope", "", ("left * left",)),
        ("rho", "", ("near * (1.0 - near * (1.0 - near * 0.3333333333333333))",)),
        ("bend", "", ("left * (1.0 - 5.0 * near)",)),
    ),
}


def loss_operations(loss: str) -> set[str]:
    """Operations of the dialects that the statements of a loss use.

    Parameters
    ----------
    loss : str
        One of `core.losses.LOSSES`.

    Returns
    -------
    set of str
        Empty for "linear".
    """
    if loss == "linear":
        return set()
    return {"where"} | {operation for _, operation, _ in _STATEMENTS[loss] if operation}


def loss_statements(loss: str, target: str, order: int, *, weighted: bool) -> list[str]:
    """Statements that weigh the residual `r`, of weight `w` where there are weights.

    Parameters
    ----------
    loss : str
        A robust one of `core.losses.LOSSES`.
    target : str
        A key of `DIALECTS`.
    order : int
        0 for the cost alone, 1 with the gradient, 2 with the matrix.
    weighted : bool
        Whether there is `w`.

    Returns
    -------
    list of str
        They use the names of `PARAMETERS` and set `cost`, f²ρ; from order 1 on `wr`, which multiplies J in the
        gradient; and with order 2 `h`, which multiplies J Jᵀ. See `core.losses.weigh`.
    """
    dialect = DIALECTS[target]
    lines = ["wr = w * r" if weighted else "wr = r", "z = wr * r * inverse"]
    for name, operation, arguments in _STATEMENTS[loss]:
        text = dialect.spell(operation, list(arguments)) if operation else arguments[0]
        lines.append(f"{name} = {text}")
    # a residual that is not finite stays visible where ρ has an end
    lines.append("cost = square * rho + 0.0 * r")
    if order > 0:
        lines.append("wr = slope * wr")
    if order > 1:
        least = dialect.spell("where", ["bend > floor * slope", "bend", "floor * slope"])
        lines.append(f"h = share * ({least}) + scatter * wr * (slope * r)")
        if weighted:
            lines.append("h = w * h")
    return lines
