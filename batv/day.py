"""Days, and the three-digit stamps that tags carry.

A Day counts days since 1970-01-01 UTC. A stamp is a Day modulo 1000, so it comes round every 1000 days and
may only be compared by distance on the circle, never as a number: next time on 2027-07-01, day 21000.
The arithmetic is our own because the clock must stay outside: whoever has a clock hands in a Day.

Source: draft-levine-smtp-batv-01 section 4 (`prvs`, DDD).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self

from batv.errors import DayError

__all__ = ["CYCLE", "SECONDS_A_DAY", "Day", "stamp_distance"]

CYCLE: Final = 1000
"""Days after which a stamp comes round again."""

SECONDS_A_DAY: Final = 86_400
"""Seconds of a UTC day as POSIX time counts them: a leap second belongs to the day that it ends."""

_ISO = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")
_MONTHS: Final = 12
_STAMPS: Final = tuple(b"%03d" % number for number in range(CYCLE))


@dataclass(frozen=True, slots=True, order=True)
class Day:
    """A calendar day in UTC.

    Attributes:
        number: whole days since 1970-01-01.
    """

    number: int

    @classmethod
    def at(cls, posix_seconds: float) -> Self:
        """Return the UTC day of a POSIX time in seconds."""
        return cls(int(posix_seconds // SECONDS_A_DAY))

    @classmethod
    def from_iso(cls, text: str) -> Self:
        """Return the day written YYYY-MM-DD.

        Raises:
            DayError: the text has another form, or names a day that no calendar has.
        """
        match = _ISO.fullmatch(text)
        if match is not None:
            year, month, dom = (int(part) for part in match.groups())
            if 1 <= month <= _MONTHS and dom >= 1:
                day = cls(_days_from_civil(year, month, dom))
                if day.iso() == text:
                    return day
        raise DayError(f"'{text}' is no day", "write it as YYYY-MM-DD, in UTC")

    def iso(self) -> str:
        """Return the day as YYYY-MM-DD."""
        year, month, dom = _civil_from_days(self.number)
        return f"{year:04d}-{month:02d}-{dom:02d}"

    @property
    def stamp(self) -> bytes:
        """The day modulo 1000 as three ASCII digits: the DDD of a tag."""
        return _STAMPS[self.number % CYCLE]

    def stamp_after(self, days: int) -> bytes:
        """Return the stamp of the day that comes so many days later."""
        return _STAMPS[(self.number + days) % CYCLE]

    def __add__(self, days: int) -> Day:
        """Return the day that comes so many days later."""
        return Day(self.number + days)

    def __sub__(self, other: Day) -> int:
        """Return the days from the other day to this one."""
        return self.number - other.number

    def __str__(self) -> str:
        """Return the day as YYYY-MM-DD."""
        return self.iso()


def stamp_distance(stamp: bytes, day: Day) -> int:
    """Return how many days lie ahead of `day` until `stamp` is next reached: 0 to 999.

    Args:
        stamp: three ASCII digits, as the tag grammar hands them out.
        day: the day to measure from.
    """
    return (int(stamp) - day.number) % CYCLE


# The civil calendar in closed form, over eras of 400 years (146 097 days) with the year starting in March,
# so that a leap day falls at the end of the year.


def _days_from_civil(year: int, month: int, dom: int) -> int:
    year -= month <= 2  # noqa: PLR2004 -- January and February belong to the March year before
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + dom - 1
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return era * 146_097 + day_of_era - 719_468


def _civil_from_days(number: int) -> tuple[int, int, int]:
    era, day_of_era = divmod(number + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted_month = (5 * day_of_year + 2) // 153
    dom = day_of_year - (153 * shifted_month + 2) // 5 + 1
    month = shifted_month + 3 if shifted_month < 10 else shifted_month - 9  # noqa: PLR2004 -- March is 0
    return year_of_era + era * 400 + (month <= 2), month, dom  # noqa: PLR2004 -- see above
