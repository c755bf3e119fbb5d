"""The hour of sleep, in local time."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta


def next_time(at: time, after: datetime) -> datetime:
    """Return when a clock on the wall next shows an hour, once each day, also where clocks are put forward or back.

    An hour that a day has twice is the first of the two; one that it lacks is as long after midnight as on other days.

    Args:
        at (`datetime.time`):
            The hour, in local time.
        after (`datetime.datetime`):
            With its time zone; what is returned, in UTC, is later.
    """
    today = after.astimezone().date()
    days = (today + timedelta(days=number) for number in range(3))
    seconds = (datetime.combine(day, at).timestamp() for day in days)  # `astimezone` errs where clocks go forward
    return next(moment for second in seconds if (moment := datetime.fromtimestamp(second, UTC)) > after)


class Alarm:
    """Rings once each day.

    Args:
        at (`datetime.time`):
            The hour, in local time.
        now (`datetime.datetime`):
            With its time zone.
    """

    def __init__(self, at: time, now: datetime) -> None:
        self.at = at
        self.due = next_time(at, now)

    def rings(self, now: datetime) -> bool:
        """Tell whether the hour has come since the alarm rang last. It is asked for and not waited for, so that a
        machine that slept through it, or whose clock was corrected, hears it as soon as it is awake."""
        if now < self.due:
            return False
        self.due = next_time(self.at, now)
        return True
