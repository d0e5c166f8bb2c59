"""Text about a model for people: its algebra, its derivatives, what they cost."""

from __future__ import annotations

from nlsq_nb.codegen.differentiate import jacobian
from nlsq_nb.codegen.ir import Program
from nlsq_nb.codegen.limits import at_their_limits
from nlsq_nb.codegen.text import count_operations, to_text
from nlsq_nb.models.storage import Definition

__all__ = ["algebra", "explanation"]

_LONGEST = 200  # operations written out; beyond, only their number is shown


def algebra(definition: Definition, node: int) -> str:
    """An expression with the user's names, or its size when it is long.

    Parameters
    ----------
    definition : Definition
        Graph and names.
    node : int
        The expression.

    Returns
    -------
    str
        One line.
    """
    count = count_operations(definition.graph, [node])
    if count > _LONGEST:
        return f"({count} operations)"
    return to_text(definition.graph, node, definition.x, definition.params)


def explanation(definition: Definition, program: Program, linear: tuple[str, ...]) -> str:
    """Derivatives, operation counts and the linear/nonlinear split.

    Parameters
    ----------
    definition : Definition
        Graph and names.
    program : Program
        The lowered model.
    linear : tuple of str
        Parameters that enter linearly.

    Returns
    -------
    str
        Several lines.
    """
    graph, params = definition.graph, definition.params
    lines, nodes = [], list(definition.roots)
    for o, root in enumerate(definition.roots):
        label = "f" if len(definition.roots) == 1 else f"f{o}"
        lines.append(f"{label} = {algebra(definition, root)}")
        (compiled,) = at_their_limits(graph, [root])
        for name, node in zip(params, jacobian(graph, compiled, len(params)), strict=True):
            text = "0" if node is None else algebra(definition, node)
            lines.append(f"  d{label}/d{name} = {text}")
            nodes += [] if node is None else [node]
    rest = [name for name in params if name not in linear]
    lines.append(f"linear: {', '.join(linear) or 'none'}; nonlinear: {', '.join(rest) or 'none'}")
    lines.append(
        f"operations: {count_operations(graph, nodes)} written out; after sharing "
        f"{len(program.body)} per point and {len(program.prologue)} per pass"
    )
    return "\n".join(lines)
