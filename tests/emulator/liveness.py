"""Which registers a thread needs after a barrier: a backward data-flow analysis over the blocks of a function."""

from __future__ import annotations

from .ptx import Function, Instruction

__all__ = ["live_at_barriers"]

_ENDS = ("bra", "ret", "exit")


def live_at_barriers(function: Function) -> dict[int, list[str]]:
    """Registers to keep at each barrier.

    Parameters
    ----------
    function : Function
        A kernel.

    Returns
    -------
    dict
        Index of the barrier among the function's items → names, sorted.
    """
    items = function.items
    blocks = _blocks(function)
    following = {begin: _successors(function, end) for begin, end in blocks.items()}
    before: dict[int, set[str]] = {begin: set() for begin in blocks}
    work = list(blocks)
    while work:
        begin = work.pop()
        alive = set().union(*(before[s] for s in following[begin]))
        for index in range(blocks[begin] - 1, begin - 1, -1):
            alive = _across(function, items[index], alive)
        if alive != before[begin]:
            before[begin] = alive
            work += [b for b, after in following.items() if begin in after]
    found = {}
    for begin, end in blocks.items():
        alive = set().union(*(before[s] for s in following[begin]))
        for index in range(end - 1, begin - 1, -1):
            item = items[index]
            if isinstance(item, Instruction) and item.is_barrier:
                found[index] = sorted(alive)
            alive = _across(function, item, alive)
    return found


def _across(function: Function, item: str | Instruction, alive: set[str]) -> set[str]:
    """What is alive before an item, from what is alive after it."""
    if isinstance(item, str):
        return alive
    writes, reads = function.uses(item)
    return (alive if item.predicate else alive - writes) | reads


def _blocks(function: Function) -> dict[int, int]:
    """First item of each basic block → one past its last."""
    items = function.items
    first = {0}
    for index, item in enumerate(items):
        if isinstance(item, str):
            first.add(index)
        elif item.op.startswith(_ENDS) and index + 1 < len(items):
            first.add(index + 1)
    begins = sorted(first)
    return dict(zip(begins, [*begins[1:], len(items)], strict=True))


def _successors(function: Function, end: int) -> list[int]:
    """Where control goes from the last item of a block."""
    items = function.items
    item = items[end - 1]
    after = [end] if end < len(items) else []
    if isinstance(item, str):
        return after
    if item.op.startswith("bra"):
        target = items.index(item.args[0])
        return [target, *after] if item.predicate else [target]
    return after if not item.op.startswith(("ret", "exit")) or item.predicate else []
