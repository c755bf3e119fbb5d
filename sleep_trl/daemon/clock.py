"""The scheduled time of a night, in local time."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta

LONGEST = timedelta(hours=26)  # until a time of day, when clocks go back; a correction of seconds rings no second time


def next_time(at: time, after: datetime) -> datetime:
    """Return when a local time of day is next reached. It occurs once each day, also when clocks change.

    A time that a day has twice is the first of the two. A time that a day lacks is as long after midnight as usual.

    Args:
        at (`datetime.time`):
            Time of day, in local time.
        after (`datetime.datetime`):
            With a time zone. The returned time, in UTC, is later.
    """
    today = after.astimezone().date()
    days = (today + timedelta(days=number) for number in range(3))
    seconds = (datetime.combine(day, at).timestamp() for day in days)  # `astimezone` is wrong when clocks go forward
    return next(moment for second in seconds if (moment := datetime.fromtimestamp(second, UTC)) > after)


class Alarm:
    """Rings once a day.

    Args:
        at (`datetime.time`):
            Time of day, in local time.
        now (`datetime.datetime`):
            Present time, with a time zone.
    """

    def __init__(self, at: time, now: datetime) -> None:
        self.at = at
        self.due = next_time(at, now)

    def rings(self, now: datetime) -> bool:
        """Return whether the scheduled time has passed since the alarm last rang. Polling instead of waiting makes it
        ring late on a machine that was suspended, or whose clock was corrected. A time that is further away than a day
        was set by a clock that was wrong, and is set again."""
        if self.due - now > LONGEST:
            self.due = next_time(self.at, now)
        if now < self.due:
            return False
        self.due = next_time(self.at, now)
        return True
