"""NormalSums is a commutative monoid with exact bookkeeping; Accumulator cuts rows where segments end."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_nb.core.compensated import PER_SECTION, add_compensated, sections_in
from nlsq_nb.core.layout import BLOCK, SEGMENT, packed_index, sums_size
from nlsq_nb.core.sums import Accumulator, NormalSums, SegmentStates

NUMBERS = st.floats(-1e120, 1e120, allow_subnormal=False)
SHAPES = st.tuples(st.integers(1, 4), st.integers(0, 2))


def sums(values, n_params, order, rows=1):
    high = np.array(values, dtype=float)
    return NormalSums(rows, n_params, order, high, np.zeros_like(high))


@st.composite
def several(draw, count):
    p, order = draw(SHAPES)
    size = sums_size(p, order)
    parts = draw(st.lists(st.lists(NUMBERS, min_size=size, max_size=size), min_size=count, max_size=count))
    rows = draw(st.lists(st.integers(0, 10**12), min_size=count, max_size=count))
    return [sums(values, p, order, n) for values, n in zip(parts, rows, strict=True)]


def exact(total):
    return [Fraction(float(h)) + Fraction(float(t)) for h, t in zip(total.high, total.low, strict=True)]


@given(several(1))
def test_zero_is_neutral(parts):
    (a,) = parts
    zero = NormalSums.zero(a.n_params, a.order)
    for total in (a + zero, zero + a):
        assert total.n_rows == a.n_rows
        assert total.order == a.order
        np.testing.assert_array_equal(total.high, a.high)
        np.testing.assert_array_equal(total.low, a.low)


@given(several(2))
def test_commutative_in_every_bit(parts):
    a, b = parts
    left, right = a + b, b + a
    assert left.n_rows == right.n_rows == a.n_rows + b.n_rows
    np.testing.assert_array_equal(left.high, right.high)
    np.testing.assert_array_equal(left.low, right.low)


@given(several(2))
def test_two_parts_are_added_exactly(parts):
    a, b = parts
    wanted = [x + y for x, y in zip(exact(a), exact(b), strict=True)]
    assert exact(a + b) == wanted


@given(several(3))
def test_associative_to_the_rounding_of_the_low_part(parts):
    a, b, c = parts
    left, right = (a + b) + c, a + (b + c)
    assert left.n_rows == right.n_rows
    for k, (u, v) in enumerate(zip(exact(left), exact(right), strict=True)):
        size = sum(Fraction(abs(float(part.high[k]))) for part in parts)
        assert abs(u - v) <= size * Fraction(2) ** -100


@given(st.lists(NUMBERS, max_size=200))
def test_many_parts_keep_twice_the_digits(values):
    total = NormalSums.zero(1, 0)
    for value in values:
        total = total + sums([value], 1, 0)
    (found,) = exact(total)
    size = sum(Fraction(abs(value)) for value in values)
    assert abs(found - sum(map(Fraction, values))) <= size * max(1, len(values)) ** 2 * Fraction(2) ** -105
    assert total.n_rows == len(values)


def test_what_plain_addition_loses_is_kept():
    total = NormalSums.zero(1, 0)
    for value in [1e16, *[1.0] * 1000, -1e16]:
        total = total + sums([value], 1, 0)
    assert total.sse == 1000.0
    plain = 0.0  # not sum(), which is compensated itself since Python 3.12
    for value in [1e16, *[1.0] * 1000, -1e16]:
        plain += value
    assert plain != 1000.0


@given(NUMBERS, NUMBERS)
def test_add_compensated_is_two_sum(a, b):
    high, low = add_compensated(np.array([a]), np.zeros(1), np.array([b]))
    assert high[0] == a + b
    assert Fraction(float(high[0])) + Fraction(float(low[0])) == Fraction(a) + Fraction(b)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_non_finite_parts_stay_visible(bad):
    total = sums([1.0], 1, 0) + sums([bad], 1, 0) + sums([2.0], 1, 0)
    assert not total.is_finite
    assert np.array_equal(total.packed, [bad], equal_nan=True)


@pytest.mark.parametrize("size", [1e200, 1e308])
def test_large_sums_are_finite(size):
    total = sums([size, -size], 1, 1)
    assert total.is_finite
    assert total.packed.tolist() == [size, -size]


def test_derived_is_no_part_of_the_value():
    total = sums([1.0, 2.0, 3.0], 1, 2)
    total.derived["length"] = 3
    assert total.derived == {"length": 3}
    assert (total + NormalSums.zero(1, 2)).derived == {}


@given(several(2), st.integers(0, 2))
def test_sum_has_the_smaller_order(parts, order):
    a, b = parts
    order = min(order, b.order)
    size = sums_size(b.n_params, order)
    smaller = sums(b.high[:size], b.n_params, order)
    total = a + smaller
    assert total.order == order
    assert exact(total) == [x + y for x, y in zip(exact(a)[:size], exact(smaller), strict=True)]


def test_parts_are_read_where_they_were_packed():
    p = 4
    jtj = np.arange(16.0).reshape(4, 4)
    jtj = jtj + jtj.T
    total = NormalSums.from_arrays(3.0, np.arange(4.0), jtj, 17)
    assert (total.sse, total.n_rows, total.order, total.n_params) == (3.0, 17, 2, p)
    assert total.jtr.tolist() == [0.0, 1.0, 2.0, 3.0]
    np.testing.assert_array_equal(total.jtj, jtj)
    assert len(total.packed) == sums_size(p, 2)
    for i in range(p):
        for j in range(i, p):
            assert total.packed[packed_index(p, i, j)] == jtj[i, j]


CHUNKS = st.lists(
    st.one_of(st.integers(1, 40).map(lambda k: k * BLOCK), st.integers(1, 3 * SEGMENT)), min_size=1, max_size=12
)


@given(CHUNKS)
def test_pieces_cover_the_rows_and_end_at_segments(chunks):
    into = Accumulator(1, 0)
    position = 0
    for rows in chunks:
        pieces = into.pieces(rows)
        assert pieces[0][0] == 0
        assert pieces[-1][1] == rows
        assert all(hi == lo for (_, hi), (lo, _) in itertools.pairwise(pieces))
        for lo, hi in pieces:
            assert lo < hi
            first, last = (position + lo) // SEGMENT, (position + hi - 1) // SEGMENT
            assert first == last, "a piece lies in one segment"
        for _, hi in pieces[:-1]:
            assert (position + hi) % SEGMENT == 0
        for index, (lo, hi) in enumerate(pieces):
            into.add(into.new_state(index == 0), hi - lo)
        position += rows
        assert into.position == position
    assert into.result().n_rows == position


@settings(max_examples=50)
@given(CHUNKS, st.integers(0, 2**32 - 1))
def test_any_chunks_give_the_same_bits(chunks, seed):
    """Every row adds one number; rows are folded one block after the other as a backend does."""
    rows = sum(chunks)
    blocks = -(-rows // BLOCK)
    values = np.random.default_rng(seed).normal(size=blocks) * 10.0 ** np.arange(blocks).clip(0, 12)

    def run(sizes):
        into, start = Accumulator(1, 0), 0
        for size in sizes:
            for index, (lo, hi) in enumerate(into.pieces(size)):
                state = into.new_state(index == 0)
                for row in range(start + lo, start + hi, BLOCK):
                    high, low = add_compensated(state[0], state[1], values[row // BLOCK : row // BLOCK + 1])
                    state[0], state[1] = high, low
                into.add(state, hi - lo)
            start += size
        return into.result()

    whole = [-(-size // BLOCK) * BLOCK for size in chunks[:-1]]
    last = rows - sum(whole)
    found = run([*whole, last] if last > 0 else [rows])
    assert (found.n_rows, found.high.tobytes(), found.low.tobytes()) == (
        rows,
        run([rows]).high.tobytes(),
        run([rows]).low.tobytes(),
    )
    assert abs(found.sse - math.fsum(values)) <= 1e-15 * np.abs(values).sum()


def test_a_result_keeps_its_bits_while_more_rows_come():
    into = Accumulator(1, 0)
    state = into.new_state(first=True)
    state[0] = 1.0
    into.add(state, BLOCK)
    first = into.result()
    state = into.new_state(first=True)
    state[0] += 2.0
    into.add(state, BLOCK)
    assert first.sse == 1.0
    assert into.result().sse == 3.0


def test_no_rows():
    into = Accumulator(2, 2)
    assert into.pieces(0) == []
    assert into.result().n_rows == 0
    assert not into.result().packed.any()


def one_by_one(states):
    """The sum of the grid, spelled out."""
    total = None
    for begin in range(0, len(states), 2 * PER_SECTION):
        section = None
        for high, low in states[begin : begin + 2 * PER_SECTION].reshape(-1, 2, states.shape[1]):
            section = added(section, high, low)
        total = added(total, *section)
    return total


def added(before, high, low):
    if before is None:
        return high, low
    high, rest = add_compensated(*before, high)
    return high, rest + low


@settings(max_examples=60)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, SEGMENT), st.integers(0, 2**32 - 1))
def test_sections_are_summed_apart_wherever_the_rows_are_cut(counts, last, seed):
    """Segments one by one, those of others in whole sections, and both in turn."""
    rng, count = np.random.default_rng(seed), sum(counts)
    states = rng.normal(size=(2 * count, 3)) * 10.0 ** rng.integers(-12, 12, (2 * count, 3))
    rows = (count - 1) * SEGMENT + last
    expected = np.stack(one_by_one(states))
    for joined in (False, True, None):
        into, at = Accumulator(1, 2), 0
        for k, some in enumerate(counts):
            mine = states[2 * at : 2 * (at + some)]
            taken = min(some * SEGMENT, rows - at * SEGMENT)
            if k % 2 if joined is None else joined:
                there = SegmentStates(1, 2, at)
                there.add(mine.copy(), taken)
                sent = there.states()
                assert len(sent) == 2 * sum(sections_in(at, taken))
                into.join(sent, taken)
            else:
                into.add(mine.copy(), taken)
            at += some
        found = into.result()
        assert found.n_rows == rows
        assert np.array_equal(np.stack([found.high, found.low]), expected)


def test_what_comes_of_a_part_does_not_grow_as_its_rows_do():
    there = SegmentStates(1, 2, 5)
    there.add(np.ones((2 * 6_000, 3)), 6_000 * SEGMENT)
    assert len(there.states()) == 2 * (11 + 374 + 5)


def test_a_sum_of_a_device_is_taken_as_it_is():
    into = Accumulator(1, 2)
    for rows in (40 * SEGMENT, 33 * SEGMENT, 3 * SEGMENT + 5):
        into.join(np.array([[1.0, 2.0, 3.0], [0.5, 0.0, 0.0]]), rows)
    found = into.result()
    assert (found.n_rows, found.packed.tolist()) == (76 * SEGMENT + 5, [4.5, 6.0, 9.0])
