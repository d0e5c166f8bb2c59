"""When the warm-up ends: each criterion on its boundary, alone and switched off."""

from math import inf, nan, nextafter

import pytest

from nlsq_nb.phases.state import WarmupStop
from nlsq_nb.phases.switching import Switching

ALL = ("plateau", "gradient", "max_iter")


def switching(criteria=ALL, early=10, limit=20, plateau=0.25, gradient=0.5):
    return Switching(early, limit, plateau, gradient, criteria)


# -- calm ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("before", "after", "calm"),
    [
        (1.0, 0.75, True),  # exactly the threshold counts
        (1.0, nextafter(0.75, 0.0), False),
        (1.0, 1.25, True),
        (1.0, nextafter(1.25, 2.0), False),
        (0.0, 0.0, True),
        (0.0, 5e-324, False),
        (1.0, nan, False),
        (1.0, inf, False),
        (1e-18, 0.9e-18, True),  # relative: the size of the loss does not matter
        (1e-18, 0.7e-18, False),
    ],
)
def test_calm_counts_up_or_begins_anew(before, after, calm):
    assert switching().calm(4, before, after) == (5 if calm else 0)


# -- gradient --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("norm", "flat"),
    [
        (0.5, False),  # the threshold itself is not below the threshold
        (nextafter(0.5, 0.0), True),
        (0.0, True),
        (5e-324, True),
        (inf, False),
        (nan, True),  # there is nothing to go by
    ],
)
@pytest.mark.parametrize("iteration", [0, 1, 19])
def test_gradient_ends_it_at_any_iteration(norm, flat, iteration):
    verdict = switching(("gradient",)).verdict(iteration, 0, norm)
    assert verdict is (WarmupStop.GRADIENT if flat else None)


# -- plateau ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("iteration", "calm", "over"),
    [(9, 1, False), (9, 2, False), (9, 3, True), (10, 0, False), (10, 1, True), (3, 3, True), (15, 2, True)],
)
def test_plateau_lasts_three_iterations_early_and_one_later(iteration, calm, over):
    assert switching().verdict(iteration, calm, 9.0) is (WarmupStop.PLATEAU if over else None)


# -- the cap ---------------------------------------------------------------------------------
@pytest.mark.parametrize(("iteration", "over"), [(0, False), (19, False), (20, True), (21, True)])
def test_cap(iteration, over):
    assert switching().verdict(iteration, 0, 9.0) is (WarmupStop.MAX_ITERATIONS if over else None)


@pytest.mark.parametrize("criteria", [(), ("plateau",), ("gradient",), ("plateau", "gradient")])
def test_without_max_iter_the_cap_is_ten_times_as_far(criteria):
    assert switching().ceiling == 20
    without = switching(criteria)
    assert without.ceiling == 200
    assert without.verdict(199, 0, 9.0) is None
    assert without.verdict(200, 0, 9.0) is WarmupStop.MAX_ITERATIONS


def test_what_is_not_active_does_not_end_it():
    flat_and_calm = {"iteration": 15, "calm": 9, "gradient_norm": 0.0}
    assert switching(("max_iter",)).verdict(**flat_and_calm) is None
    assert switching(("plateau",)).verdict(**flat_and_calm) is WarmupStop.PLATEAU
    assert switching(("gradient",)).verdict(**flat_and_calm) is WarmupStop.GRADIENT


def test_convergence_is_named_before_the_cap():
    assert switching().verdict(20, 9, 0.0) is WarmupStop.GRADIENT
    assert switching().verdict(20, 9, 9.0) is WarmupStop.PLATEAU


def test_no_reason_of_the_warmup_is_success():
    assert not any(reason.success for reason in WarmupStop)
