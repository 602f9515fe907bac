"""When a worker that dies is not replaced any more, and when the run stops."""

import pytest

from grain_jax.annotation.deaths import MAX_DEATHS, MAX_OPENING, MAX_WORKING, Deaths
from grain_jax.annotation.run import StageStopped


def replaced_times(deaths: Deaths, place: int, *, was_open: bool) -> int:
    """How often a worker is replaced that only dies, while another makes rows."""
    for times in range(1000):
        deaths.made_row(1 - place)
        if was_open:
            deaths.opened(place)
        if not deaths.is_replaced(place, "why.", was_open=was_open):
            return times
    pytest.fail("it is replaced for ever")


@pytest.mark.parametrize(("was_open", "expected"), [(False, MAX_OPENING), (True, MAX_WORKING)])
def test_a_place_whose_worker_only_dies_stays_empty_while_others_work(was_open, expected):
    deaths = Deaths(2)
    assert replaced_times(deaths, 0, was_open=was_open) == expected - 1
    assert deaths.places_left == 1


def test_a_row_of_the_place_itself_forgives_its_deaths():
    deaths = Deaths(2)
    for _ in range(50):
        assert deaths.is_replaced(0, "why.", was_open=True)
        deaths.made_row(0)
        assert deaths.is_replaced(0, "why.", was_open=False)
        deaths.opened(0)
    assert deaths.places_left == 2


def test_the_run_stops_when_no_place_is_left():
    deaths = Deaths(2)
    replaced_times(deaths, 0, was_open=False)
    for _ in range(MAX_OPENING - 1):
        assert deaths.is_replaced(1, "lost.", was_open=False)
    with pytest.raises(StageStopped, match=r"No worker is left.*lost\. The same command"):
        deaths.is_replaced(1, "lost.", was_open=False)


def test_the_run_stops_when_many_workers_die_without_a_row():
    deaths = Deaths(100)
    for place in range(MAX_DEATHS - 1):
        assert deaths.is_replaced(place, "why.", was_open=True)
    with pytest.raises(StageStopped, match=f"{MAX_DEATHS} workers died one after the other"):
        deaths.is_replaced(50, "why.", was_open=True)
