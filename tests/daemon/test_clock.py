"""The scheduled time comes once a day, also when clocks change."""

import os
import time
from datetime import UTC, datetime, timedelta
from datetime import time as hour

import pytest

from sleep_trl.daemon import Alarm, next_time

CENTRAL_EUROPE = "CET-1CEST,M3.5.0,M10.5.0/3"  # forward on 29 March 2026 at 2:00, back on 25 October at 3:00


@pytest.fixture(autouse=True)
def here():
    before = os.environ.get("TZ")
    os.environ["TZ"] = CENTRAL_EUROPE
    time.tzset()
    yield
    os.environ.pop("TZ")
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


def utc(*given: int) -> datetime:
    return datetime(*given, tzinfo=UTC)


@pytest.mark.parametrize(
    ("at", "after", "expected"),
    [
        (hour(3, 30), utc(2026, 7, 10, 1, 29), utc(2026, 7, 10, 1, 30)),
        (hour(3, 30), utc(2026, 7, 10, 1, 30), utc(2026, 7, 11, 1, 30)),  # later, not now
        (hour(0, 0), utc(2026, 7, 10, 21, 59), utc(2026, 7, 10, 22, 0)),  # already the next day in local time
        (hour(2, 30), utc(2026, 3, 29, 0, 0), utc(2026, 3, 29, 1, 30)),  # missing on that day: 3:30 in summer time
        (hour(2, 30), utc(2026, 10, 24, 23, 0), utc(2026, 10, 25, 0, 30)),  # there twice on that day: the first
        (hour(2, 30), utc(2026, 10, 25, 0, 30), utc(2026, 10, 26, 1, 30)),  # and not the second
    ],
)
def test_next_time(at, after, expected):
    assert next_time(at, after) == expected


@pytest.mark.parametrize("first", [utc(2026, 3, 27, 12), utc(2026, 10, 23, 12), utc(2026, 7, 1, 12)])
@pytest.mark.parametrize("at", [hour(2, 0), hour(2, 30), hour(3, 0), hour(23, 59)])
def test_it_rings_once_each_day(first, at):
    alarm = Alarm(at, first)
    rung = [now for now in (first + timedelta(minutes=m) for m in range(5 * 24 * 60)) if alarm.rings(now)]
    assert [now.astimezone().date() for now in rung] == sorted({now.astimezone().date() for now in rung})
    assert len(rung) == 5


def test_it_rings_late_if_the_machine_was_suspended_and_then_on_time_again():
    alarm = Alarm(hour(3, 30), utc(2026, 7, 10, 0, 0))
    assert alarm.rings(utc(2026, 7, 12, 9, 0)) and not alarm.rings(utc(2026, 7, 12, 9, 1))
    assert alarm.due == utc(2026, 7, 13, 1, 30)


def test_it_rings_after_a_clock_that_was_wrong():
    alarm = Alarm(hour(3, 30), utc(2031, 5, 1, 12))  # years ahead
    right = utc(2026, 7, 10, 12)
    assert not alarm.rings(right) and not alarm.rings(right + timedelta(hours=2))
    assert [alarm.rings(right + timedelta(hours=hours)) for hours in (24, 25, 48)] == [True, False, True]
    behind = Alarm(hour(3, 30), utc(1970, 1, 1))
    assert behind.rings(right) and not behind.rings(right + timedelta(hours=1))


def test_a_correction_of_seconds_does_not_ring_twice():
    due = next_time(hour(3, 30), utc(2026, 7, 10))
    alarm = Alarm(hour(3, 30), due - timedelta(hours=1))
    assert alarm.rings(due + timedelta(seconds=1))
    assert not alarm.rings(due - timedelta(seconds=20)) and not alarm.rings(due + timedelta(seconds=5))
