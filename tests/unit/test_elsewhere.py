"""Residuals that go on from row to row are told from noise; starts elsewhere are seeded and within the bounds."""

import numpy as np
import pytest

from nlsq_nb.core.elsewhere import Ground, common_part, rivals

X = np.linspace(0.0, 10.0, 200)


def ground(**changed):
    first = np.array([2.0, 7.0, 0.5, -3.0])
    given = {
        "columns": (X,),
        "residuals": np.exp(-(((X - 3.0) / 0.3) ** 2)),
        "first": first,
        "found": first * 1.1,
        "lower": np.full(4, -np.inf),
        "upper": np.full(4, np.inf),
        "moves": np.array([False, True, True, False]),
    }
    return Ground(**{**given, **changed})


def test_noise_has_little_in_common():
    rng = np.random.default_rng(1)
    found = np.array([common_part(rng.normal(size=100)) for _ in range(2000)])
    assert found.mean() == pytest.approx(3.0, abs=0.3)  # χ² with three degrees of freedom
    assert np.mean(found > 11.3) < 0.02


@pytest.mark.parametrize("rows", [30, 300])
def test_a_lost_peak_shows(rows):
    x = np.linspace(0.0, 10.0, rows)
    r = np.random.default_rng(2).normal(size=rows) + 6.0 * np.exp(-(((x - 4.0) / 0.7) ** 2))
    assert common_part(r - r.mean()) > 11.3


def test_there_is_nothing_in_common_without_residuals():
    assert common_part(np.zeros(50)) == common_part(np.ones(6)) == common_part(np.zeros(0)) == 0.0


def test_starts_are_seeded_and_leave_linear_parameters_at_the_answer():
    g = ground()
    points = rivals(g, 64, 5)
    assert np.array_equal(points, rivals(g, 64, 5))
    assert np.array_equal(points[:20], rivals(g, 20, 5))
    assert not np.array_equal(points, rivals(g, 64, 6))
    assert np.array_equal(points[0], g.first)
    assert (points[1:, [0, 3]] == g.found[[0, 3]]).all()


def test_places_are_sought_where_residuals_are():
    places = rivals(ground(), 200, 0)[1::5, 1]
    assert np.mean(np.abs(places - 3.0) < 1.0) > 0.6
    assert np.mean(np.abs(places - 3.0) > 2.0) > 0.05


@pytest.mark.parametrize("residuals", [np.zeros(200), np.full(200, np.inf), np.full(200, 1e200)])
def test_places_are_anywhere_where_residuals_do_not_say(residuals):
    with np.errstate(all="ignore"):
        places = rivals(ground(residuals=residuals), 200, 0)[1::5, 1]
    assert np.ptp(places) > 8.0
    assert np.isin(places, X).all()


def test_starts_are_inside_the_bounds():
    g = ground(lower=np.array([-np.inf, 6.0, 0.4, -4.0]), upper=np.array([np.inf, 8.0, np.inf, -2.0]))
    points = rivals(g, 100, 0)[1:]
    assert (points[:, 1] > 6.0).all()
    assert (points[:, 1] < 8.0).all()
    assert (points[:, 2] >= 0.4).all()


@pytest.mark.parametrize("widest", [1e6, 1e300])
def test_bounds_far_away_do_not_push_starts(widest):
    near = ground(lower=np.array([2.2, 0.0, 0.0, -4.0]), upper=np.array([9.0, 9.0, 9.0, -2.0]))
    far = ground(lower=near.lower, upper=np.where(near.upper == 9.0, widest, near.upper))
    points = rivals(far, 100, 0)
    assert (points[1:, 0] == 2.2).all()  # a linear parameter on its bound stays there
    usual = np.arange(1, 100) % 5 != 0  # the fifth kind is drawn from all over
    assert (points[1:][usual, 1] < 100.0).all()
    assert np.mean(points[1:][usual, 2] < 1.0) > 0.5


def test_a_start_of_zero_is_left_too():
    points = rivals(ground(first=np.array([2.0, 0.0, 0.0, -3.0]), found=np.zeros(4)), 40, 0)
    assert np.ptp(points[:, 2]) > 1.0


def test_without_parameters_to_choose_there_is_p0_and_the_answer():
    points = rivals(ground(moves=np.zeros(4, dtype=bool)), 3, 0)
    assert np.array_equal(points, [ground().first, ground().found, ground().found])
