"""A pass that threads share: each takes the next segment that nobody has taken, until there is none.

One thread leads: it posts the pass, calls helpers unless they are there, works at it as they do, and waits for what
they have begun. What a pass consists of is written before the number of segments LEFT, and stays until all of
them have ENDED; who has taken a segment, and only he, may read it. So helpers that come late, or stay for the next
pass, do no harm, and one that never comes is not missed. Helpers are threads of the system that Python knows
nothing of: they need no lock of it to begin or to end. Of a team they touch its words alone, PRESENT last of all.
"""

from __future__ import annotations

from nlsq_nb.backends.small.folding import close_section, fold_sections
from nlsq_nb.backends.small.native import (
    Floats,
    Ints,
    add_to_word,
    address_of,
    call_at,
    call_plain,
    floats_at,
    ints_at,
    native,
    pause,
    set_word,
    word,
)
from nlsq_nb.core.layout import SEGMENT

__all__ = ["WORDS", "help_on", "run_posted", "run_whole"]

LEFT, ENDED, STAYS, PRESENT, COUNT = range(0, 5 * 64, 64)
FAILED, HELPERS, KERNEL, TABLE, THETA, STATES, WIDTH, LO, FIRST, HI = range(COUNT + 8, COUNT + 11 * 8, 8)
YIELD, START, GIVEN, STARTED = HI + 8, HI + 16, HI + 24, HI + 56
"""Where the words of a team are, in bytes from its address, which is all that `task` has; those that change in a pass
have lines of the cache of their own. Segments that are left and ended, whether helpers stay between passes, how many
there are.

Of a pass: the number of segments, whether the kernel failed at one, how many helpers are wanted; addresses of the
kernel, the columns, the parameters and the sums; how many numbers the high and low sums of a segment are; the first
row, the row after the first segment, and the row after the last.

Of the system: the address of what gives way to other processes; of what starts a thread of `help_on`, and four things
that it is given; what it returns if it could."""

WORDS = 8 * 8
"""How many integers that are."""

SEGMENTS, SIZE, SUMS, TEAM, PASS = range(5)
"""What a plan has for `run_whole`: the first of what `folding` has in `task`, where room for two sums follows those of
the segments; the address of a team, and its words from COUNT on."""

POSTED = (HI - COUNT) // 8 + 1
"""How many of these say what a pass consists of."""

PATIENCE = 4_000
"""How often a helper that stays gives way to others before it leaves: some milliseconds."""

HOPE = 2_000
"""Pauses for which a thread waits for another before it gives way."""


@native
def take_one(team: int, k: int) -> None:
    """Sum over a segment; the first may have begun before these rows."""
    first, hi = word(team + FIRST), word(team + HI)
    lo = first + (k - 1) * SEGMENT if k > 0 else word(team + LO)
    state = word(team + STATES) + 8 * k * word(team + WIDTH)
    end = min(first + k * SEGMENT, hi)
    if call_at(word(team + KERNEL), lo, end, word(team + TABLE), word(team + THETA), state) != 0:
        set_word(team + FAILED, 1)


@native
def take_all(team: int) -> None:
    """Sum over segments as long as there are any."""
    while word(team + LEFT) > 0:
        left = add_to_word(team + LEFT, -1)
        if left > 0:
            take_one(team, word(team + COUNT) - left)
            add_to_word(team + ENDED, 1)


@native
def idle(team: int, turn: int) -> None:
    """Wait for a moment: the longer it takes, the likelier somebody else needs the processor."""
    if turn < HOPE or word(team + YIELD) == 0:
        pause()
    else:
        call_plain(word(team + YIELD))


@native
def help_on(team: int) -> int:
    """Work at what is posted, as long as the helpers of the team stay; always 0."""
    turn = 0
    while turn < HOPE + PATIENCE:
        if word(team + LEFT) > 0:
            take_all(team)
            turn = 0
        elif word(team + STAYS) == 0:
            break
        idle(team, turn)
        turn += 1
    add_to_word(team + PRESENT, -1)
    return 0


@native
def call_helpers(team: int) -> None:
    """Start the helpers that are not there, or as many as the system allows."""
    start = word(team + START)
    while start != 0 and word(team + PRESENT) < word(team + HELPERS):
        add_to_word(team + PRESENT, 1)
        one, two, three, four = team + GIVEN, team + GIVEN + 8, team + GIVEN + 16, team + GIVEN + 24
        if call_at(start, word(one), word(two), word(three), word(four), 0) != word(team + STARTED):
            add_to_word(team + PRESENT, -1)
            start = 0


@native
def run_posted(team: int) -> None:
    """Run a pass that is written down."""
    set_word(team + ENDED, 0)
    set_word(team + LEFT, word(team + COUNT))
    call_helpers(team)
    take_all(team)
    turn = 0
    while word(team + ENDED) < word(team + COUNT):
        idle(team, turn)
        turn += 1


@native
def add_up(plan: Ints, w: Floats, state: Floats) -> None:
    """Add the sums of all segments; `w` is room for those of sections."""
    size, inside = plan[SIZE], fold_sections(plan, w, 0, 0)
    if inside > 0:
        close_section(w, size, plan[SEGMENTS] - inside)
    for k in range(2 * size):
        state[k] = w[2 * size + k]


@native
def sum_whole(plan: Ints, theta: Floats, state: Floats) -> int:
    """One pass of a team, and the sum of its segments; 0 if it could."""
    team, size = plan[TEAM], plan[SIZE]
    for k in range(POSTED):
        set_word(team + COUNT + 8 * k, plan[PASS + k])
    set_word(team + THETA, address_of(theta))
    for k in range(2 * size * plan[SEGMENTS]):
        set_word(plan[SUMS] + 8 * k, 0)
    run_posted(team)
    add_up(plan, floats_at(plan[SUMS] + 16 * size * plan[SEGMENTS]), state)
    return word(team + FAILED)


@native
def run_whole(_lo: int, _hi: int, columns: Ints, theta: Floats, state: Floats) -> int:
    """A kernel of all rows, whose only column is the address of a plan."""
    return sum_whole(ints_at(columns[0]), theta, state)
