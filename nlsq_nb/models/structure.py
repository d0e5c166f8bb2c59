"""What can be read off a model's graph: linear parameters, parameters that never occur."""

from __future__ import annotations

from collections.abc import Sequence

from nlsq_nb.codegen.differentiate import jacobian
from nlsq_nb.codegen.graph import Graph

__all__ = ["linear_parameters"]


def linear_parameters(graph: Graph, roots: Sequence[int], n_params: int) -> tuple[int, ...]:
    """Parameters that enter the model linearly, jointly.

    A parameter is linear when no derivative with respect to it contains it; a set is jointly linear
    when no derivative with respect to a member contains a member. Among the linear ones the
    largest set is approached greedily, those with the fewest conflicts first.

    Parameters
    ----------
    graph : Graph
        Holds the outputs; derivative nodes are added to it.
    roots : sequence of int
        The output nodes.
    n_params : int
        Number of parameters.

    Returns
    -------
    tuple of int
        Indices, ascending.
    """
    rows = [jacobian(graph, root, n_params) for root in roots]
    columns = [[row[k] for row in rows if row[k] is not None] for k in range(n_params)]

    def meets(i: int, j: int) -> bool:
        """Whether a mixed second derivative can differ from zero."""
        return any(d is not None and graph.depends_on(d, j) for d in columns[i])

    linear = [k for k in range(n_params) if columns[k] and not meets(k, k)]
    conflicts = {i: {j for j in linear if j != i and (meets(i, j) or meets(j, i))} for i in linear}
    chosen: list[int] = []
    for k in sorted(linear, key=lambda i: (len(conflicts[i]), i)):
        if conflicts[k].isdisjoint(chosen):
            chosen.append(k)
    return tuple(sorted(chosen))
